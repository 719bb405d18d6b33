//! The runs of a ClickHouse server: each gives out numbers of blocks anew, maybe from another disk. Pure.

use serde::{Deserialize, Serialize};

/// What a server said of its run at one moment.
#[derive(Serialize, Deserialize, Clone, Copy, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// When it was started, s since 1970, by its clock, which may be set meanwhile.
    pub started_s: i64,
    /// How long it had been running, s, whatever its clock said. 0 in notes of builds that did not ask.
    #[serde(default)]
    pub uptime_s: i64,
}

/// By how much two times may differ that are the same, s: each is the difference of two whole seconds.
const INEXACT_S: u64 = 2;

/// SQL: the columns of a [`Run`].
pub const RUN: &str = "toInt64(toUnixTimestamp(now())) - toInt64(uptime()) AS started_s, toInt64(uptime()) AS uptime_s";

impl Run {
    /// Whether what is said later is of the same run. If ClickHouse's clock was set meanwhile it is taken for another one, which costs a
    /// look. A machine whose clock begins at the same time whenever it boots would make another run look the same: that its age is
    /// less tells.
    pub const fn goes_on(self, later: Self) -> bool {
        later.started_s.abs_diff(self.started_s) <= INEXACT_S && later.uptime_s >= self.uptime_s
    }

    /// SQL: whether this run goes on, `{started:Int64}` and `{uptime:Int64}` being bound.
    pub fn goes_on_sql() -> String {
        format!(
            "abs(toInt64(toUnixTimestamp(now())) - toInt64(uptime()) - {{started:Int64}}) <= {INEXACT_S} AND uptime() >= {{uptime:Int64}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_while_its_start_stays_and_its_age_grows() {
        let run = Run { started_s: 1_000, uptime_s: 60 };
        for (started_s, uptime_s, goes_on) in
            [(1_000, 60, true), (1_002, 61, true), (998, 5_000, true), (1_003, 61, false), (997, 61, false), (1_000, 59, false)]
        {
            assert_eq!(run.goes_on(Run { started_s, uptime_s }), goes_on, "{started_s} {uptime_s}");
        }
    }
}
