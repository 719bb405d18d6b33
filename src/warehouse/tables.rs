//! What the operator asks of ClickHouse: tables, claims, counts.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::client::PARAM_BYTES;
use super::fence::{Fence, LANDING};
use super::run::{RUN, Run};
use super::topology::{LOCAL, Topology};
use super::{Error, Warehouse, schema};
use crate::limits;
use crate::warehouse::counted::counted;
use crate::warehouse::layout::view;
use crate::warehouse::note::StoredBefore;
use crate::warehouse::schema::Landings;
use crate::warehouse::sql::identifier;

/// The oldest ClickHouse: since then a statement's subqueries share one snapshot of a table by default.
const OLDEST: (u32, u32) = (25, 12);

/// Longest that INSERTs which began before a view may still run: their own deadline, and some.
const INSERTS_END: Duration = Duration::from_secs(60);

/// Deadline of a statement that makes or changes a table.
const DDL: Duration = Duration::from_secs(60);

/// Deadline of counting a meter's events, which nobody waits for.
const COUNT: Duration = Duration::from_secs(1_800);

/// Subjects of one parameter: the longest, with an escape for each byte, stay below [`PARAM_BYTES`].
pub(super) const SUBJECTS: usize = PARAM_BYTES / (2 * (limits::ATTRIBUTE_BYTES + 2));

impl Warehouse {
    /// Runs a DDL statement.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_ddl(&self, statement: &str) -> Result<(), Error> {
        for query in self.query_each(statement) {
            query.within(DDL).of_any_size().run().await?;
        }
        Ok(())
    }

    /// Runs a DDL statement on each server, but for those that have no such table.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_ddl_where_there(&self, statement: &str) -> Result<(), Error> {
        for query in self.query_each(statement) {
            match query.within(DDL).run().await {
                Err(Error::UnknownTable(_)) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Runs DDL statements one after the other.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_all_ddl(&self, statements: &[String]) -> Result<(), Error> {
        for statement in statements {
            self.run_ddl(statement).await?;
        }
        Ok(())
    }

    /// Makes the database and its standing tables, once per process. Where they are there it only looks. Tells how many landing
    /// tables there can be.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Refused`] also when what is there is of another topology, or of a build that says otherwise how many.
    pub async fn ensure_bootstrap(&self) -> Result<Landings, Error> {
        if let Some(landings) = self.made().landings {
            return Ok(landings);
        }
        self.check_version().await?;
        self.check_topology().await?;
        self.make_missing(&schema::bootstrap(self.topology(), self.database(), Fence::first(self.topology()))).await?;
        self.check_identities().await?;
        self.add_cancellation_columns().await?;
        let of = |table: &str| format!("anyIf(comment, name = '{table}')");
        let comments = format!(
            "SELECT countIf(name IN ('events', 'identities')), {}, {} FROM system.tables WHERE database = {{database:String}}",
            of("events"),
            of("identities")
        );
        let (there, comment, fence): (u64, String, String) = self.query(&comments).bind("database", self.database()).one().await?;
        if there < 2 {
            return Err(Error::Unavailable("the database was dropped while its tables were made".to_owned()));
        }
        // A database of a build without fences says none, and gets one when it is asked for ([`Self::fence`]).
        let fence = if fence.is_empty() { Fence::FIRST } else { Fence::of_comment(&fence)? };
        self.make_missing(&schema::create_completed(self.topology(), self.database(), fence)).await?;
        let landings = Landings::of_comment(&comment).ok_or_else(|| {
            let events = self.table("events");
            Error::Refused(format!(
                "the comment of {events} says {comment:?}, not how many landing tables there are: use the newer build that made it"
            ))
        })?;
        self.made().landings = Some(landings);
        Ok(landings)
    }

    /// Makes a landing table and its standing views, once per process.
    ///
    /// It does not look first: a view that is being made is listed before it takes rows, and what is inserted in between
    /// would be swallowed. Who makes it again waits until it is made.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Unavailable`] also when the database was made anew since the table got its name.
    pub async fn ensure_landing(&self, landing: &str) -> Result<(), Error> {
        if !self.ensure_bootstrap().await?.have(landing) {
            return Err(Error::Unavailable(format!("the database was made anew: it has no {landing}")));
        }
        if self.has_landing(landing) {
            return Ok(());
        }
        for statement in schema::create_landing(self.topology(), self.database(), landing) {
            for query in self.query_each(&statement) {
                query.named(LANDING).within(DDL).run().await?;
            }
        }
        self.made().tables.insert(landing.to_owned());
        Ok(())
    }

    /// How many landing tables there can be, once that is known.
    pub fn landings(&self) -> Option<Landings> {
        self.made().landings
    }

    /// Whether this process has made sure of a landing table.
    pub fn has_landing(&self, landing: &str) -> bool {
        self.made().tables.contains(landing)
    }

    /// Runs statements that make tables, unless all of these are there: a start of many replicas is to change
    /// nothing. Two callers at once may both run them.
    async fn make_missing(&self, statements: &[String]) -> Result<(), Error> {
        let made: Vec<&str> = statements.iter().filter_map(|statement| made_by(statement, self.database())).collect();
        let there: u64 = self
            .query(&format!(
                "SELECT count() FROM {} WHERE database = {{database:String}} AND name IN {{names:Array(String)}}",
                self.topology().system("tables")
            ))
            .bind("database", self.database())
            .bind("names", made.as_slice())
            .one()
            .await?;
        if there == (made.len() * self.topology().servers()) as u64 {
            return Ok(());
        }
        self.run_all_ddl(statements).await
    }

    /// Names and comments of the tables and views with a prefix. On a cluster a view that a shard lacks is not there, and
    /// of comments that differ, because writing them was cut off, it is one: each step of a plan may run again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tables_with_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, Error> {
        let with_prefix = "database = {database:String} AND startsWith(name, {prefix:String})";
        let sql = match self.topology() {
            Topology::Single => format!("SELECT name, comment FROM system.tables WHERE {with_prefix} ORDER BY name"),
            topology @ Topology::Cluster(_) => format!(
                "SELECT name, min(t.comment) AS comment FROM {} AS t WHERE {with_prefix} AND NOT endsWith(name, '{LOCAL}') \
                 GROUP BY name HAVING any(engine) != 'MaterializedView' OR count() = {} ORDER BY name",
                topology.system("tables"),
                topology.servers()
            ),
        };
        self.query(&sql).bind("database", self.database()).bind("prefix", prefix).rows().await
    }

    /// Meters' views whose table is gone, on any server: of an operator that made one while another, that believed to lead, dropped
    /// the table. ClickHouse refuses what is inserted through them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn orphaned_views(&self) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT DISTINCT name FROM {} WHERE database = {{database:String}} AND startsWith(name, 'meter_')",
            self.topology().system("tables")
        );
        let names: BTreeSet<String> = self.query(&sql).bind("database", self.database()).rows().await?.into_iter().collect();
        let is_orphaned =
            |name: &&String| name.strip_suffix(&view("")).is_some_and(|table| !names.contains(&self.topology().stored(table)));
        Ok(names.iter().filter(is_orphaned).cloned().collect())
    }

    /// Whether ClickHouse knows a time zone: its list may be older than ours.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn has_zone(&self, zone: &jiff::tz::TimeZone) -> Result<bool, Error> {
        let zone = zone.iana_name().unwrap_or("UTC");
        let found: u64 =
            self.query("SELECT count() FROM system.time_zones WHERE time_zone = {zone:String}").bind("zone", zone).one().await?;
        Ok(found > 0)
    }

    /// Waits until no INSERT into a landing table runs that runs now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when one doesn't end in time.
    pub async fn await_inserts(&self, landing: &str) -> Result<(), Error> {
        self.await_named(&insert_name(landing), INSERTS_END).await?;
        self.on_every_replica("events").await
    }

    /// Waits until no statement runs that runs now and has a name that starts so.
    pub(super) async fn await_named(&self, prefix: &str, within: Duration) -> Result<(), Error> {
        // On a shard a part of a statement has a name of its own, and knows that of the whole.
        let running = format!(
            "SELECT DISTINCT initial_query_id FROM {} WHERE startsWith(initial_query_id, {{prefix:String}})",
            self.topology().system("processes")
        );
        let began: Vec<String> = self.query(&running).bind("prefix", prefix).rows().await?;
        let deadline = tokio::time::Instant::now() + within;
        let mut pause = Duration::from_millis(2);
        loop {
            let now: Vec<String> = self.query(&running).bind("prefix", prefix).rows().await?;
            if !now.iter().any(|id| began.contains(id)) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Unavailable(format!("a statement {prefix}… has been running for over {} s", within.as_secs())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Months (`yyyymm`) in which events of a type are stored, in order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn months_of(&self, namespace: &str, event_type: &str) -> Result<Vec<u32>, Error> {
        let sql = format!(
            "SELECT DISTINCT toYYYYMM(time) AS month FROM {}.events WHERE namespace = {{namespace:String}} AND type = {{type:String}} ORDER BY month",
            identifier(self.database())
        );
        self.query(&sql).bind("namespace", namespace).bind("type", event_type).within(Duration::from_secs(300)).rows().await
    }

    /// Events in a meter table, and how many of them have no value.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_events(&self, table: &str, has_value: bool) -> Result<(i64, i64), Error> {
        let uncounted = if has_value { "countIf(value IS NULL)" } else { "0" };
        let reading = self.reading_of_all(table).await?;
        let from = counted(self.database(), table, &reading, &[], &[]);
        self.query(&format!("SELECT toInt64(count()), toInt64({uncounted}) FROM {from}"))
            .within(COUNT)
            .in_background()
            .while_waited_for()
            .one()
            .await
    }

    /// What `events` has now. None: on a cluster, whose shards number apart, or its rows don't keep their numbers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_before(&self) -> Result<Option<StoredBefore>, Error> {
        if *self.topology() != Topology::Single {
            return Ok(None);
        }
        let sql = format!(
            "SELECT toUInt64(ifNull(max(max_block_number), 0)), {RUN}, ifNull((SELECT toString(any(uuid)) FROM system.tables \
             WHERE database = {{database:String}} AND name = 'events'), '') FROM system.parts \
             WHERE database = {{database:String}} AND table = 'events' AND active AND (SELECT count() FROM system.tables \
             WHERE database = {{database:String}} AND name = 'events' AND engine_full LIKE '%enable_block_number_column = 1%') = 1"
        );
        let (block, started_s, uptime_s, events): (u64, i64, i64, String) =
            self.query(&sql).bind("database", self.database()).one().await?;
        let events = events.parse().map_err(|_| Error::Refused(format!("the UUID of events is {events}, which is none")))?;
        Ok((block > 0).then_some(StoredBefore { block, run: Run { started_s, uptime_s }, events }))
    }

    /// Subjects that a Customer claims.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn claims(&self, namespace: &str, uid: Uuid) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT subject FROM {}.subjects FINAL WHERE namespace = {{namespace:String}} AND uid = {{uid:UUID}}",
            identifier(self.database())
        );
        self.query(&sql).bind("namespace", namespace).bind("uid", uid.to_string()).rows().await
    }

    /// Writes or takes back a Customer's claims on subjects. The later counts, whatever clocks say: its version is above all of this
    /// Customer's before.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn write_claims(
        &self,
        namespace: &str,
        customer: &str,
        uid: Uuid,
        created_ms: i64,
        subjects: &[String],
        is_deleted: bool,
    ) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO {subjects} (namespace, subject, customer, uid, created, version, is_deleted) SELECT {{namespace:String}}, \
             arrayJoin({{subjects:Array(String)}}), {{customer:String}}, {{uid:UUID}}, fromUnixTimestamp64Milli({{created:Int64}}, 'UTC'), \
             1 + (SELECT max(version) FROM {subjects} WHERE namespace = {{namespace:String}} AND uid = {{uid:UUID}}), {{deleted:UInt8}}",
            subjects = self.table("subjects")
        );
        self.on_every_replica("subjects").await?;
        for subjects in subjects.chunks(SUBJECTS) {
            self.query(&sql)
                .bind("namespace", namespace)
                .bind("subjects", subjects)
                .bind("customer", customer)
                .bind("uid", uid.to_string())
                .bind("created", created_ms)
                .bind("deleted", u8::from(is_deleted))
                .run()
                .await?;
        }
        Ok(())
    }

    /// Makes sure that questions see a table at one moment, however often they name it ([`counted`]).
    async fn check_version(&self) -> Result<(), Error> {
        let version: String = self.query("SELECT version()").one().await?;
        let (oldest_major, oldest_minor) = OLDEST;
        refused(is_new_enough(&version), || {
            format!("ClickHouse is of version {version}: {oldest_major}.{oldest_minor} is the oldest that gives exact answers here")
        })
    }

    /// Makes sure that the claims of one server, or of a shard's, are numbered in the order in which they become visible: a database of the
    /// engine `Replicated`, or ClickHouse Cloud, makes tables of another engine than it is told.
    async fn check_identities(&self) -> Result<(), Error> {
        if self.topology().has_replicas() {
            return Ok(());
        }
        let sql = format!(
            "SELECT DISTINCT engine FROM {} WHERE database = {{database:String}} AND name = {{table:String}} AND engine != 'MergeTree'",
            self.topology().system("tables")
        );
        let table = self.topology().stored("identities");
        let others: Vec<String> = self.query(&sql).bind("database", self.database()).bind("table", &*table).rows().await?;
        refused(others.is_empty(), || {
            format!(
                "{table} is of the engine {}, which does not tell whose claim of an event was first: make the database by hand \
                 (CREATE DATABASE {} ENGINE = Atomic), or name its replicas by --clickhouse-cluster and --clickhouse-replicas (docs/scaling.md)",
                others.join(", "),
                identifier(self.database())
            )
        })
    }

    /// Makes sure that ClickHouse is what the options say, and that no table was made for something else: rows would be
    /// where nobody looks for them.
    async fn check_topology(&self) -> Result<(), Error> {
        let tables = self.topology().system("tables");
        let events = format!("FROM {tables} WHERE database = {{database:String}} AND name = 'events'");
        let count = async |sql: &str| self.query(sql).bind("database", self.database()).one::<u64>().await;
        let Topology::Cluster(cluster) = self.topology() else {
            let sharded = count(&format!("SELECT count() {events} AND engine = 'Distributed'")).await?;
            return refused(sharded == 0, || format!("database {} is on a cluster: start with its --clickhouse-cluster", self.database()));
        };
        let name = cluster.name();
        let known = "SELECT count(), uniqExact(shard_num), uniqExact(shard_weight) FROM system.clusters WHERE cluster = {name:String}";
        let (servers, found, weights): (u64, u64, u64) = self.query(known).bind("name", name).one().await?;
        refused(servers > 0, || format!("it knows no cluster {name}: name one of its remote_servers by --clickhouse-cluster"))?;
        refused(weights == 1, || format!("cluster {name} has shards of different weights: make them equal"))?;
        let shards = cluster.shards();
        refused(usize::try_from(found) == Ok(shards), || {
            format!("cluster {name} has {found} shards, and --clickhouse-shards or --clickhouse-nodes say {shards}")
        })?;
        refused(usize::try_from(servers) == Ok(self.topology().servers()), || {
            format!(
                "cluster {name} has {servers} servers for its {shards} shards, and --clickhouse-replicas says {} for each: say how many there are",
                cluster.replicas()
            )
        })?;
        self.check_replicas(cluster).await?;
        let other = format!("SELECT count() {events} AND NOT endsWith(engine_full, {{mark:String}})");
        let other: u64 = self.query(&other).bind("database", self.database()).bind("mark", cluster.mark()).one().await?;
        refused(other == 0, || {
            format!(
                "database {} was not made for {shards} shards: the number of shards can't be changed (docs/scaling.md)",
                self.database()
            )
        })
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

pub(super) fn refused(holds: bool, why: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Refused(why())) }
}

/// The table that a statement makes, unless it is there.
fn made_by<'a>(statement: &'a str, database: &str) -> Option<&'a str> {
    let name = statement.split_once(" IF NOT EXISTS ")?.1.strip_prefix(&identifier(database))?.strip_prefix('.')?;
    Some(name.split([' ', '(']).next()?.trim_matches('`'))
}

/// Start of the `query_id` of every backfill.
pub const BACKFILL: &str = "kubemeter-backfill";

/// Start of the `query_id` of every statement that writes through any landing table.
pub(super) const INSERT: &str = "kubemeter-insert";

/// Start of the `query_id` of every statement that writes through a landing table.
pub fn insert_name(landing: &str) -> String {
    format!("{INSERT}-{landing}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clickhouse_that_is_too_old_is_known() {
        for (version, new_enough) in
            [("25.11.9.1", false), ("24.12.1.1", false), ("odd", false), ("25.12.1.2", true), ("26.7.2.1", true), ("100.1", true)]
        {
            assert_eq!(is_new_enough(version), new_enough, "{version}");
        }
    }
}
