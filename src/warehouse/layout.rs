//! A Meter's table, its view, and what fills it from stored events, as DDL and SQL text. Pure.

use std::collections::BTreeMap;

use super::counted::{copied_version, known_block, partition_key};
use super::note::TableNote;
use super::schema::{DURABLE, Landing, Landings, MERGED_WHEN_QUIET};
use super::sql::{identifier, literal};
use super::topology::{ShardBy, Topology};
use crate::event::{JsonPath, plain_key};
use crate::meter::{DecimalAggregation, Definition, Measure};

/// How much alike in size parts must be that are merged. Usage queries read these tables, and each part makes them slower, so it is less
/// than for [`super::schema`]'s: a row was written again 1.8 times instead of 2.8 with the default, and no more parts stayed, ten of them.
const MERGED_LESS: &str = "merge_selector_base = 12";

/// A question about one subject reads a granule or two of each part for it: these are a quarter of the default's 8,192 rows.
const SMALL_GRANULES: &str = "index_granularity = 2048";

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

/// How a column is compressed, if not as ClickHouse does by itself. What a row means it does not change, so tables of builds before
/// are left as they are.
fn codec(column: &str) -> &'static str {
    // Read three times as fast as by LZ4, and in two thirds of the bytes.
    if column == "time" { " CODEC(T64)" } else { "" }
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

    /// What the names of a Meter's tables of this layout begin with: its UID, and a hash of all that decides what stands in them.
    pub fn stem(&self, uid: &str) -> String {
        let mut text = format!("{}\0{}\0{:?}", self.namespace, self.event_type, self.retention_days);
        for (name, kind, expression) in &self.columns {
            text.push_str(&format!("\0{name}\0{kind}\0{expression}"));
        }
        self.text.iter().for_each(|number| text.push_str(&format!("\0{number}")));
        text.push_str(&format!("\0{}", partition_key()));
        // Builds before had ClickHouse remove rows, by its clock.
        self.retention_days.iter().for_each(|_| text.push_str("\0by month"));
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
        let column = |(name, kind, _): &(String, &str, String)| format!("{} {kind}{}", identifier(name), codec(name));
        let columns = self.columns.iter().map(column).collect::<Vec<_>>().join(", ");
        let definition = format!(
            "({columns}) ENGINE = ReplacingMergeTree(version, is_deleted) PARTITION BY {} \
             ORDER BY (subject, time, id) SETTINGS {SMALL_GRANULES}, {DURABLE}, {MERGED_WHEN_QUIET}, {MERGED_LESS}",
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

    /// Drops a partition, by the id that ClickHouse gives it.
    pub fn drop_partition(topology: &Topology, database: &str, table: &str, partition: &str) -> String {
        let (database, table) = (identifier(database), identifier(&topology.stored(table)));
        format!("ALTER TABLE {database}.{table}{} DROP PARTITION ID {}", topology.on_cluster(), literal(partition))
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

/// Group names with their columns, for queries.
pub fn group_columns(definition: &Definition) -> BTreeMap<&str, String> {
    definition.group_by.keys().map(|name| (name.as_str(), group_column(name))).collect()
}
