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
//! contra  a first sending's row once more, if its      taken off, so that first sendings can be
//!         key was written again                        read without a look at their keys
//! ```
//! A key that has a row of kind `again` has the one that counts among these: their versions are greater than all others'.
//!
//! # What can be added can be taken off
//! To leave out of millions of first sendings the few that were written again takes a look at each one's key, which takes as long as
//! all else. A sum needs no such look: it is that of all first sendings, less those written again, of which a copy is kept
//! ([`balance`]), and with what counts instead ([`balanced`]). Whether a copy is there yet makes no difference: what has none is looked up.
//!
//! **A contra row is there only if its first sending is.** No merge removes a first sending, for what takes its place is in another
//! partition. A purge removes contra rows first, and lets none be written meanwhile ([`super::purge`]).

use jiff::{Timestamp, civil::Time, tz::TimeZone};

use super::row::{ARRIVAL_MARK, CONTRA, written_again_sql};
use super::run::Run;
use super::sql::identifier;

/// A kind of rows: the second part of a partition's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sent = 0,
    Again = 1,
    Copied = 2,
    Contra = 3,
}

impl Kind {
    /// The condition that a row is of this kind; only its partition is looked at. A table of an earlier layout has no kinds,
    /// so any of its rows may have others.
    fn condition(self) -> String {
        let is = |kind: Self| format!("endsWith(_partition_id, '-{}')", kind as u8);
        match self {
            Self::Sent | Self::Copied | Self::Contra => is(self),
            Self::Again => [Self::Sent, Self::Copied, Self::Contra].map(|kind| format!("NOT {}", is(kind))).join(" AND "),
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

/// Rows of the months (`yyyymm`) between `{from:UInt32}` and `{to:UInt32}`, month by month: those of kind `again`, and of kind `contra`.
/// `system.parts` would tell it, too, but looks at each table of the database for it.
pub fn count_rows(database: &str, table: &str) -> String {
    let table = format!("{}.{}", identifier(database), identifier(table));
    format!(
        "SELECT toUInt32OrZero(substring(_partition_id, 1, 6)) AS month, toUInt64(sumIf(rows, {})) AS again, toUInt64(sumIf(rows, {})) AS contra \
         FROM (SELECT _partition_id, count() AS rows FROM {table} WHERE {} GROUP BY _partition_id) GROUP BY month HAVING again > 0 \
         ORDER BY month SETTINGS {BY_PARTS}",
        Kind::Again.condition(),
        Kind::Contra.condition(),
        is_between("_partition_id")
    )
}

/// Rows of the months of all tables in `{database:String}`, table by table and month by month, where those of kind `again` are more than
/// those of kind `contra`.
pub fn count_unbalanced() -> String {
    format!(
        "SELECT table, toUInt32OrZero(substring(_partition_id, 1, 6)) AS month, sumIf(rows, {}) AS again, sumIf(rows, {}) AS contra \
         FROM (SELECT table, partition_id AS _partition_id, rows FROM system.parts WHERE active AND database = {{database:String}}) \
         GROUP BY table, month HAVING again > contra ORDER BY table, month",
        Kind::Again.condition(),
        Kind::Contra.condition()
    )
}

/// A meter table's partition key.
pub fn partition_key() -> String {
    format!(
        "(toYYYYMM(time), multiIf(version >= {ARRIVAL_MARK}, {}, version = {CONTRA}, {}, copied, {}, {}))",
        Kind::Again as u8,
        Kind::Contra as u8,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// `FINAL` over all. Quicker where there is little to merge, and right where a question can't see all kinds at one
    /// moment: on a cluster a shard is asked for each kind by itself.
    Final,
    /// Each [`Kind`] as it needs. Takes memory for each key that was written again, in the months that are asked for.
    ByKind,
    /// First sendings alone, no key of which is looked at. Where a key was written again ClickHouse **refuses** the question, in
    /// the moment that it reads: then it is to be asked [`Self::ByKind`].
    FirstsAlone,
    /// For what can be added and taken off, where all is balanced: see [`balanced`]. Otherwise ClickHouse **refuses** the question, as above.
    Balanced,
    /// The same where few contra rows are missing: their keys are looked up.
    NearlyBalanced,
}

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
        // By itself ClickHouse would collect the keys of what was written again for each part of a UNION.
        Reading::ByKind | Reading::Balanced | Reading::NearlyBalanced => {
            let again = [&[Kind::Again.condition()], keys].concat().join(" AND ");
            let firsts = firsts(&table, &[keys, others].concat());
            format!(
                "(SELECT * FROM ({firsts}) WHERE id NOT IN (SELECT id FROM {table} WHERE {again}) UNION ALL {})",
                agains(&table, keys, others)
            )
        }
        Reading::FirstsAlone => {
            let refused = [&[Kind::Again.condition()], keys].concat().join(" AND ");
            let firsts = firsts(&table, &[keys, others].concat());
            format!("({firsts} UNION ALL SELECT * FROM {table} WHERE {refused} AND NOT throwIf(version > 0, '{WRITTEN_AGAIN}'))")
        }
    }
}

/// Why ClickHouse refuses what was asked as balanced.
const UNBALANCED: &str = "there may be rows written again without a contra row";

/// For [`Reading::Balanced`] and [`Reading::NearlyBalanced`]: what is added, and what is taken off.
pub struct Balanced {
    /// FROMs whose rows are added.
    pub added: [String; 2],
    /// FROMs whose rows are taken off: no more than was added.
    pub taken: Vec<String>,
    /// The rest of a SELECT of constants. It gives no row; where something may be missing in `taken`, ClickHouse refuses it.
    pub refused: Option<String>,
}

/// All first sendings, and what counts of keys that were written again; less these keys' first sendings: where there is a contra row it
/// is that, and the others are looked up by their keys, or the question is refused.
pub fn balanced(database: &str, table: &str, looks_up: bool, keys: &[String], others: &[String]) -> Balanced {
    let table = format!("{}.{}", identifier(database), identifier(table));
    let all = [keys, others].concat();
    let of = |kind: Kind, conditions: &[String]| [&[kind.condition()], conditions].concat().join(" AND ");
    // A key may have several.
    let mut taken = vec![format!("(SELECT * FROM {table} WHERE {} LIMIT 1 BY id)", of(Kind::Contra, &all))];
    let mut refused = None;
    if looks_up {
        taken.push(unbalanced(&table, keys, &all));
    } else {
        // Only a key with rows of kind `again` has contra rows. So if these rows are no more than the keys that have contra rows, they are of as
        // many keys, and of the same ones.
        refused = Some(format!(
            "FROM (SELECT toInt64(count()) AS rows FROM {table} WHERE {} \
             UNION ALL SELECT -toInt64(count()) AS rows FROM (SELECT id FROM {table} WHERE {} LIMIT 1 BY id)) \
             HAVING throwIf(sum(rows) > 0, '{UNBALANCED}')",
            of(Kind::Again, keys),
            of(Kind::Contra, keys)
        ));
    }
    Balanced { added: [format!("({})", firsts(&table, &all)), format!("({})", agains(&table, keys, others))], taken, refused }
}

/// First sendings of keys that were written again and have no contra row, as a FROM.
fn unbalanced(table: &str, keys: &[String], all: &[String]) -> String {
    let of = |kind: Kind| [&[kind.condition()], keys].concat().join(" AND ");
    // One condition on all kinds: the keys are collected once.
    format!(
        "(SELECT * FROM ({}) WHERE (subject, time, id) IN \
         (SELECT subject, time, id FROM {table} WHERE {} AND id NOT IN (SELECT id FROM {table} WHERE {})))",
        firsts(table, all),
        of(Kind::Again),
        of(Kind::Contra)
    )
}

/// Statement that writes the contra rows that `{month:String}` lacks, unless a purge has begun since `identities` said `{calm:String}`. To
/// `FINAL` they are removed rows.
pub fn balance(database: &str, table: &str) -> String {
    let is_calm =
        "(SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'identities' AND comment = {calm:String}) = 1";
    let table = format!("{}.{}", identifier(database), identifier(table));
    let keys = ["startsWith(_partition_id, {month:String})".to_owned(), is_calm.to_owned()];
    format!(
        "INSERT INTO {table} SELECT * REPLACE (toUInt64({CONTRA}) AS version, toUInt8(1) AS is_deleted) FROM {}",
        unbalanced(&table, &keys, &keys)
    )
}

/// What counts of keys that were written again.
fn agains(table: &str, keys: &[String], others: &[String]) -> String {
    let all = [&[Kind::Again.condition()], keys, others].concat().join(" AND ");
    format!("SELECT * FROM {table} FINAL WHERE {all} {BY_MONTH}")
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
            "NOT endsWith(_partition_id, '-0') AND NOT endsWith(_partition_id, '-2') AND NOT endsWith(_partition_id, '-3')",
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
