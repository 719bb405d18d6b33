//! Removing subjects' events from every table, while more of them may come.
//!
//! An event that comes meanwhile counts in all tables or in none, and keeps its claim where it counts. [`Warehouse::purge`]
//! says by which order.

use std::time::Duration;

use futures::future::try_join_all;

use super::row::{IDENTITY_COLUMNS, VERSION_MARK};
use super::schema::TableNote;
use super::select::NIL;
use super::tables::{BACKFILL, INSERT, SUBJECTS};
use super::{Error, Query, Warehouse};

/// Events of some subjects.
const OF_SUBJECTS: &str = "namespace = {namespace:String} AND subject IN {subjects:Array(String)}";

impl Warehouse {
    /// Removes a namespace's events of some subjects from every table, retained meter tables included.
    ///
    /// 1. From `events`, until nothing that read them before still writes: a cancellation or a backfill would put them back.
    ///    Whatever writes an event later than that leaves it in `events`.
    /// 2. From the Meters' tables, and then all that there is besides.
    /// 3. What is in `events` after all came meanwhile, and may have been removed from a Meter's table, or its claim from
    ///    `identities`: these are written again as `events` has it.
    ///
    /// It may be cut off anywhere, and begun anew.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let all = || subjects.chunks(SUBJECTS);
        // A cancellation that has read an event writes it, and then writes it again.
        for _ in 0..3 {
            for subjects in all() {
                self.delete("events", OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
            self.await_named(BACKFILL, deadline).await?;
            self.await_named(INSERT, deadline).await?;
        }
        // Of what is claimed by now and not yet in `events` the INSERT runs, or a lease does. What is claimed later keeps its claim.
        let last_claims = self.last_claims().await?;
        self.await_named(INSERT, deadline).await?;
        let notes = self.tables_with_prefix("meter_").await?;
        let is_of_namespace = |comment: &str| serde_json::from_str::<TableNote>(comment).is_ok_and(|note| note.namespace == namespace);
        let meters = notes.iter().filter(|(_, comment)| is_of_namespace(comment)).map(|(table, _)| table);
        for table in meters {
            for subjects in all() {
                // First what is not cancelled: without its cancellation an event would count again, for a moment.
                let of_subjects = "subject IN {subjects:Array(String)}";
                self.delete(table, &format!("{of_subjects} AND version < {VERSION_MARK}"), namespace, subjects, deadline).await?;
                self.delete(table, of_subjects, namespace, subjects, deadline).await?;
            }
        }
        for subjects in all() {
            for table in ["cancelled_events", "rejects"] {
                self.delete(table, OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
            self.delete_claims(&last_claims, namespace, subjects, deadline).await?;
            // Of an event whose claim is gone by now the INSERT runs, or has ended.
            self.await_named(INSERT, deadline).await?;
            self.keep_whole(namespace, subjects, deadline).await?;
        }
        Ok(())
    }

    /// The numbers of the last INSERTs of claims, which each server that is told to remove some has given out.
    async fn last_claims(&self) -> Result<Vec<u64>, Error> {
        let sql = "SELECT toUInt64(max(max_block_number)) FROM system.parts WHERE database = {database:String} AND table = {table:String} AND active";
        let table = self.topology().stored("identities");
        let last = self.query_each(sql).map(|query| query.bind("database", self.database()).bind("table", &*table).one::<u64>());
        try_join_all(last).await
    }

    /// Removes claims that were `last` or earlier, of what is not stored.
    async fn delete_claims(&self, last: &[u64], namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let topology = self.topology();
        let table = self.table(&topology.stored("identities"));
        let mut sql = format!("ALTER TABLE {table}{} DELETE WHERE {OF_SUBJECTS}", topology.on_cluster());
        // Where one server tells the others the numbers of each are not known.
        if topology.on_cluster().is_empty() {
            sql += " AND _block_number <= {last:UInt64}";
        }
        // Replicas would each see others.
        if !topology.has_replicas() {
            sql += &format!(" AND id NOT IN (SELECT id FROM {} WHERE {OF_SUBJECTS})", self.table("events"));
        }
        for (query, last) in self.query_each(&sql).zip(last) {
            query.bind("last", *last).bind("namespace", namespace).bind("subjects", subjects).within(deadline).run().await?;
        }
        Ok(())
    }

    /// Writes what `events` has of some subjects to all tables, notes what is cancelled of it, and claims what has no claim.
    async fn keep_whole(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let of = |sql: &str| -> Query<'_> { self.query(sql).bind("namespace", namespace).bind("subjects", subjects).within(deadline) };
        self.on_every_replica("events").await?;
        let (events, identities, cancelled) = (self.table("events"), self.table("identities"), self.table("cancelled_events"));
        let types = of(&format!("SELECT DISTINCT type FROM {events} WHERE {OF_SUBJECTS}")).rows::<String>().await?;
        if types.is_empty() {
            return Ok(());
        }
        self.on_every_replica("identities").await?;
        let claim = format!(
            "INSERT INTO {identities} ({IDENTITY_COLUMNS}) SELECT DISTINCT {IDENTITY_COLUMNS} FROM {events} WHERE {OF_SUBJECTS} \
             AND id NOT IN (SELECT id FROM {identities} WHERE id IN (SELECT id FROM {events} WHERE {OF_SUBJECTS}))"
        );
        of(&claim).named("kubemeter-identities").run().await?;
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

    async fn delete(&self, table: &str, of: &str, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let topology = self.topology();
        let sql = format!("ALTER TABLE {}{} DELETE WHERE {of}", self.table(&topology.stored(table)), topology.on_cluster());
        for query in self.query_each(&sql) {
            query.bind("namespace", namespace).bind("subjects", subjects).within(deadline).run().await?;
        }
        Ok(())
    }
}
