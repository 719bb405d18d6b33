//! How a question reads a Meter's table: what is quickest follows from how many of its rows are no first sendings.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use moka::future::Cache;

use super::counted::{Reading, count_rows, estimate_by_subject};
use super::topology::Topology;
use super::{Error, Warehouse};
use crate::metering::UsageQuery;

/// Most rows of kind `again` whose keys a question keeps in memory, some 100 bytes each; with more it reads `FINAL`, which takes
/// longer and no memory.
const MOST_AGAIN: u64 = 2_000_000;

/// Fewer rows are read by kind before it is known what would be quicker.
const LARGE: u64 = 1_000_000;
/// What is added up by subject is read so if subjects with rows of kind `again` have no more than one row in so many: theirs are read twice.
const PART_BY_SUBJECT: u64 = 5;

/// Whether few subjects have rows of kind `again`, by table, months and number of such rows: while there are as many they are the same
/// ones, or nearly. To find that out takes a tenth of such a question.
pub(super) type FewSubjects = Cache<(String, u32, u32, u64), bool>;

/// Remembers a thousand, for an hour each: other rows come and go.
pub(super) fn few_subjects() -> FewSubjects {
    Cache::builder().max_capacity(1_000).time_to_live(Duration::from_hours(1)).build()
}

impl Warehouse {
    /// How a question about usage reads a Meter's table.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reading_for(&self, table: &str, query: &UsageQuery) -> Result<Reading, Error> {
        if !query.subjects.is_empty() || !query.customers.is_empty() || *self.topology() != Topology::Single {
            // Few rows: one reading is planned sooner than five.
            return Ok(Reading::Final);
        }
        let (again, all) = self.count_rows(table, query.from, query.to).await?;
        let (from, to) = months(query.from, query.to);
        Ok(match again {
            0 => Reading::FirstsAlone,
            MOST_AGAIN.. => Reading::Final,
            _ if all < LARGE || !query.group_by.contains("customer") => Reading::ByKind,
            _ => {
                let asked = (table.to_owned(), from, to, again);
                let is_few = self.few_subjects.try_get_with(asked, async {
                    let sql = estimate_by_subject(self.database(), table);
                    let of_subjects: u64 = self.query(&sql).bind("from", from).bind("to", to).one().await?;
                    Ok(of_subjects * PART_BY_SUBJECT <= all)
                });
                if is_few.await.map_err(|error: Arc<Error>| Error::clone(&error))? { Reading::BySubject } else { Reading::ByKind }
            }
        })
    }

    /// How the rows themselves are read that a question is about.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reading_of_rows(&self, table: &str, query: &UsageQuery) -> Result<Reading, Error> {
        Ok(match self.reading_for(table, query).await? {
            Reading::Final => Reading::Final,
            Reading::ByKind | Reading::FirstsAlone | Reading::BySubject => Reading::ByKind,
        })
    }

    pub(super) async fn reading_of_all(&self, table: &str) -> Result<Reading, Error> {
        let is_final = *self.topology() != Topology::Single || self.count_rows(table, None, None).await?.0 >= MOST_AGAIN;
        Ok(if is_final { Reading::Final } else { Reading::ByKind })
    }

    /// Rows of a Meter's table, in the months of a time: those that may not be the only ones of their key, and all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count_rows(&self, table: &str, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<(u64, u64), Error> {
        let (from, to) = months(from, to);
        let query = self.query(&count_rows()).bind("database", self.database()).bind("table", table);
        query.bind("from", from).bind("to", to).one().await
    }
}

/// The first and the last month (`yyyymm`) of a time.
fn months(from: Option<Timestamp>, to: Option<Timestamp>) -> (u32, u32) {
    let month = |time: Timestamp| {
        let date = time.to_zoned(TimeZone::UTC);
        u32::from(date.year().max(0).unsigned_abs()) * 100 + u32::from(date.month().unsigned_abs())
    };
    let last = |to: Timestamp| to.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(to);
    (from.map_or(0, month), to.map_or(u32::MAX, |to| month(last(to))))
}
