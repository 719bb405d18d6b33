//! Balances the sums of Meters' tables ([`counted`](crate::warehouse::counted)) soon after events were written again or cancelled:
//! questions that come before take longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{Error, Reconciler};
use crate::warehouse::{self, Others};

/// How often it is looked whether sums are balanced: one statement for all tables.
const EVERY: Duration = Duration::from_secs(2);
/// How long a table is left alone at least after it was balanced, or after that failed: each time ClickHouse looks at all of its keys
/// that were written again, and makes a part.
const AT_LEAST: Duration = Duration::from_secs(20);
/// And how many times as long as it took, so that it takes little of ClickHouse however much there is to do.
const IDLE: u32 = 10;
/// But no longer than this, unless it failed.
const AT_MOST: Duration = Duration::from_secs(300);
/// How many tables are balanced at a time: one that takes long is not in the way of the others.
const AT_A_TIME: usize = 2;

/// What is known of a table that was balanced.
struct Last {
    /// Its months that lacked contra rows before. They may stay so, for a key may have several rows that are not merged yet.
    months: Vec<Others>,
    /// When it may be balanced again. None: it is being balanced.
    next: Option<Instant>,
    /// Whether it failed.
    failed: bool,
}

/// A table's months that lacked contra rows, how long it took, and whether they have them now: not if a purge was in the way.
type Done = (String, Vec<Others>, Duration, Result<bool, warehouse::Error>);

/// Balances the tables that a [`Reconciler`] counts: those that answer.
pub struct Balancer {
    reconciler: Reconciler,
    tables: BTreeMap<String, Last>,
    running: JoinSet<Done>,
    turns: Arc<Semaphore>,
}

impl Balancer {
    /// Knows of no table yet.
    pub fn new(reconciler: Reconciler) -> Self {
        Self { reconciler, tables: BTreeMap::new(), running: JoinSet::new(), turns: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Goes on for ever.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let look = self.look(Instant::now()).await;
                    // The first of a row is news; the others are the same again.
                    if let (Err(why), false) = (&look, is_failing) {
                        tracing::warn!(%why, "it can't be seen which sums are to be balanced: questions for some may take longer");
                    }
                    is_failing = look.is_err();
                }
                Some(()) = self.done() => {}
            }
        }
    }

    /// Begins to balance the tables to which something came since they were balanced.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn look(&mut self, now: Instant) -> Result<(), Error> {
        let unbalanced = self.reconciler.warehouse.unbalanced().await?;
        let rests = |last: &Last| last.next.is_none_or(|next| next > now);
        self.tables.retain(|table, last| rests(last) || unbalanced.contains_key(table));
        for (table, months) in unbalanced {
            let last = self.tables.get(&table);
            if last.is_none_or(|last| !rests(last) && last.months != months) && self.reconciler.counts.has(&table) {
                let failed = last.is_some_and(|last| last.failed);
                self.tables.insert(table.clone(), Last { months: Vec::new(), next: None, failed });
                self.start(table, months);
            }
        }
        Ok(())
    }

    fn start(&mut self, table: String, months: Vec<Others>) {
        let (warehouse, turns) = (self.reconciler.warehouse.clone(), Arc::clone(&self.turns));
        self.running.spawn(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            let began = Instant::now();
            let done = warehouse.balance(&table).await;
            (table, months, began.elapsed(), done)
        });
    }

    /// Waits for one that runs. None: none does.
    pub async fn done(&mut self) -> Option<()> {
        let (table, months, took, done) = match self.running.join_next().await? {
            Ok(done) => done,
            Err(why) => {
                tracing::error!(%why, "balancing sums was ended");
                self.tables.retain(|_, last| last.next.is_some());
                return Some(());
            }
        };
        let idle = AT_LEAST.max(took * IDLE);
        let pause = if done.is_ok() { idle.min(AT_MOST) } else { idle };
        let had_failed = self.tables.get(&table).is_some_and(|last| last.failed);
        if let Err(why) = &done
            && !had_failed
            // Of a table that goes nobody needs to hear.
            && self.reconciler.counts.has(&table)
        {
            tracing::warn!(%why, table, "sums of a Meter can't be balanced: questions for them take longer until it is tried again");
        }
        let months = if matches!(done, Ok(true)) { months } else { Vec::new() };
        self.tables.insert(table, Last { months, next: Some(Instant::now() + pause), failed: done.is_err() });
        Some(())
    }
}
