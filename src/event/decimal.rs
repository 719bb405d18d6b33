//! Decimal numbers, exact from JSON text to the answer.

use std::fmt;

use super::{JsonPath, Scalar};
use crate::metering::RejectCode;

/// Decimals after the point, as in ClickHouse's `Decimal(38, 12)`.
const SCALE: usize = 12;
/// Digits before the point.
const INTEGER_DIGITS: usize = 26;
/// Longest text that is read as a number, in bytes: 39 digits, a sign and an exponent fit several times.
const TEXT_BYTES: usize = 128;
/// Most characters of a value that a message quotes.
const SHOWN_CHARS: usize = 64;

/// An exact decimal number of up to 26 digits before and 12 after the point: what ClickHouse's `Decimal(38, 12)` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(i128);

/// Why a text is no [`Decimal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not of the form `-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?`.
    #[error("not a decimal number")]
    NotDecimal,
    /// A number, but keeping it would change it.
    #[error("more than 26 digits before or 12 after the point: it can't be kept exactly")]
    Inexact,
}

impl Decimal {
    /// Reads `-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?`: JSON's number literals, and leading zeros. Work and memory
    /// are bounded by the text's length, not by its exponent.
    ///
    /// # Errors
    /// [`DecimalError::NotDecimal`] for another text; [`DecimalError::Inexact`] for a number that needs more digits than
    /// there are, or is written in more than 128 bytes.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, rest) = digits(rest)?;
        let (fraction, rest) = rest.strip_prefix('.').map_or(Ok(("", rest)), digits)?;
        let exponent = exponent(rest)?;
        if text.len() > TEXT_BYTES {
            return Err(DecimalError::Inexact);
        }

        // The number is 0.DIGITS × 10^point with no zero at either end of DIGITS.
        let (mut whole, mut fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let mut point = exponent + whole.len() as i32;
        if fraction.is_empty() {
            whole = whole.trim_end_matches('0');
        }
        if whole.is_empty() {
            let zeros = fraction.len();
            fraction = fraction.trim_start_matches('0');
            point -= (zeros - fraction.len()) as i32;
        }
        let length = whole.len() + fraction.len();
        if length == 0 {
            return Ok(Self(0));
        }
        // Zeros to append so that the last digit is the 12th decimal.
        let shift = SCALE as i32 + point - length as i32;
        if point > INTEGER_DIGITS as i32 || shift < 0 {
            return Err(DecimalError::Inexact);
        }
        // At most 38 digits, which fit 127 bits.
        let digits = whole.bytes().chain(fraction.bytes()).fold(0_i128, |n, digit| n * 10 + i128::from(digit - b'0'));
        let scaled = digits * 10_i128.pow(shift.unsigned_abs());
        Ok(Self(if negative { -scaled } else { scaled }))
    }

    /// The number times 10^12: the integer inside ClickHouse's `Decimal(38, 12)`.
    pub const fn scaled(self) -> i128 {
        self.0
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = 10_u128.pow(SCALE as u32);
        let (whole, fraction) = (self.0.unsigned_abs() / one, self.0.unsigned_abs() % one);
        let sign = if self.0 < 0 { "-" } else { "" };
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let fraction = format!("{fraction:0SCALE$}");
        write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

/// Judges the value that a meter takes from an event.
///
/// # Errors
/// The code to refuse the event with, and a message that names the path and shows what stands there.
pub fn value(path: &JsonPath, scalar: Option<Scalar<'_>>) -> Result<Decimal, (RejectCode, String)> {
    let Some(scalar) = scalar else {
        return Err((RejectCode::MissingValue, format!("{path} is missing, null or not a single value: the meter needs a number there")));
    };
    Decimal::parse(scalar.text()).map_err(|why| {
        let code = match why {
            DecimalError::NotDecimal => RejectCode::InvalidValue,
            DecimalError::Inexact => RejectCode::InexactNumber,
        };
        (code, format!("{path} is {}: {why}", shown(scalar)))
    })
}

/// The value as in JSON, cut to a length for people.
fn shown(scalar: Scalar<'_>) -> String {
    let cut: String = scalar.text().chars().take(SHOWN_CHARS).collect();
    let more = if cut.len() < scalar.text().len() { "…" } else { "" };
    match scalar {
        Scalar::Text(_) => format!("{cut:?}{more}"),
        Scalar::Literal(_) => format!("{cut}{more}"),
    }
}

/// Takes one digit or more.
fn digits(text: &str) -> Result<(&str, &str), DecimalError> {
    match text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len()) {
        0 => Err(DecimalError::NotDecimal),
        end => Ok(text.split_at(end)),
    }
}

/// Reads the rest of a number: nothing, or an exponent.
fn exponent(text: &str) -> Result<i32, DecimalError> {
    if text.is_empty() {
        return Ok(0);
    }
    let signed = text.strip_prefix(['e', 'E']).ok_or(DecimalError::NotDecimal)?;
    let unsigned = signed.strip_prefix(['+', '-']).unwrap_or(signed);
    if !(1..=3).contains(&unsigned.len()) || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DecimalError::NotDecimal);
    }
    let exponent = unsigned.bytes().fold(0, |n, digit| n * 10 + i32::from(digit - b'0'));
    Ok(if signed.starts_with('-') { -exponent } else { exponent })
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use bigdecimal::BigDecimal;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_stay_themselves() {
        let most = format!("{}.{}", "9".repeat(26), "9".repeat(12));
        for (text, printed) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.1", "0.1"),
            ("-0.1", "-0.1"),
            ("1234.50", "1234.5"),
            ("00012", "12"),
            ("007.10", "7.1"),
            ("9007199254740993", "9007199254740993"),
            ("12345678901234567890.123456789", "12345678901234567890.123456789"),
            ("1e3", "1000"),
            ("1E+03", "1000"),
            ("12e-1", "1.2"),
            ("1e25", "10000000000000000000000000"),
            ("1e-12", "0.000000000001"),
            ("100e-14", "0.000000000001"),
            ("0.0001e13", "1000000000"),
            ("0.00000000000000001e17", "1"),
            ("1000000000000000000000000000000e-30", "1"),
            ("0e999", "0"),
            ("-0.000e-999", "0"),
            (most.as_str(), most.as_str()),
        ] {
            assert_eq!(Decimal::parse(text).map(|d| d.to_string()), Ok(printed.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_would_change_is_inexact() {
        let long_zero = "0".repeat(129);
        for text in ["1e400", "1e-13", "1e26", "100000000000000000000000000", "0.0000000000001", "1.0000000000001", "-1e999", &long_zero] {
            assert_eq!(Decimal::parse(text), Err(DecimalError::Inexact), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_decimals() {
        let long = "x".repeat(200);
        for text in [
            "", "-", "NaN", "Infinity", "true", "{}", "[]", " 1", "1 ", "+1", ".5", "5.", "1.e3", "1e", "1e+", "1e1000", "--1", "1_000",
            "1,5", "0x10", "１", "1.5.2", "1e1.5", "1\0", &long,
        ] {
            assert_eq!(Decimal::parse(text), Err(DecimalError::NotDecimal), "{text:?}");
        }
    }

    #[test]
    fn scaled_is_what_clickhouse_stores() {
        assert_eq!(Decimal::parse("-1.5").map(Decimal::scaled), Ok(-1_500_000_000_000));
    }

    #[test]
    fn a_judgement_says_where_and_what() {
        let path = JsonPath::parse("$.tokens").unwrap();
        let judge = |scalar| value(&path, scalar).map(|d| d.to_string());
        assert_eq!(judge(Some(Scalar::Literal("1.50"))), Ok("1.5".to_owned()));
        assert_eq!(judge(Some(Scalar::Text("1.50"))), Ok("1.5".to_owned()));
        let refused = |scalar| judge(scalar).unwrap_err();
        assert_eq!(refused(Some(Scalar::Text("abc"))), (RejectCode::InvalidValue, "$.tokens is \"abc\": not a decimal number".to_owned()));
        for literal in ["true", "false", "{}", "[]"] {
            assert_eq!(refused(Some(Scalar::Literal(literal))).0, RejectCode::InvalidValue);
        }
        assert_eq!(refused(Some(Scalar::Text(""))).0, RejectCode::InvalidValue);
        assert_eq!(refused(Some(Scalar::Literal("1e400"))).0, RejectCode::InexactNumber);
        let (code, message) = refused(None);
        assert_eq!(code, RejectCode::MissingValue);
        assert!(message.starts_with("$.tokens is missing"), "{message}");
        let (_, message) = refused(Some(Scalar::Text(&"ä".repeat(1000))));
        assert!(message.chars().count() < 120, "{message}");
    }

    /// Judges a number by an independent library: is it exact in 26 and 12 digits?
    fn expected(text: &str) -> Result<BigDecimal, DecimalError> {
        let number = BigDecimal::from_str(text).unwrap();
        let fits = number.abs() < BigDecimal::from_str("1e26").unwrap() && number.with_scale(12) == number;
        if fits { Ok(number) } else { Err(DecimalError::Inexact) }
    }

    proptest! {
        #[test]
        fn agrees_with_bigdecimal(text in r"-?[0-9]{1,40}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?") {
            let ours = Decimal::parse(&text);
            prop_assert_eq!(ours.map(|d| BigDecimal::from_str(&d.to_string()).unwrap()), expected(&text));
            if let Ok(ours) = ours {
                prop_assert_eq!(BigDecimal::new(ours.scaled().into(), 12), expected(&text).unwrap());
                prop_assert_eq!(Decimal::parse(&ours.to_string()), Ok(ours));
            }
        }

        #[test]
        fn zeros_at_either_end_change_nothing(zeros in 0_usize..30, text in r"[0-9]{1,30}\.[0-9]{1,14}") {
            let padded = format!("{}{text}{}", "0".repeat(zeros), "0".repeat(zeros));
            prop_assert_eq!(Decimal::parse(&padded), Decimal::parse(&text));
        }

        #[test]
        fn any_text_is_judged(text in ".{0,40}") {
            let _ = Decimal::parse(&text);
        }
    }
}
