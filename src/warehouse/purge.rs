//! Removing subjects' events from every table, while more of them may come.
//!
//! An event that comes meanwhile counts in all tables or in none, and keeps its claim where it counts. [`Warehouse::purge`]
//! says by which order.

use std::time::Duration;

use super::row::IDENTITY_COLUMNS;
use super::schema::TableNote;
use super::tables::{BACKFILL, INSERT, SUBJECTS};
use super::{Error, Query, Warehouse};

/// Events of some subjects.
const OF_SUBJECTS: &str = "namespace = {namespace:String} AND subject IN {subjects:Array(String)}";

impl Warehouse {
    /// Removes a namespace's events of some subjects from every table, retained meter tables included.
    ///
    /// 1. From `events`, until nothing that read them before still writes: a cancellation or a backfill would put them back.
    ///    Whatever writes an event later than that leaves it in `events`.
    /// 2. From the other tables.
    /// 3. What is in `events` after all came meanwhile, and may have been removed from a Meter's table, or its claim from
    ///    `identities`: these are written again as `events` has it.
    ///
    /// It may be cut off anywhere, and begun anew.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let all = || subjects.chunks(SUBJECTS);
        for _ in 0..2 {
            for subjects in all() {
                self.delete("events", OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
            self.await_named(BACKFILL, deadline).await?;
            self.await_named(INSERT, deadline).await?;
        }
        let notes = self.tables_with_prefix("meter_").await?;
        let is_of_namespace = |comment: &str| serde_json::from_str::<TableNote>(comment).is_ok_and(|note| note.namespace == namespace);
        let meters: Vec<&str> = notes.iter().filter(|(_, comment)| is_of_namespace(comment)).map(|(table, _)| table.as_str()).collect();
        for subjects in all() {
            for table in &meters {
                self.delete(table, "subject IN {subjects:Array(String)}", namespace, subjects, deadline).await?;
            }
            for table in ["cancelled_events", "rejects", "identities"] {
                self.delete(table, OF_SUBJECTS, namespace, subjects, deadline).await?;
            }
        }
        // Of an event whose claim is gone by now the INSERT runs, or has ended.
        self.await_named(INSERT, deadline).await?;
        for subjects in all() {
            self.keep_whole(namespace, subjects, deadline).await?;
        }
        Ok(())
    }

    /// Writes what `events` has of some subjects to all tables, and claims what has no claim.
    async fn keep_whole(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let of = |sql: &str| -> Query<'_> { self.query(sql).bind("namespace", namespace).bind("subjects", subjects).within(deadline) };
        let (events, identities) = (self.table("events"), self.table("identities"));
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
