//! Keeps sums balanced: writes the contra rows that Meters' tables lack ([`counted`](super::counted)).

use std::collections::BTreeMap;
use std::time::Duration;

use super::counted::{balance, count_unbalanced, partition_key};
use super::reading::{MOST_AGAIN, Others};
use super::tables::BACKFILL;
use super::topology::Topology;
use super::{Error, Warehouse};

/// Deadline of writing a month's contra rows.
const BALANCE: Duration = Duration::from_secs(600);

impl Warehouse {
    /// The months of each table that may lack contra rows. No table of a cluster has any.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unbalanced(&self) -> Result<BTreeMap<String, Vec<Others>>, Error> {
        let mut tables = BTreeMap::<String, Vec<Others>>::new();
        if *self.topology() != Topology::Single {
            return Ok(tables);
        }
        let rows = self.query(&count_unbalanced()).bind("database", self.database()).rows::<(String, u32, u64, u64)>().await?;
        for (table, month, again, contra) in rows {
            tables.entry(table).or_default().push(Others { month, again, contra });
        }
        Ok(tables)
    }

    /// Writes the contra rows that a Meter's table lacks: questions for sums are answered sooner then. It may be cut off anywhere, and run
    /// more than once at a time. Tables of earlier layouts have none. Gives whether there was no purge in the way.
    ///
    /// # Errors
    /// See [`Error`]: the first, of several months.
    pub async fn balance(&self, table: &str) -> Result<bool, Error> {
        if *self.topology() != Topology::Single {
            return Ok(true);
        }
        let unbalanced = self.count_rows(table, None, None).await?.into_iter().filter(|month| month.unbalanced() > 0);
        let months: Vec<Others> = unbalanced.filter(|month| month.again < MOST_AGAIN).collect();
        if months.is_empty() || !self.is_of_this_layout(table).await? {
            return Ok(true);
        }
        // First sendings go only by a purge. One that begins later says another fence first, and waits for what runs; one that was given
        // up removes nothing any more, but for what it has told ClickHouse before.
        let fence = self.fence().await?;
        if fence.is_purging || self.is_removing(table).await? {
            return Ok(false);
        }
        // By month: in one of many months ClickHouse's index leaves out little. The last first, and one is not in the way of the others.
        let mut first = Ok(());
        for Others { month, .. } in months.into_iter().rev() {
            let sql = balance(self.database(), table);
            let query = self.query(&sql).bind("database", self.database()).bind("calm", &*fence.comment());
            let query = query.bind("month", &*format!("{month:06}")).within(BALANCE).named(BACKFILL).in_background();
            first = first.and(query.run().await);
        }
        first?;
        // One that began meanwhile let nothing be written.
        Ok(self.fence().await? == fence)
    }

    /// Whether a table has the partitions that this build makes.
    async fn is_of_this_layout(&self, table: &str) -> Result<bool, Error> {
        let sql = "SELECT count() > 0 FROM system.tables WHERE database = {database:String} AND name = {table:String} AND partition_key = {key:String}";
        self.query(sql).bind("database", self.database()).bind("table", table).bind("key", &*partition_key()).one().await
    }
}
