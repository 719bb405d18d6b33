//! Removing subjects' events from every table, while more of them may come.
//!
//! An event that comes meanwhile counts in all tables or in none, and keeps its claim where it counts. [`Warehouse::purge`]
//! says by which order.

use std::time::Duration;

use super::fence::{Fence, LastClaims, ShutOut};
use super::identities::CLAIMS;
use super::note::TableNote;
use super::row::{CONTRA, IDENTITY_COLUMNS, VERSION_MARK};
use super::select::NIL;
use super::sql::literal;
use super::tables::{BACKFILL, INSERT, SUBJECTS};
use super::{Error, Query, Warehouse};

/// What deletions are named after.
const REMOVAL: &str = "kubemeter-removal";

/// Events of some subjects.
const OF_SUBJECTS: &str = "namespace = {namespace:String} AND subject IN {subjects:Array(String)}";

/// Whether the purge goes on that a statement is of: one that was held up on its way must not remove what came after. ClickHouse looks when
/// it gets the statement, and removes nothing that is stored later.
const STILL_PURGING: &str =
    "(SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'identities' AND comment = {purge:String}) > 0";

impl Warehouse {
    /// Removes a namespace's events of some subjects from every table, retained meter tables included.
    ///
    /// 1. Events that were decided on before are shut out ([`super::fence`]).
    /// 2. From `events`, until nothing that read them before still writes: a cancellation or a backfill would put them back.
    ///    Whatever writes an event later than that leaves it in `events`.
    /// 3. From the Meters' tables, and then all that there is besides.
    /// 4. What is in `events` after all came meanwhile, or was written again by a statement that had read it before: nothing removes it any
    ///    more. It is claimed anew, and then claims from before the purge are removed.
    /// 5. It may have been removed from a Meter's table: it is written again as `events` has it.
    ///
    /// It may be cut off anywhere, and begun anew.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        if subjects.is_empty() {
            return Ok(());
        }
        let all = || subjects.chunks(SUBJECTS);
        let _one = self.purging.lock().await;
        let ShutOut { fence, last_claims } = self.shut_out(deadline).await?;
        // A cancellation that has read an event writes it, and then writes it again.
        for _ in 0..3 {
            for subjects in all() {
                self.delete(fence, "events", OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
            self.await_named(BACKFILL, deadline).await?;
            self.await_named(INSERT, deadline).await?;
        }
        let notes = self.tables_with_prefix("meter_").await?;
        let is_of_namespace = |comment: &str| serde_json::from_str::<TableNote>(comment).is_ok_and(|note| note.namespace == namespace);
        let meters = notes.iter().filter(|(_, comment)| is_of_namespace(comment)).map(|(table, _)| table);
        for table in meters {
            for subjects in all() {
                // First what is taken off sums, then what is not cancelled: without its cancellation an event would count again, for a moment.
                let of_subjects = "subject IN {subjects:Array(String)}";
                self.delete(fence, table, &format!("{of_subjects} AND version = {CONTRA}"), namespace, subjects, deadline).await?;
                self.delete(fence, table, &format!("{of_subjects} AND version < {VERSION_MARK}"), namespace, subjects, deadline).await?;
                self.delete(fence, table, of_subjects, namespace, subjects, deadline).await?;
            }
        }
        for subjects in all() {
            for table in ["cancelled_events", "rejects"] {
                self.delete(fence, table, OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
            self.claim_stored(namespace, subjects, deadline).await?;
            self.still_says(fence).await?;
            self.delete_claims(fence, &last_claims, namespace, subjects, deadline).await?;
            // Who began before the Meters' tables were cleared may have a row there that was removed, and none in `events` yet.
            self.await_named(INSERT, deadline).await?;
            self.keep_whole(namespace, subjects, deadline).await?;
        }
        self.let_in(fence).await
    }

    /// Claims what `events` has of some subjects once more, for the keys that it has there.
    async fn claim_stored(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        self.on_every_replica("events").await?;
        let sql = format!(
            "INSERT INTO {} ({IDENTITY_COLUMNS}) SELECT DISTINCT {IDENTITY_COLUMNS} FROM {} WHERE {OF_SUBJECTS}",
            self.table("identities"),
            self.table("events")
        );
        self.query(&sql).bind("namespace", namespace).bind("subjects", subjects).within(deadline).named(CLAIMS).run().await
    }

    /// Removes claims that were `last` or earlier.
    async fn delete_claims(
        &self,
        fence: Fence,
        last: &[LastClaims],
        namespace: &str,
        subjects: &[&str],
        deadline: Duration,
    ) -> Result<(), Error> {
        let topology = self.topology();
        let on = topology.on_cluster();
        let last_of_server = if on.is_empty() {
            "{last:UInt64}".to_owned()
        } else {
            // One statement for all servers, each of which has numbers of its own.
            let (servers, numbers): (Vec<String>, Vec<String>) =
                last.iter().map(|of| (literal(&of.server), format!("toUInt64({})", of.last))).unzip();
            format!("transform(toString(serverUUID()), [{}], [{}], toUInt64(0))", servers.join(", "), numbers.join(", "))
        };
        let claims = self.table(&topology.stored("identities"));
        let sql = format!("ALTER TABLE {claims}{on} DELETE WHERE {OF_SUBJECTS} AND _block_number <= {last_of_server} AND {STILL_PURGING}");
        for (query, of) in self.query_each(&sql).zip(last) {
            let query = self.of_purge(query, fence).bind("last", of.last);
            query.bind("namespace", namespace).bind("subjects", subjects).within(deadline).run().await?;
        }
        Ok(())
    }

    /// Writes what `events` has of some subjects to all tables, and notes what is cancelled of it.
    async fn keep_whole(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let of = |sql: &str| -> Query<'_> { self.query(sql).bind("namespace", namespace).bind("subjects", subjects).within(deadline) };
        self.on_every_replica("events").await?;
        let (events, cancelled) = (self.table("events"), self.table("cancelled_events"));
        let types = of(&format!("SELECT DISTINCT type FROM {events} WHERE {OF_SUBJECTS}")).rows::<String>().await?;
        if types.is_empty() {
            return Ok(());
        }
        let note = format!(
            "INSERT INTO {cancelled} (namespace, cancellation, type, subject, time, id) \
             SELECT namespace, cancellation, type, subject, time, id FROM {events} FINAL WHERE {OF_SUBJECTS} AND cancellation != {NIL}"
        );
        of(&note).run().await?;
        for event_type in types {
            let of_subjects = "subject IN {subjects:Array(String)}";
            self.copy_events(namespace, &event_type, of_subjects, |query| query.bind("subjects", subjects).within(deadline)).await?;
        }
        Ok(())
    }

    /// Whether ClickHouse is told to remove something from a table, or removes it.
    pub(super) async fn is_removing(&self, table: &str) -> Result<bool, Error> {
        // In this order: what it is told is what it removes by the time that the statement is gone.
        let told = "SELECT count() > 0 FROM system.processes WHERE startsWith(query_id, {removal:String})";
        let removes =
            "SELECT count() > 0 FROM system.mutations WHERE database = {database:String} AND table = {table:String} AND NOT is_done";
        Ok(self.query(told).bind("removal", REMOVAL).one::<bool>().await?
            || self.query(removes).bind("database", self.database()).bind("table", table).one::<bool>().await?)
    }

    /// Binds what [`STILL_PURGING`] needs.
    fn of_purge<'a>(&self, query: Query<'a>, fence: Fence) -> Query<'a> {
        query.bind("database", self.database()).bind("purge", &*fence.comment()).asking_first().named(REMOVAL)
    }

    async fn delete(
        &self,
        fence: Fence,
        table: &str,
        of: &str,
        namespace: &str,
        subjects: &[&str],
        deadline: Duration,
    ) -> Result<(), Error> {
        let topology = self.topology();
        let sql =
            format!("ALTER TABLE {}{} DELETE WHERE {of} AND {STILL_PURGING}", self.table(&topology.stored(table)), topology.on_cluster());
        for query in self.query_each(&sql) {
            self.of_purge(query, fence).bind("namespace", namespace).bind("subjects", subjects).within(deadline).run().await?;
        }
        Ok(())
    }
}
