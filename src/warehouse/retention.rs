//! How long a Meter's table keeps rows. Pure.
//!
//! ```text
//! ──── months that may go ────┤ a day and more │◄──── the Meter's retention ────► now
//!       the operator drops            past:     │       in every number
//!        whole partitions         in no number  │
//! ```
//! Before the operator drops months it notes up to which ([`TableNote::let_go`](super::note::TableNote::let_go)). No clock is believed
//! alone: a month goes, and a row is past, when both the operator's or gateway's clock and ClickHouse's say so. If both were wrong,
//! and are set right, the note tells: gateways don't answer of months that are not there, and the operator fills the table again.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A month, `yyyymm`.
pub type Month = u32;

/// How long a month is past before it goes: a clock that is set back by less brings none back into the numbers.
const MARGIN: SignedDuration = SignedDuration::from_hours(24);

/// What a retention says by several clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The first month that some rows are kept of, by all clocks.
    pub first: Month,
    /// The last month that may go, by all clocks.
    pub may_go: Month,
}

impl Kept {
    /// What is kept for so many days, by two clocks.
    pub fn by(clocks: [Timestamp; 2], days: u32) -> Self {
        let [one, other] = clocks;
        let kept = Self { first: first_kept(one.max(other), days), may_go: may_go(one.min(other), days) };
        assert!(kept.may_go < kept.first, "a month would go that is kept: {kept:?}");
        kept
    }
}

/// The month of a time, in UTC, as partitions are.
pub fn month_of(time: Timestamp) -> Month {
    let date = time.to_zoned(TimeZone::UTC);
    u32::from(date.year().max(0).unsigned_abs()) * 100 + u32::from(date.month().unsigned_abs())
}

/// Since when events are kept.
pub fn kept_since(now: Timestamp, days: u32) -> Timestamp {
    now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MIN)
}

/// The first month that has rows that are kept.
pub fn first_kept(now: Timestamp, days: u32) -> Month {
    month_of(kept_since(now, days))
}

/// The last month that may go.
pub fn may_go(now: Timestamp, days: u32) -> Month {
    let kept = month_of(kept_since(now.checked_sub(MARGIN).unwrap_or(Timestamp::MIN), days));
    if kept % 100 == 1 { kept - 89 } else { kept.saturating_sub(1) }
}

/// SQL: whether a row's `time` is not past. Needs `{kept_since:Int64}`, ms by the gateway's clock.
pub fn is_kept(days: u32) -> String {
    format!(
        "time >= fromUnixTimestamp64Milli(least({{kept_since:Int64}}, (toInt64(toUnixTimestamp(now())) - {days} * 86400) * 1000), 'UTC')"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_goes_when_its_last_moment_is_past_for_a_day() {
        for (now, days, kept, goes) in [
            ("2026-03-31T00:00:00Z", 30, 202_603, 202_601),
            ("2026-03-31T23:59:59.999Z", 30, 202_603, 202_601),
            ("2026-04-01T00:00:00Z", 30, 202_603, 202_602),
            ("2026-01-31T00:00:00Z", 30, 202_601, 202_511),
            ("2026-02-01T00:00:00Z", 30, 202_601, 202_512),
            ("2026-02-02T00:00:00Z", 1, 202_602, 202_512),
            ("2026-02-03T00:00:00Z", 1, 202_602, 202_601),
            ("1970-01-01T00:00:00Z", 400, 196_811, 196_810),
            ("2026-11-30T00:00:00Z", 99_999, 175_302, 175_301),
            ("-009999-01-02T01:59:59Z", 99_999, 1, 0),
        ] {
            let now = now.parse().unwrap();
            assert_eq!((first_kept(now, days), may_go(now, days)), (kept, goes), "{now}, {days} days");
        }
    }
}
