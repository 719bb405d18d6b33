//! Balances the sums of Meters' tables ([`counted`](crate::warehouse::counted)) soon after events were written again or cancelled:
//! questions that come before take longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Error, Reconciler};
use crate::warehouse::{self, Others};

/// How often it is looked whether sums are balanced: one statement for all tables.
const EVERY: Duration = Duration::from_secs(5);
/// How many times as long as it takes is waited afterwards, so that it takes little of ClickHouse however much there is to do.
const IDLE: u32 = 10;
/// When it is tried again after it failed.
const RETRY: Duration = Duration::from_secs(60);

/// The months, by table, that were to be balanced. They may stay so, for a key may have several rows that are not merged yet.
pub type Seen = BTreeMap<String, Vec<Others>>;

impl Reconciler {
    /// Balances the sums of the tables that answer, from time to time, for ever.
    pub async fn keep_balanced(&self) {
        let mut seen = Seen::new();
        let (mut pause, mut is_failing) = (EVERY, false);
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let end = self.balance(&mut seen).await;
            pause = if end.is_ok() { EVERY.max(began.elapsed() * IDLE) } else { RETRY };
            let was_failing = std::mem::replace(&mut is_failing, end.is_err());
            match end {
                Ok(()) if was_failing => tracing::info!("sums are balanced again"),
                Ok(()) => {}
                // The first of a row is news; the others are the same again.
                Err(why) if was_failing => tracing::debug!(%why, "sums still can't be balanced"),
                Err(why) => tracing::warn!(%why, "sums can't be balanced: questions take longer; it is tried every {} s", RETRY.as_secs()),
            }
        }
    }

    /// Balances the sums of the tables that answer where something came since `seen`, or where a purge was in the way.
    ///
    /// # Errors
    /// The first [`Error`]. One table is not in the way of the others.
    pub async fn balance(&self, seen: &mut Seen) -> Result<(), Error> {
        let mut unbalanced = self.warehouse.unbalanced().await?;
        unbalanced.retain(|table, _| self.counts.has(table));
        seen.retain(|table, months| unbalanced.get(table) == Some(months));
        let mut first = Ok(());
        for (table, months) in unbalanced {
            if seen.contains_key(&table) {
                continue;
            }
            match self.warehouse.balance(&table).await {
                Ok(true) => drop(seen.insert(table, months)),
                // A purge is in the way, or the table is gone by now.
                Ok(false) | Err(warehouse::Error::UnknownTable(_)) => {}
                Err(why) => first = first.and(Err(Error::from(why).of_table(&table))),
            }
        }
        first
    }
}
