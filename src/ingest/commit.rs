//! Group commit: concurrent requests share one claim of their identities and one INSERT per landing table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use super::claim::{claim, claim_again};
use super::look::{Claims, Ids, Lookup};
use super::send::{Early, INSERT, New, begin, insert_events, insert_landings, new_rows, retried};
use super::unfinished::{ClaimedBy, Unfinished};
use crate::event::put_bytes;
use crate::telemetry::Metrics;
use crate::warehouse::row::{Row, put_uuid};
use crate::warehouse::schema::Landings;
use crate::warehouse::{Error, Fence, Insert, StoredKey, Warehouse};

/// Bytes of memory of rows that may wait or be on their way ([`Row::weight`]). Beyond, requests are told to come again.
const QUEUE_BYTES: usize = 64 * 1_024 * 1_024;
/// Requests that may wait.
const QUEUE_REQUESTS: usize = 4_096;
/// How long a request waits for room in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Most bytes of one round; a larger request goes alone.
const ROUND_BYTES: usize = 32 * 1_024 * 1_024;
/// A round waits until as many requests are there as the last one had, for as long as that took and no longer than this:
/// senders that were answered together come again together, and ClickHouse gets few large INSERTs instead of many small
/// ones. Who is alone, or comes later than that, waits for nobody.
const LINGER: Duration = Duration::from_millis(100);
/// How long after a round without another one what other gateways stored is looked at.
const IDLE: Duration = Duration::from_secs(2);

/// An event that was refused, to be kept.
#[derive(Clone, Debug)]
pub struct Reject {
    /// Kubernetes namespace.
    pub namespace: String,
    /// When it arrived, µs since 1970.
    pub received_us: i64,
    /// Its id, new.
    pub reject_id: Uuid,
    /// Source, where it could be read.
    pub source: Option<String>,
    /// Id, where it could be read.
    pub event_id: Option<String>,
    /// Subject, where it could be read.
    pub subject: String,
    /// Code.
    pub code: &'static str,
    /// Message.
    pub message: String,
    /// The event as it came, cut to a bound.
    pub event: Bytes,
    /// Whether this takes a kept reject back.
    pub is_deleted: bool,
}

const REJECT_COLUMNS: &str = "namespace, received, reject_id, source, event_id, subject, code, message, event, version, is_deleted";

impl Reject {
    /// Bytes of memory that it takes, about, until it is confirmed.
    fn weight(&self) -> usize {
        let names = self.source.as_deref().map_or(0, str::len) + self.event_id.as_deref().map_or(0, str::len) + self.subject.len();
        size_of::<Self>() + self.namespace.len() + names + self.message.len() + self.event.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.namespace.as_bytes());
        out.extend_from_slice(&self.received_us.to_le_bytes());
        put_uuid(out, self.reject_id);
        put_bytes(out, self.source.as_deref().unwrap_or_default().as_bytes());
        put_bytes(out, self.event_id.as_deref().unwrap_or_default().as_bytes());
        put_bytes(out, self.subject.as_bytes());
        put_bytes(out, self.code.as_bytes());
        put_bytes(out, self.message.as_bytes());
        put_bytes(out, &self.event);
        out.extend_from_slice(&u64::from(self.is_deleted).to_le_bytes());
        out.push(u8::from(self.is_deleted));
    }
}

/// What one request wants written.
#[derive(Default)]
pub struct Submission {
    /// Events to store.
    pub rows: Vec<Row>,
    /// Refused events to keep, or to take back.
    pub rejects: Vec<Reject>,
    /// Whether no event is stored when one of them is refused.
    pub atomic: bool,
}

struct Waiting {
    submission: Submission,
    /// Which of the submission's rows, as it came, can't be stored.
    refused: Vec<usize>,
    /// Whether it has events that are stored already.
    repeats: bool,
    /// Whether it has events that can't be stored before a purge has ended.
    is_held_up: bool,
    bytes: usize,
    /// The request, in traces.
    span: Span,
    answer: oneshot::Sender<Result<Vec<usize>, CommitError>>,
    _room: OwnedSemaphorePermit,
}

/// Why a submission is not confirmed. Its rows may or may not be stored; sending it again is safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The queue is full.
    #[error("the queue of events that wait for ClickHouse is full")]
    Full,
    /// The gateway is going down.
    #[error("the gateway is stopping")]
    Stopping,
    /// ClickHouse did not confirm.
    #[error(transparent)]
    Warehouse(#[from] Error),
}

/// Takes submissions and answers each after ClickHouse did. Cheap to clone; ends when the last clone is dropped.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
}

impl Committer {
    /// Starts the one task that commits.
    pub fn start(warehouse: Warehouse, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_REQUESTS);
        metrics.queue_limit_bytes.set(i64::try_from(QUEUE_BYTES).unwrap_or(i64::MAX));
        tokio::spawn(rounds(warehouse, Arc::clone(&metrics), waiting));
        Self { queue, metrics, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }
    }

    /// Writes a submission. Ok means that ClickHouse has confirmed all of it, but for the rows at the returned places:
    /// their source and id were claimed by an event of another type, which is not stored (see [`super`]).
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, submission: Submission) -> Result<Vec<usize>, CommitError> {
        let result = self.queue(submission).await;
        if result.is_err() {
            self.metrics.unconfirmed_requests.inc();
        }
        result
    }

    async fn queue(&self, submission: Submission) -> Result<Vec<usize>, CommitError> {
        let bytes = submission.rows.iter().map(Row::weight).sum::<usize>() + submission.rejects.iter().map(Reject::weight).sum::<usize>();
        if submission.rows.is_empty() && submission.rejects.is_empty() {
            return Ok(Vec::new());
        }
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = tokio::time::timeout(QUEUE_WAIT, Arc::clone(&self.room).acquire_many_owned(permits)).await;
        let room = room.map_err(|_| CommitError::Full)?.map_err(|_| CommitError::Stopping)?;
        let (answer, told) = oneshot::channel();
        let _queued = Queued::new(&self.metrics, submission.rows.len(), bytes);
        let waiting = Waiting {
            submission,
            refused: Vec::new(),
            repeats: false,
            is_held_up: false,
            bytes,
            span: Span::current(),
            answer,
            _room: room,
        };
        self.queue.send(waiting).await.map_err(|_| CommitError::Stopping)?;
        told.await.map_err(|_| CommitError::Stopping)?
    }
}

/// Counts events as queued for as long as their request waits, also when it goes away.
struct Queued<'a> {
    metrics: &'a Metrics,
    events: i64,
    bytes: i64,
}

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics, events: usize, bytes: usize) -> Self {
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let (events, bytes) = (signed(events), signed(bytes));
        metrics.queued_events.add(events);
        metrics.queued_bytes.add(bytes);
        Self { metrics, events, bytes }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.metrics.queued_events.sub(self.events);
        self.metrics.queued_bytes.sub(self.bytes);
    }
}

/// One round after the other: all that waits, up to a bound.
async fn rounds(warehouse: Warehouse, metrics: Arc<Metrics>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut lookup = Lookup::new(warehouse.clone());
    let unfinished = Unfinished::start(warehouse.clone(), Arc::clone(&metrics));
    let (mut held, mut last_requests, mut go) = (None, 0, Instant::now());
    // Whether the last round's claims were made. If ClickHouse had no place for them, no INSERT is begun that holds one meanwhile.
    let mut is_calm = true;
    loop {
        let first = match held.take() {
            Some(first) => first,
            None => match tokio::time::timeout(IDLE, waiting.recv()).await {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(_) => {
                    lookup.idle().await;
                    continue;
                }
            },
        };
        let mut bytes = first.bytes;
        let mut round = vec![first];
        loop {
            let next = match waiting.try_recv() {
                Ok(next) => next,
                Err(_) if round.len() >= last_requests => break,
                Err(_) => match tokio::time::timeout_at(go, waiting.recv()).await {
                    Ok(Some(next)) => next,
                    Ok(None) | Err(_) => break,
                },
            };
            if bytes + next.bytes > ROUND_BYTES {
                held = Some(next);
                break;
            }
            bytes += next.bytes;
            round.push(next);
        }
        let events = round.iter().map(|waiting| waiting.submission.rows.len()).sum::<usize>();
        metrics.batch_events.observe(events as f64);
        last_requests = round.len();
        // A span has one parent: the other requests are linked.
        let span = tracing::info_span!(parent: &round[0].span, "commit", requests = round.len(), events);
        for waiting in &round[1..] {
            span.follows_from(waiting.span.id());
        }
        let timer = metrics.insert_seconds.start_timer();
        let claiming = tracing::info_span!(parent: &span, "claim");
        let (claimed, early) = {
            let new = if is_calm { new_rows(&warehouse, &lookup, rows_of(&round)) } else { New::new() };
            let (claimed, is_claimed) = watch::channel(false);
            let fence = lookup.fence();
            tokio::join!(
                claim_all(&warehouse, &mut lookup, &round, fence, claimed).instrument(claiming.clone()),
                begin(&warehouse, new, round.len() == 1, fence, is_claimed)
            )
        };
        let settled = match claimed {
            Ok(claimed) => settle(&warehouse, &mut lookup, &mut round, claimed).instrument(claiming).await,
            Err(error) => Err(error),
        };
        is_calm = settled.is_ok();
        match settled {
            Ok(settled) => {
                let block = settled.block;
                let fence = settled.fence;
                let claimed_by = block.zip(lookup.table()).map(|(block, table)| ClaimedBy { table, block, fence });
                let is_written = write(&warehouse, &unfinished, round, settled, claimed_by, early).instrument(span).await;
                if let (Ok(()), Some(block)) = (&is_written, block) {
                    lookup.written(block);
                }
                if let Err(Error::Fenced(_)) = is_written {
                    lookup.forget_fence();
                }
            }
            Err(error) => {
                drop(early);
                // A purge that it waited for may have ended.
                lookup.forget_fence();
                answer(round, |_| Err(error.clone()));
            }
        }
        go = Instant::now() + Duration::from_secs_f64(timer.stop_and_record()).min(LINGER);
    }
}

fn rows_of(round: &[Waiting]) -> impl Iterator<Item = &Row> {
    round.iter().flat_map(|waiting| &waiting.submission.rows)
}

/// What a round has to write besides new rows.
struct Settled {
    /// How many landing tables there can be.
    landings: Landings,
    /// Read before any of it was looked at.
    fence: Fence,
    /// The number of the INSERT of its claims, where it is known.
    block: Option<u64>,
    /// Whether an identity comes twice among the rows.
    has_twice: bool,
    /// Claimed but not stored: rows of these go to `events` first, and from there, like all that is written again, to all tables.
    completed: Ids,
    /// Stored events to write again, by namespace and type.
    again: HashMap<(String, String), Vec<u128>>,
}

/// What is claimed of a round's identities.
struct Claimed {
    /// By others, or by this gateway before.
    before: Claims,
    /// Read before any of it was looked at or claimed: ClickHouse refuses what follows from it once a purge may remove claims of it.
    fence: Fence,
    /// The number of the INSERT of its claims, where it is known.
    block: Option<u64>,
    /// The keys of identities that come twice in the round.
    twice: HashMap<u128, StoredKey>,
}

/// Claims what is new in a round. The `fence` is that of a look before, where there was one.
async fn claim_all(
    warehouse: &Warehouse,
    lookup: &mut Lookup,
    round: &[Waiting],
    fence: Option<Fence>,
    claimed: watch::Sender<bool>,
) -> Result<Claimed, Error> {
    let rows = || rows_of(round);
    let (mut firsts, mut twice) = (Vec::with_capacity(rows().count()), Ids::default());
    let mut ids = Ids::with_capacity_and_hasher(firsts.capacity(), RandomState::default());
    for row in rows() {
        if ids.insert(row.identity) {
            firsts.push(row);
        } else {
            twice.insert(row.identity);
        }
    }
    let fence = match fence {
        Some(fence) => fence,
        None => retried(warehouse, || warehouse.fence()).await?,
    };
    let before = lookup.before(firsts.iter().map(|row| row.identity)).await?;
    let (before, block) = claim(warehouse, lookup, &firsts, before, claimed).await?;
    let twice = firsts.iter().filter(|row| twice.contains(&row.identity)).map(|row| (row.identity, row.key())).collect();
    Ok(Claimed { before, fence, block, twice })
}

/// Gives every row the key of its identity, and leaves only rows that are to be written.
async fn settle(warehouse: &Warehouse, lookup: &mut Lookup, round: &mut [Waiting], claimed: Claimed) -> Result<Settled, Error> {
    let Claimed { before: mut claimed, fence, block, twice: in_round } = claimed;
    let landings = warehouse.ensure_bootstrap().await?;
    let mut settled = Settled { landings, fence, block, has_twice: !in_round.is_empty(), completed: Ids::default(), again: HashMap::new() };
    if claimed.is_empty() && in_round.is_empty() {
        return Ok(settled);
    }

    let before: Vec<u128> = claimed.keys().copied().collect();
    let mut stored = if before.is_empty() { HashMap::new() } else { warehouse.stored_among(&before).await? };
    let mut held_up = Ids::default();
    if stored.len() < before.len() {
        // Who completed them may have gone while ClickHouse still does it.
        warehouse.await_completing().await?;
        stored = warehouse.stored_among(&before).await?;
        if fence.is_purging {
            let rows = round.iter_mut().flat_map(|waiting| &mut waiting.submission.rows);
            held_up = claim_again(warehouse, lookup, rows.filter(|row| !stored.contains_key(&row.identity)), &mut claimed).await?;
            if !held_up.is_empty() {
                // The purge may have ended since.
                lookup.forget_fence();
            }
        }
    }
    let written = lookup.written_among(&claimed).await;
    for Waiting { submission, refused, repeats, is_held_up, .. } in round {
        let mut at = 0;
        submission.rows.retain_mut(|row| {
            at += 1;
            let key = claimed.get(&row.identity).map(|claim| &claim.key);
            let Some(of) = key.or_else(|| in_round.get(&row.identity)) else { return true };
            if held_up.contains(&row.identity) {
                *is_held_up = true;
                return false;
            }
            let (is_stored, same_type) = (stored.contains_key(&row.identity), of.event_type == row.event.attributes.event_type());
            // Its one row is that of the round that claimed it, and ClickHouse has confirmed all INSERTs of that round: no
            // table lacks it. Had it been purged and completed since, or cancelled, its row would be another.
            let is_everywhere = stored.get(&row.identity) == Some(&true) && written.contains(&row.identity);
            let mut write_again = |row: &Row| {
                let of = (row.namespace.to_string(), of.event_type.clone());
                settled.again.entry(of).or_default().push(row.identity);
                *repeats = true;
            };
            match key {
                // What is stored stays as it is.
                Some(_) if is_everywhere => false,
                Some(_) if is_stored => {
                    write_again(row);
                    false
                }
                // Of another type it would be another event to other meters, and the one that claimed may never be stored.
                _ if !same_type => {
                    refused.push(at - 1);
                    false
                }
                Some(key) => {
                    row.complete(key);
                    settled.completed.insert(row.identity);
                    write_again(row);
                    true
                }
                None => {
                    row.adopt(of);
                    true
                }
            }
        });
        if submission.atomic && (!refused.is_empty() || *is_held_up) {
            submission.rows.clear();
        }
        debug_assert!(
            submission.rows.iter().all(|row| {
                let key = claimed.get(&row.identity).map(|claim| &claim.key).or_else(|| in_round.get(&row.identity));
                key.is_none_or(|key| row.has_key(key))
            }),
            "one identity, one key: what is written has the key that was claimed first"
        );
    }
    Ok(settled)
}

/// Ok: ClickHouse has confirmed every row. Else why not, of the first of them that says so.
async fn write(
    warehouse: &Warehouse,
    unfinished: &Unfinished,
    round: Vec<Waiting>,
    settled: Settled,
    claimed_by: Option<ClaimedBy>,
    early: HashMap<String, Early>,
) -> Result<(), Error> {
    let mut kept = Vec::new();
    round.iter().flat_map(|waiting| &waiting.submission.rejects).for_each(|reject| reject.encode(&mut kept));
    let mut rows: Vec<&Row> = rows_of(&round).collect();
    if settled.has_twice {
        let mut seen = Ids::default();
        rows.retain(|row| seen.insert(row.identity));
    }
    let (completing, rows): (Vec<&Row>, Vec<&Row>) = rows.into_iter().partition(|row| settled.completed.contains(&row.identity));
    // The look after the claims found them in the one table of identities that this gateway knows, so the database is that in which
    // the INSERTs were begun. One that was dropped meanwhile would take their end, and say so.
    let early = if settled.block.is_some() { early } else { HashMap::new() };
    let (landed, rejects, again) = tokio::join!(
        insert_landings(warehouse, settled.landings, &rows, round.len() == 1, settled.fence, early),
        insert_rejects(warehouse, kept.into()),
        write_again(warehouse, &completing, &settled.again, settled.fence)
    );
    let mut failed: HashMap<u64, Vec<&Row>> =
        landed.iter().filter(|(_, result)| result.is_err()).map(|(number, _)| (*number, vec![])).collect();
    if !failed.is_empty() {
        rows.iter().for_each(|row| {
            if let Some(of) = failed.get_mut(&settled.landings.number(row.landing)) {
                of.push(row);
            }
        });
    }
    failed.into_iter().for_each(|(number, rows)| unfinished.keep_new(settled.landings.name(number), &rows, claimed_by));
    drop((rows, completing));
    if again.is_err() {
        unfinished.keep_others(settled.again);
    }
    answer(round, |Waiting { submission, repeats, is_held_up, .. }| {
        if *is_held_up {
            let why = "an event that was claimed and never stored waits until the purge of a customer's events has ended";
            return Err(Error::Unavailable(why.to_owned()));
        }
        // The acknowledgement: whatever brings a row of the request to all tables has been confirmed, and so has what brings those there
        // that were stored before. Rows of one identity are of one type, so one that another request's row stood for has the same table.
        for row in &submission.rows {
            let is_completed = settled.completed.contains(&row.identity);
            let brought = if is_completed { Some(&again) } else { landed.get(&settled.landings.number(row.landing)) };
            match brought {
                Some(brought) => brought.clone()?,
                None => return Err(Error::Unavailable("rows were not sent".to_owned())),
            }
        }
        if *repeats {
            again.clone()?;
        }
        if submission.rejects.is_empty() { Ok(()) } else { rejects.clone() }
    });
    landed.into_values().chain([again]).collect()
}

/// Stores what was claimed but not stored, and writes that and what was stored before to all tables.
async fn write_again(
    warehouse: &Warehouse,
    completing: &[&Row],
    again: &HashMap<(String, String), Vec<u128>>,
    fence: Fence,
) -> Result<(), Error> {
    debug_assert!(
        completing.iter().all(|row| again.values().any(|ids| ids.contains(&row.identity))),
        "what is completed in `events` comes to all tables"
    );
    insert_events(warehouse, completing, fence).await?;
    for ((namespace, event_type), ids) in again {
        retried(warehouse, || warehouse.write_again(namespace, event_type, ids)).await?;
    }
    Ok(())
}

fn answer(round: Vec<Waiting>, result: impl Fn(&Waiting) -> Result<(), Error>) {
    for waiting in round {
        let result = result(&waiting);
        // A request that has gone away is told nothing.
        let _ = waiting.answer.send(result.map(|()| waiting.refused).map_err(CommitError::from));
    }
}

async fn insert_rejects(warehouse: &Warehouse, rows: Bytes) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (columns, bytes) = (REJECT_COLUMNS, rows.len());
    let insert = Insert { table: "rejects", columns, bytes, name: "kubemeter-rejects", deadline: INSERT, is_alone: false, fence: None };
    retried(warehouse, || warehouse.insert(insert, std::iter::once(rows.clone()))).await
}
