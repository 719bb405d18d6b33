//! How long a Meter's table keeps usage: whole months (UTC), each of which is there or gone. Pure.
//!
//! ```text
//! ── months that were let go ──┤◄── months that are kept, each whole: in every number ──► now
//!                              │        ▲
//!        TableNote::let_go ────┘        └── the Meter's retention, at least
//! ```
//! No number goes by a clock. The operator notes in the table's comment up to which month it lets go
//! ([`TableNote::let_go`](super::note::TableNote::let_go)), and drops those partitions then; a question reads the months after that. No clock is
//! believed alone: a month may go when both the operator's and ClickHouse's say that all of it has been past for a day. Were both
//! wrong, and are set right, the note tells: gateways answer nothing that needs such a month, and the operator makes another table.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A month, `yyyymm`.
pub type Month = u32;

/// How long a month is past before it goes: a clock that is set back by less makes no table incomplete.
const MARGIN: SignedDuration = SignedDuration::from_hours(24);

/// What a retention says by several clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The first month that some usage is kept of, by all clocks.
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

/// The month of a time, in UTC, as partitions are. 0: one before the year 1.
pub fn month_of(time: Timestamp) -> Month {
    let date = time.to_zoned(TimeZone::UTC);
    match u32::try_from(date.year()) {
        Ok(year) if year > 0 => year * 100 + u32::from(date.month().unsigned_abs()),
        _ => 0,
    }
}

/// The first month that has usage which is kept.
pub fn first_kept(now: Timestamp, days: u32) -> Month {
    // Months begin with 1, also where time does.
    month_of(now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MIN)).max(1)
}

/// The last month that may go.
pub fn may_go(now: Timestamp, days: u32) -> Month {
    let kept = first_kept(now.checked_sub(MARGIN).unwrap_or(Timestamp::MIN), days);
    match kept % 100 {
        1 => kept.saturating_sub(89),
        _ => kept - 1,
    }
}

/// The month after one.
pub const fn after(month: Month) -> Month {
    if month % 100 == 12 { month + 89 } else { month + 1 }
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
            ("0001-02-02T00:00:00Z", 1, 102, 12),
            ("-009999-01-02T01:59:59Z", 99_999, 1, 0),
        ] {
            let now = now.parse().unwrap();
            assert_eq!((first_kept(now, days), may_go(now, days)), (kept, goes), "{now}, {days} days");
            assert!(Kept::by([now, now], days).may_go < kept && after(goes) <= kept);
        }
    }
}
