//! What the operator asks of ClickHouse: tables, claims, counts, purges.

use std::time::Duration;

use uuid::Uuid;

use super::client::PARAM_BYTES;
use super::{Error, Warehouse, schema};
use crate::limits;
use crate::warehouse::schema::TableNote;
use crate::warehouse::select::subjects_of_customers;
use crate::warehouse::sql::identifier;

/// Longest that INSERTs which began before a view may still run: their own deadline, and some.
const INSERTS_END: Duration = Duration::from_secs(60);

/// Deadline of counting a meter's events.
const COUNT: Duration = Duration::from_secs(5);

/// Subjects of one parameter: the longest, with an escape for each byte, stay below [`PARAM_BYTES`].
const SUBJECTS: usize = PARAM_BYTES / (2 * (limits::ATTRIBUTE_BYTES + 2));

impl Warehouse {
    /// Runs a DDL statement.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_ddl(&self, statement: &str) -> Result<(), Error> {
        self.query(statement).within(Duration::from_secs(60)).run().await
    }

    /// Makes the database and its standing tables, once per process. Where they are there it only looks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ensure_bootstrap(&self) -> Result<(), Error> {
        if self.was_made("") {
            return Ok(());
        }
        self.make_missing(&schema::bootstrap(self.database())).await?;
        self.add_cancellation_columns().await?;
        self.note_made("");
        Ok(())
    }

    /// Makes a landing table and its standing views, once per process. Where they are there it only looks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ensure_landing(&self, landing: &str) -> Result<(), Error> {
        self.ensure_bootstrap().await?;
        if self.was_made(landing) {
            return Ok(());
        }
        self.make_missing(&schema::create_landing(self.database(), landing)).await?;
        self.note_made(landing);
        Ok(())
    }

    /// Runs statements that make tables and views, unless all of these are there: a start of many replicas is to change
    /// nothing. Two callers at once may both run them.
    async fn make_missing(&self, statements: &[String]) -> Result<(), Error> {
        let made: Vec<&str> = statements.iter().filter_map(|statement| made_by(statement, self.database())).collect();
        let there: u64 = self
            .query("SELECT count() FROM system.tables WHERE database = {database:String} AND name IN {names:Array(String)}")
            .bind("database", self.database())
            .bind("names", made.as_slice())
            .one()
            .await?;
        if there == made.len() as u64 {
            return Ok(());
        }
        for statement in statements {
            self.run_ddl(statement).await?;
        }
        Ok(())
    }

    /// ClickHouse's clock, µs since 1970.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn now_us(&self) -> Result<i64, Error> {
        self.query("SELECT toUnixTimestamp64Micro(now64(6))").one().await
    }

    /// Names and comments of the tables and views with a prefix.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tables_with_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, Error> {
        self.query("SELECT name, comment FROM system.tables WHERE database = {database:String} AND startsWith(name, {prefix:String}) ORDER BY name")
            .bind("database", self.database())
            .bind("prefix", prefix)
            .rows()
            .await
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
        self.await_named(&insert_name(landing), INSERTS_END).await
    }

    /// Waits until no statement runs that runs now and has a name that starts so.
    async fn await_named(&self, prefix: &str, within: Duration) -> Result<(), Error> {
        let running = "SELECT query_id FROM system.processes WHERE startsWith(query_id, {prefix:String})";
        let began: Vec<String> = self.query(running).bind("prefix", prefix).rows().await?;
        let deadline = tokio::time::Instant::now() + within;
        let mut pause = Duration::from_millis(2);
        loop {
            let now: Vec<String> = self.query(running).bind("prefix", prefix).rows().await?;
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
        self.query(&format!("SELECT toInt64(count()), toInt64({uncounted}) FROM {} FINAL", self.table(table))).within(COUNT).one().await
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

    /// The subjects that usage counts as a customer's: those mapped to it, and its own name where no other has that.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn subjects_of(&self, namespace: &str, customer: &str) -> Result<Vec<String>, Error> {
        let sql = format!("SELECT DISTINCT subject FROM {}", subjects_of_customers(self.database()));
        self.query(&sql).bind("namespace", namespace).bind("customers", [customer].as_slice()).rows().await
    }

    /// Writes or takes back a Customer's claims on subjects.
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
            "INSERT INTO {}.subjects (namespace, subject, customer, uid, created, version, is_deleted) SELECT {{namespace:String}}, \
             arrayJoin({{subjects:Array(String)}}), {{customer:String}}, {{uid:UUID}}, fromUnixTimestamp64Milli({{created:Int64}}, 'UTC'), \
             toUInt64({{version:Int64}}), {{deleted:UInt8}}",
            identifier(self.database())
        );
        for subjects in subjects.chunks(SUBJECTS) {
            self.query(&sql)
                .bind("namespace", namespace)
                .bind("subjects", subjects)
                .bind("customer", customer)
                .bind("uid", uid.to_string())
                .bind("created", created_ms)
                .bind("version", jiff::Timestamp::now().as_microsecond())
                .bind("deleted", u8::from(is_deleted))
                .run()
                .await?;
        }
        Ok(())
    }

    /// Removes a namespace's events of some subjects from every table, retained meter tables included.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn purge(&self, namespace: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        for subjects in subjects.chunks(SUBJECTS) {
            self.delete_subjects(namespace, "events", subjects, deadline).await?;
        }
        // A backfill or a repeat that has read them already puts them back.
        self.await_named(BACKFILL, deadline).await?;
        self.await_named(INSERT, deadline).await?;
        let notes = self.tables_with_prefix("meter_").await?;
        let meters =
            notes.iter().filter(|(_, comment)| serde_json::from_str::<TableNote>(comment).is_ok_and(|note| note.namespace == namespace));
        for subjects in subjects.chunks(SUBJECTS) {
            for (table, _) in meters.clone() {
                let sql = format!("ALTER TABLE {} DELETE WHERE subject IN {{subjects:Array(String)}}", self.table(table));
                self.query(&sql).bind("subjects", subjects).within(deadline).run().await?;
            }
            for table in ["events", "cancelled_events", "rejects", "identities"] {
                self.delete_subjects(namespace, table, subjects, deadline).await?;
            }
        }
        Ok(())
    }

    async fn delete_subjects(&self, namespace: &str, table: &str, subjects: &[&str], deadline: Duration) -> Result<(), Error> {
        let sql = format!(
            "ALTER TABLE {} DELETE WHERE namespace = {{namespace:String}} AND subject IN {{subjects:Array(String)}}",
            self.table(table)
        );
        self.query(&sql).bind("namespace", namespace).bind("subjects", subjects).within(deadline).run().await
    }
}

/// The table or view that a statement makes, unless it is there.
fn made_by<'a>(statement: &'a str, database: &str) -> Option<&'a str> {
    let name = statement.split_once(" IF NOT EXISTS ")?.1.strip_prefix(&identifier(database))?.strip_prefix('.')?;
    Some(name.split([' ', '(']).next()?.trim_matches('`'))
}

/// Start of the `query_id` of every backfill.
pub const BACKFILL: &str = "kubemeter-backfill";

/// Start of the `query_id` of every statement that writes through any landing table.
const INSERT: &str = "kubemeter-insert";

/// Start of the `query_id` of every statement that writes through a landing table.
pub fn insert_name(landing: &str) -> String {
    format!("{INSERT}-{landing}")
}
