//! What runs in ClickHouse between a claim and its event, where the event's own INSERT doesn't: a purge waits for it.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use clickhouse::insert_formatted::InsertFormatted;
use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

use super::begun::{COLUMNS, TABLE};
use super::{Error, Insert, Topology, Warehouse, insert_name};

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
/// How long it may take until a lease is seen to run: whoever posts waits, too.
const LEASED: Duration = Duration::from_secs(2);
/// How long none is tried where one was not seen; each time twice as long, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
/// See [`PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// How long it may take to say whether one runs, or to end it.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether leases can be had.
#[derive(Default)]
pub(super) struct Leases {
    /// Whether the one server is known to be one: of several behind one address each would list only what it runs itself.
    has_one_server: bool,
    /// Since the last one was not seen: how long none is tried, and until when.
    failed: Option<(Duration, Instant)>,
    /// Whether it was told that there are none.
    is_told: bool,
}

impl Warehouse {
    /// Begins a statement that all wait for who wait for INSERTs, and sees it run. None: it is not seen, or can't be.
    pub async fn lease(&self) -> Option<Lease> {
        let (is_single, now) = (*self.topology() == Topology::Single, Instant::now());
        let can_be = |leases: &Leases| (leases.has_one_server || !is_single) && leases.failed.is_none_or(|(_, until)| until <= now);
        if !can_be(&self.leases()) {
            return None;
        }
        self.ensure_bootstrap().await.ok()?;
        let name = format!("{}-{}", insert_name("round"), Uuid::new_v4());
        let nothing = Insert { table: TABLE, columns: COLUMNS, bytes: 0, name: &name, deadline: LEASE, is_alone: false };
        let (mut insert, header) = self.opened(&nothing);
        let sent = self.timed(ANSWER, async move { insert.send(header).await.map(|()| insert) }).await;
        let mut lease = Lease { insert: Some(sent.ok()?), name };
        if let Ok(Ok(())) = tokio::time::timeout(LEASED, self.sees(&lease)).await {
            self.leases().failed = None;
            return Some(lease);
        }
        let pause = self.leases().failed.map_or(PAUSE, |(pause, _)| (pause * 2).min(LONGEST_PAUSE));
        self.leases().failed = Some((pause, Instant::now() + pause));
        if let Some(insert) = lease.insert.take() {
            let warehouse = self.clone();
            tokio::spawn(async move { warehouse.tell_refused(insert).await });
        }
        None
    }

    /// Whether a lease runs. It was seen when it was made; seen again it ran all the time.
    pub async fn holds(&self, lease: Option<&Lease>) -> bool {
        match lease {
            Some(lease) => self.lists(lease).await.unwrap_or(false),
            None => false,
        }
    }

    /// Notes that ClickHouse is one server, which lists all that runs.
    pub fn allow_leases(&self) {
        self.leases().has_one_server = true;
    }

    async fn sees(&self, lease: &Lease) -> Result<(), Error> {
        while !self.lists(lease).await? {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn lists(&self, lease: &Lease) -> Result<bool, Error> {
        let sql = format!("SELECT count() > 0 FROM {} WHERE startsWith(query_id, {{name:String}})", self.topology().system("processes"));
        self.query(&sql).bind("name", &*lease.name).within(ANSWER).one::<bool>().await
    }

    /// Tells once that ClickHouse refuses leases, if it does.
    async fn tell_refused(&self, insert: InsertFormatted) {
        let ended = tokio::time::timeout(ANSWER, insert.end()).await;
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
