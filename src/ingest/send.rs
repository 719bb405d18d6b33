//! How rows are sent: in pieces, again while ClickHouse says "not now", and new ones beside their claims.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::look::Lookup;
use crate::warehouse::row::{COLUMNS, Row};
use crate::warehouse::schema::{COMPLETED, Landings};
use crate::warehouse::{Begun, Error, Fence, Insert, Topology, Warehouse, insert_name};

/// Bytes of rows that are sent at a time.
const PIECE: usize = 128 * 1_024;
/// Deadline of one INSERT.
pub(super) const INSERT: Duration = Duration::from_secs(30);
/// Longest time between the rows of an INSERT that is begun before their claims, ms: a year.
const SPAN_MS: i64 = 366 * 86_400_000;
/// Most landing tables of a round whose INSERTs are begun before its claims: each holds a place among the statements that ClickHouse
/// runs at a time, and the claims need one.
const BEGUN: usize = 8;
/// How long an INSERT that ClickHouse did not take is tried again before its requests are told.
const RETRY_FOR: Duration = Duration::from_secs(4);

/// An INSERT that was begun beside its rows' claims.
pub(super) struct Early {
    insert: Begun,
    /// Identities of the rows that were sent, in their order.
    ids: Vec<u128>,
}

/// Rows of a round that seem to be new events, by the landing tables whose INSERTs are begun before that is certain.
pub(super) type New<'a> = HashMap<String, Vec<&'a Row>>;

/// Which rows of a round are to be sent beside their claims.
pub(super) fn new_rows<'a>(warehouse: &Warehouse, lookup: &Lookup, rows: impl Iterator<Item = &'a Row>) -> New<'a> {
    // A cluster's shards prepare rows when all are there: nothing would be gained.
    let can_begin = *warehouse.topology() == Topology::Single && warehouse.begins();
    let Some(landings) = warehouse.landings().filter(|_| can_begin) else { return New::new() };
    let mut tables: HashMap<u64, (Vec<&Row>, usize)> = HashMap::new();
    for row in rows {
        let (new, all) = tables.entry(landings.number(row.landing)).or_default();
        new.extend(lookup.is_new(row.identity).then_some(row));
        *all += 1;
    }
    // Of fewer new ones the rest might not be sent after them: see `rest`.
    let mostly_new = tables.into_iter().filter(|(_, (new, all))| !new.is_empty() && new.len() * 2 >= *all);
    // Until they are shown each month's part keeps its files open.
    let span_ms = |rows: &[&Row]| {
        let times = || rows.iter().map(|row| row.time_ms);
        times().max().zip(times().min()).map_or(0, |(last, first)| last.saturating_sub(first))
    };
    let tables = mostly_new.filter(|(_, (new, _))| span_ms(new) <= SPAN_MS).map(|(number, (new, _))| (landings.name(number), new));
    let tables: New<'_> = tables.filter(|(table, _)| warehouse.has_landing(table)).collect();
    if tables.len() > BEGUN { New::new() } else { tables }
}

/// Begins the INSERTs into landing tables with rows that seem to be new, so that ClickHouse prepares them while their identities are
/// claimed. It shows none of them before [`insert_landings`] ends the INSERT; dropped, it is as if nothing had been sent.
///
/// What is alone is in a hurry, and its rows go when they are `claimed`: that, which everything waits for, has the machine to itself.
pub(super) async fn begin(
    warehouse: &Warehouse,
    new: New<'_>,
    is_alone: bool,
    fence: Option<Fence>,
    claimed: watch::Receiver<bool>,
) -> HashMap<String, Early> {
    let Some(fence) = fence else { return HashMap::new() };
    let begin = new.into_iter().map(|(table, rows)| {
        let mut claimed = claimed.clone();
        let go = async move { !is_alone || claimed.wait_for(|is_claimed| *is_claimed).await.is_ok() };
        async move {
            let bytes = rows.iter().map(|row| row.encoded_len()).sum();
            let (name, ids) = (insert_name(&table), rows.iter().map(|row| row.identity).collect());
            let insert = event_insert(&table, &name, bytes, is_alone, fence);
            match warehouse.begin(insert, rows.len(), go, pieces(&rows, bytes, |row, out| row.encode(out, false))).await {
                Ok(insert) => insert.map(|insert| (table, Early { insert, ids })),
                Err(why) => {
                    warehouse.note_begun(&why);
                    None
                }
            }
        }
    });
    futures::future::join_all(begin).await.into_iter().flatten().collect()
}

/// Which of a table's rows were not sent by an INSERT that was begun. None: that sent one that is not to be written, or not so; or too few
/// for those that are left, of which ClickHouse would make as small blocks.
fn rest<'a>(rows: &[&'a Row], sent: &[u128]) -> Option<Vec<&'a Row>> {
    let mut ids = sent.iter().peekable();
    let rest: Vec<&Row> = rows.iter().copied().filter(|row| ids.next_if_eq(&&row.identity).is_none()).collect();
    (ids.next().is_none() && rest.len() <= sent.len()).then_some(rest)
}

pub(super) const fn event_insert<'a>(table: &'a str, name: &'a str, bytes: usize, is_alone: bool, fence: Fence) -> Insert<'a> {
    Insert { table, columns: COLUMNS, bytes, name, deadline: INSERT, is_alone, fence: Some(fence) }
}

/// One INSERT per landing table, all at once; by the table's number.
pub(super) async fn insert_landings(
    warehouse: &Warehouse,
    landings: Landings,
    rows: &[&Row],
    is_alone: bool,
    fence: Fence,
    mut early: HashMap<String, Early>,
) -> HashMap<u64, Result<(), Error>> {
    let mut by_number: HashMap<u64, Vec<&Row>> = HashMap::new();
    rows.iter().for_each(|row| by_number.entry(landings.number(row.landing)).or_default().push(row));
    let inserts: Vec<_> = by_number
        .into_iter()
        .map(|(number, rows)| {
            let table = landings.name(number);
            let early = early.remove(&table);
            async move {
                let span = tracing::info_span!("INSERT", table);
                (number, insert_rows(warehouse, &table, &rows, is_alone, fence, early).instrument(span).await)
            }
        })
        .collect();
    futures::future::join_all(inserts).await.into_iter().collect()
}

/// Writes rows into one landing table.
async fn insert_rows(
    warehouse: &Warehouse,
    table: &str,
    rows: &[&Row],
    is_alone: bool,
    fence: Fence,
    early: Option<Early>,
) -> Result<(), Error> {
    let (bytes, name) = (rows.iter().map(|row| row.encoded_len()).sum(), insert_name(table));
    let since = Instant::now();
    // An INSERT that failed may have stored all or some: from then on the rows are none that come for the first time.
    let is_sent = AtomicBool::new(false);
    let mut refused = None;
    // Another one is broken off.
    if let Some((insert, rest)) = early.and_then(|Early { insert, ids }| Some((insert, rest(rows, &ids)?))) {
        match warehouse.finish(insert, pieces(&rest, bytes, |row, out| row.encode(out, false))).await {
            Err(error) if since.elapsed() > RETRY_FOR => return Err(error),
            Err(why) => {
                tracing::debug!(%why, table, "an INSERT that was begun early is tried again as a whole");
                is_sent.store(true, Ordering::Relaxed);
                refused = Some(why);
            }
            Ok(()) => return Ok(()),
        }
    }
    let written = retried(warehouse, || async {
        warehouse.ensure_landing(table).await?;
        let is_again = is_sent.swap(true, Ordering::Relaxed);
        let insert = event_insert(table, &name, bytes, is_alone, fence);
        warehouse.insert(insert, pieces(rows, bytes, |row, out| row.encode(out, is_again))).await
    })
    .await;
    if let (Ok(()), Some(why)) = (&written, refused) {
        warehouse.note_begun(&why);
    }
    written
}

/// Writes rows to `events` alone.
pub(super) async fn insert_events(warehouse: &Warehouse, rows: &[&Row], fence: Fence) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bytes, name) = (rows.iter().map(|row| row.encoded_len()).sum(), insert_name(COMPLETED));
    let insert = event_insert(COMPLETED, &name, bytes, false, fence);
    retried(warehouse, || warehouse.insert(insert, pieces(rows, bytes, |row, out| row.encode(out, false)))).await
}

/// Rows as they are inserted, in pieces: each is on its way while it is still in the processor's cache, and its memory is used again.
/// All together are `bytes`, about.
pub(super) fn pieces(rows: &[&Row], bytes: usize, encode: impl Fn(&Row, &mut Vec<u8>)) -> impl Iterator<Item = Bytes> {
    let mut rows = rows.iter();
    std::iter::from_fn(move || {
        let first = rows.next()?;
        let mut piece = Vec::with_capacity(bytes.min(PIECE + PIECE / 8));
        encode(first, &mut piece);
        while piece.len() < PIECE
            && let Some(row) = rows.next()
        {
            encode(row, &mut piece);
        }
        Some(piece.into())
    })
}

/// Tries a call again, the same each time, while ClickHouse says "not now" and for a bounded time.
pub(super) async fn retried<T, F: Future<Output = Result<T, Error>>>(
    warehouse: &Warehouse,
    mut call: impl FnMut() -> F,
) -> Result<T, Error> {
    let until = Instant::now() + RETRY_FOR;
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match call().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match error {
            // ClickHouse lost its tables (restored, or another one): make them again.
            Error::UnknownTable(_) => drop(warehouse.ensure_bootstrap().await?),
            Error::Unavailable(_) => {}
            Error::Refused(_) | Error::Fenced(_) | Error::NotWhole(_) => return Err(error),
        }
        if Instant::now() + pause > until {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
