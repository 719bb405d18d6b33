//! Where identities stand.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;

use super::select::is_one_of;
use super::{Error, Query, Warehouse};

/// The key under which an identity was stored first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredKey {
    /// ms since 1970.
    pub time_ms: i64,
    /// Subject.
    pub subject: String,
    /// Event type.
    pub event_type: String,
}

impl StoredKey {
    /// Whether a row stands, or would, under this key.
    pub fn is_of(&self, row: &super::row::Row) -> bool {
        (self.time_ms, &self.subject, &self.event_type) == (row.time_ms, &row.event.subject, &row.event.event_type)
    }
}

/// All keys of one identity: one, but for those that two gateways stored at the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKeys {
    least: StoredKey,
    others: Vec<StoredKey>,
}

impl StoredKeys {
    /// The one that counts.
    pub const fn least(&self) -> &StoredKey {
        &self.least
    }

    /// Those that don't.
    pub fn others(&self) -> impl Iterator<Item = &StoredKey> {
        self.others.iter()
    }

    fn add(&mut self, mut key: StoredKey) {
        if key < self.least {
            std::mem::swap(&mut key, &mut self.least);
        }
        if key != self.least && !self.others.contains(&key) {
            self.others.push(key);
        }
    }
}

#[derive(Row, Deserialize)]
struct Stored {
    id: u128,
    event_type: String,
    subject: String,
    time_ms: i64,
}

/// Which table of which ClickHouse identities are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityTable {
    server: String,
    started_s: i64,
    uuid: String,
}

impl IdentityTable {
    /// Whether parts of the one are parts of the other: not after ClickHouse was started anew, maybe with another disk.
    pub fn is_same(&self, other: &Self) -> bool {
        // Both times of which the start is computed are whole seconds.
        (&self.server, &self.uuid) == (&other.server, &other.uuid) && self.started_s.abs_diff(other.started_s) <= 2
    }
}

/// A part of the table of identities. It never changes, but is merged with others to a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPart {
    /// Its name, which no other part ever has.
    pub name: String,
    /// How many rows.
    pub rows: u64,
    /// Number of the first INSERT whose rows it has.
    pub first_block: i64,
    /// Number of the last one. It has all between that there are.
    pub last_block: i64,
}

#[derive(Row, Deserialize)]
struct Parts {
    server: String,
    started_s: i64,
    uuid: String,
    parts: Vec<(String, u64, i64, i64)>,
}

/// Columns of [`Stored`].
const STORED: &str = "id, toString(type) AS event_type, subject, toUnixTimestamp64Milli(time) AS time_ms";

/// Identities of one parameter: 39 digits and a comma each stay below [`super::client::PARAM_BYTES`].
pub(super) const CHUNK: usize = 3_000;

impl Warehouse {
    /// Whether an event of an identity and a type is stored, and not only its place.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn has_event(&self, id: u128, event_type: &str) -> Result<bool, Error> {
        let sql = format!(
            "SELECT count() > 0 FROM {} WHERE (namespace, type, subject, time, id) IN \
             (SELECT namespace, type, subject, time, id FROM {} WHERE id = {{id:UInt128}} AND type = {{type:String}})",
            self.table("events"),
            self.table("identities")
        );
        self.query(&sql).bind("id", id).bind("type", event_type).one::<bool>().await
    }

    /// The table of identities and its parts. None when it is not one whose parts are of one ClickHouse.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn identity_parts(&self) -> Result<Option<(IdentityTable, Vec<IdentityPart>)>, Error> {
        let sql = "SELECT hostName() AS server, toInt64(toUnixTimestamp(now())) - toInt64(uptime()) AS started_s, toString(uuid) AS uuid, \
                   (SELECT groupArray((name, rows, min_block_number, max_block_number)) FROM system.parts \
                   WHERE database = {database:String} AND table = 'identities' AND active) AS parts \
                   FROM system.tables WHERE database = {database:String} AND name = 'identities' AND endsWith(engine, 'MergeTree')";
        let found: Vec<Parts> = self.query(sql).bind("database", self.database()).rows().await?;
        Ok(found.into_iter().next().map(|Parts { server, started_s, uuid, parts }| {
            let parts = parts.into_iter().map(|(name, rows, first_block, last_block)| IdentityPart { name, rows, first_block, last_block });
            (IdentityTable { server, started_s, uuid }, parts.collect())
        }))
    }

    /// Reads the identities in parts. Parts that are gone by now are left out.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn each_identity(&self, parts: &[IdentityPart], deadline: Duration, each: impl FnMut(u128)) -> Result<(), Error> {
        self.of_parts("id", parts, deadline).each(each).await
    }

    /// Reads identities and their keys in parts. Parts that are gone by now are left out.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn each_identity_key(
        &self,
        parts: &[IdentityPart],
        deadline: Duration,
        mut each: impl FnMut(u128, StoredKey),
    ) -> Result<(), Error> {
        let stored = |Stored { id, event_type, subject, time_ms }| each(id, StoredKey { time_ms, subject, event_type });
        self.of_parts(STORED, parts, deadline).each(stored).await
    }

    fn of_parts(&self, columns: &str, parts: &[IdentityPart], deadline: Duration) -> Query<'_> {
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let sql = format!("SELECT {columns} FROM {} WHERE _part IN {{parts:Array(String)}}", self.table("identities"));
        self.query(&sql).bind("parts", names).within(deadline)
    }

    /// The stored ones among identities.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_identities(&self, ids: &[u128]) -> Result<HashMap<u128, StoredKeys>, Error> {
        let mut found: HashMap<u128, StoredKeys> = HashMap::new();
        if ids.is_empty() {
            return Ok(found);
        }
        // One statement for all: each reads much of the table, however few identities it is about.
        let (is_one_of, params) = is_one_of(ids);
        let sql = format!("SELECT {STORED} FROM {} WHERE {is_one_of}", self.table("identities"));
        for Stored { id, event_type, subject, time_ms } in self.query(&sql).bind_all(params).rows::<Stored>().await? {
            let key = StoredKey { time_ms, subject, event_type };
            match found.entry(id) {
                Entry::Occupied(mut keys) => keys.get_mut().add(key),
                Entry::Vacant(none) => drop(none.insert(StoredKeys { least: key, others: Vec::new() })),
            }
        }
        Ok(found)
    }
}
