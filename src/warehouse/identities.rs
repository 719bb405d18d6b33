//! Where identities stand.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use clickhouse::Row;
use serde::Deserialize;

use super::{Error, Warehouse};

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

    /// The stored ones among identities.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_identities(&self, ids: &[u128]) -> Result<HashMap<u128, StoredKeys>, Error> {
        let sql = format!(
            "SELECT id, toString(type) AS event_type, subject, toUnixTimestamp64Milli(time) AS time_ms FROM {} WHERE id IN {{ids:Array(UInt128)}}",
            self.table("identities")
        );
        let mut found: HashMap<u128, StoredKeys> = HashMap::new();
        let lookups = ids.chunks(CHUNK).map(|ids| self.query(&sql).bind("ids", ids).rows::<Stored>());
        for Stored { id, event_type, subject, time_ms } in futures::future::try_join_all(lookups).await?.into_iter().flatten() {
            let key = StoredKey { time_ms, subject, event_type };
            match found.entry(id) {
                Entry::Occupied(mut keys) => keys.get_mut().add(key),
                Entry::Vacant(none) => drop(none.insert(StoredKeys { least: key, others: Vec::new() })),
            }
        }
        Ok(found)
    }
}
