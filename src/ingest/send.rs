//! How rows are sent: in pieces, again while ClickHouse says "not now", and for landing tables by INSERTs that were begun before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::look::Lookup;
use crate::warehouse::row::{COLUMNS, Row};
use crate::warehouse::schema::Landings;
use crate::warehouse::{Begun, COMPLETED, Error, Insert, Topology, Warehouse, insert_name};

/// Bytes of rows that are sent at a time.
const PIECE: usize = 128 * 1_024;
/// Deadline of one INSERT.
pub(super) const INSERT: Duration = Duration::from_secs(30);
/// Most landing tables of a round whose INSERTs are begun before its claims: each holds a place among the statements that ClickHouse
/// runs at a time, and the claims need one.
const BEGUN: usize = 8;
/// How long an INSERT that ClickHouse did not take is tried again before its requests are told.
const RETRY_FOR: Duration = Duration::from_secs(4);

/// Landing tables of a round that seem to get new events, with the bytes of all rows for them: it is worth to begin their INSERTs
/// before that is certain.
pub(super) fn with_new_events<'a>(warehouse: &Warehouse, lookup: &Lookup, rows: impl Iterator<Item = &'a Row>) -> HashMap<String, usize> {
    // A cluster's shards analyse their views when rows come: nothing would be gained.
    let Some(landings) = warehouse.landings().filter(|_| *warehouse.topology() == Topology::Single) else { return HashMap::new() };
    let mut tables: HashMap<u64, (usize, bool)> = HashMap::new();
    for row in rows {
        let (bytes, has_new) = tables.entry(landings.number(row.landing)).or_default();
        *bytes += row.encoded_len();
        *has_new = *has_new || lookup.is_new(row.identity);
    }
    let tables = tables.into_iter().filter(|(_, (_, has_new))| *has_new).map(|(number, (bytes, _))| (landings.name(number), bytes));
    tables.filter(|(table, _)| warehouse.has_landing(table)).collect()
}

/// Begins the INSERTs into landing tables, so that ClickHouse analyses their views while identities are claimed. No row is sent before
/// that. A table without one is inserted into as a whole afterwards.
pub(super) async fn begin(warehouse: &Warehouse, tables: HashMap<String, usize>, is_alone: bool) -> HashMap<String, Begun> {
    if tables.len() > BEGUN {
        return HashMap::new();
    }
    let begin = tables.into_iter().map(|(table, bytes)| async move {
        let begun = warehouse.begin(event_insert(&table, &insert_name(&table), bytes, is_alone)).await;
        Some((table, begun?))
    });
    futures::future::join_all(begin).await.into_iter().flatten().collect()
}

/// Ends INSERTs that were begun for nothing: without rows they change nothing, and nobody waits for them.
pub(super) fn end(warehouse: &Warehouse, begun: HashMap<String, Begun>) {
    for begun in begun.into_values() {
        let warehouse = warehouse.clone();
        tokio::spawn(async move { warehouse.finish(begun, std::iter::empty()).await });
    }
}

const fn event_insert<'a>(table: &'a str, name: &'a str, bytes: usize, is_alone: bool) -> Insert<'a> {
    Insert { table, columns: COLUMNS, bytes, name, deadline: INSERT, is_alone }
}

/// One INSERT per landing table, all at once; by the table's number.
pub(super) async fn insert_landings(
    warehouse: &Warehouse,
    landings: Landings,
    rows: &[&Row],
    is_alone: bool,
    mut begun: HashMap<String, Begun>,
) -> HashMap<u64, Result<(), Error>> {
    let mut by_number: HashMap<u64, Vec<&Row>> = HashMap::new();
    rows.iter().for_each(|row| by_number.entry(landings.number(row.landing)).or_default().push(row));
    let inserts: Vec<_> = by_number
        .into_iter()
        .map(|(number, rows)| {
            let table = landings.name(number);
            let begun = begun.remove(&table);
            async move {
                let span = tracing::info_span!("INSERT", table);
                (number, insert_rows(warehouse, &table, &rows, is_alone, begun).instrument(span).await)
            }
        })
        .collect();
    // All rows of these tables were stored already.
    end(warehouse, begun);
    futures::future::join_all(inserts).await.into_iter().collect()
}

/// Writes rows into one landing table.
async fn insert_rows(warehouse: &Warehouse, table: &str, rows: &[&Row], is_alone: bool, begun: Option<Begun>) -> Result<(), Error> {
    let (bytes, name) = (rows.iter().map(|row| row.encoded_len()).sum(), insert_name(table));
    let (since, has_begun) = (Instant::now(), begun.is_some());
    if let Some(begun) = begun {
        match warehouse.finish(begun, pieces(rows, bytes, |row, out| row.encode(out, false))).await {
            Err(error) if since.elapsed() > RETRY_FOR => return Err(error),
            Err(why) => tracing::debug!(%why, table, "an INSERT that was begun early is tried again as a whole"),
            Ok(()) => return Ok(()),
        }
    }
    // An INSERT that failed may have stored all or some: from then on the rows are none that come for the first time.
    let is_sent = AtomicBool::new(has_begun);
    retried(warehouse, || async {
        warehouse.ensure_landing(table).await?;
        let is_again = is_sent.swap(true, Ordering::Relaxed);
        let insert = event_insert(table, &name, bytes, is_alone);
        warehouse.insert(insert, pieces(rows, bytes, |row, out| row.encode(out, is_again))).await
    })
    .await
}

/// Writes rows to `events` alone.
pub(super) async fn insert_events(warehouse: &Warehouse, rows: &[&Row]) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bytes, name) = (rows.iter().map(|row| row.encoded_len()).sum(), insert_name(COMPLETED));
    let insert = event_insert("events", &name, bytes, false);
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
            Error::Refused(_) => return Err(error),
        }
        if Instant::now() + pause > until {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
