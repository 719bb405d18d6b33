//! Shards of several replicas: what must be waited for, so that they answer as one server does.
//!
//! 1. An INSERT is confirmed when all replicas of its shard have it ([`on_replicas`]). So what was acknowledged is read
//!    from each of them, whichever is asked.
//! 2. What was *not* confirmed may be on one replica only, for a while. Work of two statements, the second of which must
//!    see what the first one saw, waits in between for what any replica has to be on all ([`Warehouse::on_every_replica`]).
//! 3. Which claim was first goes by block numbers, and these are given out before a block is there. Claims are believed
//!    only after all smaller numbers are on all replicas, or will never be ([`Warehouse::claims_of`]).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use clickhouse::Client;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::identities::{CLAIMS, Claim};
use super::tables::refused;
use super::topology::Cluster;
use super::{Error, Warehouse};

/// How long other gateways' INSERTs of claims are waited for, and replicas that lag.
const SETTLE: Duration = Duration::from_secs(15);

/// The definition of a table whose rows all replicas of a shard have.
///
/// Its path in Keeper has its names and not `{uuid}`: each server is sent the DDL by itself and makes up a UUID of its own,
/// and tables of different paths would silently not be replicas of each other.
pub(super) fn replicated(definition: &str, database: &str, table: &str) -> String {
    let Some((columns, engine)) = definition.split_once("ENGINE = ") else { return definition.to_owned() };
    let (name, rest) = engine.split_at(engine.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(engine.len()));
    if !name.ends_with("MergeTree") {
        return definition.to_owned();
    }
    let (arguments, rest) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).unwrap_or(("", rest));
    let comma = if arguments.is_empty() { "" } else { ", " };
    let (database, table) = (path_part(database), path_part(table));
    // What another replica wrote is to be on this one's disk, too, when it is confirmed.
    let durable = if rest.contains(" SETTINGS ") { ", min_compressed_bytes_to_fsync_after_fetch = 1" } else { "" };
    format!(
        "{columns}ENGINE = Replicated{name}('/clickhouse/tables/{{shard}}/{database}/{table}', '{{replica}}'{comma}{arguments}){rest}{durable}"
    )
}

/// A name without what means something in a path, a macro or a literal; different names stay different.
fn path_part(name: &str) -> String {
    let part = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02x}"),
    };
    name.bytes().map(part).collect()
}

/// What confirmed means with replicas.
pub(super) fn on_replicas(client: Client, cluster: &Cluster) -> Client {
    if cluster.replicas() == 1 {
        return client;
    }
    client
        .with_setting("insert_quorum", cluster.replicas().to_string())
        .with_setting("insert_quorum_parallel", "1")
        // Below the deadline of an INSERT.
        .with_setting("insert_quorum_timeout", "20000")
        // A block that was there before and was purged would be confirmed and not be written. Ours collapse by key.
        .with_setting("insert_deduplicate", "0")
}

impl Warehouse {
    /// The claimed ones among identities: of each the claim that was first.
    ///
    /// With replicas a smaller number than one that is visible may be on its way. Such a number was given out before the
    /// visible one, so by now its INSERT runs and holds a lock in Keeper, or has ended. When those that run now have ended and
    /// what they wrote is on all replicas, the smallest number is the smallest for ever. It costs a few calls to every server,
    /// for rounds that find a claim, so also after every claim of one's own.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn claims_of(&self, ids: &[u128]) -> Result<HashMap<u128, Claim>, Error> {
        let visible = self.visible_claims(ids).await?;
        if visible.is_empty() || !self.topology().has_replicas() {
            return Ok(visible);
        }
        self.settle_claims().await?;
        // Only of what was visible before: of others a number may be on its way now.
        let ids: Vec<u128> = visible.into_keys().collect();
        let settled = self.visible_claims(&ids).await?;
        if settled.len() < ids.len() {
            return Err(Error::Unavailable("a claim is on one replica and not on another".to_owned()));
        }
        Ok(settled)
    }

    /// Waits until no claim is on its way that has a number by now, and what is claimed is on every replica.
    async fn settle_claims(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE;
        // Listed before the INSERTs that hold them are waited for. A lock outlives its INSERT only if that broke; its server's
        // session with Keeper then ends it.
        let pending = self.pending_claims().await?;
        self.await_named(CLAIMS, SETTLE).await?;
        let mut pause = Duration::from_millis(2);
        while !pending.is_empty() && !self.pending_claims().await?.is_disjoint(&pending) {
            if Instant::now() > deadline {
                return Err(Error::Unavailable(format!("a claim has been on its way for over {} s", SETTLE.as_secs())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
        self.on_every_replica("identities").await
    }

    /// The locks in Keeper of numbers of claims that are not there yet.
    ///
    /// Each server is asked, because Keeper may tell one less than another: the one that showed a claim has also heard of all
    /// smaller numbers.
    async fn pending_claims(&self) -> Result<HashSet<String>, Error> {
        let table = self.topology().stored("identities");
        let paths =
            self.query_each("SELECT zookeeper_path FROM system.replicas WHERE database = {database:String} AND table = {table:String}");
        let paths = try_join_all(paths.map(|query| query.bind("database", self.database()).bind("table", &table).rows::<String>())).await?;
        let numbers = |sql, paths: Vec<String>| {
            let listed = self.query_each(sql).zip(paths).filter(|(_, path)| !path.is_empty());
            try_join_all(listed.map(|(query, path)| query.bind("path", path).rows::<String>()))
        };
        let in_folder = |path: Vec<String>| match path.as_slice() {
            [path] => Ok(format!("{path}/block_numbers")),
            _ => Err(Error::UnknownTable(format!("a server has no replica of {table}"))),
        };
        let folders = paths.into_iter().map(in_folder).collect::<Result<Vec<_>, _>>()?;
        let partitions = numbers("SELECT name FROM system.zookeeper WHERE path = {path:String}", folders.clone()).await?;
        // The table has one partition, whose folder is there once something was inserted.
        let used = folders.into_iter().zip(partitions).map(|(folder, partitions)| match partitions.is_empty() {
            true => String::new(),
            false => format!("{folder}/all"),
        });
        let locks = numbers("SELECT concat(path, '/', name) FROM system.zookeeper WHERE path = {path:String}", used.collect()).await?;
        Ok(locks.into_iter().flatten().collect())
    }

    /// Waits until what any replica has of a table is on all; at once where there are none.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) async fn on_every_replica(&self, table: &str) -> Result<(), Error> {
        if !self.topology().has_replicas() {
            return Ok(());
        }
        let sql = format!("SYSTEM SYNC REPLICA {} LIGHTWEIGHT", self.table(&self.topology().stored(table)));
        try_join_all(self.query_each(&sql).map(|query| query.within(SETTLE).run())).await.map(drop)
    }

    /// Makes sure that the servers are the replicas that the options say: rows would be doubled or missed otherwise.
    pub(super) async fn check_replicas(&self, cluster: &Cluster) -> Result<(), Error> {
        let (name, replicas) = (cluster.name(), cluster.replicas());
        let other = format!(
            "SELECT count() FROM {} WHERE database = {{database:String}} AND name = {{table:String}} AND startsWith(engine, 'Replicated') != {}",
            self.topology().system("tables"),
            u8::from(replicas > 1)
        );
        let other: u64 = self.query(&other).bind("database", self.database()).bind("table", self.topology().stored("events")).one().await?;
        refused(other == 0, || {
            format!(
                "database {} was made with another --clickhouse-replicas than {replicas}: tables don't become replicas",
                self.database()
            )
        })?;
        if replicas == 1 {
            return Ok(());
        }
        let uneven = format!(
            "SELECT countIf(uneven), countIf(twice) FROM (SELECT count() != {replicas} AS uneven, \
             min(internal_replication) = 0 AS twice FROM system.clusters WHERE cluster = {{name:String}} GROUP BY shard_num)"
        );
        let (uneven, twice): (u64, u64) = self.query(&uneven).bind("name", name).one().await?;
        refused(uneven == 0, || format!("cluster {name} has shards with other than {replicas} replicas: make them equal"))?;
        refused(twice == 0, || {
            format!(
                "cluster {name} writes rows to each replica by itself: set <internal_replication>true</internal_replication> for each shard"
            )
        })?;
        // Replicas of one shard are neighbours in the list of all servers.
        let macros = format!(
            "SELECT count(), uniqExact(shard), uniqExact(shard, replica), uniqExact(intDiv(server - 1, {replicas}), shard) FROM \
             (SELECT _shard_num AS server, anyIf(substitution, macro = 'shard') AS shard, anyIf(substitution, macro = 'replica') AS replica \
             FROM {} GROUP BY server) WHERE shard != '' AND replica != ''",
            self.topology().system("macros")
        );
        let (servers, shards) = (self.topology().servers() as u64, cluster.shards() as u64);
        let found: (u64, u64, u64, u64) = self.query(&macros).one().await?;
        refused(found == (servers, shards, servers, shards), || {
            format!(
                "the servers of cluster {name} need macros: one <shard> for all replicas of a shard and no other, and a <replica> for each"
            )
        })?;
        let each = self.query_each("SELECT concat(getMacro('shard'), '/', getMacro('replica'))").map(|query| query.one::<String>());
        let named: HashSet<String> = try_join_all(each).await?.into_iter().collect();
        refused(named.len() as u64 == servers, || "--clickhouse-nodes must name each server of the cluster once".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_rows_is_replicated_with_its_arguments_and_settings() {
        let of = |definition: &str| replicated(definition, "d", "t_local");
        let path = "'/clickhouse/tables/{shard}/d/t_local', '{replica}'";
        assert_eq!(
            of("(n UInt8) ENGINE = ReplacingMergeTree(version, is_deleted) ORDER BY f(n) SETTINGS fsync_after_insert = 1"),
            format!(
                "(n UInt8) ENGINE = ReplicatedReplacingMergeTree({path}, version, is_deleted) ORDER BY f(n) SETTINGS fsync_after_insert = 1, \
                 min_compressed_bytes_to_fsync_after_fetch = 1"
            )
        );
        for none in ["MergeTree", "MergeTree()"] {
            assert_eq!(
                of(&format!("(n UInt8) ENGINE = {none} ORDER BY (n, f(n))")),
                format!("(n UInt8) ENGINE = ReplicatedMergeTree({path}) ORDER BY (n, f(n))")
            );
        }
        assert_eq!(of("(n UInt8) ENGINE = Null"), "(n UInt8) ENGINE = Null", "it keeps none");
    }

    #[test]
    fn no_two_names_share_a_path_and_none_ends_it() {
        assert_eq!(path_part("kubemeter-1_x"), "kubemeter-1_x");
        assert_eq!(path_part("a/{b}'%"), "a%2f%7bb%7d%27%25");
    }
}
