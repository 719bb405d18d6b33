//! An answer counts only if the table that it was read from had all that is stored.
//!
//! A gateway may be behind: it asks a table whose Meter is gone, and which nothing feeds any more, or one that lost its view. So after
//! each answer it looks whether the table was fed until then. Whoever stops feeding a table notes that before its view is dropped, and no
//! table gets a view again that had answered ([`crate::plan`]): what was read before a table is seen with its view, and noted as
//! complete, is all that there was.

use std::time::Duration;

use jiff::Timestamp;

use super::layout::view;
use super::note::TableNote;
use super::retention::{Month, first_kept, month_of};
use super::sql::comment_of;
use super::{Error, Topology, Warehouse};
use crate::meter::Definition;

/// Deadline of a look at what ClickHouse knows by heart.
const LOOK: Duration = Duration::from_secs(10);

/// What a question reads of a Meter's table.
#[derive(Clone, Debug)]
pub struct Asked {
    table: String,
    /// The first month that it reads. 0: all.
    from: Month,
    retention_days: Option<u32>,
}

impl Asked {
    /// What is read from a time on; None: from the beginning.
    pub fn of(table: &str, definition: &Definition, from: Option<Timestamp>) -> Self {
        Self { table: table.to_owned(), from: from.map_or(0, month_of), retention_days: definition.retention_days }
    }

    /// Whether the answer needs none of the months that were let go: it doesn't ask for them, or all clocks say that they are past.
    fn is_content(&self, gone: Month, clocks: [Timestamp; 2]) -> bool {
        let [one, other] = clocks;
        let kept = self.retention_days.map_or(0, |days| first_kept(one.min(other), days));
        gone < kept.max(self.from)
    }
}

impl Warehouse {
    /// Makes sure that what was read of a Meter's table before, of the months after the one that is given, was all that is stored. None:
    /// it lets nothing go.
    ///
    /// # Errors
    /// [`Error::NotWhole`] when it may have been less; see [`Error`].
    pub async fn whole(&self, asked: &Asked) -> Result<Option<Month>, Error> {
        let table = &*asked.table;
        let clickhouse = async {
            match asked.retention_days {
                Some(_) => self.now().await,
                None => Ok(Timestamp::now()),
            }
        };
        let (clickhouse, (note, has_view)) = tokio::try_join!(clickhouse, self.note_and_view(table))?;
        let clocks = [Timestamp::now(), clickhouse];
        let let_go = note.as_ref().filter(|note| has_view && note.is_complete()).and_then(|note| {
            match (asked.retention_days, note.let_go) {
                (None, _) => Some(None),
                (Some(_), Some(gone)) => asked.is_content(gone, clocks).then_some(Some(gone)),
                // Of an earlier build: ClickHouse removes rows of it by itself.
                (Some(_), None) => None,
            }
        });
        let_go.ok_or_else(|| {
            Error::NotWhole(format!(
                "table {table} {} its view, is noted as {note:?}, and was asked from month {} on, at {clocks:?}",
                if has_view { "has" } else { "lacks" },
                asked.from
            ))
        })
    }

    /// What is noted of a table, and whether it has its view.
    async fn note_and_view(&self, table: &str) -> Result<(Option<TableNote>, bool), Error> {
        if *self.topology() == Topology::Single {
            // These are answered in a third of the time that `system.tables` takes.
            let (create, exists) =
                (format!("SHOW CREATE TABLE {}", self.table(table)), format!("EXISTS VIEW {}", self.table(&view(table))));
            let create = self.query(&create).within(LOOK).one::<String>();
            let exists = self.query(&exists).within(LOOK).one::<u8>();
            let (create, exists) = tokio::try_join!(create, exists)?;
            return Ok((comment_of(&create).and_then(|comment| serde_json::from_str(comment).ok()), exists == 1));
        }
        // A replica that is away answers no question either. Of comments that differ it is the one that the operator goes by.
        let passing = if self.topology().has_replicas() { " SETTINGS skip_unavailable_shards = 1" } else { "" };
        let sql = format!(
            "SELECT minIf(comment, name = {{table:String}}), countIf(name = {{table:String}}) = countIf(name = {{view:String}}) \
             FROM {} WHERE database = {{database:String}} AND name IN ({{table:String}}, {{view:String}}){passing}",
            self.topology().system("tables")
        );
        let look = self.query(&sql).bind("database", self.database()).bind("table", table).bind("view", &*view(table)).within(LOOK);
        let (comment, has_view): (String, u8) = look.one().await?;
        Ok((serde_json::from_str(&comment).ok(), has_view == 1))
    }

    /// The same after a question that read the months after `let_go`.
    ///
    /// # Errors
    /// See [`Warehouse::whole`].
    pub async fn still_whole(&self, asked: &Asked, let_go: Option<Month>) -> Result<(), Error> {
        let now = self.whole(asked).await?;
        if now == let_go { Ok(()) } else { Err(Error::NotWhole(format!("table {} let months go while it was read", asked.table))) }
    }

    /// When it is, by ClickHouse's clock.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let now_s: i64 = self.query("SELECT toInt64(toUnixTimestamp(now()))").one().await?;
        Timestamp::from_second(now_s).map_err(|why| Error::Refused(format!("its clock says {now_s}: {why}")))
    }

    /// The partitions of a Meter's table that are of this month or earlier ones, in the order in which they may go.
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
        let found = self.query(&sql).bind("database", self.database()).bind("table", &*stored).bind("month", month);
        let mut found: Vec<String> = found.rows().await?;
        // What others cancel or take the place of goes before these.
        found.sort_by_key(|partition| partition.ends_with("-1"));
        Ok(found)
    }
}
