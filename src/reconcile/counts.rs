//! How many events a Meter's table has, for its status. They are counted beside the reconciles, for a large one takes minutes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use crate::warehouse::Warehouse;

/// How long a reconcile waits for a count: most take milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many tables are counted at a time.
const AT_A_TIME: usize = 8;

/// Events of a Meter's table, and those of them that have no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) events: i64,
    pub(super) uncounted: i64,
}

/// The last counts, and those that run, by table.
#[derive(Clone)]
pub(super) struct Counts {
    tables: Arc<Mutex<HashMap<String, Counting>>>,
    turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Counting {
    last: Option<Counted>,
    /// When one ended.
    at: Option<Instant>,
    running: Option<AbortOnDropHandle<Result<Counted, Error>>>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { tables: Arc::default(), turns: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Counts {
    /// Counts a table, unless that was done since `fresh` ago, and waits a little for it. Gives what was counted last, and whether a count
    /// still runs.
    pub(super) async fn of(&self, warehouse: &Warehouse, table: &str, has_value: bool, fresh: Duration) -> (Option<Counted>, bool) {
        let mut counting = std::mem::take(self.tables().entry(table.to_owned()).or_default());
        // One that takes long is waited for once, and one that has to wait for others not at all.
        let mut patience = Duration::ZERO;
        if counting.running.is_none() && counting.at.is_none_or(|at| at.elapsed() >= fresh) {
            patience = if self.turns.available_permits() > 0 { PATIENCE } else { Duration::ZERO };
            counting.running = Some(self.start(warehouse.clone(), table.to_owned(), has_value));
        }
        if let Some(mut running) = counting.running.take() {
            match tokio::time::timeout(patience, &mut running).await {
                Err(_) => counting.running = Some(running),
                Ok(done) => {
                    counting.at = Some(Instant::now());
                    match done {
                        Ok(Ok(counted)) => counting.last = Some(counted),
                        // It is tried again with the next reconcile.
                        Ok(Err(why)) => {
                            tracing::warn!(%why, table, "the events of a Meter can't be counted: its status keeps its last counts")
                        }
                        Err(why) => tracing::error!(%why, table, "counting the events of a Meter was ended"),
                    }
                }
            }
        }
        let (last, runs) = (counting.last, counting.running.is_some());
        self.tables().insert(table.to_owned(), counting);
        (last, runs)
    }

    /// Whether a table is counted from time to time: it answers.
    pub(super) fn has(&self, table: &str) -> bool {
        self.tables().contains_key(table)
    }

    /// Forgets a table, because it goes.
    pub(super) fn forget(&self, table: &str) {
        drop(self.tables().remove(table));
    }

    fn start(&self, warehouse: Warehouse, table: String, has_value: bool) -> AbortOnDropHandle<Result<Counted, Error>> {
        let turns = Arc::clone(&self.turns);
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            let (events, uncounted) = warehouse.count_events(&table, has_value).await?;
            Ok(Counted { events, uncounted })
        }))
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, HashMap<String, Counting>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
