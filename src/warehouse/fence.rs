//! The fence: ClickHouse refuses events that were decided on before a purge began.
//!
//! A purge removes claims. Who has seen one before must not write its event afterwards, under a key that nobody knows any more: sent again
//! it would count twice. A gateway may be slow, stopped or cut off for any time in between, so it isn't asked: every INSERT names a column
//! that says when it was decided on, and a purge drops that from the landing tables.
//!
//! ```text
//! gateway:  read the fence F ─► claim, look ─► INSERT INTO landing_NNNN (…, F)        refused where the table has no column F
//! purge:    add F' everywhere ─► note the last claims ─► say F' ─► drop F everywhere ─► wait for what runs ─► remove claims up to those
//! ```
//! 1. A claim up to those noted was made before F' was said, by a gateway that had read F, or an older one, before.
//! 2. The INSERT that follows from it names F. It began before F was dropped, and the purge waits for it; or it is refused, for ever: a
//!    column is never added once its fence was said.
//! 3. So what is stored under such a claim is there when the purge removes events. What stays nonetheless, since another statement had read
//!    it and wrote it again, the purge claims anew before it removes claims ([`super::purge`]).
//! 4. Who decides under F' by a claim that may go makes one more, which stays, and makes sure that all have the same key
//!    ([`Fence::is_purging`]): whichever of them go, the first of those that are left has it.
//!
//! On a cluster a table in front sends each column that it has to the shards. So columns come to those first and go from those last.

use std::time::Duration;

use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::schema::{self, COMPLETED};
use super::sql::{comment_of, identifier, literal};
use super::tables::INSERT;
use super::topology::{LOCAL, Topology};
use super::{Error, Warehouse};

/// How long gateways have to read a new fence before the old one is dropped: those that look every two seconds, and whenever they claim,
/// are told of nothing.
const GRACE: Duration = Duration::from_secs(3);
/// How long statements that make tables may still run.
const STATEMENTS_END: Duration = Duration::from_secs(60);
/// How many tables are changed at a time.
const AT_ONCE: usize = 4;
/// How columns are called by which landing tables tell what they take.
const PREFIX: &str = "fence_";

/// What an INSERT of events was decided under. It stands in the comment of `identities`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    number: u128,
    /// Whether a purge has said it and not ended: claims from before may go at any moment.
    pub is_purging: bool,
}

#[derive(Serialize, Deserialize)]
struct Said {
    fence: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    purging: bool,
}

impl Fence {
    /// That of a cluster's database that is made now: servers make it by themselves, and all must say the same.
    pub(super) const FIRST: Self = Self { number: 0, is_purging: false };

    /// That of a database that is made now: what was decided in another one, before this took its place, is refused.
    pub(super) fn first(topology: &Topology) -> Self {
        if *topology == Topology::Single { Self::new() } else { Self::FIRST }
    }

    /// One that nothing was decided under.
    fn new() -> Self {
        Self { number: uuid::Uuid::new_v4().as_u128(), is_purging: false }
    }

    /// The column of landing tables that lets its INSERTs in.
    pub fn column(self) -> String {
        format!("{PREFIX}{:032x}", self.number)
    }

    /// As a landing table's column is defined.
    pub(super) fn definition(self) -> String {
        format!("{} UInt8", identifier(&self.column()))
    }

    /// What the comment of `identities` says.
    pub(super) fn comment(self) -> String {
        let of = if self.is_purging { ",\"purging\":true" } else { "" };
        format!("{{\"fence\":\"{:032x}\"{of}}}", self.number)
    }

    /// Reads what `SHOW CREATE TABLE` says of `identities`. Ok(None): its comment is that of a build without fences, which is none.
    pub(super) fn of_create(create: &str) -> Result<Option<Self>, Error> {
        comment_of(create).map(Self::of_comment).transpose()
    }

    /// Reads the comment of `identities`.
    pub(super) fn of_comment(comment: &str) -> Result<Self, Error> {
        let said = serde_json::from_str(comment)
            .ok()
            .and_then(|Said { fence, purging }| Some(Self { number: u128::from_str_radix(&fence, 16).ok()?, is_purging: purging }));
        let unknown = || Error::Refused(format!("the comment of identities says {comment}, not which INSERTs landing tables take"));
        said.ok_or_else(unknown)
    }

    /// Whether ClickHouse's words say that a landing table has not the column of a fence.
    pub(super) fn is_refused(text: &str) -> bool {
        text.contains(PREFIX)
    }
}

/// What a purge has shut out.
pub(super) struct ShutOut {
    /// What it said.
    pub(super) fence: Fence,
    /// The numbers of the last INSERTs of claims that were decided on before, by server.
    pub(super) last_claims: Vec<LastClaims>,
}

/// The number of a server's last INSERT of claims.
pub(super) struct LastClaims {
    /// Which server, where one tells the others.
    pub(super) server: String,
    pub(super) last: u64,
}

impl Warehouse {
    /// What INSERTs of events are to name that are decided on from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fence(&self) -> Result<Fence, Error> {
        self.ensure_bootstrap().await?;
        match Fence::of_create(&self.show_identities().await?)? {
            Some(fence) => Ok(fence),
            // The database is of a build without fences, or the table was replaced by a copy.
            None => self.renew_fence(None, false).await,
        }
    }

    /// How ClickHouse made the table of identities: its UUID and its comment are there.
    pub(super) async fn show_identities(&self) -> Result<String, Error> {
        let sql = format!("SHOW CREATE TABLE {} SETTINGS show_table_uuid_in_table_create_query_if_not_nil = 1", self.table("identities"));
        self.query(&sql).one().await
    }

    /// Says a fence that nothing was decided under yet, unless another was said meanwhile.
    async fn renew_fence(&self, now: Option<Fence>, is_purging: bool) -> Result<Fence, Error> {
        let fence = Fence { is_purging, ..Fence::new() };
        self.add_fence(fence).await?;
        match Fence::of_create(&self.show_identities().await?)? {
            Some(said) if Some(said) != now => Ok(said),
            _ => self.say(fence).await.map(|()| fence),
        }
    }

    /// Says a new fence, should a landing table lack the column of the one that is said, and so take no events (restored from a backup of
    /// another day, made by a gateway of an older build), or a purge have been given up. For the one operator that leads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn mend_fence(&self) -> Result<(), Error> {
        // A purge mends by itself.
        let Ok(_one) = self.purging.try_lock() else { return Ok(()) };
        let fence = self.fence().await?;
        let is_given_up = fence.is_purging && !self.is_removing_claims().await?;
        let is_everywhere = self.is_everywhere(fence).await?;
        if is_everywhere && !is_given_up {
            return Ok(());
        }
        if !is_everywhere {
            tracing::warn!(
                "landing tables did not take events, for they did not know the fence that identities says: there is a new one now"
            );
        }
        self.renew_fence(Some(fence), fence.is_purging && !is_given_up).await.map(drop)
    }

    /// Lets no event in any more that was decided on until now, and waits until none is on its way. One purge at a time in a process.
    pub(super) async fn shut_out(&self, deadline: Duration) -> Result<ShutOut, Error> {
        let fence = Fence { is_purging: true, ..Fence::new() };
        self.add_fence(fence).await?;
        // Before anybody reads the new fence: its claims stay.
        let last_claims = self.last_claims().await?;
        // Listed after the claims: whatever any of these was decided under is among them.
        let old = self.columns_of_landings().await?.into_iter().filter(|column| *column != fence.column());
        let drop: Vec<String> = old.map(|column| format!("DROP COLUMN IF EXISTS {}", identifier(&column))).collect();
        self.say(fence).await?;
        tokio::time::sleep(GRACE).await;
        // Else what another purge has said would be dropped.
        self.still_says(fence).await?;
        if !drop.is_empty() {
            self.change_landings(&drop.join(", "), false).await?;
        }
        self.await_named(INSERT, deadline).await?;
        self.still_says(fence).await?;
        Ok(ShutOut { fence, last_claims })
    }

    /// Makes sure that no other purge has begun since, and that INSERTs are let in.
    pub(super) async fn still_says(&self, fence: Fence) -> Result<(), Error> {
        if self.is_everywhere(fence).await? {
            return Ok(());
        }
        Err(Error::Unavailable("another purge has begun, or a landing table was restored: this purge begins anew".to_owned()))
    }

    /// Says that a purge has ended.
    pub(super) async fn let_in(&self, fence: Fence) -> Result<(), Error> {
        self.still_says(fence).await?;
        self.say(Fence { is_purging: false, ..fence }).await
    }

    async fn say(&self, fence: Fence) -> Result<(), Error> {
        let on = self.topology().on_cluster();
        self.run_ddl(&format!("ALTER TABLE {}{on} MODIFY COMMENT {}", self.table("identities"), literal(&fence.comment()))).await
    }

    /// Whether all servers say a fence, and all landing tables know it.
    async fn is_everywhere(&self, fence: Fence) -> Result<bool, Error> {
        let said = format!(
            "SELECT DISTINCT comment FROM {} WHERE database = {{database:String}} AND name = 'identities'",
            self.topology().system("tables")
        );
        let said: Vec<String> = self.query(&said).bind("database", self.database()).rows().await?;
        let with = format!(
            "SELECT table, count() FROM {} WHERE database = {{database:String}} AND name = {{column:String}} GROUP BY table ORDER BY table",
            self.topology().system("columns")
        );
        let with = self.query(&with).bind("database", self.database()).bind("column", fence.column()).rows::<(String, u64)>().await?;
        Ok(said == [fence.comment()] && with == self.landing_tables().await?)
    }

    /// Whether claims are being removed, on any server.
    async fn is_removing_claims(&self) -> Result<bool, Error> {
        let sql = format!(
            "SELECT count() > 0 FROM {} WHERE database = {{database:String}} AND table = {{table:String}} AND NOT is_done",
            self.topology().system("mutations")
        );
        let table = self.topology().stored("identities");
        self.query(&sql).bind("database", self.database()).bind("table", &*table).one::<bool>().await
    }

    /// The number of the last INSERT of claims that each server has given out.
    async fn last_claims(&self) -> Result<Vec<LastClaims>, Error> {
        let (topology, table) = (self.topology(), self.topology().stored("identities"));
        let last = |parts: &str| {
            format!(
                "SELECT toString(serverUUID()) AS server, toUInt64(max(max_block_number)) FROM {parts} \
                 WHERE database = {{database:String}} AND table = {{table:String}} AND active GROUP BY server"
            )
        };
        if !topology.on_cluster().is_empty() {
            let all = self.query(&last(&topology.system("parts"))).bind("database", self.database()).bind("table", &*table);
            return Ok(all.rows::<(String, u64)>().await?.into_iter().map(|(server, last)| LastClaims { server, last }).collect());
        }
        // Each that is told to remove some is asked, in their order.
        let sql = last("system.parts");
        let each =
            self.query_each(&sql).map(|query| query.bind("database", self.database()).bind("table", &*table).rows::<(String, u64)>());
        let found = try_join_all(each).await?.into_iter();
        let of_each = found.map(|rows| rows.into_iter().next().unwrap_or_default());
        Ok(of_each.map(|(server, last)| LastClaims { server, last }).collect())
    }

    /// Names of landing tables, those in front of a cluster's, too, and how many servers have each.
    async fn landing_tables(&self) -> Result<Vec<(String, u64)>, Error> {
        let sql = format!(
            "SELECT name, count() FROM {} WHERE database = {{database:String}} AND engine IN ('Null', 'Distributed') \
             AND (startsWith(name, 'landing_') OR name IN {{completed:Array(String)}}) GROUP BY name ORDER BY name",
            self.topology().system("tables")
        );
        let completed = [COMPLETED.to_owned(), self.topology().stored(COMPLETED)];
        self.query(&sql).bind("database", self.database()).bind("completed", completed.as_slice()).rows().await
    }

    /// Columns of fences that any landing table has on any server.
    async fn columns_of_landings(&self) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT DISTINCT name FROM {} WHERE database = {{database:String}} AND startsWith(name, {{prefix:String}}) ORDER BY name",
            self.topology().system("columns")
        );
        self.query(&sql).bind("database", self.database()).bind("prefix", PREFIX).rows().await
    }

    async fn add_fence(&self, fence: Fence) -> Result<(), Error> {
        self.change_landings(&format!("ADD COLUMN IF NOT EXISTS {}", fence.definition()), true).await
    }

    /// Changes all landing tables: first that which others are made like, and when those are made that were begun before, all that there are.
    async fn change_landings(&self, change: &str, is_added: bool) -> Result<(), Error> {
        self.change_some(&[COMPLETED.to_owned()], change, is_added).await?;
        self.await_named(LANDING, STATEMENTS_END).await?;
        let tables = self.landing_tables().await?.into_iter();
        let mut names: Vec<String> = tables.map(|(table, _)| table.strip_suffix(LOCAL).unwrap_or(&table).to_owned()).collect();
        names.dedup();
        names.retain(|name| name != COMPLETED);
        if *self.topology() != Topology::Single {
            // Who made one may have been cut off before all servers had it.
            for name in &names {
                self.run_all_ddl(&schema::create_landing(self.topology(), self.database(), name)).await?;
            }
        }
        self.change_some(&names, change, is_added).await
    }

    async fn change_some(&self, names: &[String], change: &str, is_added: bool) -> Result<(), Error> {
        let on = self.topology().on_cluster();
        for tables in in_order(self.topology(), names, is_added) {
            for some in tables.chunks(AT_ONCE) {
                let statements: Vec<String> = some.iter().map(|table| format!("ALTER TABLE {}{on} {change}", self.table(table))).collect();
                try_join_all(statements.iter().map(|statement| self.run_ddl(statement))).await?;
            }
        }
        Ok(())
    }
}

/// Landing tables in the order in which a column is added to them, or dropped from them: what is in front of shards never has one that a
/// shard lacks.
fn in_order(topology: &Topology, names: &[String], is_added: bool) -> [Vec<String>; 2] {
    let stored = names.iter().map(|name| topology.stored(name)).collect();
    match (topology, is_added) {
        (Topology::Single, _) => [stored, Vec::new()],
        (_, true) => [stored, names.to_vec()],
        (_, false) => [names.to_vec(), stored],
    }
}

/// Start of the `query_id` of every statement that makes a landing table.
pub(super) const LANDING: &str = "kubemeter-landing";

#[cfg(test)]
mod tests {
    use super::super::topology::Cluster;
    use super::*;

    #[test]
    fn shards_always_have_the_columns_of_what_is_in_front_of_them() {
        let (names, none) = (["a".to_owned(), "b".to_owned()], Vec::<String>::new());
        let stored = vec!["a_local".to_owned(), "b_local".to_owned()];
        let shards = Topology::Cluster(Cluster::new("c".to_owned(), Some(2), Vec::new()).unwrap());
        assert_eq!(in_order(&shards, &names, true), [stored.clone(), names.to_vec()]);
        assert_eq!(in_order(&shards, &names, false), [names.to_vec(), stored]);
        assert_eq!(in_order(&Topology::Single, &names, true), [names.to_vec(), none]);
    }

    #[test]
    fn a_fence_is_what_its_comment_says() {
        for fence in [Fence::FIRST, Fence::new(), Fence { is_purging: true, ..Fence::new() }] {
            let create =
                format!("CREATE TABLE d.identities\n(\n `id` UInt128 COMMENT 'one'\n)\nENGINE = MergeTree\nCOMMENT '{}'", fence.comment());
            assert_eq!(Fence::of_create(&create).unwrap(), Some(fence));
            assert!(Fence::is_refused(&format!("No such column {} in table", fence.column())));
        }
        assert_eq!(Fence::of_create("CREATE TABLE d.identities (`id` UInt128) ENGINE = MergeTree").unwrap(), None);
        for odd in ["", "{}", r#"{"fence":"a`, b"}"#] {
            let refused = Fence::of_create(&format!("ENGINE = MergeTree\nCOMMENT '{odd}'")).unwrap_err();
            assert!(refused.to_string().contains("not which INSERTs landing tables take"), "{refused}");
        }
    }
}
