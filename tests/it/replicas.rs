//! Shards of several replicas: what is refused. The embedded engine can't run replicated tables (docs/scaling.md), but it
//! tells what a cluster is.

use kubemeter::warehouse::{Cluster, Error, Topology, Warehouse};

use crate::lab::{new_database, options};
use crate::support::ClickHouse;

/// Two servers, and clusters of both: one right, the others each wrong in one way.
fn pair() -> [ClickHouse; 2] {
    ClickHouse::start_pair(|number, ports| {
        let replica = |port: u16| format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>");
        let [first, second] = ports.map(replica);
        let written_once = "<internal_replication>true</internal_replication>";
        format!(
            "<macros><shard>1</shard><replica>{number}</replica></macros><remote_servers>\
             <right><shard>{written_once}{first}{second}</shard></right>\
             <doubled><shard>{first}{second}</shard></doubled>\
             <crossed><shard>{written_once}{first}</shard><shard>{written_once}{second}</shard></crossed>\
             </remote_servers>"
        )
    })
}

async fn bootstrap(url: &str, database: &str, cluster: &str, replicas: usize, nodes: &[&str]) -> Result<(), Error> {
    let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
    let cluster = Cluster::replicated(cluster.to_owned(), None, replicas, nodes).unwrap();
    Warehouse::new(&options(url, database, Topology::Cluster(cluster))).ensure_bootstrap().await.map(drop)
}

#[tokio::test]
async fn replicas_that_are_not_what_the_options_say_are_refused_before_anything_is_made() {
    let servers = pair();
    let [first, second] = servers.each_ref().map(ClickHouse::url);
    let database = new_database();
    for (cluster, replicas, nodes, says) in [
        ("right", 1, &[first][..], "has 2 servers for its 1 shards, and --clickhouse-replicas says 1"),
        ("doubled", 2, &[first, second], "<internal_replication>true</internal_replication>"),
        ("crossed", 2, &[first, second], "has 2 shards"),
        ("right", 2, &[first, first], "--clickhouse-nodes must name each server"),
    ] {
        let why = bootstrap(first, &database, cluster, replicas, nodes).await.unwrap_err().to_string();
        assert!(why.contains(says), "{cluster}: {why}");
    }
    let server = Warehouse::new(&options(first, &database, Topology::Single));
    let made: u64 = server.query("SELECT count() FROM system.databases WHERE name = {d:String}").bind("d", &database).one().await.unwrap();
    assert_eq!(made, 0);
    // What is right goes on to the tables, which need a Keeper.
    let why = bootstrap(first, &database, "right", 2, &[first, second]).await.unwrap_err().to_string();
    assert!(why.contains("ooKeeper"), "{why}");
    // Tables without replicas don't get any.
    let database = new_database();
    bootstrap(first, &database, "crossed", 1, &[first, second]).await.unwrap();
    let why = bootstrap(first, &database, "right", 2, &[first, second]).await.unwrap_err().to_string();
    assert!(why.contains("was made with another --clickhouse-replicas"), "{why}");
}

/// As a database of the engine `Replicated` makes it, or ClickHouse Cloud.
#[tokio::test]
async fn identities_that_are_not_of_the_engine_that_was_asked_for_are_refused() {
    let warehouse = Warehouse::new(&options(ClickHouse::shared().url(), &new_database(), Topology::Single));
    let table = warehouse.table("identities");
    for sql in [
        format!("CREATE DATABASE `{}`", warehouse.database()),
        format!("CREATE TABLE {table} (id UInt128) ENGINE = ReplacingMergeTree ORDER BY id"),
    ] {
        warehouse.run_ddl(&sql).await.unwrap();
    }
    let why = warehouse.ensure_bootstrap().await.unwrap_err().to_string();
    assert!(why.contains("identities is of the engine ReplacingMergeTree") && why.contains("ENGINE = Atomic"), "{why}");
}

#[tokio::test]
async fn servers_without_the_macros_of_their_shard_are_refused() {
    for macros in [["<shard>1</shard><replica>a</replica>", "<shard>2</shard><replica>b</replica>"], [""; 2]] {
        let servers = ClickHouse::start_pair(|number, ports| {
            let both = ports.map(|port| format!("<replica><host>127.0.0.1</host><port>{port}</port></replica>")).concat();
            format!(
                "<macros>{}</macros><remote_servers><c><shard><internal_replication>true</internal_replication>{both}</shard></c></remote_servers>",
                macros[number]
            )
        });
        let [first, second] = servers.each_ref().map(ClickHouse::url);
        let why = bootstrap(first, &new_database(), "c", 2, &[first, second]).await.unwrap_err().to_string();
        assert!(why.contains("need macros"), "{why}");
    }
}
