//! One server, or a cluster of shards: what differs between them, as text. Pure.
//!
//! ```text
//!                                  ┌─ shard 1: landing_NNNN_local ─views─► events_local, meter_UID_…_local
//! INSERT ─► landing_NNNN ─subject──┤
//!           (Distributed)          └─ shard 2: landing_NNNN_local ─views─► events_local, meter_UID_…_local
//! ```
//! On a cluster every table has two names: the rows of a shard are in `NAME_local`, and `NAME`, which every statement but
//! DDL and deletion names, is all shards together. What rows collapse by contains what they are sharded by, so rows that
//! collapse are always on one shard.

use super::replicas::replicated;
use super::sql::{identifier, literal};
use crate::limits;

/// Where the tables are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// On one server (or a service that looks like one).
    #[default]
    Single,
    /// On the shards of a cluster.
    Cluster(Cluster),
}

/// A cluster of shards, each a single server or several replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    name: String,
    shards: usize,
    replicas: usize,
    nodes: Vec<String>,
}

/// What a row's shard follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardBy {
    /// Events, and what Meters make of them.
    Subject,
    /// Claims: all of one identity are on one shard, whose block numbers order them.
    Identity,
    /// Cancellations.
    Cancellation,
    /// Rejects.
    Reject,
}

impl ShardBy {
    const fn hash(self) -> &'static str {
        match self {
            Self::Subject => "xxHash64(subject)",
            Self::Identity => "xxHash64(id)",
            Self::Cancellation => "xxHash64(cancellation)",
            Self::Reject => "xxHash64(reject_id)",
        }
    }
}

impl Cluster {
    /// A cluster by its name in `remote_servers`. With `nodes`, the HTTP interfaces of all its servers, each is sent every
    /// DDL statement; without, ClickHouse is asked to do that (`ON CLUSTER`, which needs a Keeper).
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn new(name: String, shards: Option<usize>, nodes: Vec<String>) -> Result<Self, String> {
        Self::replicated(name, shards, 1, nodes)
    }

    /// The same, each shard kept by so many replicas. With several, `nodes` must name every server: each is asked what it
    /// has heard of claims.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn replicated(name: String, shards: Option<usize>, replicas: usize, nodes: Vec<String>) -> Result<Self, String> {
        if name.is_empty() || name.len() > limits::CLUSTER_NAME_BYTES {
            return Err(format!("--clickhouse-cluster must have 1 to {} bytes", limits::CLUSTER_NAME_BYTES));
        }
        if !(1..=limits::REPLICAS).contains(&replicas) {
            return Err(format!("--clickhouse-replicas is {replicas}; it must be from 1 to {}", limits::REPLICAS));
        }
        if replicas > 1 && (nodes.is_empty() || !nodes.len().is_multiple_of(replicas)) {
            return Err(format!(
                "--clickhouse-replicas {replicas} needs --clickhouse-nodes with every server of the cluster: {replicas} for each shard; it names {}",
                nodes.len()
            ));
        }
        let shards = match (shards, nodes.len() / replicas) {
            (None, 0) => {
                return Err("--clickhouse-cluster needs --clickhouse-shards (how many shards, for ever) or --clickhouse-nodes".to_owned());
            }
            (Some(shards), nodes) if nodes != 0 && nodes != shards => {
                return Err(format!(
                    "--clickhouse-shards says {shards} and --clickhouse-nodes names {nodes}: name each shard's server once"
                ));
            }
            (shards, nodes) => shards.unwrap_or(nodes),
        };
        if !(1..=limits::SHARDS).contains(&shards) {
            return Err(format!("--clickhouse-shards is {shards}; it must be from 1 to {}", limits::SHARDS));
        }
        Ok(Self { name, shards, replicas, nodes })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many shards.
    pub const fn shards(&self) -> usize {
        self.shards
    }

    /// How many servers keep each shard.
    pub const fn replicas(&self) -> usize {
        self.replicas
    }

    /// Sent DDL one by one; empty: ClickHouse does that.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// How the text of every front table ends that is sharded as this cluster is: the number of shards is written into it,
    /// so that a shard more in ClickHouse's configuration moves no row's place.
    pub fn mark(&self) -> String {
        format!(" % {})", self.shards)
    }
}

impl Topology {
    /// Statements that make a table: `definition` is what follows its name. The last makes what is read and inserted into.
    pub fn create(&self, database: &str, table: &str, definition: &str, by: ShardBy, comment: Option<&str>) -> Vec<String> {
        let db = identifier(database);
        let comment = comment.map(|comment| format!(" COMMENT {}", literal(comment))).unwrap_or_default();
        let on = self.on_cluster();
        match self {
            Self::Single => vec![format!("CREATE TABLE IF NOT EXISTS {db}.{} {definition}{comment}", identifier(table))],
            Self::Cluster(cluster) => {
                let local = self.stored(table);
                let definition = match cluster.replicas {
                    1 => definition.to_owned(),
                    _ => replicated(definition, database, &local),
                };
                vec![
                    format!("CREATE TABLE IF NOT EXISTS {db}.{}{on} {definition}", identifier(&local)),
                    format!(
                        "CREATE TABLE IF NOT EXISTS {db}.{}{on} AS {db}.{} ENGINE = Distributed({}, {}, {}, {}{}{comment}",
                        identifier(table),
                        identifier(&local),
                        literal(&cluster.name),
                        literal(database),
                        literal(&local),
                        by.hash(),
                        cluster.mark()
                    ),
                ]
            }
        }
    }

    /// Statements that drop a table of [`create`](Self::create), and wait until it is gone. The one in front goes last: as long as it
    /// is there, what is behind it is known of.
    pub fn drop(&self, database: &str, table: &str) -> Vec<String> {
        let mut names = vec![table.to_owned()];
        if matches!(self, Self::Cluster(_)) {
            names.insert(0, self.stored(table));
        }
        names.iter().map(|name| self.drop_one(database, name)).collect()
    }

    /// Drops what has one name on every server: a view.
    pub fn drop_one(&self, database: &str, name: &str) -> String {
        format!("DROP TABLE IF EXISTS {}.{}{} SYNC", identifier(database), identifier(name), self.on_cluster())
    }

    /// Name of the table that has a server's rows.
    pub fn stored(&self, table: &str) -> String {
        match self {
            Self::Single => table.to_owned(),
            Self::Cluster(_) => format!("{table}{LOCAL}"),
        }
    }

    /// What DDL says after a name.
    pub fn on_cluster(&self) -> String {
        match self {
            Self::Cluster(cluster) if cluster.nodes.is_empty() => format!(" ON CLUSTER {}", identifier(&cluster.name)),
            _ => String::new(),
        }
    }

    /// How many servers have each table.
    pub const fn servers(&self) -> usize {
        match self {
            Self::Single => 1,
            Self::Cluster(cluster) => cluster.shards * cluster.replicas,
        }
    }

    /// Whether what one server has written others may not have yet.
    pub const fn has_replicas(&self) -> bool {
        matches!(self, Self::Cluster(cluster) if cluster.replicas > 1)
    }

    /// A table of `system`, of all servers.
    pub fn system(&self, table: &str) -> String {
        match self {
            Self::Single => format!("system.{table}"),
            Self::Cluster(cluster) => format!("clusterAllReplicas({}, system.{table})", literal(&cluster.name)),
        }
    }
}

/// End of the names of the tables that have a shard's rows.
pub const LOCAL: &str = "_local";

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: &[&str]) -> Topology {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Topology::Cluster(Cluster::new("c".to_owned(), Some(2), nodes).unwrap())
    }

    #[test]
    fn one_server_has_one_table_and_no_word_of_clusters() {
        assert_eq!(
            Topology::Single.create("d", "t", "(n UInt8) ENGINE = Null", ShardBy::Subject, Some("x")),
            ["CREATE TABLE IF NOT EXISTS `d`.`t` (n UInt8) ENGINE = Null COMMENT 'x'"]
        );
        assert_eq!(Topology::Single.drop("d", "t"), ["DROP TABLE IF EXISTS `d`.`t` SYNC"]);
        assert_eq!(Topology::Single.system("tables"), "system.tables");
    }

    #[test]
    fn a_cluster_has_a_table_on_each_shard_and_one_in_front_of_them() {
        let front = "AS `d`.`t_local` ENGINE = Distributed('c', 'd', 't_local', xxHash64(subject) % 2) COMMENT 'x'";
        assert_eq!(
            cluster(&["http://a", "http://b"]).create("d", "t", "(n UInt8) ENGINE = Null", ShardBy::Subject, Some("x")),
            [
                "CREATE TABLE IF NOT EXISTS `d`.`t_local` (n UInt8) ENGINE = Null".to_owned(),
                format!("CREATE TABLE IF NOT EXISTS `d`.`t` {front}"),
            ]
        );
        assert_eq!(
            cluster(&[]).create("d", "t", "(n UInt8) ENGINE = Null", ShardBy::Subject, Some("x")),
            [
                "CREATE TABLE IF NOT EXISTS `d`.`t_local` ON CLUSTER `c` (n UInt8) ENGINE = Null".to_owned(),
                format!("CREATE TABLE IF NOT EXISTS `d`.`t` ON CLUSTER `c` {front}"),
            ]
        );
        assert_eq!(
            cluster(&[]).drop("d", "t"),
            ["DROP TABLE IF EXISTS `d`.`t_local` ON CLUSTER `c` SYNC", "DROP TABLE IF EXISTS `d`.`t` ON CLUSTER `c` SYNC"]
        );
        assert_eq!(cluster(&[]).system("tables"), "clusterAllReplicas('c', system.tables)");
    }

    #[test]
    fn a_shard_of_replicas_has_a_replicated_table_behind_the_same_front() {
        let nodes = ["http://a", "http://b", "http://c", "http://d"].map(str::to_owned).to_vec();
        let topology = Topology::Cluster(Cluster::replicated("c".to_owned(), None, 2, nodes).unwrap());
        assert_eq!(
            topology.create("d", "t", "(n UInt8) ENGINE = MergeTree ORDER BY n", ShardBy::Subject, None),
            [
                "CREATE TABLE IF NOT EXISTS `d`.`t_local` (n UInt8) ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/d/t_local', '{replica}') ORDER BY n",
                "CREATE TABLE IF NOT EXISTS `d`.`t` AS `d`.`t_local` ENGINE = Distributed('c', 'd', 't_local', xxHash64(subject) % 2)",
            ]
        );
        assert_eq!(topology.servers(), 4);
        assert!(topology.has_replicas() && !cluster(&[]).has_replicas());
    }

    #[test]
    fn a_cluster_that_is_not_said_in_full_is_refused() {
        let new = |name: &str, shards, nodes: usize| Cluster::new(name.to_owned(), shards, vec!["http://n".to_owned(); nodes]);
        assert_eq!(new("c", None, 3).unwrap().shards(), 3);
        for (refused, why) in [
            (new("", Some(2), 0), "--clickhouse-cluster must have"),
            (new("c", None, 0), "--clickhouse-cluster needs --clickhouse-shards"),
            (new("c", Some(2), 3), "--clickhouse-shards says 2 and --clickhouse-nodes names 3"),
            (new("c", Some(0), 0), "--clickhouse-shards is 0"),
            (Cluster::replicated("c".to_owned(), Some(1), 2, Vec::new()), "needs --clickhouse-nodes with every server"),
            (Cluster::replicated("c".to_owned(), None, 2, vec!["http://n".to_owned(); 3]), "it names 3"),
            (Cluster::replicated("c".to_owned(), Some(1), 0, Vec::new()), "--clickhouse-replicas is 0"),
            (new("c", Some(limits::SHARDS + 1), 0), "it must be from 1 to"),
        ] {
            assert!(refused.unwrap_err().contains(why), "{why}");
        }
    }
}
