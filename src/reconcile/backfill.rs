//! Backfills: stored events copied into a new table, month by month, beside the reconciles that look at them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Error;
use crate::api::BackfillProgress;
use crate::warehouse::Warehouse;
use crate::warehouse::schema::{self, Layout, TableNote, TableState};

/// Deadline of one month's copy.
const MONTH: Duration = Duration::from_secs(6 * 3_600);

/// Backfills that run, by table. Progress is also in the table's note, so that a restart goes on where it was.
#[derive(Clone, Default)]
pub(super) struct Backfills(Arc<Mutex<HashMap<String, Running>>>);

struct Running {
    task: JoinHandle<()>,
    progress: BackfillProgress,
    failed: Option<Error>,
}

impl Backfills {
    /// Starts a table's backfill if it doesn't run, and says how far it is.
    ///
    /// # Errors
    /// What ended it since the last call; the next call starts it again.
    pub(super) fn advance(
        &self,
        warehouse: &Warehouse,
        table: &str,
        layout: &Layout,
        event_type: &str,
        note: &TableNote,
        after: u32,
    ) -> Result<BackfillProgress, Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = all.get(table) {
            if let Some(error) = running.failed.clone() {
                all.remove(table);
                return Err(error);
            }
            if !running.task.is_finished() {
                return Ok(running.progress.clone());
            }
        }
        let progress = BackfillProgress { table: table.to_owned(), months_done: 0, months_total: 0 };
        let job = Job {
            all: self.clone(),
            warehouse: warehouse.clone(),
            table: table.to_owned(),
            copy: layout.backfill(warehouse.database(), table),
            event_type: event_type.to_owned(),
            note: note.clone(),
        };
        let task = tokio::spawn(async move {
            if let Err(error) = job.run(after).await {
                job.all.update(&job.table, |running| running.failed = Some(error));
            }
        });
        all.insert(table.to_owned(), Running { task, progress: progress.clone(), failed: None });
        Ok(progress)
    }

    /// Ends a table's backfill, because the table goes.
    pub(super) fn stop(&self, table: &str) {
        if let Some(running) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(table) {
            running.task.abort();
        }
    }

    fn update(&self, table: &str, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(table) {
            change(running);
        }
    }
}

struct Job {
    all: Backfills,
    warehouse: Warehouse,
    table: String,
    copy: String,
    event_type: String,
    note: TableNote,
}

impl Job {
    async fn run(&self, after: u32) -> Result<(), Error> {
        let months = self.warehouse.months_of(&self.note.namespace, &self.event_type).await?;
        let total = i64::try_from(months.len()).unwrap_or(i64::MAX);
        for (done, month) in (0..).zip(&months) {
            self.all.update(&self.table, |running| {
                running.progress = BackfillProgress { table: self.table.clone(), months_done: done, months_total: total }
            });
            if *month > after {
                self.warehouse.query(&self.copy).bind("month", *month).within(MONTH).named("kubemeter-backfill").run().await?;
                self.note(TableState::Filling(*month)).await?;
            }
        }
        self.note(TableState::Live).await
    }

    async fn note(&self, state: TableState) -> Result<(), Error> {
        let note = TableNote { state, ..self.note.clone() };
        Ok(self.warehouse.run_ddl(&schema::alter_note(self.warehouse.database(), &self.table, &note)?).await?)
    }
}
