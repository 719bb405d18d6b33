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
//! 2. The INSERT that follows from it names F. It began before F was dropped, and the purge waits for it; or it is refused.
//! 3. So what is stored under such a claim is there when the purge removes events, and nothing comes later.
//!
//! Until the purge has ended, a claim that is seen may be one that goes. Who writes by another's claim makes one more, which stays
//! ([`Fence::is_purging`]).

use std::time::Duration;

use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::schema::{self, COMPLETED};
use super::sql::{identifier, literal};
use super::tables::INSERT;
use super::topology::{LOCAL, Topology};
use super::{Error, Warehouse};

/// How long gateways have to read a new fence before the old one is dropped: those that look every two seconds, and whenever they claim,
/// are told of nothing.
const GRACE: Duration = Duration::from_secs(3);
/// How long statements of gateways may still run.
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
    /// That of a database that is made now.
    pub const FIRST: Self = Self { number: 0, is_purging: false };

    fn of_purge() -> Self {
        Self { number: uuid::Uuid::new_v4().as_u128(), is_purging: true }
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
        let Some((_, comment)) = create.rsplit_once("COMMENT '") else { return Ok(None) };
        let said = serde_json::from_str(comment.trim_end().trim_end_matches('\''))
            .ok()
            .and_then(|Said { fence, purging }| Some(Self { number: u128::from_str_radix(&fence, 16).ok()?, is_purging: purging }));
        let unknown = || Error::Refused(format!("the comment of identities says {comment}, not which INSERTs landing tables take"));
        said.map(Some).ok_or_else(unknown)
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
            // The table has been replaced by a copy since.
            None => self.add_fence().await,
        }
    }

    pub(super) async fn show_identities(&self) -> Result<String, Error> {
        let sql = format!("SHOW CREATE TABLE {} SETTINGS show_table_uuid_in_table_create_query_if_not_nil = 1", self.table("identities"));
        self.query(&sql).one().await
    }

    /// Gives a database of a build without fences one, which nothing was decided under yet.
    pub(super) async fn add_fence(&self) -> Result<Fence, Error> {
        if let Some(fence) = Fence::of_create(&self.show_identities().await?)? {
            return Ok(fence);
        }
        let fence = Fence { is_purging: false, ..Fence::of_purge() };
        self.change_landings(&format!("ADD COLUMN IF NOT EXISTS {}", fence.definition())).await?;
        self.say(fence).await?;
        Ok(fence)
    }

    /// Gives landing tables the column of the fence that is said, should one lack it and so take no events: restored from a backup of
    /// another day, perhaps. For the one operator that leads: what a purge drops meanwhile would come back. A purge mends by itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn mend_fence(&self) -> Result<(), Error> {
        let Ok(_one) = self.purging.try_lock() else { return Ok(()) };
        let fence = self.fence().await?;
        let with = self.columns_of_landings().await?;
        let lacking = self.landing_tables().await?.into_iter().filter(|table| !with.contains(&(table.clone(), fence.column())));
        for table in lacking {
            tracing::warn!(
                table,
                "a landing table did not take events, for it has not the column of the fence that identities says: it is added"
            );
            self.change_landing(&table, &format!("ADD COLUMN IF NOT EXISTS {}", fence.definition())).await?;
        }
        Ok(())
    }

    /// Lets no event in any more that was decided on until now, and waits until none is on its way. One purge at a time.
    pub(super) async fn shut_out(&self) -> Result<ShutOut, Error> {
        let fence = Fence::of_purge();
        self.change_landings(&format!("ADD COLUMN IF NOT EXISTS {}", fence.definition())).await?;
        // Before anybody reads the new fence: its claims stay.
        let last_claims = self.last_claims().await?;
        // Listed after the claims: whatever any of these was decided under is among them.
        let columns = self.columns_of_landings().await?.into_iter().map(|(_, column)| column);
        let mut old: Vec<String> = columns.filter(|column| *column != fence.column()).collect();
        old.sort_unstable();
        old.dedup();
        self.say(fence).await?;
        tokio::time::sleep(GRACE).await;
        // A table that is made from now on has no old column, and those that are being made by now are waited for. One may lack the new one.
        let drop: String = old.iter().map(|column| format!(", DROP COLUMN IF EXISTS {}", identifier(column))).collect();
        let change = format!("ADD COLUMN IF NOT EXISTS {}{drop}", fence.definition());
        self.change_landing(&self.topology().stored(COMPLETED), &change).await?;
        self.await_named(LANDING, STATEMENTS_END).await?;
        self.change_landings(&change).await?;
        self.await_named(INSERT, STATEMENTS_END).await?;
        Ok(ShutOut { fence, last_claims })
    }

    /// Makes sure that no other purge has begun since.
    pub(super) async fn still_says(&self, fence: Fence) -> Result<(), Error> {
        match self.fence().await? {
            now if now == fence => Ok(()),
            _ => Err(Error::Unavailable("another purge has begun meanwhile: this one begins anew".to_owned())),
        }
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

    /// The number of the last INSERT of claims that each server has given out.
    async fn last_claims(&self) -> Result<Vec<LastClaims>, Error> {
        let topology = self.topology();
        let (parts, table) = (
            if topology.on_cluster().is_empty() { "system.parts".to_owned() } else { topology.system("parts") },
            topology.stored("identities"),
        );
        let sql = format!(
            "SELECT toString(serverUUID()) AS server, toUInt64(max(max_block_number)) FROM {parts} \
             WHERE database = {{database:String}} AND table = {{table:String}} AND active GROUP BY server"
        );
        let each =
            self.query_each(&sql).map(|query| query.bind("database", self.database()).bind("table", &*table).rows::<(String, u64)>());
        let found = try_join_all(each).await?;
        // Of several servers that are each asked there is an answer each, in their order.
        if topology.on_cluster().is_empty() {
            let of_each = |rows: Vec<(String, u64)>| rows.into_iter().next().map_or((String::new(), 0), |row| row);
            return Ok(found.into_iter().map(of_each).map(|(server, last)| LastClaims { server, last }).collect());
        }
        Ok(found.into_iter().flatten().map(|(server, last)| LastClaims { server, last }).collect())
    }

    /// Names of landing tables, on all servers: those in front of a cluster's, too.
    async fn landing_tables(&self) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT DISTINCT name FROM {} WHERE database = {{database:String}} AND engine IN ('Null', 'Distributed') \
             AND (startsWith(name, 'landing_') OR name IN {{completed:Array(String)}}) ORDER BY name",
            self.topology().system("tables")
        );
        let completed = [COMPLETED.to_owned(), self.topology().stored(COMPLETED)];
        self.query(&sql).bind("database", self.database()).bind("completed", completed.as_slice()).rows().await
    }

    /// Which landing table has which columns of fences, on any server.
    async fn columns_of_landings(&self) -> Result<Vec<(String, String)>, Error> {
        let sql = format!(
            "SELECT DISTINCT table, name FROM {} WHERE database = {{database:String}} AND startsWith(name, {{prefix:String}})",
            self.topology().system("columns")
        );
        self.query(&sql).bind("database", self.database()).bind("prefix", PREFIX).rows().await
    }

    /// Changes all landing tables: first that which others are made like.
    async fn change_landings(&self, change: &str) -> Result<(), Error> {
        let first = self.topology().stored(COMPLETED);
        self.change_landing(&first, change).await?;
        let mut tables = self.landing_tables().await?;
        if *self.topology() != Topology::Single {
            // Who made one may have been cut off before all servers had it.
            let mut names: Vec<&str> = tables.iter().map(|table| table.strip_suffix(LOCAL).unwrap_or(table)).collect();
            names.dedup();
            for table in names {
                self.run_all_ddl(&schema::create_landing(self.topology(), self.database(), table)).await?;
            }
            tables = self.landing_tables().await?;
        }
        tables.retain(|table| *table != first);
        for some in tables.chunks(AT_ONCE) {
            try_join_all(some.iter().map(|table| self.change_landing(table, change))).await?;
        }
        Ok(())
    }

    async fn change_landing(&self, table: &str, change: &str) -> Result<(), Error> {
        self.run_ddl(&format!("ALTER TABLE {}{} {change}", self.table(table), self.topology().on_cluster())).await
    }
}

/// Start of the `query_id` of every statement that makes a landing table.
pub(super) const LANDING: &str = "kubemeter-landing";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_what_its_comment_says() {
        for fence in [Fence::FIRST, Fence::of_purge(), Fence { is_purging: false, ..Fence::of_purge() }] {
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
