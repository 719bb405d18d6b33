//! What ClickHouse did not confirm: the gateway goes on with it, also if it is never sent again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kubemeter::api::{Aggregation, Meter};
use kubemeter::metering::{Error, Records as _};
use kubemeter::service::Service;
use kubemeter::telemetry::Metrics;
use serde_json::{Value, json};

use crate::again::assert_read_as_final;
use crate::lab::{Lab, NAMESPACE, event, spec};
use crate::nowhere::Nowhere;
use crate::support::{ClickHouse, eventually};
use crate::way::{LATER, TIME, Way};

/// A lab with two Meters on a type, and a gateway whose metrics can be read.
struct Two {
    lab: Lab,
    gateway: Service<Nowhere>,
    metrics: Arc<Metrics>,
    tables: [String; 2],
}

impl Two {
    async fn new() -> Self {
        Self::of(Lab::new()).await
    }

    async fn of(lab: Lab) -> Self {
        let table = |meter: Meter| lab.warehouse.table(&meter.status.unwrap().active.unwrap().table);
        let tables = [
            table(lab.meter("count", spec("t", Aggregation::Count, None, &[])).await),
            table(lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await),
        ];
        let metrics = Arc::new(Metrics::new().unwrap());
        let (catalog, warehouse) = (lab.catalog.clone(), lab.warehouse.clone());
        let gateway = Service::new(Nowhere, catalog, warehouse, Arc::clone(&metrics), NAMESPACE.to_owned(), false);
        Self { lab, gateway, metrics, tables }
    }

    /// Posts an event while the disk of a table is full.
    async fn fails(&self, table: &str, sent: &Value) {
        self.fill(table, true).await;
        let answer = Lab::post_to(&self.gateway, sent).await.unwrap_err();
        assert!(matches!(answer, Error::Unavailable { .. }), "{answer}");
    }

    async fn fill(&self, table: &str, is_full: bool) {
        let setting = "min_free_disk_bytes_to_perform_insert";
        let alter = if is_full { format!("MODIFY SETTING {setting} = 1000000000000000") } else { format!("RESET SETTING {setting}") };
        self.lab.warehouse.run_ddl(&format!("ALTER TABLE {table} {alter}")).await.unwrap();
    }

    async fn finished(&self) {
        eventually("nothing is left", async || (self.metrics.unfinished_events.get() == 0).then_some(())).await;
    }

    async fn numbers(&self) -> [String; 2] {
        assert_read_as_final(&self.lab).await;
        [self.lab.number("count").await, self.lab.number("sum").await]
    }
}

fn sent(time: &str, value: u32) -> Value {
    event("e", "t", "s", time, json!({ "v": value }))
}

#[tokio::test]
async fn what_was_not_confirmed_comes_to_all_tables_though_nobody_sends_it_again() {
    let two = Two::new().await;
    let events = two.lab.warehouse.table("events");
    for (at, table) in [&events, &two.tables[0], &two.tables[1]].into_iter().enumerate() {
        let (id, number) = (format!("e{at}"), (at + 1).to_string());
        two.fails(table, &event(&id, "t", "s", TIME, json!({ "v": 1 }))).await;
        assert_eq!(two.metrics.unfinished_events.get(), 1, "{table}");
        two.fill(table, false).await;
        two.finished().await;
        assert_eq!(two.numbers().await, [number.clone(), number.clone()], "{table} was full");
        let listed = two.lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap();
        assert_eq!(listed.items.len().to_string(), number, "{table} was full");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_all_tables_and_comes_late_once_more_counts_once() {
    let way = Way::default();
    let two = Two::of(Lab::on(&way.to(ClickHouse::shared().url()).await)).await;
    way.loses_answers.store(true, Ordering::SeqCst);
    Lab::post_to(&two.gateway, &sent(TIME, 1)).await.unwrap_err();
    assert_eq!((two.metrics.unfinished_events.get(), two.numbers().await), (1, ["1", "1"].map(str::to_owned)));
    way.loses_answers.store(false, Ordering::SeqCst);
    two.finished().await;
    assert_eq!(two.numbers().await, ["1", "1"]);
}

/// Another sending that was acknowledged meanwhile stays.
#[tokio::test]
async fn what_comes_late_takes_nothing_away() {
    let two = Two::new().await;
    let (events, other) = (two.lab.warehouse.table("events"), two.lab.another_gateway());
    two.fails(&events, &sent(TIME, 1)).await;
    two.fill(&events, false).await;
    Lab::post_to(&other, &sent(LATER, 7)).await.unwrap();
    let acknowledged = two.numbers().await;
    assert!(acknowledged == ["1", "7"] || acknowledged == ["1", "1"], "{acknowledged:?}: the other one, or this one, which came before");
    two.finished().await;
    assert_eq!(two.numbers().await, acknowledged);
}

#[tokio::test]
async fn what_was_purged_is_given_up() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    two.lab.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.unwrap();
    two.fill(&two.tables[0], false).await;
    two.finished().await;
    assert_eq!(two.numbers().await, ["0", "0"]);
    // Its identity is free.
    eventually("it is let in", async || Lab::post_to(&two.gateway, &sent(LATER, 7)).await.ok()).await;
    assert_eq!(two.numbers().await, ["1", "7"]);
}

#[tokio::test]
async fn what_has_no_claims_any_more_is_given_up() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    two.lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {}", two.lab.warehouse.table("identities"))).await.unwrap();
    for table in [two.lab.warehouse.table("events"), two.tables[1].clone()] {
        two.lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {table}")).await.unwrap();
    }
    two.fill(&two.tables[0], false).await;
    two.finished().await;
    assert_eq!(two.numbers().await, ["0", "0"]);
}
