//! Exact numbers, counted in units of 10⁻¹² with as many digits as it takes.

use bigdecimal::num_bigint::BigInt;

/// Decimals after the point.
const SCALE: i64 = 12;

/// An exact number: so many units of 10⁻¹².
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(BigInt);

/// Why a text is no number that can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNumber {
    NotDecimal,
    Inexact,
}

impl Number {
    /// Reads `-?D+(.D+)?([eE][+-]?D{1,3})?` of at most 128 bytes, exact in 26 digits before and 12 after the point.
    pub fn read(text: &str) -> Result<Self, NoNumber> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            None => (text, 0),
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if !all_digits(digits) || digits.len() > 3 {
                    return Err(NoNumber::NotDecimal);
                }
                (mantissa, exponent.parse().map_err(|_| NoNumber::NotDecimal)?)
            }
        };
        let unsigned = mantissa.strip_prefix('-').unwrap_or(mantissa);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
        if !all_digits(whole) || !all_digits(fraction) {
            return Err(NoNumber::NotDecimal);
        }
        if text.len() > 128 {
            return Err(NoNumber::Inexact);
        }
        let digits: BigInt = format!("{whole}{fraction}").parse().map_err(|_| NoNumber::NotDecimal)?;
        let shift = SCALE + exponent - fraction.len() as i64;
        let units = if shift >= 0 {
            digits * ten_to(shift)
        } else {
            let by = ten_to(-shift);
            if &digits % &by != BigInt::ZERO {
                return Err(NoNumber::Inexact);
            }
            digits / by
        };
        if units >= ten_to(26 + SCALE) {
            return Err(NoNumber::Inexact);
        }
        Ok(Self(if mantissa.starts_with('-') { -units } else { units }))
    }

    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(all.into_iter().map(|number| &number.0).sum())
    }

    /// A share of it, rounded half-even to 12 decimals.
    pub fn over(&self, count: usize) -> Self {
        let (units, count) = (self.0.magnitude(), BigInt::from(count));
        let units = BigInt::from(units.clone());
        let (mut quotient, twice) = (&units / &count, (&units % &count) * 2);
        if twice > count || (twice == count && &quotient % 2 != BigInt::ZERO) {
            quotient += 1;
        }
        Self(if self.0 < BigInt::ZERO { -quotient } else { quotient })
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < BigInt::ZERO { "-" } else { "" };
        let digits = format!("{:0>13}", self.0.magnitude().to_string());
        let (whole, fraction) = digits.split_at(digits.len() - 12);
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { write!(f, "{sign}{whole}") } else { write!(f, "{sign}{whole}.{fraction}") }
    }
}

fn ten_to(power: i64) -> BigInt {
    BigInt::from(10).pow(power as u32)
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[test]
fn numbers_are_exact() {
    let read = |text| Number::read(text).map(|number| number.to_string());
    for (text, printed) in [("007.50", "7.5"), ("-0.0", "0"), ("1.5E-3", "0.0015"), ("1e25", "10000000000000000000000000"), ("0e999", "0")]
    {
        assert_eq!(read(text), Ok(printed.to_owned()), "{text}");
    }
    for text in ["1e26", "1e-13", "0.1234567890123", "-1e999"] {
        assert_eq!(read(text), Err(NoNumber::Inexact), "{text}");
    }
    for text in ["", "-", "+1", ".5", "1.", "1e", "1e1000", "abc", "true", " 1"] {
        assert_eq!(read(text), Err(NoNumber::NotDecimal), "{text}");
    }
    let over = |text, count| Number::read(text).map(|number| number.over(count).to_string());
    for (text, count, share) in
        [("-2", 3, "-0.666666666667"), ("0.000000000003", 2, "0.000000000002"), ("0.000000000001", 2, "0"), ("10", 4, "2.5")]
    {
        assert_eq!(over(text, count), Ok(share.to_owned()));
    }
}
