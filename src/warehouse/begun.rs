//! INSERTs that are begun before it is known whether they are to be: ended they are written, dropped they never were.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use clickhouse::insert_formatted::InsertFormatted;
use tokio::time::Instant;
use uuid::Uuid;

use super::client::SMALL_INSERT;
use super::row::put_uuid;
use super::{Error, Insert, Warehouse};
use crate::event::put_bytes;

/// An INSERT that was begun with its first rows. ClickHouse prepares them, and makes none visible before it has the end of the INSERT
/// ([`Warehouse::finish`]): dropped, it is broken off, and they are gone.
pub struct Begun {
    pub(super) insert: InsertFormatted,
    pub(super) deadline: Duration,
}

/// Where a row goes that nobody asks for.
const TABLE: &str = "cancelled_events";
/// Its columns.
const COLUMNS: &str = "namespace, cancellation, type, subject, time, id";
/// Settings by which ClickHouse would make visible what it has of an INSERT that is not ended: by making several blocks of its first
/// rows, or by taking a connection's end for the INSERT's. They are newer than the oldest ClickHouse that is supported.
const UNENDED: [&str; 4] = [
    "max_insert_block_size_bytes",
    "input_format_max_block_size_bytes",
    "input_format_max_block_wait_ms",
    "input_format_connection_handling",
];
/// How long ClickHouse may take to prepare one row, or to note that an INSERT was broken off.
const PROBE: Duration = Duration::from_secs(5);

impl Warehouse {
    /// Finds out whether INSERTs can be [begun](Self::begin): that ClickHouse prepares what it has of an INSERT, and shows nothing of it
    /// when it is broken off. Nobody promises that, so it is tried with a row that nobody asks for.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn learn_to_begin(&self) -> Result<bool, Error> {
        let known = self.query("SELECT name FROM system.settings WHERE name IN {names:Array(String)}").bind("names", UNENDED.as_slice());
        let known = known.rows().await?;
        let is_kept = match self.keeps_unended(&known).await {
            Err(Error::Refused(why)) => {
                tracing::debug!(why, "an INSERT that is not ended was refused");
                Ok(false)
            }
            is_kept => is_kept,
        };
        self.set_unended(matches!(is_kept, Ok(true)).then_some(known));
        is_kept
    }

    async fn keeps_unended(&self, unended: &[String]) -> Result<bool, Error> {
        let nobody = Uuid::new_v4();
        let mut row = Vec::new();
        put_bytes(&mut row, b"");
        put_uuid(&mut row, nobody);
        put_bytes(&mut row, b"");
        put_bytes(&mut row, b"");
        row.extend_from_slice(&[0; 8 + 16]);
        let name = format!("kubemeter-probe-{nobody}");
        let insert = Insert { table: TABLE, columns: COLUMNS, bytes: row.len(), name: &name, deadline: PROBE, is_alone: true, fence: None };
        let begun = self.begin_with(unended, insert, 1, std::future::ready(true), std::iter::once(row.into())).await?;
        let Some(begun) = begun else { return Ok(false) };
        let is_prepared = self.waits_until(&name, 1, true).await?;
        let is_kept = is_prepared && !self.has_probe(nobody).await?;
        drop(begun);
        let has_ended = self.waits_until(&name, 0, false).await?;
        Ok(is_kept && has_ended && !self.has_probe(nobody).await?)
    }

    async fn has_probe(&self, nobody: Uuid) -> Result<bool, Error> {
        let sql = format!("SELECT count() > 0 FROM {} WHERE namespace = '' AND cancellation = {{nobody:UUID}}", self.table(TABLE));
        self.query(&sql).bind("nobody", nobody.to_string()).one::<bool>().await
    }

    /// Whether in time a statement runs that has written so many rows, or none does.
    async fn waits_until(&self, name: &str, rows: u64, is_running: bool) -> Result<bool, Error> {
        let sql = "SELECT count() > 0 FROM system.processes WHERE startsWith(query_id, {name:String}) AND written_rows >= {rows:UInt64}";
        let until = Instant::now() + PROBE;
        while Instant::now() < until {
            if self.query(sql).bind("name", name).bind("rows", rows).one::<bool>().await? == is_running {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(false)
    }

    /// Begins an INSERT: ClickHouse reads the statement, and as soon as it may `go` it is sent so many rows, at least one. While something
    /// else is found out it takes them through its views and writes their parts, which no question sees before the INSERT is
    /// [ended](Self::finish). For all who wait for INSERTs it runs from now on. None: it can't be begun, or may not go.
    ///
    /// # Errors
    /// See [`Error`]; nothing came of it.
    pub async fn begin(
        &self,
        insert: Insert<'_>,
        rows: usize,
        go: impl Future<Output = bool>,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<Option<Begun>, Error> {
        let Some(unended) = self.unended.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return Ok(None) };
        self.begin_with(&unended, insert, rows, go, pieces).await
    }

    async fn begin_with(
        &self,
        unended: &[String],
        insert: Insert<'_>,
        rows: usize,
        go: impl Future<Output = bool>,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<Option<Begun>, Error> {
        debug_assert!(rows > 0, "ClickHouse prepares what it has this many rows of");
        let (opened, header) = self.opened(&insert);
        let mut begun = opened
            // All rows are one block, made as soon as they are there. It is prepared at once, and shown when another one follows or the
            // INSERT ends: all of its months together.
            .with_setting("max_insert_block_size", rows.to_string())
            .with_setting("min_insert_block_size_rows", "0")
            .with_setting("min_insert_block_size_bytes", "0")
            .with_setting("max_insert_delayed_streams_for_parallel_write", "1000000")
            // One waits for the end meanwhile.
            .with_setting("max_threads", if insert.bytes < SMALL_INSERT && !insert.is_alone { "2" } else { "3" });
        for name in unended {
            begun = begun.with_setting(name, "0");
        }
        let deadline = insert.deadline;
        let sent = self.timed(deadline, async move {
            begun.send(header).await?;
            if !go.await {
                return Ok(None);
            }
            for piece in pieces {
                begun.send(piece).await?;
            }
            Ok(Some(begun))
        });
        Ok(sent.await?.map(|insert| Begun { insert, deadline }))
    }

    /// An INSERT, and the bytes after which ClickHouse begins it.
    fn opened(&self, insert: &Insert<'_>) -> (InsertFormatted, Bytes) {
        // The names say no more than the statement: it has to end somewhere before the rows.
        let (sql, header) = insert.head(self);
        // It begins when it has read this and one byte of what follows, by default 256 KiB. It ends the statement's line itself.
        (self.prepared(insert, &sql).with_setting("max_query_size", (sql.len() + 1).to_string()), header)
    }

    /// Sends the rest of an INSERT that was begun, no more rows than at first, and ends it.
    ///
    /// # Errors
    /// See [`Error`]; after any of them the rows may or may not be there.
    pub async fn finish(&self, begun: Begun, pieces: impl Iterator<Item = Bytes>) -> Result<(), Error> {
        let Begun { mut insert, deadline } = begun;
        let done = self.timed(deadline, async move {
            for piece in pieces {
                insert.send(piece).await?;
            }
            insert.end().await
        });
        done.await
    }

    /// Whether INSERTs can be begun with their rows, as far as is known.
    pub fn begins(&self) -> bool {
        self.unended.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Notes how an INSERT that was begun failed: if ClickHouse refuses them none is begun before it was tried again whether they can be.
    pub fn note_begun(&self, error: &Error) {
        if let Error::Refused(why) = error
            && self.set_unended(None)
        {
            tracing::warn!(
                why,
                "ClickHouse refuses INSERTs that are begun beside their claims (may its user set max_query_size and max_insert_block_size?): \
                 none is begun until that is tried again, which makes acknowledgements slower"
            );
        }
    }

    /// Whether it was known before.
    fn set_unended(&self, settings: Option<Vec<String>>) -> bool {
        std::mem::replace(&mut *self.unended.lock().unwrap_or_else(PoisonError::into_inner), settings).is_some()
    }
}
