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

use std::sync::Arc;

use jiff::{Timestamp, civil::Time, tz::TimeZone};

use super::row::{ARRIVAL_MARK, written_again_sql};
use super::run::Run;
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

/// SQL: whether the partition that `column` names is of the months (`yyyymm`) between `{from:UInt32}` and `{to:UInt32}`.
fn is_between(column: &str) -> String {
    format!("toUInt32OrZero(substring({column}, 1, 6)) BETWEEN {{from:UInt32}} AND {{to:UInt32}}")
}

/// Settings by which ClickHouse counts a table's rows by what it knows of parts, and reads none.
pub const BY_PARTS: &str = "optimize_use_projections = 1, optimize_use_implicit_projections = 1";

/// Rows of the months (`yyyymm`) between `{from:UInt32}` and `{to:UInt32}`: those of kind `again`, and all. `system.parts` would tell it,
/// too, but looks at each table of the database for it.
pub fn count_rows(database: &str, table: &str) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    format!(
        "SELECT toUInt64(sumIf(rows, {})), toUInt64(sum(rows)) FROM \
         (SELECT _partition_id, count() AS rows FROM {table} WHERE {} GROUP BY _partition_id) SETTINGS {BY_PARTS}",
        Kind::Again.condition(),
        is_between("_partition_id")
    )
}

/// Subjects that have rows of kind `again` in these months, `{most:UInt64}` of them at most.
pub fn subjects_again(database: &str, table: &str) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    format!(
        "SELECT DISTINCT subject FROM {table} WHERE {} AND {} LIMIT {{most:UInt64}}",
        Kind::Again.condition(),
        is_between("_partition_id")
    )
}

/// About how many rows [`AGAIN`]'s subjects have in these months: by the index, nothing is read.
pub fn estimate_by_subject(database: &str, table: &str) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    let month = is_between("_partition_id");
    format!("SELECT toUInt64(sum(rows)) FROM (EXPLAIN ESTIMATE SELECT id FROM {table} WHERE {month} AND subject IN {AGAIN})")
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

/// The version that a stored event has as a copy. What was written after block `{block:UInt64}` of `events` may have come by
/// the view, too, as the first of its key.
pub fn copied_version(block: &str) -> String {
    format!("if({block} > {}, {}, version)", known_block("{block:UInt64}"), written_again_sql())
}

/// SQL: a block's number, for as long as the [`Run`] goes on that gave it; then 0, for numbers are given anew.
pub fn known_block(number: &str) -> String {
    format!("if({}, {number}, 0)", Run::goes_on_sql())
}

/// How the rows that count are found. All find the same, for all that a statement reads it sees at one moment
/// (`enable_shared_storage_snapshot_in_query`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// `FINAL` over all. Quicker where there is little to merge, and right where a question can't see all kinds at one
    /// moment: on a cluster a shard is asked for each kind by itself.
    Final,
    /// Each [`Kind`] as it needs. Takes memory for each key that was written again, in the months that are asked for.
    ByKind,
    /// First sendings alone, no key of which is looked at. Where a key was written again ClickHouse **refuses** the question, in
    /// the moment that it reads: then it is to be asked [`Self::ByKind`].
    FirstsAlone,
    /// For what is added up by subject ([`counted_by_subject`]): of these subjects [`Self::ByKind`], of all others first sendings
    /// alone. Where a key of another was written again ClickHouse **refuses** the question, as above. Rows of one key have one subject.
    BySubject(Arc<[String]>),
}

/// SQL: the subjects of [`Reading::BySubject`]. In the statement their names cost less than to ask for them each time they are needed.
pub const AGAIN: &str = "{again:Array(String)}";

/// Why ClickHouse refuses what was asked too late.
const WRITTEN_AGAIN: &str = "there are rows written again";

/// Rows of one key and kind are of one month.
const BY_MONTH: &str = "SETTINGS do_not_merge_across_partitions_select_final = 1";

/// A FROM that has each row of a Meter's table that counts, once: those that meet `keys`, conditions on what all rows of a
/// key share, and `others`.
pub fn counted(database: &str, table: &str, reading: &Reading, keys: &[String], others: &[String]) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    match reading {
        Reading::Final => {
            // Before the merge, for all rows of a key meet them or none; by itself ClickHouse merges first.
            let prewhere = if keys.is_empty() { String::new() } else { format!(" PREWHERE {}", keys.join(" AND ")) };
            let others = if others.is_empty() { String::new() } else { format!(" WHERE {}", others.join(" AND ")) };
            format!("{table} FINAL{prewhere}{others}")
        }
        Reading::ByKind | Reading::BySubject(_) => by_kind(&table, keys, others, false),
        Reading::FirstsAlone => {
            let refused = [&[Kind::Again.condition()], keys].concat().join(" AND ");
            let firsts = firsts(&table, &[keys, others].concat());
            format!("({firsts} UNION ALL SELECT * FROM {table} WHERE {refused} AND NOT throwIf(version > 0, '{WRITTEN_AGAIN}'))")
        }
    }
}

/// For [`Reading::BySubject`]: a FROM of first sendings, of which those of [`AGAIN`] don't count, and a FROM that has what counts
/// of these subjects.
pub fn counted_by_subject(database: &str, table: &str, keys: &[String], others: &[String]) -> (String, String) {
    let name = format!("{}.{}", identifier(database), identifier(table));
    let firsts = format!("({})", firsts(&name, &[keys, others].concat()));
    (firsts, by_kind(&name, keys, others, true))
}

/// [`Reading::ByKind`], of all subjects or of [`AGAIN`] alone: then it is refused where others have rows of kind `again`. The keys of
/// what was written again are asked of first sendings together: by itself ClickHouse would collect them for each part of a UNION.
fn by_kind(table: &str, keys: &[String], others: &[String], is_of_some: bool) -> String {
    let again = [&[Kind::Again.condition()], keys].concat().join(" AND ");
    let (firsts_only, checked) = if is_of_some {
        // Checked before the merge, which would leave cancelled ones out.
        let checked = format!(" PREWHERE {again} AND NOT throwIf(subject NOT IN {AGAIN}, '{WRITTEN_AGAIN}')");
        (format!("subject IN {AGAIN} AND "), checked)
    } else {
        Default::default()
    };
    let firsts = firsts(table, &[keys, others].concat());
    let all = [std::slice::from_ref(&again), others].concat().join(" AND ");
    format!(
        "(SELECT * FROM ({firsts}) WHERE {firsts_only}id NOT IN (SELECT id FROM {table} WHERE {again}) \
         UNION ALL SELECT * FROM {table} FINAL{checked} WHERE {all} {BY_MONTH})"
    )
}

/// First sendings that meet conditions.
fn firsts(table: &str, conditions: &[String]) -> String {
    let all = |kind: Kind| [&[kind.condition()], conditions].concat().join(" AND ");
    let (sent, copied) = (all(Kind::Sent), all(Kind::Copied));
    format!("SELECT * FROM {table} WHERE {sent} UNION ALL SELECT * FROM {table} FINAL WHERE {copied} {BY_MONTH}")
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
        let all = counted("d", "t", &Reading::Final, &keys, &others);
        assert_eq!(all, "`d`.`t` FINAL PREWHERE subject = 's' WHERE value IS NOT NULL");
        let from = counted("d", "t", &Reading::ByKind, &keys, &others);
        let (again, by_month) = (
            "NOT endsWith(_partition_id, '-0') AND NOT endsWith(_partition_id, '-2')",
            "SETTINGS do_not_merge_across_partitions_select_final = 1",
        );
        assert_eq!(
            from,
            format!(
                "(SELECT * FROM (SELECT * FROM `d`.`t` WHERE endsWith(_partition_id, '-0') AND subject = 's' AND value IS NOT NULL \
                 UNION ALL SELECT * FROM `d`.`t` FINAL WHERE endsWith(_partition_id, '-2') AND subject = 's' AND value IS NOT NULL {by_month}) \
                 WHERE id NOT IN (SELECT id FROM `d`.`t` WHERE {again} AND subject = 's') \
                 UNION ALL SELECT * FROM `d`.`t` FINAL WHERE {again} AND subject = 's' AND value IS NOT NULL {by_month})"
            )
        );
    }
}
