//! Tables and views as DDL text. Pure.
//!
//! ```text
//! INSERT ─► identities             which key an identity has, by id: claimed before the event is written
//! INSERT ─► landing_NNNN ──────┬─► events       every event, (namespace, type, subject, time, id)
//!           (Null: keeps       └─► meter_UID_…  per Meter: typed value, group columns, (subject, time, id)
//!            nothing itself)
//! INSERT ─► completed ─────────┬─► events       what goes to `events` first ([`super::row`])
//! ```
//! An event's landing table follows from its namespace and type alone ([`Landing`]), so a gateway can never send an
//! event past a Meter that it has not heard of yet. There is a bounded number of them ([`Landings`]), made when first needed: an
//! INSERT pays only for the views of its own table, and event types that someone makes up can't fill ClickHouse with tables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::counted::{copied_version, known_block, partition_key};
use super::fence::Fence;
use super::row::COLUMNS;
use super::run::Run;
use super::sql::{identifier, literal};
use super::topology::{ShardBy, Topology};
use crate::event::{JsonPath, plain_key};
use crate::meter::{DecimalAggregation, Definition, Measure};

/// What an event's landing table follows from: a hash of its namespace and type, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Landing(u64);

impl Landing {
    /// Of an event type.
    pub fn of(namespace: &str, event_type: &str) -> Self {
        // A namespace has no NUL, so the pair is unambiguous.
        let key = [namespace.as_bytes(), b"\0", event_type.as_bytes()].concat();
        Self(xxhash_rust::xxh3::xxh3_64(&key))
    }
}

/// How many landing tables a database can have. It stands in the comment of `events` from the moment that this is made, and never
/// changes: whoever counted otherwise would send events past Meters. The tables' names tell it, too.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landings {
    landings: u64,
}

impl Landings {
    /// Of databases that are made now. With 1,000 Meters on other event types an INSERT meets the view of one of them in one
    /// type of eight; it would cost nearly half of the INSERT.
    pub const NEW: Self = Self { landings: 8_192 };
    /// Of databases that were made before it was written down.
    const UNSAID: Self = Self { landings: 1_024 };

    /// Reads the comment of `events`. None: it is of no build of Kubemeter up to this one.
    pub fn of_comment(comment: &str) -> Option<Self> {
        match comment {
            "" => Some(Self::UNSAID),
            comment => serde_json::from_str(comment).ok().filter(|said: &Self| said.landings > 0),
        }
    }

    /// How many.
    pub const fn count(self) -> u64 {
        self.landings
    }

    fn comment(self) -> String {
        format!("{{\"landings\":{}}}", self.landings)
    }

    /// The number of an event type's landing table.
    pub const fn number(self, landing: Landing) -> u64 {
        landing.0 % self.landings
    }

    /// The name of an event type's landing table.
    pub fn table(self, landing: Landing) -> String {
        self.name(self.number(landing))
    }

    /// The name of the landing table with a number.
    pub fn name(self, number: u64) -> String {
        if self == Self::UNSAID { format!("landing_{number:04}") } else { format!("landing_{}_{number:04}", self.landings) }
    }

    /// Whether a landing table is one of these.
    pub fn have(self, table: &str) -> bool {
        let count = table.strip_prefix("landing_").and_then(|rest| rest.split_once('_')).map(|(count, _)| count.parse());
        count == (self != Self::UNSAID).then_some(Ok(self.landings))
    }
}

/// Columns of an event, as `events` and the landing tables have them. Plain strings: dictionaries (`LowCardinality`) would
/// double the cost of an INSERT and of a merge, and compressed they save nothing here.
const EVENT_COLUMNS: &str = "\
    namespace String, \
    type String, \
    subject String, \
    time DateTime64(3, 'UTC'), \
    id UInt128, \
    source String, \
    event_id String, \
    received DateTime64(6, 'UTC'), \
    data Map(String, String), \
    version UInt64, \
    cancellation UUID";

/// What ClickHouse confirms is on the disk, not only with the operating system: an acknowledged event outlives a power
/// cut. It costs some 2 ms an INSERT. Parts that a merge replaced are kept for minutes, so merges need no more.
const DURABLE: &str = "fsync_after_insert = 1, fsync_part_directory = 1";

/// How much alike in size parts must be that are merged: the greater, the more parts there are and the less often a row is
/// written again, which is most of what ClickHouse does during ingest. Measured for 6.4 million rows in INSERTs of 16,000: with
/// 100 a row was written again once, and 20 parts stayed; with 30 it was 1.7 times, and 7 parts.
const MERGED_SELDOM: &str = "merge_selector_base = 100";
/// The same for tables that usage queries read, which each part makes slower: written again 1.8 times instead of 2.8 with
/// the default, and no more parts stay, ten of them.
const MERGED_LESS: &str = "merge_selector_base = 12";

/// A question about one subject reads a granule or two of each part for it: these are a quarter of the default's 8,192 rows.
const SMALL_GRANULES: &str = "index_granularity = 2048";

/// A month that nothing was written to for ten minutes is merged to one part: `FINAL` then has nothing to do (measured at
/// 20 million rows: 0.17 s where many parts take 4.4 s). Exactness never depends on it.
const MERGED_WHEN_QUIET: &str = "min_age_to_force_merge_seconds = 600, min_age_to_force_merge_on_partition_only = 1";

/// Statements that make the database and the tables that are there once, but for [`COMPLETED`]. Each may run again. Whoever is the first to
/// make `identities` says the fence.
pub fn bootstrap(topology: &Topology, database: &str, fence: Fence) -> Vec<String> {
    let mut all = vec![format!("CREATE DATABASE IF NOT EXISTS {}{}", identifier(database), topology.on_cluster())];
    let said = Landings::NEW.comment();
    let fence = fence.comment();
    for (table, by, definition) in standing() {
        let comment = match table {
            "events" => Some(&*said),
            "identities" => Some(&*fence),
            _ => None,
        };
        all.extend(topology.create(database, table, &definition, by, comment));
    }
    all
}

/// Statements that make [`COMPLETED`] as it is in a new database. Each may run again.
pub fn create_completed(topology: &Topology, database: &str, fence: Fence) -> Vec<String> {
    create_like(topology, database, COMPLETED, &format!("({EVENT_COLUMNS}, {}) ENGINE = Null", fence.definition()))
}

/// The landing table of events that go to `events` alone: what was claimed and not stored. All others are made like it, with the fences
/// that it has by then ([`super::fence`]).
pub const COMPLETED: &str = "completed";

/// The tables that are there once: name, what a cluster shards them by, definition.
fn standing() -> [(&'static str, ShardBy, String); 6] {
    [
        // A cancelled event stays, with its cancellation: it is listed, and a later sending of it stays cancelled.
        // Events that come again are looked up by their whole key: small granules make that cheap.
        (
            "events",
            ShardBy::Subject,
            format!(
                "({EVENT_COLUMNS}) ENGINE = ReplacingMergeTree(version) \
             PARTITION BY toYYYYMM(time) ORDER BY (namespace, type, subject, time, id) \
             SETTINGS index_granularity = 1024, enable_block_number_column = 1, {DURABLE}, {MERGED_WHEN_QUIET}, {MERGED_SELDOM}"
            ),
        ),
        // Claims are never changed. Of several of one id, from gateways at the same moment, the first block's counts: block
        // numbers are given in the order in which INSERTs become visible, and kept through merges.
        (
            "identities",
            ShardBy::Identity,
            format!(
                "(id UInt128, namespace String, type String, subject String, \
             time DateTime64(3, 'UTC')) ENGINE = MergeTree ORDER BY id \
             SETTINGS index_granularity = 512, enable_block_number_column = 1, {DURABLE}, {MERGED_SELDOM}"
            ),
        ),
        (
            "subjects",
            ShardBy::Subject,
            format!(
                "(namespace LowCardinality(String), subject String, customer String, uid UUID, \
             created DateTime64(3, 'UTC'), version UInt64, is_deleted UInt8) ENGINE = ReplacingMergeTree(version, is_deleted) \
             ORDER BY (namespace, subject, customer, uid) SETTINGS {DURABLE}"
            ),
        ),
        (
            "cancellations",
            ShardBy::Cancellation,
            format!(
                "(namespace LowCardinality(String), cancellation UUID, created DateTime64(6, 'UTC'), \
             reason String, cancelled UInt64, reverted Nullable(DateTime64(6, 'UTC')), version UInt64, cancelled_by String, reverted_by String) \
             ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, cancellation) SETTINGS {DURABLE}"
            ),
        ),
        (
            "cancelled_events",
            ShardBy::Subject,
            format!(
                "(namespace LowCardinality(String), cancellation UUID, \
             type LowCardinality(String), subject String, time DateTime64(3, 'UTC'), id UInt128) \
             ENGINE = ReplacingMergeTree ORDER BY (namespace, cancellation, type, subject, time, id) SETTINGS {DURABLE}"
            ),
        ),
        (
            "rejects",
            ShardBy::Reject,
            format!(
                "(namespace LowCardinality(String), received DateTime64(6, 'UTC'), reject_id UUID, \
             source String, event_id String, subject String, code LowCardinality(String), message String, event String CODEC(ZSTD), version UInt64, is_deleted UInt8) \
             ENGINE = ReplacingMergeTree(version, is_deleted) PARTITION BY toYYYYMM(received) ORDER BY (namespace, received, reject_id) \
             TTL toDateTime(received) + INTERVAL 90 DAY SETTINGS {DURABLE}"
            ),
        ),
    ]
}

/// Statements that make a landing table with its standing view. Each may run again.
///
/// Whoever inserts into a landing table runs them first: a table without its view would swallow events.
pub fn create_landing(topology: &Topology, database: &str, landing: &str) -> Vec<String> {
    let like = format!("AS {}.{} ENGINE = Null", identifier(database), identifier(&topology.stored(COMPLETED)));
    create_like(topology, database, landing, &like)
}

fn create_like(topology: &Topology, database: &str, landing: &str, definition: &str) -> Vec<String> {
    let db = identifier(database);
    let mut all = topology.create(database, landing, definition, ShardBy::Subject, None);
    // Before the front table of a cluster, which would let INSERTs through to shards without it.
    all.insert(
        1,
        format!(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS {db}.{}{} TO {db}.{} AS SELECT {COLUMNS} FROM {db}.{}",
            identifier(&format!("{landing}_events")),
            topology.on_cluster(),
            identifier(&topology.stored("events")),
            identifier(&topology.stored(landing))
        ),
    );
    all
}

/// What a meter table's comment says: whose it is and how far it has come. The operator trusts nothing else.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TableNote {
    /// UID of the Meter. A table without it is never dropped or adopted.
    pub uid: String,
    /// The Meter's namespace.
    pub namespace: String,
    /// The Meter's name.
    pub meter: String,
    /// Where the table is in its life.
    pub state: TableState,
    /// What was stored before the table had a view; None: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<StoredBefore>,
    /// Number of the last block of `events` that was copied before the table had a view, in the same life of ClickHouse as `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<u64>,
}

/// A moment in the life of `events`: what it has up to then can't have come to a table by a later view.
#[derive(Serialize, Deserialize, Clone, Copy, Default, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StoredBefore {
    /// Number of the last INSERT.
    pub block: u64,
    /// That of the ClickHouse that gave it: the next one may give it a second time.
    #[serde(flatten)]
    pub run: Run,
    /// The table's UUID, for one that was restored from a backup numbers anew, too. Nil in notes of builds that did not ask.
    #[serde(default)]
    pub events: Uuid,
}

/// A meter table's life: `Ahead → New → Filling → Live → Retired`, or `Retained` when its Meter has gone.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum TableState {
    /// Made, and nothing feeds it: what was stored before is copied first, up to this month (`yyyymm`), so that INSERTs need not pay
    /// for a view meanwhile.
    Ahead(u32),
    /// Made; its view may not be there yet, and INSERTs that began before the view may still run.
    New,
    /// Every event from now on comes by the view; those that were not copied ahead are copied, up to this month.
    Filling(u32),
    /// Complete.
    Live,
    /// Another table answers since this time (s since 1970); gateways that don't know it yet still read this one.
    Retired(i64),
    /// Its Meter has gone; it stays for people.
    Retained,
}

/// A meter table's columns, and how each is read from an event.
pub struct Layout {
    columns: Vec<(String, &'static str, String)>,
    /// What [`decimal`] reads as `text`.
    text: Option<String>,
    namespace: String,
    event_type: String,
    /// The landing table that feeds it.
    landing: String,
    /// Days that rows stay. A longer time needs rows that are gone, so it is another table, like any other edit.
    retention_days: Option<u32>,
}

/// Column: what is aggregated.
const VALUE: &str = "value";
/// Column: see [`super::row::VERSION_MARK`].
const VERSION: &str = "version";
/// Column: whether a backfill copied the row.
const COPIED: &str = "copied";

/// Name of the column of a group: never that of a fixed column.
pub fn group_column(name: &str) -> String {
    format!("group_{name}")
}

/// The stored text of a value, without the mark of a string: SQL's side of [`crate::event::Leaves`].
fn scalar_text(path: &JsonPath) -> String {
    let value = format!("data[{}]", literal(path.key()));
    format!("substring({value}, 1 + startsWith({value}, '\"'))")
}

/// A number's text: for one that was sent with an exponent the plain text that the gateway wrote beside it.
fn number_text(path: &JsonPath) -> String {
    let plain = format!("data[{}]", literal(&plain_key(path.key())));
    format!("if({plain} != '', {plain}, {})", scalar_text(path))
}

/// A decimal, or NULL where `text` is none or can't be kept exactly: SQL's side of [`crate::event::Decimal`]. `first` is where the text
/// is first read.
///
/// `toDecimal128OrNull` cuts decimals after the twelfth, so a text must have no more that count. ClickHouse analyses a view
/// anew for every INSERT, so the less it says the less a small INSERT costs: `text` in a SELECT of its own made one of one row 5 % dearer.
fn decimal(first: &str) -> String {
    format!("if(length({first}) <= 128 AND match(text, '^-?[0-9]+(\\\\.[0-9]{{1,12}}0*)?$'), toDecimal128OrNull(text, 12), NULL)")
}

impl Layout {
    /// The table that a definition needs. Definitions that differ only in how they read one table have the same layout.
    pub fn of(landings: Landings, namespace: &str, definition: &Definition) -> Self {
        let mut text = None;
        let mut columns = vec![
            ("subject".to_owned(), "String", "subject".to_owned()),
            ("time".to_owned(), "DateTime64(3, 'UTC')", "time".to_owned()),
            ("id".to_owned(), "UInt128", "id".to_owned()),
        ];
        match &definition.measure {
            Measure::Count => {}
            Measure::UniqueCount(path) => {
                let present = format!("mapContains(data, {})", literal(path.key()));
                columns.push((VALUE.to_owned(), "Nullable(String)", format!("if({present}, {}, NULL)", scalar_text(path))));
            }
            Measure::Decimal(aggregation, path) => {
                text = Some(number_text(path));
                columns.push((VALUE.to_owned(), "Nullable(Decimal(38, 12))", decimal("text")));
                if *aggregation == DecimalAggregation::Latest {
                    columns.push(("source".to_owned(), "LowCardinality(String)", "source".to_owned()));
                    columns.push(("event_id".to_owned(), "String", "event_id".to_owned()));
                }
            }
        }
        for (name, path) in &definition.group_by {
            columns.push((group_column(name), "LowCardinality(String)", scalar_text(path)));
        }
        columns.push((VERSION.to_owned(), "UInt64 CODEC(Delta, ZSTD)", "version".to_owned()));
        columns.push((COPIED.to_owned(), "UInt8", "0".to_owned()));
        columns.push(("is_deleted".to_owned(), "UInt8", "cancellation != toUUID('00000000-0000-0000-0000-000000000000')".to_owned()));
        Self {
            columns,
            text,
            namespace: namespace.to_owned(),
            event_type: definition.event_type.clone(),
            landing: landings.table(Landing::of(namespace, &definition.event_type)),
            retention_days: definition.retention_days,
        }
    }

    /// The table's name: the Meter's UID, and a hash of all that decides what stands in it.
    pub fn table(&self, uid: &str) -> String {
        let mut text = format!("{}\0{}\0{:?}", self.namespace, self.event_type, self.retention_days);
        for (name, kind, expression) in &self.columns {
            text.push_str(&format!("\0{name}\0{kind}\0{expression}"));
        }
        self.text.iter().for_each(|number| text.push_str(&format!("\0{number}")));
        text.push_str(&format!("\0{}", partition_key()));
        if !Landings::UNSAID.have(&self.landing) {
            // A build that knows nothing of this landing table makes a table of its own, and fills it.
            text.push_str(&format!("\0{}", self.landing));
        }
        format!("meter_{}_{:016x}", uid.replace('-', ""), xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// Statements that make the table.
    ///
    /// # Errors
    /// When the note can't be written as JSON.
    pub fn create_table(
        &self,
        topology: &Topology,
        database: &str,
        table: &str,
        note: &TableNote,
    ) -> Result<Vec<String>, serde_json::Error> {
        let columns = self.columns.iter().map(|(name, kind, _)| format!("{} {kind}", identifier(name))).collect::<Vec<_>>().join(", ");
        let ttl = self.retention_days.map(ttl).map(|ttl| format!(" TTL {ttl}")).unwrap_or_default();
        let definition = format!(
            "({columns}) ENGINE = ReplacingMergeTree(version, is_deleted) PARTITION BY {} \
             ORDER BY (subject, time, id){ttl} SETTINGS {SMALL_GRANULES}, {DURABLE}, {MERGED_WHEN_QUIET}, {MERGED_LESS}",
            partition_key()
        );
        Ok(topology.create(database, table, &definition, ShardBy::Subject, Some(&serde_json::to_string(note)?)))
    }

    /// The landing table that feeds the table.
    pub fn landing(&self) -> &str {
        &self.landing
    }

    /// Makes the view that feeds the table from its landing table; on a cluster a shard's from the shard's.
    pub fn create_view(&self, topology: &Topology, database: &str, table: &str) -> String {
        let db = identifier(database);
        format!(
            "CREATE MATERIALIZED VIEW IF NOT EXISTS {db}.{}{} TO {db}.{} AS {}",
            identifier(&view(table)),
            topology.on_cluster(),
            identifier(&topology.stored(table)),
            self.select(database, &topology.stored(&self.landing), "", |_| None)
        )
    }

    /// Copies a month (`yyyymm`) of stored events into the table: those after block `{copied:UInt64}` and up to `{until:UInt64}`.
    /// `{month:UInt32}` is bound, and of [`StoredBefore`] `{block:UInt64}`, `{started:Int64}` and `{uptime:Int64}`. Rows that are there already collapse
    /// with their copies, cancelled ones come as cancelled.
    pub fn backfill(&self, topology: &Topology, database: &str, table: &str) -> String {
        let names = self.columns.iter().map(|(name, ..)| identifier(name)).collect::<Vec<_>>().join(", ");
        // Each shard numbers its INSERTs; what is read there is FINAL, whichever kind it is of.
        let block = if *topology == Topology::Single { "_block_number" } else { "toUInt64(1)" };
        let as_copy = |name: &str| match name {
            VERSION => Some(copied_version(block)),
            COPIED => Some("1".to_owned()),
            _ => None,
        };
        format!(
            // Equal keys are few, and found when they are read.
            "INSERT INTO {}.{} ({names}) SETTINGS optimize_on_insert = 0 {}",
            identifier(database),
            identifier(table),
            self.select(
                database,
                "events",
                &format!(
                    " AND toYYYYMM(time) = {{month:UInt32}} AND {block} > {} AND {block} <= {{until:UInt64}}",
                    known_block("{copied:UInt64}")
                ),
                as_copy
            )
        )
    }

    /// The one reading of events that view and backfill share, but for columns that say how a row came.
    fn select(&self, database: &str, from: &str, and: &str, other: impl Fn(&str) -> Option<String>) -> String {
        let columns = self.columns.iter().map(|(name, _, expression)| {
            let expression = match &self.text {
                Some(text) if name == VALUE => decimal(&format!("{text} AS text")),
                _ => other(name).unwrap_or_else(|| expression.clone()),
            };
            format!("{expression} AS {}", identifier(name))
        });
        format!(
            "SELECT {} FROM {}.{} WHERE namespace = {} AND type = {}{and}",
            columns.collect::<Vec<_>>().join(", "),
            identifier(database),
            identifier(from),
            literal(&self.namespace),
            literal(&self.event_type)
        )
    }
}

/// Name of a meter table's view.
pub fn view(table: &str) -> String {
    format!("{table}_view")
}

fn ttl(days: u32) -> String {
    // A DateTime ends in 2106: a sum beyond would begin again in 1970, and the row would go at once.
    format!("toDateTime(toUInt32(least(intDiv(toUnixTimestamp64Milli(time), 1000) + {days} * 86400, 4294967295)))")
}

/// Changes what a table's comment says.
///
/// # Errors
/// When the note can't be written as JSON.
pub fn alter_note(topology: &Topology, database: &str, table: &str, note: &TableNote) -> Result<String, serde_json::Error> {
    Ok(format!(
        "ALTER TABLE {}.{}{} MODIFY COMMENT {}",
        identifier(database),
        identifier(table),
        topology.on_cluster(),
        literal(&serde_json::to_string(note)?)
    ))
}

/// Group names with their columns, for queries.
pub fn group_columns(definition: &Definition) -> BTreeMap<&str, String> {
    definition.group_by.keys().map(|name| (name.as_str(), group_column(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_says_how_many_landing_tables_it_can_have() {
        let (landing, of) = (Landing(1_024 * 8_192 + 5_000), Landings::of_comment);
        for (comment, table) in
            [("", "landing_0904"), (&Landings::NEW.comment(), "landing_8192_5000"), (r#"{"landings":16}"#, "landing_16_0008")]
        {
            let landings = of(comment).unwrap();
            assert_eq!(landings.table(landing), table);
            for other in ["", r#"{"landings":8192}"#, r#"{"landings":16}"#] {
                assert_eq!(of(other).unwrap().have(table), other == comment, "{other} {table}");
            }
        }
        for wrong in ["landings", r#"{"landings":0}"#, r#"{"landings":-1}"#, r#"{"other":8192}"#] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
