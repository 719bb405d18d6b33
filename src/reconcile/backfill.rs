//! Backfills: stored events copied into a new table, month by month, beside the reconciles that look at them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use crate::api::BackfillProgress;
use crate::warehouse::schema::{self, StoredBefore, TableNote, TableState};
use crate::warehouse::{BACKFILL, Warehouse};

/// How long a reconcile waits for a backfill to end before it says how far it is: most end at once.
const PATIENCE: Duration = Duration::from_secs(2);
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
    /// Copies `{month:UInt32}`; see [`schema::Layout::backfill`].
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
        let before = self.note.before.unwrap_or(StoredBefore { block: 0, started_s: 0 });
        let months_total = i64::try_from(months.len()).unwrap_or(i64::MAX);
        for (months_done, month) in (0..).zip(&months) {
            report.send_replace(BackfillProgress { table: self.table.clone(), months_done, months_total });
            if *month > self.after {
                let copy = self.warehouse.query(&self.copy).bind("month", *month).bind("block", before.block);
                copy.bind("started", before.started_s).within(MONTH).named(BACKFILL).in_background().run().await?;
                self.note(TableState::Filling(*month)).await?;
            }
        }
        self.note(TableState::Live).await
    }

    async fn note(&self, state: TableState) -> Result<(), Error> {
        let note = TableNote { state, ..self.note.clone() };
        let warehouse = &self.warehouse;
        Ok(warehouse.run_ddl(&schema::alter_note(warehouse.topology(), warehouse.database(), &self.table, &note)?).await?)
    }
}
