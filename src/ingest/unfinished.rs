//! Events that ClickHouse did not confirm in time, so that their senders were told to send them again.
//!
//! Their INSERT may have reached some of its tables and not others: until they are sent again, which may never be, they would count in one
//! Meter and not in another. So the gateway goes on by itself until all tables have them.
//! - **New events** are inserted again, as they were decided on: under the same fence, and only those whose identity is claimed by the very INSERT
//!   that this gateway claimed it with. Their rows say that they may be there already, and give way to what has completed them meanwhile
//!   ([`Row::encode`]).
//! - **Others**: what `events` has by then is written to all tables. So it is with what was claimed or stored before; with all once a purge has
//!   begun, which may have removed them; and where claims have no number that this gateway knows: on a cluster, or while it has not read
//!   yet what is claimed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::send::event_insert;
use crate::telemetry::Metrics;
use crate::warehouse::row::Row;
use crate::warehouse::{Error, Fence, Warehouse, insert_name};

/// Bytes of rows that are kept; a round has as many at most. What comes beyond is left to its senders.
const ROOM: usize = 32 * 1_024 * 1_024;
/// Bytes that a row takes besides, about.
const OF_ROW: usize = 64;
/// Pause after all were tried and some failed, twice as long each time.
const SOON: Duration = Duration::from_millis(500);
/// The longest pause.
const LATE: Duration = Duration::from_secs(30);
/// How long it is gone on with.
const GIVE_UP: Duration = Duration::from_hours(24);

/// The INSERT that claimed identities: the table of identities, of which no other has the UUID, and the INSERT's number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClaimedBy {
    pub(super) table: Uuid,
    pub(super) block: u64,
    /// Read before any of it was claimed.
    pub(super) fence: Fence,
}

/// Takes what was not confirmed. The task that goes on with it ends with this.
pub(super) struct Unfinished {
    queue: mpsc::UnboundedSender<Left>,
    room: Arc<Semaphore>,
    others: Others,
    metrics: Arc<Metrics>,
    _task: AbortOnDropHandle<()>,
}

/// Identities of [`Events::Others`] that are kept: senders come again and again.
type Others = Arc<Mutex<HashSet<u128>>>;

struct Left {
    events: Events,
    since: Instant,
    others: Others,
    /// Whether its identities are among those.
    holds: bool,
    metrics: Arc<Metrics>,
    _room: OwnedSemaphorePermit,
}

enum Events {
    /// Of one landing table, as rows that may be there already.
    New { table: String, claimed_by: ClaimedBy, rows: Vec<(u128, Bytes)>, of_types: OfTypes },
    /// Of one type.
    Others { of: Of, ids: Vec<u128> },
}

/// Namespace and type.
type Of = (String, String);
/// Identities by namespace and type.
pub(super) type OfTypes = HashMap<Of, Vec<u128>>;

impl Unfinished {
    /// Starts the task that goes on with what is kept.
    pub(super) fn start(warehouse: Warehouse, metrics: Arc<Metrics>) -> Self {
        let (queue, left) = mpsc::unbounded_channel();
        let task = AbortOnDropHandle::new(tokio::spawn(go_on(warehouse, left)));
        Self { queue, room: Arc::new(Semaphore::new(ROOM)), others: Others::default(), metrics, _task: task }
    }

    /// Goes on with new events, of a landing table, that this gateway was the first to claim.
    pub(super) fn keep_new(&self, table: String, rows: &[&Row], claimed_by: Option<ClaimedBy>) {
        let mut of_types = OfTypes::new();
        for row in rows {
            of_types.entry((row.namespace.to_string(), row.event.attributes.event_type().to_owned())).or_default().push(row.identity);
        }
        let Some(claimed_by) = claimed_by else { return self.keep_others(of_types) };
        let bytes = rows.iter().map(|row| row.encoded_len()).sum::<usize>();
        self.keep(rows.len(), bytes, || {
            let mut encoded = Vec::with_capacity(bytes);
            let ends = rows.iter().map(|row| {
                row.encode(&mut encoded, true);
                (row.identity, encoded.len())
            });
            let ends: Vec<(u128, usize)> = ends.collect();
            let (encoded, mut begin) = (Bytes::from(encoded), 0);
            let rows = ends.into_iter().map(|(id, end)| (id, encoded.slice(std::mem::replace(&mut begin, end)..end)));
            Events::New { table, claimed_by, rows: rows.collect(), of_types }
        });
    }

    /// Goes on with events that were claimed or stored before, by namespace and type.
    pub(super) fn keep_others(&self, of_types: OfTypes) {
        for (of, mut ids) in of_types {
            {
                let kept = locked(&self.others);
                ids.retain(|id| !kept.contains(id));
            }
            if !ids.is_empty() {
                self.keep(ids.len(), 0, || Events::Others { of, ids });
            }
        }
    }

    fn keep(&self, count: usize, bytes: usize, events: impl FnOnce() -> Events) {
        let room = u32::try_from(bytes + count * OF_ROW).ok();
        let Some(room) = room.and_then(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()) else {
            return abandoned(&self.metrics, count, "too many were not confirmed to go on with all of them");
        };
        let (others, metrics) = (Arc::clone(&self.others), Arc::clone(&self.metrics));
        let mut left = Left { events: events(), since: Instant::now(), others, holds: false, metrics, _room: room };
        self.metrics.unfinished_events.add(left.count());
        left.hold();
        // The task ends after this only.
        let _ = self.queue.send(left);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Ok(events @ 1..) = usize::try_from(self.metrics.unfinished_events.get()) {
            abandoned(&self.metrics, events, "the gateway ends");
        }
    }
}

fn locked(others: &Others) -> MutexGuard<'_, HashSet<u128>> {
    others.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells that events are left to their senders.
fn abandoned(metrics: &Metrics, events: usize, why: &str) {
    metrics.abandoned_events.inc_by(events as u64);
    tracing::warn!(events, why, "events that were not confirmed may count in some Meters only, until they are sent again");
}

impl Left {
    fn count(&self) -> i64 {
        i64::try_from(self.events.count()).unwrap_or(i64::MAX)
    }

    /// From now on the same others are not kept a second time. What was kept meanwhile it leaves to that.
    fn hold(&mut self) {
        let before = self.count();
        if let Events::Others { ids, .. } = &mut self.events {
            let mut held = locked(&self.others);
            ids.retain(|id| held.insert(*id));
        }
        self.holds = true;
        self.metrics.unfinished_events.sub(before - self.count());
    }

    /// From now on the same others may be kept beside these.
    fn release(&mut self) {
        if let (Events::Others { ids, .. }, true) = (&self.events, self.holds) {
            let mut held = locked(&self.others);
            for id in ids {
                held.remove(id);
            }
        }
        self.holds = false;
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.metrics.unfinished_events.sub(self.count());
        self.release();
    }
}

impl Events {
    const fn count(&self) -> usize {
        match self {
            Self::New { rows, .. } => rows.len(),
            Self::Others { ids, .. } => ids.len(),
        }
    }

    /// What fails together, most probably.
    fn place(&self) -> String {
        match self {
            Self::New { table, .. } => table.clone(),
            Self::Others { of: (namespace, event_type), .. } => format!("{namespace}/{event_type}"),
        }
    }

    /// Writes them to all tables. Gives of how many it must not, or can't.
    async fn finish(&self, warehouse: &Warehouse) -> Result<usize, Error> {
        match self {
            Self::New { table, claimed_by, rows, of_types } => match insert(warehouse, table, *claimed_by, rows).await {
                // ClickHouse has refused it, or would.
                Ok(None) => {
                    let mut left = 0;
                    for (of, ids) in of_types {
                        left += spread(warehouse, of, ids).await?;
                    }
                    Ok(left)
                }
                inserted => inserted.map(Option::unwrap_or_default),
            },
            Self::Others { of, ids } => spread(warehouse, of, ids).await,
        }
    }
}

/// Inserts rows of events that are still claimed as they were. Gives how many are not; None: a purge has begun since, or it is another
/// database.
async fn insert(warehouse: &Warehouse, table: &str, claimed_by: ClaimedBy, rows: &[(u128, Bytes)]) -> Result<Option<usize>, Error> {
    let (of, fence) = warehouse.identities_uuid().await?;
    if of != claimed_by.table || fence != Some(claimed_by.fence) {
        return Ok(None);
    }
    let ids: Vec<u128> = rows.iter().map(|(id, _)| *id).collect();
    let claims = warehouse.claims_of(&ids).await?;
    let (mut ours, mut gone) = (Vec::new(), 0);
    for (id, row) in rows {
        match claims.get(id) {
            Some(claim) if claim.block == claimed_by.block => ours.extend_from_slice(row),
            _ => gone += 1,
        }
    }
    if gone < rows.len() {
        warehouse.ensure_landing(table).await?;
        let name = insert_name(table);
        let insert = event_insert(table, &name, ours.len(), false, claimed_by.fence);
        match warehouse.insert(insert, std::iter::once(ours.into())).await {
            Err(Error::Fenced(_)) => return Ok(None),
            inserted => inserted?,
        }
    }
    Ok(Some(gone))
}

/// Writes what `events` has of identities to all tables. Gives of how many it has none.
async fn spread(warehouse: &Warehouse, (namespace, event_type): &Of, ids: &[u128]) -> Result<usize, Error> {
    let before = warehouse.stored_among(ids).await?;
    warehouse.write_again(namespace, event_type, ids).await?;
    // Only what was there all the time is known to be written: a purge may have removed some in between, and some may have come.
    let after = warehouse.stored_among(ids).await?;
    Ok(ids.iter().filter(|id| !before.contains_key(id) || !after.contains_key(id)).count())
}

/// Goes on with all that is kept, one after the other.
async fn go_on(warehouse: Warehouse, mut queue: mpsc::UnboundedReceiver<Left>) {
    while let Some(first) = queue.recv().await {
        let (mut left, mut pause) = (vec![first], SOON);
        while !left.is_empty() {
            let (mut failed, mut later) = (HashMap::new(), Vec::new());
            for mut next in left {
                let (place, events) = (next.events.place(), next.events.count());
                if failed.contains_key(&place) {
                    later.push(next);
                    continue;
                }
                // What is completed from now on may come too late for it.
                next.release();
                match next.events.finish(&warehouse).await {
                    Ok(0) => {
                        tracing::info!(place, events, "events that were not confirmed are in all tables now");
                        pause = SOON;
                    }
                    Ok(gone) => abandoned(&next.metrics, gone, "they were purged, or only their sender knows them"),
                    Err(why) if next.since.elapsed() > GIVE_UP => abandoned(&next.metrics, events, &why.to_string()),
                    Err(why) => {
                        tracing::debug!(%why, place, events, "events that were not confirmed are tried again later");
                        next.hold();
                        failed.insert(place, next);
                    }
                }
            }
            // The others of its place are tried before it.
            later.extend(failed.into_values().filter(|left| left.events.count() > 0));
            left = later;
            if !left.is_empty() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LATE);
            }
            left.extend(std::iter::from_fn(|| queue.try_recv().ok()));
        }
    }
}
