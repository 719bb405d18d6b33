//! Group commit: concurrent requests share one look-up and one INSERT per landing table.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::identity;
use super::look::Lookup;
use crate::event::put_bytes;
use crate::telemetry::Metrics;
use crate::warehouse::row::{COLUMNS, Row, put_uuid};
use crate::warehouse::schema::Landing;
use crate::warehouse::{Error, Warehouse, insert_name};

/// Bytes of encoded rows that may wait or be on their way. Beyond, requests are told to come again.
const QUEUE_BYTES: usize = 64 * 1_024 * 1_024;
/// Requests that may wait.
const QUEUE_REQUESTS: usize = 4_096;
/// How long a request waits for room in the queue.
const QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Most bytes of one round; a larger request goes alone.
const ROUND_BYTES: usize = 32 * 1_024 * 1_024;
/// Deadline of one INSERT.
pub(super) const INSERT: Duration = Duration::from_secs(30);
/// How long after a round without another one what other gateways stored is looked at.
const IDLE: Duration = Duration::from_secs(2);
/// How long an INSERT that ClickHouse did not take is tried again before its requests are told.
const RETRY_FOR: Duration = Duration::from_secs(4);

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
}

struct Waiting {
    submission: Submission,
    bytes: usize,
    answer: oneshot::Sender<Result<(), CommitError>>,
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
        tokio::spawn(rounds(warehouse, Arc::clone(&metrics), waiting));
        Self { queue, metrics, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }
    }

    /// Writes a submission. Ok means that ClickHouse has confirmed all of it.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, submission: Submission) -> Result<(), CommitError> {
        let bytes = submission.rows.iter().map(Row::encoded_len).sum::<usize>()
            + submission.rejects.iter().map(|r| r.event.len() + 256).sum::<usize>();
        if submission.rows.is_empty() && submission.rejects.is_empty() {
            return Ok(());
        }
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = tokio::time::timeout(QUEUE_WAIT, Arc::clone(&self.room).acquire_many_owned(permits)).await;
        let room = room.map_err(|_| CommitError::Full)?.map_err(|_| CommitError::Stopping)?;
        let (answer, told) = oneshot::channel();
        let _queued = Queued::new(&self.metrics, submission.rows.len());
        self.queue.send(Waiting { submission, bytes, answer, _room: room }).await.map_err(|_| CommitError::Stopping)?;
        told.await.map_err(|_| CommitError::Stopping)?
    }
}

/// Counts events as queued for as long as their request waits, also when it goes away.
struct Queued<'a>(&'a Metrics, i64);

impl<'a> Queued<'a> {
    fn new(metrics: &'a Metrics, events: usize) -> Self {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        metrics.queued_events.add(events);
        Self(metrics, events)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued_events.sub(self.1);
    }
}

/// One round after the other: all that waits, up to a bound.
async fn rounds(warehouse: Warehouse, metrics: Arc<Metrics>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut lookup = Lookup::new(warehouse.clone());
    let mut held = None;
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
        while let Ok(next) = waiting.try_recv() {
            if bytes + next.bytes > ROUND_BYTES {
                held = Some(next);
                break;
            }
            bytes += next.bytes;
            round.push(next);
        }
        metrics.batch_events.observe(round.iter().map(|waiting| waiting.submission.rows.len()).sum::<usize>() as f64);
        let timer = metrics.insert_seconds.start_timer();
        commit(&warehouse, &mut lookup, round).await;
        timer.observe_duration();
    }
}

async fn commit(warehouse: &Warehouse, lookup: &mut Lookup, mut round: Vec<Waiting>) {
    let mut kept = Vec::new();
    round.iter().flat_map(|waiting| &waiting.submission.rejects).for_each(|reject| reject.encode(&mut kept));
    let mut rows: Vec<&mut Row> = round.iter_mut().flat_map(|waiting| waiting.submission.rows.iter_mut()).collect();
    let mut seen = HashSet::with_capacity(rows.len());
    rows.retain(|row| seen.insert(row.identity));

    let contested = match identity::settle(warehouse, lookup, &mut rows).await {
        Ok(contested) => contested,
        Err(error) => return answer(round, |_| Err(error.clone())),
    };
    let by_landing = encode(rows.iter().map(|row| &**row));
    let (mut landed, rejects) = tokio::join!(insert_landings(warehouse, by_landing), insert_rejects(warehouse, kept.into()));
    if let Err(error) = identity::check(warehouse, lookup, rows, contested).await {
        landed.values_mut().for_each(|result| *result = Err(error.clone()));
    }
    let any_failed = landed.values().find_map(|result| result.clone().err());
    answer(round, |submission| {
        // The acknowledgement: every landing table of the request has confirmed. A row whose table has no result is
        // another request's event under another type: that one may be in any table, so all must have confirmed.
        for row in &submission.rows {
            match (landed.get(&row.landing), &any_failed) {
                (Some(Err(error)), _) | (None, Some(error)) => return Err(error.clone()),
                (Some(Ok(())), _) | (None, None) => {}
            }
        }
        if submission.rejects.is_empty() { Ok(()) } else { rejects.clone() }
    });
}

fn answer(round: Vec<Waiting>, result: impl Fn(&Submission) -> Result<(), Error>) {
    for waiting in round {
        let told = result(&waiting.submission).map_err(CommitError::from);
        // A request that has gone away is told nothing.
        let _ = waiting.answer.send(told);
    }
}

/// Rows by landing table, as they are inserted.
pub(super) fn encode<'a>(rows: impl Iterator<Item = &'a Row>) -> HashMap<Landing, Vec<u8>> {
    let mut by_landing: HashMap<Landing, Vec<u8>> = HashMap::new();
    rows.for_each(|row| row.encode(by_landing.entry(row.landing).or_default()));
    by_landing
}

/// One INSERT per landing table, all at once.
pub(super) async fn insert_landings(warehouse: &Warehouse, by_landing: HashMap<Landing, Vec<u8>>) -> HashMap<Landing, Result<(), Error>> {
    let inserts =
        by_landing.into_iter().map(|(landing, rows)| async move { (landing, insert_rows(warehouse, landing, rows.into()).await) });
    futures::future::join_all(inserts).await.into_iter().collect()
}

async fn insert_rows(warehouse: &Warehouse, landing: Landing, rows: Bytes) -> Result<(), Error> {
    let table = landing.to_string();
    retried(warehouse, || async {
        warehouse.ensure_landing(&table).await?;
        warehouse.insert(&table, COLUMNS, rows.clone(), &insert_name(&table), INSERT).await
    })
    .await
}

async fn insert_rejects(warehouse: &Warehouse, rows: Bytes) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    retried(warehouse, || warehouse.insert("rejects", REJECT_COLUMNS, rows.clone(), "kubemeter-rejects", INSERT)).await
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
            Error::UnknownTable(_) => warehouse.ensure_bootstrap().await?,
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
