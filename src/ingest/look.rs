//! Where identities stand, asked of ClickHouse for as few of them as can be.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::commit::retried;
use super::seen::Seen;
use crate::warehouse::row::Row;
use crate::warehouse::{Error, IdentityTable, StoredKey, StoredKeys, Warehouse};

/// How long reading what is new in ClickHouse may take between two rounds.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long the first reading of everything may take. Rounds go on meanwhile.
const LOAD: Duration = Duration::from_secs(600);
/// Pause before everything is read again, after ClickHouse turned out to be another one or could not be read.
const AGAIN: Duration = Duration::from_secs(30);
/// How often a list of parts may be out of date by the time that they are read.
const TRIES: usize = 4;

/// Looks identities up, and remembers what it saw.
pub(super) struct Lookup {
    warehouse: Warehouse,
    memory: Memory,
    /// Whether what [`before`](Self::before) told came from memory: only then is what is new since all there is to see.
    from_memory: bool,
}

enum Memory {
    /// It is being read; until then every identity is looked up.
    Loading(JoinHandle<Option<Known>>),
    /// It could not be read, and will be tried again.
    Absent(Instant),
    Known(Known),
}

/// What is stored in one table of one ClickHouse.
struct Known {
    table: IdentityTable,
    seen: Seen,
}

/// Keys of identities that are stored.
pub(super) type Stored = HashMap<u128, StoredKeys>;

impl Lookup {
    /// Begins to read what is stored.
    pub(super) fn new(warehouse: Warehouse) -> Self {
        let memory = load(&warehouse);
        Self { warehouse, memory, from_memory: false }
    }

    /// Looks rows up before they are inserted. An identity that is not in the answer is not stored.
    pub(super) async fn before(&mut self, rows: &[&Row]) -> Result<Stored, Error> {
        self.from_memory = self.idle().await;
        let perhaps = |row: &&&Row| match &self.memory {
            Memory::Known(known) if self.from_memory => known.seen.may_have(row.identity),
            _ => true,
        };
        self.ask(rows.iter().filter(perhaps).map(|row| row.identity).collect()).await
    }

    /// Looks again after the INSERT, at rows that were new before and at `contested` identities. One that is not in the
    /// answer stands under its row's key alone.
    ///
    /// What was stored before was seen before; what came since is in new parts, most often just those of this INSERT.
    pub(super) async fn after(&mut self, rows: &[&Row], mut contested: Vec<u128>) -> Result<Stored, Error> {
        match &mut self.memory {
            Memory::Known(known) if self.from_memory => match known.catch_up(&self.warehouse, CATCH_UP, rows).await {
                Ok(Some(others)) => contested.extend(others),
                _ => self.from_memory = false,
            },
            _ => self.from_memory = false,
        }
        if !self.from_memory {
            contested.extend(rows.iter().map(|row| row.identity));
        }
        self.ask(contested).await
    }

    /// Keeps up with other gateways; between rounds only. False: there is no memory to rely on now.
    pub(super) async fn idle(&mut self) -> bool {
        match &mut self.memory {
            Memory::Loading(reading) if reading.is_finished() => {
                self.memory = match reading.await {
                    Ok(Some(known)) => Memory::Known(known),
                    _ => Memory::Absent(Instant::now() + AGAIN),
                }
            }
            Memory::Absent(until) if *until <= Instant::now() => self.memory = load(&self.warehouse),
            _ => {}
        }
        let Memory::Known(known) = &mut self.memory else { return false };
        match known.catch_up(&self.warehouse, CATCH_UP, &[]).await {
            Ok(Some(_)) => true,
            Ok(None) => {
                self.memory = Memory::Absent(Instant::now() + AGAIN);
                false
            }
            Err(why) => {
                tracing::debug!(error = %why, "what is new in ClickHouse can't be read: identities are looked up");
                false
            }
        }
    }

    async fn ask(&self, ids: Vec<u128>) -> Result<Stored, Error> {
        if ids.is_empty() {
            return Ok(Stored::new());
        }
        retried(&self.warehouse, || self.warehouse.stored_identities(&ids)).await
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Memory::Loading(reading) = &self.memory {
            reading.abort();
        }
    }
}

/// Reads all that is stored.
fn load(warehouse: &Warehouse) -> Memory {
    let warehouse = warehouse.clone();
    Memory::Loading(tokio::spawn(async move {
        let read = async {
            warehouse.ensure_bootstrap().await?;
            let Some((table, parts)) = warehouse.identity_parts().await? else { return Ok(None) };
            let stored: u64 = parts.iter().map(|part| part.rows).sum();
            let mut known = Known { table, seen: Seen::with_room_for(stored.saturating_mul(2)) };
            Ok::<_, Error>(known.catch_up(&warehouse, LOAD, &[]).await?.map(|_| known))
        };
        read.await.unwrap_or_else(|why| {
            tracing::debug!(error = %why, "what is stored can't be read: identities are looked up");
            None
        })
    }))
}

impl Known {
    /// Reads the parts that are new. Some: which of `rows` stand in these under another key than their own; None: the
    /// table is another one, or its parts are merged quicker than they are read.
    async fn catch_up(&mut self, warehouse: &Warehouse, deadline: Duration, rows: &[&Row]) -> Result<Option<Vec<u128>>, Error> {
        let own: HashMap<u128, &Row> = rows.iter().map(|row| (row.identity, *row)).collect();
        let mut others = Vec::new();
        for _ in 0..TRIES {
            let Some((table, parts)) = warehouse.identity_parts().await? else { return Ok(None) };
            if !table.is_same(&self.table) {
                return Ok(None);
            }
            let new: Vec<_> = parts.into_iter().filter(|part| self.seen.misses(part)).collect();
            let missing: u64 = new.iter().map(|part| part.rows).sum();
            let mut read = 0;
            if missing > 0 && own.is_empty() {
                let each = |id| {
                    read += 1;
                    self.seen.insert(id);
                };
                warehouse.each_identity(&new, deadline, each).await?;
            } else if missing > 0 {
                let each = |id, key: StoredKey| {
                    read += 1;
                    self.seen.insert(id);
                    if own.get(&id).is_some_and(|row| !key.is_of(row)) {
                        others.push(id);
                    }
                };
                warehouse.each_identity_key(&new, deadline, each).await?;
            }
            // A part that was merged away in between has not been read: fewer rows came then.
            if read == missing {
                new.iter().for_each(|part| self.seen.read(part));
                return Ok(Some(others));
            }
        }
        Ok(None)
    }
}
