//! What runs in ClickHouse between a claim and its event, where the event's own INSERT doesn't: a purge waits for it.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use clickhouse::insert_formatted::InsertFormatted;
use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

use super::begun::{COLUMNS, TABLE};
use super::{Error, Insert, Warehouse, insert_name};

/// An INSERT that was begun and never gets a row. It runs, for all who wait for INSERTs, until this is dropped or ClickHouse has waited
/// too long for what it is to be sent.
pub struct Lease {
    insert: Option<InsertFormatted>,
    name: String,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(insert), Ok(runtime)) = (self.insert.take(), Handle::try_current()) {
            // Broken off it would end, too, and ClickHouse would log an error. Nobody waits for that.
            runtime.spawn(async move { tokio::time::timeout(ANSWER, insert.end()).await });
        }
    }
}

/// How long a lease runs. ClickHouse ends it earlier where it waits less for what an INSERT is to be sent.
const LEASE: Duration = Duration::from_secs(300);
/// How long ClickHouse may take to begin one: whoever posts waits, too.
const LEASED: Duration = Duration::from_millis(500);
/// How long none is tried where one did not run.
const PAUSE: Duration = Duration::from_secs(60);
/// How long it may take to say whether one runs, or to end it.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether leases can be had.
#[derive(Default)]
pub(super) struct Leases {
    /// Not before then.
    paused_until: Option<Instant>,
    /// Whether it was told that there are none.
    is_told: bool,
}

impl Warehouse {
    /// Begins a statement that all wait for who wait for INSERTs, and sees it run. None: it doesn't, in time, or one before didn't a moment
    /// ago.
    pub async fn lease(&self) -> Option<Lease> {
        if self.leases().paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.ensure_bootstrap().await.ok()?;
        let name = format!("{}-{}", insert_name("round"), Uuid::new_v4());
        let nothing = Insert { table: TABLE, columns: COLUMNS, bytes: 0, name: &name, deadline: LEASE, is_alone: false };
        let (mut insert, header) = self.opened(&nothing);
        let sent = self.timed(ANSWER, async move { insert.send(header).await.map(|()| insert) }).await;
        let mut lease = Lease { insert: Some(sent.ok()?), name };
        let until = Instant::now() + LEASED;
        while !self.holds(Some(&lease)).await {
            if Instant::now() > until {
                self.pause_leases(lease.insert.take()?).await;
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Some(lease)
    }

    /// Whether a lease runs. It was seen when it was made; seen again it ran all the time.
    pub async fn holds(&self, lease: Option<&Lease>) -> bool {
        let Some(Lease { name, .. }) = lease else { return false };
        let sql = format!("SELECT count() > 0 FROM {} WHERE startsWith(query_id, {{name:String}})", self.topology().system("processes"));
        self.query(&sql).bind("name", &**name).within(ANSWER).one::<bool>().await.unwrap_or(false)
    }

    /// Tries no lease for a while after one that did not run, and tells why if ClickHouse does.
    async fn pause_leases(&self, insert: InsertFormatted) {
        self.leases().paused_until = Some(Instant::now() + PAUSE);
        let ended = tokio::time::timeout(LEASED, insert.end()).await;
        if let Ok(Err(Error::Refused(why))) = ended.map(|ended| ended.map_err(Error::from))
            && !std::mem::replace(&mut self.leases().is_told, true)
        {
            tracing::warn!(
                why,
                "ClickHouse refuses INSERTs that are begun before their rows are there (may its user set max_query_size?): a purge of \
                 subjects of which events are just coming may take their claims away"
            );
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
