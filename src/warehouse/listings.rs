//! Listings: stored events and rejects.

use clickhouse::Row;
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::client::Rows;
use super::counted::Reading;
use super::select::{self, EventCursor, Source, Statement};
use super::{Asked, Error, Warehouse};
use crate::meter::Definition;
use crate::metering::EventFilter;

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
    /// Bytes of its values with their paths, about.
    fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.vals).map(|text| size_of::<String>() + text.len()).sum()
    }

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
    /// Stored events with their state after a page, in the order of their keys; all, or those that a Meter, of this table, can't count.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(
        &self,
        namespace: &str,
        filter: &EventFilter,
        uncounted_by: Option<(&str, &Definition)>,
        after: Option<EventCursor>,
        most: usize,
    ) -> Result<Rows<EventRecord>, Error> {
        let reading = match uncounted_by {
            Some((table, _)) => self.reading_of_all(table).await?,
            None => Reading::Final,
        };
        let asked = uncounted_by.map(|(table, definition)| Asked::of(table, definition, filter.from));
        let let_go = match &asked {
            Some(asked) => self.whole(asked).await?,
            None => None,
        };
        let uncounted_by = uncounted_by.map(|(table, definition)| Source {
            database: self.database(),
            namespace,
            table,
            definition,
            reading: &reading,
            let_go,
            subjects: None,
        });
        let mut most_keys = most + 1;
        loop {
            let limits = (most + 1, most_keys);
            let (Statement { sql, params }, count_keys) =
                select::events(self.database(), namespace, filter, uncounted_by.as_ref(), after.clone(), limits);
            let page = self.query(&sql).bind_all(params.clone()).page(most, EventRecord::bytes).await?;
            // A purge takes events from `events` first: keys of these fill no page.
            let is_whole = page.more
                || match count_keys {
                    Some(count) => self.query(&count).bind_all(params).one::<u64>().await? < most_keys as u64,
                    None => true,
                };
            if is_whole {
                if let Some(asked) = &asked {
                    self.still_whole(asked, let_go).await?;
                }
                return Ok(page);
            }
            most_keys *= 32;
        }
    }

    /// Kept rejects after a page, which is a (received, id), oldest first; all, or the named ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rejects(
        &self,
        namespace: &str,
        after: Option<(i64, Uuid)>,
        only: &[Uuid],
        most: usize,
    ) -> Result<Rows<RejectRecord>, Error> {
        let sql = format!(
            "SELECT toString(r.reject_id) AS reject_id, toUnixTimestamp64Micro(r.received) AS received_us, r.source AS source, r.event_id AS event_id, \
             toString(r.code) AS code, r.message AS message, r.event AS event FROM {} AS r FINAL WHERE r.namespace = {{namespace:String}} \
             AND (r.received, toString(r.reject_id)) > (fromUnixTimestamp64Micro({{after:Int64}}, 'UTC'), {{after_id:String}}) \
             AND (empty({{only:Array(String)}}) OR has({{only:Array(String)}}, toString(r.reject_id))) \
             ORDER BY r.received, toString(r.reject_id) LIMIT {}",
            self.table("rejects"),
            most + 1
        );
        let (after, after_id) = after.map_or((0, String::new()), |(us, id)| (us, id.to_string()));
        let only: Vec<String> = only.iter().map(Uuid::to_string).collect();
        let query = self.query(&sql).bind("namespace", namespace).bind("after", after).bind("after_id", after_id).bind("only", only);
        query.page(most, |record: &RejectRecord| record.event.len() + record.message.len()).await
    }
}
