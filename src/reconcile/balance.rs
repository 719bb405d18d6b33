//! Balances the sums of Meters' tables ([`counted`](crate::warehouse::counted)) soon after events were written again or cancelled:
//! questions that come before take longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Error, Reconciler};
use crate::warehouse::Others;

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
        let mut pause = EVERY;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            pause = match self.balance(&mut seen).await {
                Ok(()) => EVERY.max(began.elapsed() * IDLE),
                Err(why) => {
                    tracing::warn!(%why, "sums can't be balanced: questions take longer until it is tried again, in {} s", RETRY.as_secs());
                    RETRY
                }
            };
        }
    }

    /// Balances the sums of the tables that answer where something came since `seen`, or where a purge was in the way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn balance(&self, seen: &mut Seen) -> Result<(), Error> {
        let mut unbalanced = self.warehouse.unbalanced().await?;
        unbalanced.retain(|table, _| self.counts.has(table));
        seen.retain(|table, months| unbalanced.get(table) == Some(months));
        for (table, months) in unbalanced {
            if !seen.contains_key(&table) && self.warehouse.balance(&table).await? {
                seen.insert(table, months);
            }
        }
        Ok(())
    }
}
