//! Where identities stand.

use std::collections::HashMap;

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

#[derive(Row, Deserialize)]
struct Stored {
    id: u128,
    event_type: String,
    subject: String,
    time_ms: i64,
}

/// Identities of one look-up statement: its parameter stays below 1 MiB.
const CHUNK: usize = 20_000;

impl Warehouse {
    /// The stored ones among identities. Where two gateways stored one under two keys, the least key is taken by all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_identities(&self, ids: &[u128]) -> Result<HashMap<u128, StoredKey>, Error> {
        let sql = format!(
            "SELECT id, toString(type) AS event_type, subject, toUnixTimestamp64Milli(time) AS time_ms FROM {} WHERE id IN {{ids:Array(UInt128)}}",
            self.table("identities")
        );
        let mut found: HashMap<u128, StoredKey> = HashMap::new();
        for ids in ids.chunks(CHUNK) {
            for Stored { id, event_type, subject, time_ms } in self.query(&sql).bind("ids", ids).rows::<Stored>().await? {
                let key = StoredKey { time_ms, subject, event_type };
                let least = found.entry(id).or_insert_with(|| key.clone());
                if key < *least {
                    *least = key;
                }
            }
        }
        Ok(found)
    }
}
