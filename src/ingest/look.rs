//! Which identities are claimed, asked of ClickHouse for as few of them as can be.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::seen::Seen;
use super::send::retried;
use super::whole::Whole;
use crate::warehouse::{Claim, Error, Fence, Identities, IdentityPart, IdentityTable, Topology, Warehouse};

/// How long reading what is new in ClickHouse may take between two rounds.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long the first reading of everything may take. Rounds go on meanwhile.
const LOAD: Duration = Duration::from_secs(600);
/// Pause before everything is read again, after ClickHouse turned out to be another one or could not be read.
const AGAIN: Duration = Duration::from_secs(30);
/// First and longest pause before it is tried again whether INSERTs can be begun.
const SOON: Duration = Duration::from_secs(5);
/// See [`SOON`].
const SELDOM: Duration = Duration::from_secs(3_600);
/// How often a list of parts may be out of date by the time that they are read.
const TRIES: usize = 4;

/// Looks identities up, and remembers what it saw.
pub(super) struct Lookup {
    warehouse: Warehouse,
    memory: Memory,
    /// Whether what [`before`](Self::before) told came from memory: only then is what is new since all there is to see.
    from_memory: bool,
    /// Whether the last try to read what is claimed failed: it is told once.
    behind: bool,
    /// When it is tried again whether INSERTs can be begun, if none can, and the pause after that: what ClickHouse had no time for when it
    /// was tried first it may have time for later.
    learn: (Instant, Duration),
}

enum Memory {
    /// It is being read; until then every identity is looked up.
    Loading(JoinHandle<Result<Option<Known>, Error>>),
    /// It could not be read, and will be tried again.
    Absent(Instant),
    Known(Known),
}

/// What is claimed in one table of one ClickHouse.
struct Known {
    table: IdentityTable,
    /// What was said when it was looked at last. None: nothing, or that is known to be old.
    fence: Option<Fence>,
    seen: Seen,
    /// Numbers of INSERTs are of this table, in this run of its server.
    whole: Whole,
}

/// What a look at the blocks that are new found.
#[derive(Default)]
struct News {
    /// Claims of one's own that others made, too, or that are not there.
    doubtful: Vec<u128>,
    /// The number of the INSERT of one's own claims, when they are of one.
    block: Option<u64>,
}

/// Identities.
pub(super) type Ids = HashSet<u128, RandomState>;
/// First claims of identities.
pub(super) type Claims = HashMap<u128, Claim>;

impl Lookup {
    /// Begins to read what is claimed.
    pub(super) fn new(warehouse: Warehouse) -> Self {
        let memory = Memory::Loading(load(&warehouse));
        Self { warehouse, memory, from_memory: false, behind: false, learn: (Instant::now() + SOON, SOON) }
    }

    /// Which identities were claimed before. One that is not in the answer may have been claimed since this gateway last
    /// looked: [`after`](Self::after) tells.
    pub(super) async fn before(&mut self, ids: impl Iterator<Item = u128>) -> Result<Claims, Error> {
        self.refresh().await;
        self.from_memory = matches!(self.memory, Memory::Known(_));
        let perhaps = |id: &u128| match &self.memory {
            Memory::Known(known) => known.seen.may_have(*id),
            _ => true,
        };
        self.ask(ids.filter(perhaps).collect()).await
    }

    /// Whether an identity is known not to be claimed, as far as this gateway has looked.
    pub(super) fn is_new(&self, id: u128) -> bool {
        matches!(&self.memory, Memory::Known(known) if !known.seen.may_have(id))
    }

    /// What is to be written is decided under it from now on, as far as this gateway has looked.
    pub(super) const fn fence(&self) -> Option<Fence> {
        if let Memory::Known(known) = &self.memory { known.fence } else { None }
    }

    /// The UUID of the table of identities that this gateway knows.
    pub(super) fn table(&self) -> Option<Uuid> {
        if let Memory::Known(known) = &self.memory { Some(known.table.uuid) } else { None }
    }

    /// Has the fence read again before anything is decided: a purge has begun or ended since, perhaps.
    pub(super) const fn forget_fence(&mut self) {
        if let Memory::Known(known) = &mut self.memory {
            known.fence = None;
        }
    }

    /// Looks again after `claims` were written, all of them in one INSERT: which of them were claimed more than once, by
    /// others, or by an INSERT that was sent again. And the number of that INSERT, where it is known.
    ///
    /// What was claimed before was seen before; what came since is in new blocks, most often just the one of this INSERT.
    pub(super) async fn after(&mut self, claims: &[u128]) -> Result<(Claims, Option<u64>), Error> {
        if self.from_memory
            && let Memory::Known(known) = &mut self.memory
        {
            match known.catch_up(&self.warehouse, CATCH_UP, claims).await {
                Ok(Some(News { doubtful, block })) => return Ok((self.contested(&doubtful).await?, block)),
                Ok(None) => self.memory = Memory::Absent(Instant::now() + AGAIN),
                Err(why) => self.tell_behind(&why),
            }
        }
        Ok((self.contested(claims).await?, None))
    }

    /// Which of claims that ClickHouse has confirmed are not the only ones.
    async fn contested(&self, claims: &[u128]) -> Result<Claims, Error> {
        let mut found = self.confirmed(claims.to_vec()).await?;
        found.retain(|_, claim| claim.count > 1);
        Ok(found)
    }

    /// The first claims of identities for which ClickHouse has confirmed claims. One that is not there by now was purged, or went to a
    /// database that was dropped: what it was made for must not be written without it.
    pub(super) async fn confirmed(&self, claims: Vec<u128>) -> Result<Claims, Error> {
        let found = self.ask(claims.clone()).await?;
        if !claims.iter().all(|id| found.contains_key(id)) {
            let why = "claims of identities are gone that ClickHouse had confirmed: their subject was purged, or the database made anew";
            return Err(Error::Unavailable(why.to_owned()));
        }
        Ok(found)
    }

    /// Notes that all that the claims of an INSERT were made for is written.
    pub(super) fn written(&mut self, block: u64) {
        if let Memory::Known(known) = &mut self.memory {
            known.whole.insert(block);
        }
    }

    /// Which of claims this gateway knows to have been made by a round of its own that was written whole.
    pub(super) async fn written_among(&mut self, claims: &Claims) -> Ids {
        let Memory::Known(known) = &mut self.memory else { return Ids::default() };
        let ids: Ids = claims.iter().filter(|(_, claim)| known.whole.contains(claim.block)).map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return ids;
        }
        // Were it another run of the server by now, its numbers could be others' that were given out again.
        match known.parts(&self.warehouse).await {
            Ok(Some(_)) => return ids,
            Ok(None) => self.memory = Memory::Absent(Instant::now() + AGAIN),
            Err(why) => self.tell_behind(&why),
        }
        // What isn't known is written again.
        Ids::default()
    }

    /// Keeps up with other gateways while there is nothing to do.
    pub(super) async fn idle(&mut self) {
        self.refresh().await;
        let Memory::Known(known) = &mut self.memory else { return };
        match known.catch_up(&self.warehouse, CATCH_UP, &[]).await {
            Ok(caught_up) => {
                if std::mem::take(&mut self.behind) {
                    tracing::info!("what is new in ClickHouse can be read again");
                }
                if caught_up.is_none() {
                    self.memory = Memory::Absent(Instant::now() + AGAIN);
                }
            }
            Err(why) => self.tell_behind(&why),
        }
    }

    /// Says once that what is claimed can't be read.
    fn tell_behind(&mut self, why: &Error) {
        if !std::mem::replace(&mut self.behind, true) {
            tracing::warn!(error = %why, "what is claimed can't be read from ClickHouse: every identity is looked up, which is slower; trying again");
        }
    }

    async fn refresh(&mut self) {
        match &mut self.memory {
            Memory::Loading(reading) if reading.is_finished() => {
                let read = reading.await;
                self.memory = Memory::Absent(Instant::now() + AGAIN);
                match read {
                    Ok(Ok(Some(known))) => {
                        self.memory = Memory::Known(known);
                        self.learn = (Instant::now() + SOON, SOON);
                    }
                    Ok(Err(why)) => self.tell_behind(&why),
                    Ok(Ok(None)) | Err(_) => {}
                }
            }
            Memory::Absent(until) if *until <= Instant::now() => self.memory = Memory::Loading(load(&self.warehouse)),
            Memory::Known(_) if !self.warehouse.begins() && self.learn.0 <= Instant::now() => {
                let pause = (self.learn.1 * 2).min(SELDOM);
                self.learn = (Instant::now() + pause, pause);
                let warehouse = self.warehouse.clone();
                tokio::spawn(async move { warehouse.learn_to_begin().await });
            }
            _ => {}
        }
    }

    /// The first claims of identities, as ClickHouse has them.
    async fn ask(&self, ids: Vec<u128>) -> Result<Claims, Error> {
        if ids.is_empty() {
            return Ok(Claims::new());
        }
        retried(&self.warehouse, || self.warehouse.claims_of(&ids)).await
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Memory::Loading(reading) = &self.memory {
            reading.abort();
        }
    }
}

/// Reads all that is claimed.
fn load(warehouse: &Warehouse) -> JoinHandle<Result<Option<Known>, Error>> {
    let warehouse = warehouse.clone();
    tokio::spawn(async move {
        warehouse.ensure_bootstrap().await?;
        // The parts of one server tell all that is claimed.
        if *warehouse.topology() != Topology::Single {
            return Ok(None);
        }
        let Identities { table, fence, parts } = warehouse.identity_parts().await?;
        if !warehouse.learn_to_begin().await? {
            tracing::info!("ClickHouse doesn't prepare INSERTs before they end: acknowledgements take longer");
        }
        let claimed: u64 = parts.iter().map(|part| part.rows).sum();
        let mut known = Known { table, fence, seen: Seen::with_room_for(claimed.saturating_mul(2)), whole: Whole::none() };
        Ok(known.catch_up(&warehouse, LOAD, &[]).await?.map(|_| known))
    })
}

impl Known {
    /// Reads the blocks that are new. Some: which of `claims`, whose INSERT was confirmed, have others claimed in these,
    /// too. None: the table is another one, or its parts are merged quicker than they are read.
    async fn catch_up(&mut self, warehouse: &Warehouse, deadline: Duration, claims: &[u128]) -> Result<Option<News>, Error> {
        let mut news = News::default();
        let Some(mut parts) = self.parts(warehouse).await? else { return Ok(None) };
        for _ in 0..TRIES {
            let new: Vec<_> = parts.into_iter().filter(|part| self.seen.misses(part)).collect();
            if new.is_empty() {
                // A confirmed claim is there, in a new block: without one these are not the parts that it went to.
                return Ok((claims.is_empty() || !news.doubtful.is_empty()).then_some(news));
            }
            if let Some(block) = self.only_block(warehouse, &new, claims).await? {
                news.block = u64::try_from(block).ok().filter(|_| news.doubtful.is_empty());
                claims.iter().for_each(|id| self.seen.insert(*id));
                new.iter().for_each(|part| self.seen.read(part));
                return Ok(Some(news));
            }
            let from = new.iter().filter_map(|part| self.seen.missing(part)).map(|(first, _)| first).min().unwrap_or(0);
            let mut own: HashMap<u128, bool, RandomState> = claims.iter().map(|id| (*id, false)).collect();
            let (seen, mut blocks) = (&mut self.seen, HashSet::new());
            let each = |(id, block)| {
                seen.insert(id);
                if let Some(once) = own.get_mut(&id) {
                    blocks.insert(block);
                    // Once it is this gateway's claim; twice there is another.
                    if std::mem::replace(once, true) {
                        news.doubtful.push(id);
                    }
                }
            };
            warehouse.each_identity(&new, from, deadline, each).await?;
            // A part that was merged away before it was read was left out: all that are still there were read.
            let Some(now) = self.parts(warehouse).await? else { return Ok(None) };
            let names: HashSet<&str> = now.iter().map(|part| part.name.as_str()).collect();
            if new.iter().all(|part| names.contains(part.name.as_str())) {
                new.iter().for_each(|part| self.seen.read(part));
                news.doubtful.extend(own.into_iter().filter(|(_, is_there)| !is_there).map(|(id, _)| id));
                // Others' blocks have claims of ours only where they are contested.
                news.block = blocks.iter().next().copied().filter(|_| blocks.len() == 1 && news.doubtful.is_empty());
                return Ok(Some(news));
            }
            parts = now;
        }
        Ok(None)
    }

    /// The one block that is all that is new, and hence that of the INSERT of `claims`: confirmed, it must be there.
    ///
    /// Parts are listed while it is asked which table they are of. That was the known one still, after the claims. Should another have
    /// taken its place before the parts were listed, which doesn't have the claims, its last part would have another least identity:
    /// that is a random number. A part that was merged already doesn't tell; the table is asked for again.
    async fn only_block(&mut self, warehouse: &Warehouse, new: &[IdentityPart], claims: &[u128]) -> Result<Option<i64>, Error> {
        let ([part], false) = (new, claims.is_empty()) else { return Ok(None) };
        let Some((block, _)) = self.seen.missing(part).filter(|(first, last)| first == last) else { return Ok(None) };
        let is_theirs = if part.first_block == part.last_block {
            part.rows == claims.len() as u64 && claims.iter().min() == Some(&part.least)
        } else {
            self.parts(warehouse).await?.is_some()
        };
        Ok(is_theirs.then_some(block))
    }

    /// The parts that there are. None: of another table.
    async fn parts(&mut self, warehouse: &Warehouse) -> Result<Option<Vec<IdentityPart>>, Error> {
        let Identities { table, fence, parts } = warehouse.identity_parts().await?;
        self.fence = fence;
        if !self.table.goes_on(&table) {
            // The known one stays known: another must not be taken for it the next time. What was made with it is to be made again.
            warehouse.forget_made();
            return Ok(None);
        }
        self.table = table;
        Ok(Some(parts))
    }
}
