//! INSERTs of events that ClickHouse did not confirm in time, so that their senders were told to send again.
//!
//! Such an INSERT may have reached some of its tables and not others: until its events are sent again, which may never be, they would count
//! in one Meter and not in another. So the gateway goes on trying it as it was. Its rows say that they may be there already, and give way to
//! what has completed them meanwhile ([`Row::encode`]), so it may come at any time; but not without its claims, nor after a purge, for then
//! ClickHouse refuses it ([`crate::warehouse::Fence`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::send::event_insert;
use crate::telemetry::Metrics;
use crate::warehouse::row::Row;
use crate::warehouse::{Error, Fence, Warehouse, insert_name};

/// Bytes of rows that are kept; a round has as many at most. What comes beyond is left to its senders.
const ROOM: usize = 32 * 1_024 * 1_024;
/// Pause after a try that failed, twice as long each time.
const SOON: Duration = Duration::from_millis(500);
/// The longest pause.
const LATE: Duration = Duration::from_secs(5);

/// Takes what was not confirmed. The task that tries it ends with this.
pub(super) struct Unfinished {
    queue: mpsc::UnboundedSender<Left>,
    room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// Rows of one landing table.
struct Left {
    table: String,
    /// As rows that may be there already.
    rows: Bytes,
    ids: Vec<u128>,
    fence: Fence,
    metrics: Arc<Metrics>,
    _room: OwnedSemaphorePermit,
}

impl Unfinished {
    /// Starts the task that tries what is kept.
    pub(super) fn start(warehouse: Warehouse, metrics: Arc<Metrics>) -> Self {
        let (queue, left) = mpsc::unbounded_channel();
        tokio::spawn(go_on(warehouse, left));
        Self { queue, room: Arc::new(Semaphore::new(ROOM)), metrics }
    }

    /// Goes on trying to write rows into a landing table. They were claimed, by this gateway first, under a fence.
    pub(super) fn keep(&self, table: String, rows: &[&Row], fence: Fence) {
        let mut encoded = Vec::with_capacity(rows.iter().map(|row| row.encoded_len()).sum());
        rows.iter().for_each(|row| row.encode(&mut encoded, true));
        let room = u32::try_from(encoded.len()).ok().and_then(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes).ok());
        let Some(room) = room else {
            tracing::warn!(
                table,
                events = rows.len(),
                "too much was not confirmed to go on with all of it: these events may count in some Meters only until they are sent again"
            );
            return;
        };
        let ids = rows.iter().map(|row| row.identity).collect();
        // The task ends after this only.
        let _ = self.queue.send(Left::new(table, encoded.into(), ids, fence, &self.metrics, room));
    }
}

impl Left {
    fn new(table: String, rows: Bytes, ids: Vec<u128>, fence: Fence, metrics: &Arc<Metrics>, room: OwnedSemaphorePermit) -> Self {
        let left = Self { table, rows, ids, fence, metrics: Arc::clone(metrics), _room: room };
        metrics.unfinished_events.add(left.events());
        left
    }

    fn events(&self) -> i64 {
        i64::try_from(self.ids.len()).unwrap_or(i64::MAX)
    }

    /// Writes the rows. False: they can't or must not be written any more.
    async fn finish(&self, warehouse: &Warehouse) -> Result<bool, Error> {
        let claims = warehouse.claims_of(&self.ids).await?;
        if !self.ids.iter().all(|id| claims.contains_key(id)) {
            return Ok(false);
        }
        warehouse.ensure_landing(&self.table).await?;
        let name = insert_name(&self.table);
        let insert = event_insert(&self.table, &name, self.rows.len(), false, self.fence);
        match warehouse.insert(insert, std::iter::once(self.rows.clone())).await {
            Err(Error::Fenced(_) | Error::Refused(_)) => Ok(false),
            written => written.map(|()| true),
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.metrics.unfinished_events.sub(self.events());
    }
}

/// Tries one after the other, for as long as there are some.
async fn go_on(warehouse: Warehouse, mut queue: mpsc::UnboundedReceiver<Left>) {
    while let Some(first) = queue.recv().await {
        let (mut left, mut pause) = (VecDeque::from([first]), SOON);
        while let Some(next) = left.pop_front() {
            let (table, events) = (&next.table, next.ids.len());
            match next.finish(&warehouse).await {
                Ok(true) => tracing::info!(table, events, "an INSERT that was not confirmed is now"),
                Ok(false) => tracing::info!(
                    table,
                    events,
                    "an INSERT that was not confirmed is given up: ClickHouse refuses it, or its claims are gone"
                ),
                Err(why) => {
                    tracing::debug!(%why, table, events, "an INSERT that was not confirmed is tried again later");
                    left.push_back(next);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LATE);
                }
            }
            left.extend(std::iter::from_fn(|| queue.try_recv().ok()));
        }
    }
}
