//! One identity, one key: before rows are inserted, and once more after.
//!
//! Before: an identity that is stored keeps its key. Two gateways that get the same new identity with different times at
//! the same moment both find nothing before. So each looks again after its INSERT: reads and writes of one ClickHouse
//! are ordered, so the later of the two looks sees both keys. The least key counts, for all: whoever sees others puts the
//! event there too, whatever became of the other gateway, and then supersedes the rows under the others, before the
//! request is answered.

use std::collections::HashMap;

use bytes::Bytes;
use jiff::Timestamp;

use super::commit::{INSERT, encode, insert_landings, retried};
use super::look::Lookup;
use crate::event::{Event, Leaves};
use crate::warehouse::row::{IDENTITY_COLUMNS, Row, SUPERSEDED, VERSION_MARK};
use crate::warehouse::schema::Landing;
use crate::warehouse::{Error, StoredKeys, Warehouse};

/// What it takes to supersede a row of an identity.
pub(super) struct Contested {
    namespace: String,
    source: String,
    id: String,
}

impl Contested {
    fn of(row: &Row) -> Self {
        Self { namespace: row.namespace.clone(), source: row.event.source.clone(), id: row.event.id.clone() }
    }
}

/// Gives rows whose identity is stored already the stored key, so that they collapse with what is there, and says which
/// identities have several keys.
pub(super) async fn settle(
    warehouse: &Warehouse,
    lookup: &mut Lookup,
    rows: &mut Vec<&mut Row>,
) -> Result<HashMap<u128, Contested>, Error> {
    let stored = lookup.before(&shared(rows)).await?;
    let mut contested = HashMap::new();
    rows.retain_mut(|row| {
        let Some(keys) = stored.get(&row.identity) else { return true };
        if keys.others().next().is_some() {
            contested.insert(row.identity, Contested::of(row));
        }
        adopt(row, keys)
    });
    place(warehouse, rows).await?;
    Ok(contested)
}

fn shared<'a>(rows: &'a [&mut Row]) -> Vec<&'a Row> {
    rows.iter().map(|row| &**row).collect()
}

/// Gives a row the key that counts. False: it is stored under another type, as what it would be another event to other
/// meters; it is the stored one, and changes nothing.
fn adopt(row: &mut Row, keys: &StoredKeys) -> bool {
    let key = keys.least();
    row.repeat();
    row.time_ms = key.time_ms;
    row.event.subject.clone_from(&key.subject);
    row.event.event_type == key.event_type
}

/// Writes down where new events without a time of their own go, before they go there: whatever becomes of their INSERT,
/// also when it is done after all while the sender tries again, the next sending takes this time and not its own.
async fn place(warehouse: &Warehouse, rows: &[&mut Row]) -> Result<(), Error> {
    let mut places = Vec::new();
    let new = rows.iter().filter(|row| row.event.time_ms.is_none() && !row.is_repeat());
    new.for_each(|row| row.encode_identity(&mut places));
    if places.is_empty() {
        return Ok(());
    }
    let places = Bytes::from(places);
    retried(warehouse, || warehouse.insert("identities", IDENTITY_COLUMNS, places.clone(), "kubemeter-identities", INSERT)).await
}

/// Looks again, after the INSERT, at new identities and at contested ones.
pub(super) async fn check(
    warehouse: &Warehouse,
    lookup: &mut Lookup,
    mut rows: Vec<&mut Row>,
    mut contested: HashMap<u128, Contested>,
) -> Result<(), Error> {
    let new: Vec<&Row> = rows.iter().map(|row| &**row).filter(|row| !row.is_repeat()).collect();
    let stored = lookup.after(&new, contested.keys().copied().collect()).await?;
    rows.retain_mut(|row| {
        let Some(keys) = stored.get(&row.identity).filter(|keys| keys.others().next().is_some()) else { return false };
        contested.insert(row.identity, Contested::of(row));
        adopt(row, keys)
    });
    // The other gateway may never have got to its INSERT: without this, nothing would count.
    insert_landings(warehouse, encode(rows.iter().map(|row| &**row))).await.into_values().collect::<Result<(), _>>()?;
    supersede(warehouse, &stored, &contested).await
}

/// Makes rows under all but the least key of an identity not count. The row that does it needs no data: with its greater
/// version it takes the place of the row that is there, or that is about to come.
async fn supersede(warehouse: &Warehouse, stored: &HashMap<u128, StoredKeys>, of: &HashMap<u128, Contested>) -> Result<(), Error> {
    let received_us = Timestamp::now().as_microsecond();
    let mut rows = Vec::new();
    for (identity, known) in of {
        for key in stored.get(identity).into_iter().flat_map(StoredKeys::others) {
            rows.push(Row {
                landing: Landing::of(&known.namespace, &key.event_type),
                namespace: known.namespace.clone(),
                identity: *identity,
                received_us,
                version: VERSION_MARK + received_us.unsigned_abs(),
                time_ms: key.time_ms,
                cancellation: SUPERSEDED,
                event: Event {
                    id: known.id.clone(),
                    source: known.source.clone(),
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
