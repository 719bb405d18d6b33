//! How a question reads a Meter's table: what is quickest follows from how many of its rows are no first sendings.

use jiff::{SignedDuration, Timestamp};

use super::counted::{Reading, count_rows};
use super::retention::month_of;
use super::topology::Topology;
use super::{Error, Warehouse};
use crate::meter::Definition;
use crate::metering::UsageQuery;

/// Most rows of kind `again` whose keys a question keeps in memory, some 100 bytes each; with more it reads `FINAL`, which takes
/// longer and no memory.
pub(super) const MOST_AGAIN: u64 = 2_000_000;

/// Most keys that a question looks up, for they were written again and have no contra row: each costs it a granule or two.
const MOST_UNBALANCED: u64 = 1_000;

/// A month's rows that are no first sendings.
#[derive(clickhouse::Row, serde::Deserialize, Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Others {
    /// The month (`yyyymm`).
    pub month: u32,
    /// Rows of kind `again`: of a key there may be several.
    pub again: u64,
    /// Contra rows.
    pub contra: u64,
}

impl Others {
    /// About how many keys have rows of kind `again` and no contra row.
    pub(super) const fn unbalanced(self) -> u64 {
        self.again.saturating_sub(self.contra)
    }
}

impl Warehouse {
    /// How a question about usage reads a Meter's table.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reading_for(&self, table: &str, definition: &Definition, query: &UsageQuery) -> Result<Reading, Error> {
        if !query.subjects.is_empty() || !query.customers.is_empty() || *self.topology() != Topology::Single {
            // Few rows: one reading is planned sooner than five.
            return Ok(Reading::Final);
        }
        let others = self.count_rows(table, query.from, query.to).await?;
        let again: u64 = others.iter().map(|month| month.again).sum();
        let unbalanced: u64 = others.iter().map(|month| month.unbalanced()).sum();
        Ok(match again {
            0 => Reading::FirstsAlone,
            ..MOST_AGAIN if definition.measure.is_additive() && unbalanced == 0 => Reading::Balanced,
            ..MOST_AGAIN if definition.measure.is_additive() && unbalanced <= MOST_UNBALANCED => Reading::NearlyBalanced,
            MOST_AGAIN.. => Reading::Final,
            _ => Reading::ByKind,
        })
    }

    /// How the rows themselves are read that a question is about.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reading_of_rows(&self, table: &str, definition: &Definition, query: &UsageQuery) -> Result<Reading, Error> {
        Ok(match self.reading_for(table, definition, query).await? {
            Reading::Final => Reading::Final,
            Reading::ByKind | Reading::FirstsAlone | Reading::Balanced | Reading::NearlyBalanced => Reading::ByKind,
        })
    }

    pub(super) async fn reading_of_all(&self, table: &str) -> Result<Reading, Error> {
        let is_final = *self.topology() != Topology::Single || {
            let others = self.count_rows(table, None, None).await?;
            others.iter().map(|month| month.again).sum::<u64>() >= MOST_AGAIN
        };
        Ok(if is_final { Reading::Final } else { Reading::ByKind })
    }

    /// Rows of a Meter's table that may not be the only ones of their key, in the months of a time that have such.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_rows(&self, table: &str, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Vec<Others>, Error> {
        let (from, to) = months(from, to);
        self.query(&count_rows(self.database(), table)).bind("from", from).bind("to", to).rows().await
    }
}

/// The first and the last month (`yyyymm`) of a time.
fn months(from: Option<Timestamp>, to: Option<Timestamp>) -> (u32, u32) {
    let last = |to: Timestamp| to.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(to);
    (from.map_or(0, month_of), to.map_or(u32::MAX, |to| month_of(last(to))))
}
