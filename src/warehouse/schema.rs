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

use serde::{Deserialize, Serialize};

use super::fence::Fence;
use super::row::COLUMNS;
use super::sql::identifier;
use super::topology::{ShardBy, Topology};

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
    pub(super) const UNSAID: Self = Self { landings: 1_024 };

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
pub(super) const DURABLE: &str = "fsync_after_insert = 1, fsync_part_directory = 1";

/// How much alike in size parts must be that are merged: the greater, the more parts there are and the less often a row is
/// written again, which is most of what ClickHouse does during ingest. Measured for 6.4 million rows in INSERTs of 16,000: with
/// 100 a row was written again once, and 20 parts stayed; with 30 it was 1.7 times, and 7 parts.
const MERGED_SELDOM: &str = "merge_selector_base = 100";

/// A month that nothing was written to for ten minutes is merged to one part: `FINAL` then has nothing to do (measured at
/// 20 million rows: 0.17 s where many parts take 4.4 s). Exactness never depends on it.
pub(super) const MERGED_WHEN_QUIET: &str = "min_age_to_force_merge_seconds = 600, min_age_to_force_merge_on_partition_only = 1";

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
             reason String, cancelled UInt64, reverted Nullable(DateTime64(6, 'UTC')), version UInt64, cancelled_by String, reverted_by String, \
             unfinished UInt8) \
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
