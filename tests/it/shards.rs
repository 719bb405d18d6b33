//! A cluster of two shards: what is only so there. Everything else is shown by the other tests, run with
//! `KUBEMETER_TEST_SHARDS=1`.

use std::sync::Arc;

use kubemeter::api::Aggregation;
use kubemeter::metering::{Error, Metering as _};
use kubemeter::warehouse::{Cluster, Topology, Warehouse, WarehouseOptions};

use crate::lab::{Lab, new_database, options, shards_of, spec, total};
use crate::load::{BATCH, Load, batch, counted};
use crate::support::{CLUSTER, ClickHouse, eventually};

/// Rows of a table on each shard.
async fn on_each(lab: &Lab, shards: &[ClickHouse; 2], table: &str) -> [u64; 2] {
    let mut rows = [0; 2];
    for (rows, shard) in rows.iter_mut().zip(shards) {
        let node = Warehouse::new(&WarehouseOptions { url: shard.url().to_owned(), topology: Topology::Single, ..lab.options.clone() });
        let sql = format!("SELECT count() FROM {}", node.table(&lab.warehouse.topology().stored(table)));
        *rows = node.query(&sql).one().await.unwrap();
    }
    rows
}

#[tokio::test]
async fn each_event_and_each_identity_is_on_one_shard_and_both_shards_are_used() {
    let shards = ClickHouse::shared_shards();
    let lab = Lab::on_shards(shards);
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    let table = meter.status.unwrap().active.unwrap().table;
    for number in 0..10 {
        lab.post(&batch(number)).await.unwrap();
    }
    for table in ["events", "identities", &table] {
        let [first, second] = on_each(&lab, shards, table).await;
        assert_eq!(first + second, 10 * BATCH as u64, "{table}");
        assert!(first > 0 && second > 0, "{table}: {first} and {second}");
    }
    // Another gateway, by the other shard.
    let other = Lab::with(&WarehouseOptions { url: shards[1].url().to_owned(), ..lab.options.clone() });
    other.post(&batch(3)).await.unwrap();
    assert_eq!(lab.number("count").await, (10 * BATCH).to_string());
}

/// Awaits posts that are answered Ok. Shards that do not run are started, also one that the other's end took with it: the
/// embedded engine sometimes crashes when who it talks to goes away in the middle.
async fn more_good(shards: &mut [ClickHouse; 2], load: &Load, least: usize) {
    let before = load.answered().await;
    eventually("posts are answered", async || {
        for shard in shards.iter_mut() {
            if !shard.runs() {
                tokio::task::block_in_place(|| shard.restart());
            }
        }
        (load.answered().await >= before + least).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_killed_under_load_loses_and_doubles_nothing() {
    let mut shards = ClickHouse::start_shards();
    let lab = Arc::new(Lab::on_shards(&shards));
    lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    let load = Load::start(&lab, 6);
    // The one that the gateway talks to last: as it is alone it must not answer for both.
    for killed in [1, 0] {
        more_good(&mut shards, &load, 20).await;
        shards[killed].kill();
        load.one_refused().await;
        let asked = lab.service.fetch_usage(&Lab::caller(), "count", total()).await;
        assert!(matches!(asked, Err(Error::Unavailable { .. })), "half of the events are no answer: {asked:?}");
    }
    more_good(&mut shards, &load, 20).await;
    let (good, failed) = load.end().await;
    let found = counted(&lab).await;
    for number in &good {
        assert_eq!(found.get(number), Some(&(BATCH as u64)), "batch {number} was acknowledged");
    }
    assert!(found.values().all(|events| *events <= BATCH as u64), "an event counts twice: {found:?}");
    // What was refused may be there in part; sent again it is there whole, and once.
    for number in &failed {
        lab.post(&batch(*number)).await.unwrap();
    }
    let found = counted(&lab).await;
    assert_eq!(found.len(), good.len() + failed.len());
    assert!(found.values().all(|events| *events == BATCH as u64), "{found:?}");
}

#[tokio::test]
async fn a_topology_that_is_not_that_of_the_tables_is_refused() {
    let shards = ClickHouse::shared_shards();
    let lab = Lab::on_shards(shards);
    lab.warehouse.ensure_bootstrap().await.unwrap();
    let refused = async |database: &str, topology: Topology| {
        let warehouse = Warehouse::new(&options(shards[0].url(), database, topology));
        warehouse.ensure_bootstrap().await.unwrap_err().to_string()
    };
    let cluster = |name: &str, shards, nodes: &[&str]| {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Topology::Cluster(Cluster::new(name.to_owned(), Some(shards), nodes).unwrap())
    };
    let database = lab.warehouse.database();
    assert!(refused(database, Topology::Single).await.contains("start with its --clickhouse-cluster"));
    assert!(refused(&new_database(), cluster("unheard-of", 2, &[])).await.contains("knows no cluster unheard-of"));
    assert!(refused(database, cluster(CLUSTER, 3, &[])).await.contains("has 2 shards"));
    let single = Lab::in_database(shards[0].url(), &new_database());
    single.warehouse.ensure_bootstrap().await.unwrap();
    assert!(refused(single.warehouse.database(), shards_of(shards)).await.contains("was not made for 2 shards"));
}

#[tokio::test]
async fn a_view_that_one_shard_lacks_is_made_again_and_what_it_missed_is_counted() {
    let shards = ClickHouse::shared_shards();
    let lab = Lab::on_shards(shards);
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    let table = meter.status.as_ref().unwrap().active.as_ref().unwrap().table.clone();
    let other = Warehouse::new(&WarehouseOptions { url: shards[1].url().to_owned(), topology: Topology::Single, ..lab.options.clone() });
    for gone in [format!("{table}_view"), lab.warehouse.topology().stored(&table)] {
        other.run_ddl(&format!("DROP TABLE {} SYNC", other.table(&gone))).await.unwrap();
    }
    lab.post(&batch(0)).await.unwrap();
    lab.settle(meter).await;
    assert_eq!(lab.number("count").await, BATCH.to_string());
}
