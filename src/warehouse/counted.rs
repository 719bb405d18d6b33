//! Which rows of a Meter's table count, as text. Pure.
//!
//! A key (subject, time, id) counts with its row of the greatest version, and `FINAL` over the whole table is always right.
//! But it merges all rows of all parts while it reads, which takes five times as long as reading them. Nearly every event
//! comes once, and its row says so ([`row`](super::row)): a table's partitions are of a month and of a [`Kind`] of rows.
//!
//! ```text
//! sent    first sendings: one row of a key at most     read as they are ──┬─ but for keys that were written again
//! copied  first sendings, copied by a backfill,        read FINAL ────────┘
//!         maybe twice when it was cut off
//! again   everything else: written again, cancelled,   read FINAL
//!         completed, copied but maybe sent, too
//! ```
//! A key that has a row of kind `again` has the one that counts among these: their versions are greater than all others'.

use jiff::{Timestamp, civil::Time, tz::TimeZone};

use super::row::{ARRIVAL_MARK, written_again_sql};
use super::sql::identifier;

/// A kind of rows: the second part of a partition's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sent = 0,
    Again = 1,
    Copied = 2,
}

impl Kind {
    /// The condition that a row is of this kind; only its partition is looked at. A table of an earlier layout has no kinds,
    /// so any of its rows may have others.
    fn condition(self) -> String {
        let is = |kind: Self| format!("endsWith(_partition_id, '-{}')", kind as u8);
        match self {
            Self::Sent | Self::Copied => is(self),
            Self::Again => format!("NOT {} AND NOT {}", is(Self::Sent), is(Self::Copied)),
        }
    }
}

/// SQL: compares with months (`yyyymm`) as their partitions' names do, which begin with them. No row's time is read.
pub const MONTH_OF_PARTITION: &str = "_partition_id";

/// The month (`yyyymm`) that begins at this time. None: no month of a table's partitions does.
pub fn begins_month(time: Timestamp) -> Option<String> {
    let date = time.to_zoned(TimeZone::UTC);
    let is_begin = date.day() == 1 && date.datetime().time() == Time::midnight();
    (is_begin && (1..=9999).contains(&date.year())).then(|| date.strftime("%Y%m").to_string())
}

/// SQL: whether a partition of the months (`yyyymm`) between `{from:UInt32}` and `{to:UInt32}` has rows of kind `again`.
pub fn is_again_between() -> String {
    let kind = Kind::Again.condition().replace("_partition_id", "partition_id");
    format!("toUInt32OrZero(substring(partition_id, 1, 6)) BETWEEN {{from:UInt32}} AND {{to:UInt32}} AND {kind}")
}

/// A meter table's partition key.
pub fn partition_key() -> String {
    format!(
        "(toYYYYMM(time), multiIf(version >= {ARRIVAL_MARK}, {}, copied, {}, {}))",
        Kind::Again as u8,
        Kind::Copied as u8,
        Kind::Sent as u8
    )
}

/// The version that a stored event has as a copy. What was written after block `{block:UInt64}` of `events`, or while
/// ClickHouse was not the one that started at `{started:Int64}`, may have come by the view, too, as the first of its key.
pub fn copied_version(block: &str) -> String {
    let is_same = "abs(toInt64(toUnixTimestamp(now())) - toInt64(uptime()) - {started:Int64}) <= 2";
    format!("if({block} > if({is_same}, {{block:UInt64}}, 0), {}, version)", written_again_sql())
}

/// How the rows that count are found. Both find the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// `FINAL` over all. Quicker where there is little to merge, and right where a question can't see all kinds at one
    /// moment: on a cluster a shard is asked for each kind by itself.
    Final,
    /// Each [`Kind`] as it needs. Takes memory for each key that was written again, in the months that are asked for.
    ByKind,
}

/// A FROM that has each row of a Meter's table that counts, once: those that meet `keys`, conditions on what all rows of a
/// key share, and `others`.
pub fn counted(database: &str, table: &str, reading: Reading, keys: &[String], others: &[String]) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    let all = |first: &[String]| format!(" WHERE {}", [first, keys, others].concat().join(" AND "));
    if reading == Reading::Final {
        // Before the merge, for all rows of a key meet them or none; by itself ClickHouse merges first.
        let prewhere = if keys.is_empty() { String::new() } else { format!(" PREWHERE {}", keys.join(" AND ")) };
        let others = if others.is_empty() { String::new() } else { format!(" WHERE {}", others.join(" AND ")) };
        return format!("{table} FINAL{prewhere}{others}");
    }
    let again = [&[Kind::Again.condition()], keys].concat().join(" AND ");
    let not_again = format!("id NOT IN (SELECT id FROM {table} WHERE {again})");
    let sent = all(&[Kind::Sent.condition(), not_again.clone()]);
    let copied = all(&[Kind::Copied.condition(), not_again]);
    let again = all(&[Kind::Again.condition()]);
    // Rows of one key and kind are of one month.
    let by_month = "SETTINGS do_not_merge_across_partitions_select_final = 1";
    // All of it sees the table at one moment: `enable_shared_storage_snapshot_in_query`.
    format!(
        "(SELECT * FROM {table}{sent} UNION ALL SELECT * FROM {table} FINAL{copied} {by_month} UNION ALL SELECT * FROM {table} FINAL{again} {by_month})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_at_its_first_instant_in_utc() {
        let month = |time: &str| begins_month(time.parse().expect("a time"));
        assert_eq!(month("2026-03-01T00:00:00Z").as_deref(), Some("202603"));
        assert_eq!(month("2026-03-01T01:00:00+01:00").as_deref(), Some("202603"));
        assert_eq!(month("0001-01-01T00:00:00Z").as_deref(), Some("000101"));
        for time in ["2026-03-01T00:00:00.000000001Z", "2026-03-02T00:00:00Z", "2026-03-01T00:00:00+01:00", "-000001-01-01T00:00:00Z"] {
            assert_eq!(month(time), None, "{time}");
        }
    }

    #[test]
    fn what_was_written_again_decides_about_its_keys_whatever_else_a_question_asks() {
        let keys = ["subject = 's'".to_owned()];
        let others = ["value IS NOT NULL".to_owned()];
        let all = counted("d", "t", Reading::Final, &keys, &others);
        assert_eq!(all, "`d`.`t` FINAL PREWHERE subject = 's' WHERE value IS NOT NULL");
        let from = counted("d", "t", Reading::ByKind, &keys, &others);
        let (again, by_month) = (
            "NOT endsWith(_partition_id, '-0') AND NOT endsWith(_partition_id, '-2')",
            "SETTINGS do_not_merge_across_partitions_select_final = 1",
        );
        assert_eq!(
            from,
            format!(
                "(SELECT * FROM `d`.`t` WHERE endsWith(_partition_id, '-0') AND id NOT IN (SELECT id FROM `d`.`t` WHERE {again} AND subject = 's') \
                 AND subject = 's' AND value IS NOT NULL \
                 UNION ALL SELECT * FROM `d`.`t` FINAL WHERE endsWith(_partition_id, '-2') AND id NOT IN (SELECT id FROM `d`.`t` WHERE {again} AND subject = 's') \
                 AND subject = 's' AND value IS NOT NULL {by_month} \
                 UNION ALL SELECT * FROM `d`.`t` FINAL WHERE {again} AND subject = 's' AND value IS NOT NULL {by_month})"
            )
        );
    }
}
