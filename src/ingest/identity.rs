//! One identity, one key: before rows are inserted, and once more after.
//!
//! Before: an identity that is stored keeps its key. Two gateways that get the same new identity with different times at
//! the same moment both find nothing before. So each looks again after its INSERT: reads and writes of one ClickHouse
//! are ordered, so the later of the two looks sees both keys. The least key counts, for all; rows under the others are
//! superseded, before the request is answered.

use std::collections::HashMap;

use jiff::Timestamp;

use super::commit::{encode, insert_landings, retried};
use crate::event::{Event, Leaves};
use crate::warehouse::row::{Row, SUPERSEDED, VERSION_MARK, VERSION_REPEAT};
use crate::warehouse::schema::Landing;
use crate::warehouse::{Error, StoredKeys, Warehouse};

/// What it takes to look at a new identity again.
pub(super) struct New {
    namespace: String,
    source: String,
    id: String,
}

/// Gives rows whose identity is stored already the stored key, so that they collapse with what is there, and says which
/// identities are new.
pub(super) async fn settle(warehouse: &Warehouse, rows: &mut Vec<&mut Row>) -> Result<HashMap<u128, New>, Error> {
    let ids: Vec<u128> = rows.iter().map(|row| row.identity).collect();
    let stored = look(warehouse, &ids).await?;
    let mut new = HashMap::with_capacity(rows.len());
    let mut contested = HashMap::new();
    rows.retain_mut(|row| {
        let event = &mut row.event;
        let known = New { namespace: row.namespace.clone(), source: event.source.clone(), id: event.id.clone() };
        let Some(keys) = stored.get(&row.identity) else {
            new.insert(row.identity, known);
            return true;
        };
        if keys.others().next().is_some() {
            contested.insert(row.identity, known);
        }
        let key = keys.least();
        row.version = VERSION_REPEAT;
        row.time_ms = key.time_ms;
        event.subject.clone_from(&key.subject);
        // Under another type it would be another event to other meters: it is the stored one, and changes nothing.
        event.event_type == key.event_type
    });
    supersede(warehouse, &stored, &contested).await?;
    Ok(new)
}

/// Looks at identities again that were new before their rows were inserted.
pub(super) async fn check(warehouse: &Warehouse, new: &HashMap<u128, New>) -> Result<(), Error> {
    let ids: Vec<u128> = new.keys().copied().collect();
    supersede(warehouse, &look(warehouse, &ids).await?, new).await
}

async fn look(warehouse: &Warehouse, ids: &[u128]) -> Result<HashMap<u128, StoredKeys>, Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    retried(warehouse, || warehouse.stored_identities(ids)).await
}

/// Makes rows under all but the least key of an identity not count. The row that does it needs no data: with its greater
/// version it takes the place of the row that is there, or that is about to come.
async fn supersede(warehouse: &Warehouse, stored: &HashMap<u128, StoredKeys>, of: &HashMap<u128, New>) -> Result<(), Error> {
    let received_us = Timestamp::now().as_microsecond();
    let mut rows = Vec::new();
    for (identity, new) in of {
        for key in stored.get(identity).into_iter().flat_map(StoredKeys::others) {
            rows.push(Row {
                landing: Landing::of(&new.namespace, &key.event_type),
                namespace: new.namespace.clone(),
                identity: *identity,
                received_us,
                version: VERSION_MARK + received_us.unsigned_abs(),
                time_ms: key.time_ms,
                cancellation: SUPERSEDED,
                event: Event {
                    id: new.id.clone(),
                    source: new.source.clone(),
                    event_type: key.event_type.clone(),
                    subject: key.subject.clone(),
                    time_ms: Some(key.time_ms),
                    data: Leaves::new(),
                },
            });
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    tracing::warn!(events = rows.len(), "events came through two gateways at once with different times or subjects; each counts once");
    insert_landings(warehouse, encode(rows.iter())).await.into_values().collect()
}
