//! How a question reads a Meter's table: what is quickest follows from how many of its rows are no first sendings.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use moka::future::Cache;

use super::client::fit_param;
use super::counted::{Reading, count_rows, estimate_by_subject, subjects_again};
use super::retention::month_of;
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

/// Most subjects with rows of kind `again` that are named in a question; with more it is read by kind.
const MOST_SUBJECTS: usize = 1_000;

/// The subjects that have rows of kind `again`, if they are few, by table, months and number of such rows: while there are as many they
/// are the same ones, and should they not be, ClickHouse refuses the question.
pub(super) type FewSubjects = Cache<(String, u32, u32, u64), Option<Arc<[String]>>>;

/// Remembers 4 MiB of names, for an hour each: other rows come and go.
pub(super) fn few_subjects() -> FewSubjects {
    let weigh = |(table, ..): &(String, u32, u32, u64), subjects: &Option<Arc<[String]>>| {
        let names = subjects.iter().flat_map(|subjects| subjects.iter()).map(|name| size_of::<String>() + name.len()).sum::<usize>();
        // An entry itself takes some 200 bytes.
        u32::try_from(200 + table.len() + names).unwrap_or(u32::MAX)
    };
    Cache::builder().weigher(weigh).max_capacity(4 * 1_024 * 1_024).time_to_live(Duration::from_hours(1)).build()
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
                let few = self.few_subjects.try_get_with(asked, self.find_few_subjects(table, (from, to), all));
                let few = few.await.map_err(|error: Arc<Error>| Error::clone(&error))?;
                few.map_or(Reading::ByKind, Reading::BySubject)
            }
        })
    }

    /// The subjects that have rows of kind `again` in these months, if they and their rows, of so many of all, are few.
    async fn find_few_subjects(&self, table: &str, (from, to): (u32, u32), all: u64) -> Result<Option<Arc<[String]>>, Error> {
        let query = |sql: &str| self.query(sql).bind("from", from).bind("to", to);
        let subjects: Vec<String> = query(&subjects_again(self.database(), table)).bind("most", MOST_SUBJECTS + 1).rows().await?;
        if subjects.len() > MOST_SUBJECTS || !fit_param(&subjects) {
            return Ok(None);
        }
        let rows: u64 = query(&estimate_by_subject(self.database(), table)).bind("again", &subjects).one().await?;
        Ok((rows * PART_BY_SUBJECT <= all).then(|| subjects.into()))
    }

    /// How the rows themselves are read that a question is about.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reading_of_rows(&self, table: &str, query: &UsageQuery) -> Result<Reading, Error> {
        Ok(match self.reading_for(table, query).await? {
            Reading::Final => Reading::Final,
            Reading::ByKind | Reading::FirstsAlone | Reading::BySubject(_) => Reading::ByKind,
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
        self.query(&count_rows(self.database(), table)).bind("from", from).bind("to", to).one().await
    }
}

/// The first and the last month (`yyyymm`) of a time.
fn months(from: Option<Timestamp>, to: Option<Timestamp>) -> (u32, u32) {
    let last = |to: Timestamp| to.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(to);
    (from.map_or(0, month_of), to.map_or(u32::MAX, |to| month_of(last(to))))
}
