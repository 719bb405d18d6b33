//! An answer counts only if the table that it was read from had all that is stored.
//!
//! A gateway may be behind: it asks a table whose Meter is gone, and which nothing feeds any more, or one that lost its view and is
//! filled again. So after each answer it looks whether the table was fed until then. Whoever stops feeding one drops the view
//! first, and whoever makes a view again has noted before that the table isn't complete: what was read before a table is seen with
//! its view, and noted as complete, is all that there was.

use std::time::Duration;

use jiff::Timestamp;

use super::layout::view;
use super::note::TableNote;
use super::retention::{Month, first_kept, month_of};
use super::select::Source;
use super::{Error, Topology, Warehouse};

/// Deadline of a look at what ClickHouse knows by heart.
const LOOK: Duration = Duration::from_secs(10);

/// What a question read of a Meter's table.
#[derive(Clone, Debug)]
pub struct Asked {
    table: String,
    from: Option<Timestamp>,
    retention_days: Option<u32>,
    now: Timestamp,
}

impl Asked {
    /// What is read from a time on; None: from the beginning.
    pub fn of(source: &Source<'_>, from: Option<Timestamp>) -> Self {
        let Source { table, definition, now, .. } = *source;
        Self { table: table.to_owned(), from, retention_days: definition.retention_days, now }
    }

    /// The first month that the answer needs: of what is past it needs nothing, by whichever clock keeps more.
    fn first_month(&self, now: Timestamp) -> Month {
        let kept = self.retention_days.map_or(0, |days| first_kept(self.now.min(now), days));
        kept.max(self.from.map_or(0, month_of))
    }
}

impl Warehouse {
    /// Makes sure that what was read of a Meter's table before was all that is stored and kept.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when it may have been less; see [`Error`].
    pub async fn check_whole(&self, asked: &Asked) -> Result<(), Error> {
        let table = &*asked.table;
        // On a cluster what counts is each server that reads and is fed, and of comments the one that the operator goes by.
        let passing = if *self.topology() == Topology::Single { "" } else { " SETTINGS skip_unavailable_shards = 1" };
        let sql = format!(
            "SELECT minIf(comment, name = {{table:String}}), toUInt64(countIf(name = {{table:String}})), toUInt64(countIf(name = {{view:String}})), \
             toInt64(toUnixTimestamp(now())) FROM {} WHERE database = {{database:String}} AND name IN ({{table:String}}, {{view:String}}){passing}",
            self.topology().system("tables")
        );
        let look = self.query(&sql).bind("database", self.database()).bind("table", table).bind("view", &*view(table)).within(LOOK);
        let (comment, tables, views, now_s): (String, u64, u64, i64) = look.one().await?;
        let first = asked.first_month(Timestamp::from_second(now_s).unwrap_or(Timestamp::MIN));
        match serde_json::from_str::<TableNote>(&comment) {
            Ok(note) if tables == views && note.is_whole(first) => Ok(()),
            note => Err(Error::NotWhole(format!(
                "table {table} has a view on {views} of {tables} servers, is noted as {note:?}, and was asked from month {first} on"
            ))),
        }
    }

    /// When it is, by ClickHouse's clock.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let now_s: i64 = self.query("SELECT toInt64(toUnixTimestamp(now()))").one().await?;
        Timestamp::from_second(now_s).map_err(|why| Error::Refused(format!("its clock says {now_s}: {why}")))
    }

    /// The partitions of a Meter's table that are of this month or earlier ones.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn partitions_until(&self, table: &str, month: Month) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT DISTINCT partition_id FROM {} WHERE database = {{database:String}} AND table = {{table:String}} AND active \
             AND toUInt32OrZero(substring(partition_id, 1, 6)) BETWEEN 1 AND {{month:UInt32}} ORDER BY partition_id",
            self.topology().system("parts")
        );
        let stored = self.topology().stored(table);
        self.query(&sql).bind("database", self.database()).bind("table", &*stored).bind("month", month).rows().await
    }
}
