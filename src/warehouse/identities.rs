//! Which key each identity has.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use clickhouse::Row;
use serde::Deserialize;
use uuid::Uuid;

use super::counted::BY_PARTS;
use super::fence::Fence;
use super::row::{ARRIVAL_MARK, COLUMNS, written_again_sql};
use super::run::{RUN, Run};
use super::schema::{COMPLETED, Landing};
use super::select::{MONTH, is_one_of, keys_of};
use super::{Error, Query, Warehouse, insert_name};

/// The key that an identity has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredKey {
    /// ms since 1970.
    pub time_ms: i64,
    /// Subject.
    pub subject: String,
    /// Event type.
    pub event_type: String,
}

/// The first claim of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The identity's key.
    pub key: StoredKey,
    /// How many there are of the identity, this one among them.
    pub count: u32,
    /// Whether they all have this key.
    pub has_one_key: bool,
    /// Number of its INSERT.
    pub block: u64,
}

#[derive(Row, Deserialize)]
struct Claimed {
    id: u128,
    event_type: String,
    subject: String,
    time_ms: i64,
    block: u64,
}

/// Which table of which ClickHouse identities are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityTable {
    server: String,
    run: Run,
    /// No other table of this server ever has it, unless it is told to.
    pub uuid: Uuid,
}

impl IdentityTable {
    /// Whether parts of this one are parts of what was looked at later: not after ClickHouse was started anew, maybe with another disk.
    pub fn goes_on(&self, later: &Self) -> bool {
        (&self.server, self.uuid) == (&later.server, later.uuid) && self.run.goes_on(later.run)
    }
}

/// A part of the table of identities. It never changes, but is merged with others to a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPart {
    /// Its name, which no other part of its table ever has.
    pub name: String,
    /// How many rows.
    pub rows: u64,
    /// The least of its identities.
    pub least: u128,
    /// Number of the first INSERT whose rows it has.
    pub first_block: i64,
    /// Number of the last one. It has all between that there are.
    pub last_block: i64,
}

impl IdentityPart {
    /// From `all_FIRST_LAST_LEVEL` and, after a removal of rows, `_VERSION`. None: of another form.
    fn new(name: String, rows: u64, least: u128) -> Option<Self> {
        let numbers: Option<Vec<i64>> = name.strip_prefix("all_")?.split('_').map(|number| number.parse().ok()).collect();
        let ([first_block, last_block, _] | [first_block, last_block, _, _]) = numbers?[..] else { return None };
        Some(Self { name, rows, least, first_block, last_block })
    }
}

/// What is known of the table of identities at one moment.
#[derive(Clone, Debug)]
pub struct Identities {
    /// Which it is.
    pub table: IdentityTable,
    /// What was said there when it was looked at; None: nothing, for it was made by a build without fences, or is a copy.
    pub fence: Option<Fence>,
    /// Its parts, in no order.
    pub parts: Vec<IdentityPart>,
}

#[derive(Row, Deserialize)]
struct Part {
    server: String,
    started_s: i64,
    uptime_s: i64,
    name: String,
    rows: u64,
    least: u128,
}

/// Most parts of the table of identities that are listed: ClickHouse takes no more INSERTs long before.
const MOST_PARTS: usize = 100_000;
/// Start of the `query_id` of every statement that claims identities.
pub const CLAIMS: &str = "kubemeter-identities";
/// How long such statements are waited for: whoever posts waits, too.
const COMPLETING: Duration = Duration::from_secs(5);
/// Identities of one parameter: 39 digits and a comma each stay below [`super::client::PARAM_BYTES`].
pub(super) const CHUNK: usize = 3_000;

impl Warehouse {
    /// Whether an event of an identity and a type is stored, and not only claimed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn has_event(&self, id: u128, event_type: &str) -> Result<bool, Error> {
        let sql = format!(
            "SELECT count() > 0 FROM {} WHERE (namespace, type, subject, time, id) IN \
             (SELECT namespace, type, subject, time, id FROM {} WHERE id = {{id:UInt128}} AND type = {{type:String}})",
            self.table("events"),
            self.table("identities")
        );
        self.query(&sql).bind("id", id).bind("type", event_type).one::<bool>().await
    }

    /// Which of identities have an event that is stored, and not only claimed; and whether only by its first sending.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_among(&self, ids: &[u128]) -> Result<HashMap<u128, bool>, Error> {
        self.stored_in(&self.by_month(ids).await?).await
    }

    /// The same of identities [`by_month`](Self::by_month).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stored_in(&self, months: &BTreeMap<u32, Vec<u128>>) -> Result<HashMap<u128, bool>, Error> {
        let mut stored = HashMap::new();
        for (&month, ids) in months {
            let (keys, params) = keys_of(self.database(), ids, month);
            let sql = format!("SELECT id, max(version) < {ARRIVAL_MARK} FROM {} WHERE {keys} GROUP BY id", self.table("events"));
            for (id, is_first) in self.query(&sql).bind_all(params).rows::<(u128, bool)>().await? {
                *stored.entry(id).or_insert(true) &= is_first;
            }
        }
        Ok(stored)
    }

    /// Identities by the months (`yyyymm`, UTC) of their keys, for [`keys_of`]. Of those that nobody claimed there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn by_month(&self, ids: &[u128]) -> Result<BTreeMap<u32, Vec<u128>>, Error> {
        let (is_one_of, params) = is_one_of(ids);
        let sql = format!("SELECT DISTINCT {MONTH}, id FROM {} WHERE {is_one_of}", self.table("identities"));
        let mut months = BTreeMap::<_, Vec<_>>::new();
        for (month, id) in self.query(&sql).bind_all(params).rows::<(u32, u128)>().await? {
            months.entry(month).or_default().push(id);
        }
        Ok(months)
    }

    /// Waits for what runs of others who complete events, though those who wanted it may have gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn await_completing(&self) -> Result<(), Error> {
        self.await_named(&insert_name(COMPLETED), COMPLETING).await
    }

    /// Writes stored events of one type again, as they are, through their landing table: to the tables that may lack them
    /// since an INSERT or a cancellation was cut off. Where they are already they collapse. Their versions say that they may
    /// be there already.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn write_again(&self, namespace: &str, event_type: &str, ids: &[u128]) -> Result<(), Error> {
        for (month, ids) in self.by_month(ids).await? {
            let (keys, params) = keys_of(self.database(), &ids, month);
            self.copy_events(namespace, event_type, &keys, |query| query.bind_all(params)).await?;
        }
        Ok(())
    }

    /// Writes stored events of one type of which a condition is true, as they are in `events` by now, to all tables. What the condition
    /// names is bound.
    pub(super) async fn copy_events(
        &self,
        namespace: &str,
        event_type: &str,
        condition: &str,
        bind: impl FnOnce(Query<'_>) -> Query<'_>,
    ) -> Result<(), Error> {
        let landing = self.ensure_bootstrap().await?.table(Landing::of(namespace, event_type));
        self.ensure_landing(&landing).await?;
        // Found on one replica it would be missed on another, and acknowledged nonetheless.
        self.on_every_replica("events").await?;
        let sql = format!(
            "INSERT INTO {} ({COLUMNS}) SELECT {} FROM {} FINAL WHERE namespace = {{namespace:String}} AND type = {{type:String}} AND {condition}",
            self.table(&landing),
            COLUMNS.replace("version", &written_again_sql()),
            self.table("events"),
        );
        bind(self.query(&sql)).bind("namespace", namespace).bind("type", event_type).named(&insert_name(&landing)).run().await
    }

    /// The parts of the table of identities, which table that is, and its fence.
    ///
    /// `system.parts` would tell it, but looks at each table of the database for it: with 4,000 that takes several times as long.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn identity_parts(&self) -> Result<Identities, Error> {
        // What ClickHouse knows of parts without reading them. If it has to read many rows for it, since some were removed by a mere
        // mark, it is an error.
        let sql = format!(
            "SELECT hostName() AS server, {RUN}, _part AS name, count() AS rows, min(id) AS least FROM {} GROUP BY name \
             SETTINGS {BY_PARTS}, max_rows_to_read = {MOST_PARTS}, read_overflow_mode = 'throw'",
            self.table("identities")
        );
        // Both at once: see `Known::only_block`.
        let (found, (uuid, fence)) = tokio::try_join!(self.query(&sql).rows::<Part>(), self.identities_uuid())?;
        let (server, started_s, uptime_s) = match found.first() {
            Some(part) => (part.server.clone(), part.started_s, part.uptime_s),
            None => self.query(&format!("SELECT hostName(), {RUN}")).one().await?,
        };
        let run = Run { started_s, uptime_s };
        let parts = found.into_iter().map(|Part { name, rows, least, .. }| {
            let unknown = format!("a part of the table of identities is called {name}, not all_FIRST_LAST_LEVEL");
            IdentityPart::new(name, rows, least).ok_or(Error::Refused(unknown))
        });
        Ok(Identities { table: IdentityTable { server, run, uuid }, fence, parts: parts.collect::<Result<_, _>>()? })
    }

    /// What tells the table of identities from any other, of the same name too, and its fence.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn identities_uuid(&self) -> Result<(Uuid, Option<Fence>), Error> {
        let create = self.show_identities().await?;
        let uuid = create.split_once(" UUID '").and_then(|(_, rest)| rest.split_once('\'')?.0.parse().ok());
        let no_uuid = || Error::Refused("the table of identities has no UUID: its database must be of the engine Atomic".to_owned());
        Ok((uuid.ok_or_else(no_uuid)?, Fence::of_create(&create)?))
    }

    /// Reads the identities in parts from a block on, and the block of each. Parts that are gone by now are left out.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn each_identity(
        &self,
        parts: &[IdentityPart],
        from_block: i64,
        deadline: Duration,
        each: impl FnMut((u128, u64)),
    ) -> Result<(), Error> {
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let sql = format!(
            "SELECT id, _block_number FROM {} WHERE _part IN {{parts:Array(String)}} AND _block_number >= {{from:UInt64}}",
            self.table("identities")
        );
        let query: Query<'_> = self.query(&sql).bind("parts", names).bind("from", from_block.max(0).unsigned_abs());
        query.within(deadline).each(each).await
    }

    /// The first claims of those among identities whose claims are visible: of each that with the smallest number.
    pub(super) async fn visible_claims(&self, ids: &[u128]) -> Result<HashMap<u128, Claim>, Error> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        // One statement for all: each reads much of the table, however few identities it is about.
        let (is_one_of, params) = is_one_of(ids);
        let sql = format!(
            "SELECT id, type AS event_type, subject, toUnixTimestamp64Milli(time) AS time_ms, _block_number AS block FROM {} WHERE {is_one_of}",
            self.table("identities")
        );
        let mut first: HashMap<u128, Claim> = HashMap::new();
        for Claimed { id, event_type, subject, time_ms, block } in self.query(&sql).bind_all(params).rows::<Claimed>().await? {
            let key = StoredKey { time_ms, subject, event_type };
            match first.entry(id) {
                // Two of one block there are only in a table that was copied: which is taken is all the same, if always.
                Entry::Occupied(mut known) => {
                    let claim = known.get_mut();
                    claim.count = claim.count.saturating_add(1);
                    claim.has_one_key &= claim.key == key;
                    if (block, &key) < (claim.block, &claim.key) {
                        (claim.block, claim.key) = (block, key);
                    }
                }
                Entry::Vacant(none) => drop(none.insert(Claim { key, count: 1, has_one_key: true, block })),
            }
        }
        Ok(first)
    }
}
