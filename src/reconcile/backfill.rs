//! Backfills: stored events copied into a new table, month by month, beside the reconciles that look at them. Most are copied
//! ahead, before there is a view: an INSERT pays for each view that it goes through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::TryFutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use crate::api::BackfillProgress;
use crate::warehouse::layout::view;
use crate::warehouse::note::{StoredBefore, TableNote, TableState};
use crate::warehouse::{BACKFILL, Warehouse};

/// How long a reconcile waits for a backfill to end before it says how far it is: most end at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Months that are copied at once: of a month that is a block or less, one thread writes what two can read.
const AT_ONCE: usize = 2;
/// Deadline of one month's copy.
const MONTH: Duration = Duration::from_secs(6 * 3_600);

/// Backfills that run, by table. Progress is also in the table's note, so that a restart goes on where it was.
#[derive(Clone, Default)]
pub(super) struct Backfills(Arc<Mutex<HashMap<String, Running>>>);

struct Running {
    task: AbortOnDropHandle<Result<(), Error>>,
    progress: watch::Receiver<BackfillProgress>,
}

/// One table's backfill.
pub(super) struct Job {
    pub(super) warehouse: Warehouse,
    pub(super) table: String,
    /// Copies `{month:UInt32}`; see [`crate::warehouse::layout::Layout::backfill`].
    pub(super) copy: String,
    pub(super) event_type: String,
    pub(super) note: TableNote,
    /// The last month that is copied, `yyyymm`.
    pub(super) after: u32,
}

impl Backfills {
    /// Starts a table's backfill if it doesn't run, waits a little, and says how far it is; None: it is done.
    ///
    /// # Errors
    /// What ended it; the next call starts it again.
    pub(super) async fn advance(&self, job: Job) -> Result<Option<BackfillProgress>, Error> {
        let table = job.table.clone();
        let mut running = self.take(&table).unwrap_or_else(|| job.start());
        match tokio::time::timeout(PATIENCE, &mut running.task).await {
            Ok(Ok(done)) => done.map(|()| None),
            Ok(Err(ended)) => Err(Error::Refused(format!("the backfill was ended: {ended}"))),
            Err(_) => {
                let progress = running.progress.borrow().clone();
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(table, running);
                Ok(Some(progress))
            }
        }
    }

    /// Ends a table's backfill, because the table goes.
    pub(super) fn stop(&self, table: &str) {
        drop(self.take(table));
    }

    fn take(&self, table: &str) -> Option<Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(table)
    }
}

impl Job {
    fn start(self) -> Running {
        let (report, progress) = watch::channel(BackfillProgress { table: self.table.clone(), months_done: 0, months_total: 0 });
        Running { task: AbortOnDropHandle::new(tokio::spawn(async move { self.run(&report).await })), progress }
    }

    async fn run(&self, report: &watch::Sender<BackfillProgress>) -> Result<(), Error> {
        let months = self.warehouse.months_of(&self.note.namespace, &self.event_type).await?;
        // Of what nobody knows when it was stored, all may have come by the view.
        let events = async || Ok::<_, Error>(self.warehouse.stored_before().await?.map(|now| now.events));
        let of = events().await?;
        let before = self.note.before.filter(|before| of == Some(before.events));
        let copied = if before.is_some() { self.note.copied.unwrap_or(0) } else { 0 };
        let before = before.unwrap_or_default();
        let is_ahead = matches!(self.note.state, TableState::Ahead(_));
        let (copied, until) = if is_ahead { (0, before.block) } else { (copied, u64::MAX) };
        let copy = async |month: u32| {
            if events().await? != of {
                return Err(Error::Unavailable("another table took the place of events while it was copied".to_owned()));
            }
            let copy = self.warehouse.query(&self.copy).bind("month", month).bind("copied", copied).bind("until", until);
            let copy = copy.bind("block", before.block);
            let copy = copy.bind("started", before.run.started_s).bind("uptime", before.run.uptime_s);
            Ok(copy.within(MONTH).named(BACKFILL).in_background().written_in_two_threads().run().await?)
        };
        let months_total = i64::try_from(months.len()).unwrap_or(i64::MAX);
        let tell = |months_done| {
            // What came while the most was copied is a small rest.
            let months_done = if copied > 0 { months_total } else { months_done };
            report.send_replace(BackfillProgress { table: self.table.clone(), months_done, months_total });
        };
        let to_copy: Vec<_> = (1..).zip(months).filter(|(_, month)| *month > self.after).collect();
        tell(to_copy.first().map_or(months_total, |(number, _)| number - 1));
        // In their order, so that all months up to the noted one are there.
        let mut copies = stream::iter(to_copy).map(|(number, month)| copy(month).map_ok(move |()| (number, month))).buffered(AT_ONCE);
        while let Some((number, month)) = copies.try_next().await? {
            let state = if is_ahead { TableState::Ahead(month) } else { TableState::Filling(month) };
            self.note(TableNote { state, ..self.note.clone() }).await?;
            tell(number);
        }
        if is_ahead {
            return self.end_ahead(before).await;
        }
        self.note(TableNote { state: TableState::Live, ..self.note.clone() }).await
    }

    /// Notes what was copied ahead, and what can't come by the view that is made next: all that is stored by now.
    async fn end_ahead(&self, ahead: StoredBefore) -> Result<(), Error> {
        let before = self.warehouse.stored_before().await?;
        // After `before` was read: what is in its blocks, then, was there before any view.
        let view = view(&self.table);
        if !self.warehouse.tables_with_prefix(&view).await?.is_empty() {
            return Err(Error::Unavailable(format!("another operator has made {view} while events were copied")));
        }
        let copied = before.filter(|now| now.events == ahead.events && ahead.run.goes_on(now.run)).map(|_| ahead.block);
        self.note(TableNote { state: TableState::New, before, copied, ..self.note.clone() }).await
    }

    async fn note(&self, note: TableNote) -> Result<(), Error> {
        let warehouse = &self.warehouse;
        Ok(warehouse.run_ddl(&note.alter(warehouse.topology(), warehouse.database(), &self.table)?).await?)
    }
}
