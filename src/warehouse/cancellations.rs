//! Cancellations: what they hit, their record, their tombstones, their revert.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clickhouse::Row;
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::client::Rows;
use super::row::{COLUMNS, Turn};
use super::select::{MONTH, NIL, Statement};
use super::{Error, Query, Warehouse, insert_name};
use crate::metering::CancellationRecord;

/// Deadline of a statement that may touch many events.
const LONG: Duration = Duration::from_secs(300);
/// A cancellation, bound.
const CANCELLATION: &str = "{cancellation:UUID}";
/// What statements are named after that cancel events in `events`, or let them count again.
const TURNED: &str = "turned";

#[derive(Row, Deserialize)]
struct Stored {
    cancellation_id: String,
    created_us: i64,
    reason: String,
    cancelled: u64,
    reverted_us: i64,
    cancelled_by: String,
    reverted_by: String,
}

impl From<Stored> for CancellationRecord {
    fn from(stored: Stored) -> Self {
        let time = |us| Timestamp::from_microsecond(us).unwrap_or_default();
        Self {
            cancellation_id: Uuid::parse_str(&stored.cancellation_id).unwrap_or_default(),
            reason: Some(stored.reason).filter(|reason| !reason.is_empty()),
            created_at: time(stored.created_us),
            cancelled: stored.cancelled,
            reverted_at: (stored.reverted_us != 0).then(|| time(stored.reverted_us)),
            cancelled_by: Some(stored.cancelled_by).filter(|who| !who.is_empty()),
            reverted_by: Some(stored.reverted_by).filter(|who| !who.is_empty()),
        }
    }
}

/// A type and a month (`yyyymm`, UTC) of events.
#[derive(Row, Deserialize)]
struct Place {
    event_type: String,
    month: u32,
}

/// A cancellation whose record is stored. No event is hit before that: one that was cut off can be found, and reverted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    namespace: String,
    record: CancellationRecord,
}

impl Recorded {
    /// What is stored.
    pub const fn record(&self) -> &CancellationRecord {
        &self.record
    }

    /// What is to become of its events.
    const fn turn(&self) -> Turn {
        Turn { cancellation: self.record.cancellation_id, is_cancelled: self.record.reverted_at.is_none() }
    }
}

impl From<Recorded> for CancellationRecord {
    fn from(recorded: Recorded) -> Self {
        recorded.record
    }
}

impl Warehouse {
    /// Adds the columns that a database of an earlier version lacks.
    pub(super) async fn add_cancellation_columns(&self) -> Result<(), Error> {
        let columns: Vec<String> = self
            .query("SELECT name FROM system.columns WHERE database = {database:String} AND table = 'cancellations'")
            .bind("database", self.database())
            .rows()
            .await?;
        for (column, of) in [("cancelled_by", "String"), ("reverted_by", "String"), ("unfinished", "UInt8")] {
            if !columns.iter().any(|name| name == column) {
                // On a cluster the tables of the shards first: the one in front of them sends what it has to them.
                for table in [&*self.topology().stored("cancellations"), "cancellations"] {
                    self.run_ddl(&format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {column} {of}", self.table(table))).await?;
                }
            }
        }
        Ok(())
    }

    /// How many events targets hit, which have none in common.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_to_cancel(&self, targets: Vec<Statement>) -> Result<u64, Error> {
        let mut hit = 0;
        for Statement { sql, params } in targets {
            let sql = format!("SELECT count() FROM ({sql}) WHERE cancellation = {NIL}");
            hit += self.query(&sql).bind_all(params).within(LONG).one::<u64>().await?;
        }
        Ok(hit)
    }

    /// Writes down which events a cancellation hits, and says how many.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn note_to_cancel(&self, targets: Vec<Statement>, namespace: &str, id: Uuid) -> Result<u64, Error> {
        let noted = self.table("cancelled_events");
        for Statement { sql, params } in targets {
            let sql = format!(
                "INSERT INTO {noted} (namespace, cancellation, type, subject, time, id) \
                 SELECT {{namespace:String}}, {CANCELLATION}, type, subject, time, id FROM ({sql}) WHERE cancellation = {NIL}"
            );
            self.query(&sql).bind_all(params).bind("cancellation", id.to_string()).within(LONG).run().await?;
        }
        self.query(&format!("SELECT count() FROM {noted} FINAL WHERE namespace = {{namespace:String}} AND cancellation = {CANCELLATION}"))
            .bind("namespace", namespace)
            .bind("cancellation", id.to_string())
            .one()
            .await
    }

    /// Cancellations of a namespace that were begun, or their reverts, and not finished: they run, or were cut off.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unfinished(&self, namespace: &str) -> Result<BTreeSet<Uuid>, Error> {
        let sql = format!(
            "SELECT toString(cancellation) FROM {} FINAL WHERE namespace = {{namespace:String}} AND unfinished",
            self.table("cancellations")
        );
        let of: Vec<String> = self.query(&sql).bind("namespace", namespace).within(LONG).rows().await?;
        Ok(of.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect())
    }

    /// By which cancellations events of targets do not count already.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancellations_of(&self, targets: Vec<Statement>) -> Result<BTreeSet<Uuid>, Error> {
        let mut found = BTreeSet::new();
        for Statement { sql, params } in targets {
            let sql = format!("SELECT DISTINCT toString(cancellation) FROM ({sql}) WHERE cancellation != {NIL}");
            let of: Vec<String> = self.query(&sql).bind_all(params).within(LONG).rows().await?;
            found.extend(of.iter().filter_map(|id| Uuid::parse_str(id).ok()));
        }
        Ok(found)
    }

    /// Waits for what runs of earlier cancellations and reverts, though those who wanted it may have gone, until all replicas have it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn await_turns(&self) -> Result<(), Error> {
        self.await_named(&insert_name(TURNED), LONG).await?;
        self.on_every_replica("events").await?;
        self.on_every_replica("cancelled_events").await
    }

    /// Cancels the events of a cancellation that count, unless its record is that of a revert by now, or lets those count that it cancelled:
    /// in `events` first ([`VERSION_MARK`](super::row::VERSION_MARK)), and from there in all tables.
    ///
    /// Who cancels or reverts writes the record first ([`Recorded`]), and waits here for statements that began before: the last of them is the last word.
    /// One that comes later, of a gateway that was cut off, finds a record that its gateway had not, and does nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn turn(&self, recorded: &Recorded) -> Result<(), Error> {
        let (namespace, turn) = (&*recorded.namespace, recorded.turn());
        let (from, to) = if turn.is_cancelled { (NIL, CANCELLATION) } else { (CANCELLATION, NIL) };
        let events = self.table("events");
        let unless = if turn.is_cancelled {
            format!(
                " AND (SELECT count() FROM {} FINAL WHERE namespace = {{namespace:String}} AND cancellation = {CANCELLATION} \
                 AND reverted IS NOT NULL) = 0",
                self.table("cancellations")
            )
        } else {
            String::new()
        };
        let known = self.known_cancellations();
        let deadline = Instant::now() + LONG;
        loop {
            self.on_every_replica("cancellations").await?;
            let of: u64 = self.query(&format!("SELECT {known}")).bind("namespace", namespace).one().await?;
            self.await_turns().await?;
            // It may have taken minutes.
            let is_still = self.query(&format!("SELECT {known}")).bind("namespace", namespace).one::<u64>().await? == of;
            let places = if is_still { self.places_of(namespace, turn.cancellation).await? } else { Vec::new() };
            for place in &places {
                let sql = format!(
                    "INSERT INTO {events} ({COLUMNS}) SELECT namespace, type, subject, time, id, source, event_id, received, data, {}, {to} \
                     FROM {events} FINAL WHERE {} AND cancellation = {from}{unless} AND {known} = {{known:UInt64}}",
                    turn.version_sql(),
                    self.of_cancellation()
                );
                self.of(&sql, namespace, turn.cancellation, place).bind("known", of).named(&insert_name(TURNED)).run().await?;
            }
            if is_still && self.query(&format!("SELECT {known}")).bind("namespace", namespace).one::<u64>().await? == of {
                return self.spread(namespace, turn.cancellation).await;
            }
            // It may have done nothing.
            if Instant::now() > deadline {
                return Err(Error::Unavailable("others cancel and revert all the time: this has to be sent again".to_owned()));
            }
        }
    }

    /// SQL: what tells the cancellations and reverts of a namespace that have been begun, `{namespace:String}` being bound.
    fn known_cancellations(&self) -> String {
        format!(
            "ifNull((SELECT groupBitXor(cityHash64(toString(cancellation), reverted IS NULL)) FROM {} FINAL \
             WHERE namespace = {{namespace:String}}), 0)",
            self.table("cancellations")
        )
    }

    /// Writes the events of a cancellation, as they are in `events` by now, to all tables: those who wrote them there may have been cut
    /// off. Whether they are cancelled, and by what, is as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn spread(&self, namespace: &str, cancellation: Uuid) -> Result<(), Error> {
        for Place { event_type, month } in self.places_of(namespace, cancellation).await? {
            let (noted, id) = (self.noted_keys(), cancellation.to_string());
            self.copy_events(namespace, &event_type, &noted, |query| query.bind("cancellation", id).bind("month", month).within(LONG))
                .await?;
        }
        Ok(())
    }

    /// How many events do not count by a cancellation.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_cancelled(&self, namespace: &str, cancellation: Uuid) -> Result<u64, Error> {
        let mut cancelled = 0;
        for place in self.places_of(namespace, cancellation).await? {
            let of = format!("{} AND cancellation = {CANCELLATION}", self.of_cancellation());
            let sql = format!("SELECT count() FROM {} FINAL WHERE {of}", self.table("events"));
            cancelled += self.of(&sql, namespace, cancellation, &place).one::<u64>().await?;
        }
        Ok(cancelled)
    }

    /// Where the events are that a cancellation hits.
    async fn places_of(&self, namespace: &str, cancellation: Uuid) -> Result<Vec<Place>, Error> {
        let sql = format!(
            "SELECT DISTINCT toString(type) AS event_type, {MONTH} AS month FROM {} WHERE namespace = {{namespace:String}} \
             AND cancellation = {CANCELLATION} ORDER BY event_type, month",
            self.table("cancelled_events")
        );
        self.query(&sql).bind("namespace", namespace).bind("cancellation", cancellation.to_string()).rows().await
    }

    /// What is true of the events in one place that a cancellation hits.
    fn of_cancellation(&self) -> String {
        format!("namespace = {{namespace:String}} AND type = {{type:String}} AND {}", self.noted_keys())
    }

    /// See [`keys_of`](super::select::keys_of).
    fn noted_keys(&self) -> String {
        let of = format!("{MONTH} = {{month:UInt32}}");
        format!(
            "{of} AND (subject, time, id) IN (SELECT subject, time, id FROM {} WHERE namespace = {{namespace:String}} \
             AND cancellation = {CANCELLATION} AND type = {{type:String}} AND {of})",
            self.table("cancelled_events")
        )
    }

    fn of(&self, sql: &str, namespace: &str, cancellation: Uuid, Place { event_type, month }: &Place) -> Query<'_> {
        let query = self.query(sql).bind("namespace", namespace).bind("cancellation", cancellation.to_string());
        query.bind("type", event_type).bind("month", month).within(LONG)
    }

    /// Writes down that a cancellation, or its revert, begins.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin_cancellation(&self, namespace: &str, record: CancellationRecord) -> Result<Recorded, Error> {
        let recorded = Recorded { namespace: namespace.to_owned(), record };
        self.write_cancellation(&recorded, true).await?;
        Ok(recorded)
    }

    /// Writes down that all tables know of a cancellation, or of its revert ([`Self::turn`]), and how many events it cancelled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn finish_cancellation(&self, recorded: Recorded, cancelled: u64) -> Result<CancellationRecord, Error> {
        let recorded = Recorded { record: CancellationRecord { cancelled, ..recorded.record }, ..recorded };
        self.write_cancellation(&recorded, false).await?;
        Ok(recorded.record)
    }

    /// Writes a record. A revert's is above the cancellation's; of the same one the last written counts.
    async fn write_cancellation(&self, Recorded { namespace, record }: &Recorded, unfinished: bool) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO {} (namespace, cancellation, created, reason, cancelled, reverted, version, cancelled_by, reverted_by, unfinished) \
             SELECT {{namespace:String}}, {{cancellation:UUID}}, \
             fromUnixTimestamp64Micro({{created:Int64}}, 'UTC'), {{reason:String}}, {{cancelled:UInt64}}, \
             if({{reverted:Int64}} = 0, NULL, fromUnixTimestamp64Micro({{reverted:Int64}}, 'UTC')), {{version:UInt64}}, \
             {{cancelled_by:String}}, {{reverted_by:String}}, {{unfinished:UInt8}}",
            self.table("cancellations")
        );
        self.query(&sql)
            .bind("namespace", namespace)
            .bind("cancellation", record.cancellation_id.to_string())
            .bind("created", record.created_at.as_microsecond())
            .bind("reason", record.reason.as_deref().unwrap_or_default())
            .bind("cancelled", record.cancelled)
            .bind("reverted", record.reverted_at.map_or(0, Timestamp::as_microsecond))
            .bind("version", u64::from(record.reverted_at.is_some()))
            .bind("cancelled_by", record.cancelled_by.as_deref().unwrap_or_default())
            .bind("reverted_by", record.reverted_by.as_deref().unwrap_or_default())
            .bind("unfinished", u8::from(unfinished))
            .run()
            .await
    }

    /// One cancellation.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancellation(&self, namespace: &str, id: Uuid) -> Result<Option<Recorded>, Error> {
        let sql = self.cancellations_sql("AND cancellation = {cancellation:UUID}", 1);
        let found: Vec<Stored> = self.query(&sql).bind("namespace", namespace).bind("cancellation", id.to_string()).rows().await?;
        Ok(found.into_iter().next().map(|stored| Recorded { namespace: namespace.to_owned(), record: stored.into() }))
    }

    /// Cancellations after a page, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancellations(&self, namespace: &str, before: Option<Uuid>, most: usize) -> Result<Rows<CancellationRecord>, Error> {
        // Time-ordered UUIDs are compared as text: ClickHouse orders UUIDs by their second half first.
        let sql = self.cancellations_sql("AND toString(cancellation) < {before:String}", most + 1);
        let before = before.map_or_else(|| "g".to_owned(), |id| id.to_string());
        let query = self.query(&sql).bind("namespace", namespace).bind("before", before);
        let Rows { rows, more } = query.page(most, |stored: &Stored| stored.reason.len()).await?;
        Ok(Rows { rows: rows.into_iter().map(CancellationRecord::from).collect(), more })
    }

    fn cancellations_sql(&self, condition: &str, limit: usize) -> String {
        format!(
            "SELECT toString(cancellation) AS cancellation_id, toUnixTimestamp64Micro(created) AS created_us, reason, cancelled, \
             ifNull(toUnixTimestamp64Micro(reverted), 0) AS reverted_us, cancelled_by, reverted_by FROM {} FINAL WHERE namespace = {{namespace:String}} {condition} \
             ORDER BY cancellation_id DESC LIMIT {limit}",
            self.table("cancellations")
        )
    }
}
