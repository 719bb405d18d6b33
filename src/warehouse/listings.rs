//! Listings: stored events and rejects.

use clickhouse::Row;
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::select::{EventCursor, Statement};
use super::{Error, Warehouse};

/// A stored event as ClickHouse gives it.
#[derive(Row, Deserialize, Clone, Debug)]
#[allow(missing_docs)]
pub struct EventRecord {
    pub event_id: String,
    pub source: String,
    pub event_type: String,
    pub subject: String,
    pub time_ms: i64,
    pub received_us: i64,
    pub keys: Vec<String>,
    pub vals: Vec<String>,
    pub cancellation_id: String,
    pub identity: String,
}

impl EventRecord {
    /// Where a page that ends with it ended.
    pub fn cursor(&self) -> EventCursor {
        EventCursor { event_type: self.event_type.clone(), subject: self.subject.clone(), time_ms: self.time_ms, id: self.identity.clone() }
    }
}

/// A kept reject as ClickHouse gives it.
#[derive(Row, Deserialize, Clone, Debug)]
#[allow(missing_docs)]
pub struct RejectRecord {
    pub reject_id: String,
    pub received_us: i64,
    pub source: String,
    pub event_id: String,
    pub code: String,
    pub message: String,
    #[serde(with = "serde_bytes")]
    pub event: Vec<u8>,
}

impl RejectRecord {
    /// When it arrived.
    pub fn received(&self) -> Timestamp {
        Timestamp::from_microsecond(self.received_us).unwrap_or_default()
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        Uuid::parse_str(&self.reject_id).unwrap_or_default()
    }
}

impl Warehouse {
    /// Runs a statement of [`super::select::events`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(&self, statement: Statement) -> Result<Vec<EventRecord>, Error> {
        self.query(&statement.sql).bind_all(statement.params).rows().await
    }

    /// Kept rejects, oldest first, after a (received, id); all, or the named ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rejects(
        &self,
        namespace: &str,
        after: Option<(i64, Uuid)>,
        only: &[Uuid],
        limit: usize,
    ) -> Result<Vec<RejectRecord>, Error> {
        let sql = format!(
            "SELECT toString(r.reject_id) AS reject_id, toUnixTimestamp64Micro(r.received) AS received_us, r.source AS source, r.event_id AS event_id, \
             toString(r.code) AS code, r.message AS message, r.event AS event FROM {} AS r FINAL WHERE r.namespace = {{namespace:String}} \
             AND (r.received, toString(r.reject_id)) > (fromUnixTimestamp64Micro({{after:Int64}}, 'UTC'), {{after_id:String}}) \
             AND (empty({{only:Array(String)}}) OR has({{only:Array(String)}}, toString(r.reject_id))) \
             ORDER BY r.received, toString(r.reject_id) LIMIT {limit}",
            self.table("rejects")
        );
        let (after, after_id) = after.map_or((0, String::new()), |(us, id)| (us, id.to_string()));
        let only: Vec<String> = only.iter().map(Uuid::to_string).collect();
        self.query(&sql).bind("namespace", namespace).bind("after", after).bind("after_id", after_id).bind("only", only).rows().await
    }
}
