//! What ClickHouse did not confirm: the gateway goes on with it, also if it is never sent again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kubemeter::api::{Aggregation, Meter};
use kubemeter::metering::{Error, Records as _};
use serde_json::{Value, json};

use crate::again::assert_read_as_final;
use crate::lab::{Lab, NAMESPACE, event, spec};
use crate::support::{ClickHouse, eventually};
use crate::way::{Asked, LATER, TIME, Way, until_read};

/// A gateway that has read what is claimed, and two Meters on a type.
struct Two {
    lab: Lab,
    way: Way,
    tables: [String; 2],
}

impl Two {
    async fn new() -> Self {
        let way = Way::default();
        let lab = Lab::on(&way.to(ClickHouse::shared().url()).await);
        until_read(&lab, &way, || true).await;
        let table = |meter: Meter| lab.warehouse.table(&meter.status.unwrap().active.unwrap().table);
        let tables = [
            table(lab.meter("count", spec("u", Aggregation::Count, None, &[])).await),
            table(lab.meter("sum", spec("u", Aggregation::Sum, Some("$.v"), &[])).await),
        ];
        Self { lab, way, tables }
    }

    fn left(&self) -> i64 {
        self.lab.metrics.unfinished_events.get()
    }

    /// Posts an event while the disk of a table is full.
    async fn fails(&self, table: &str, sent: &Value) {
        self.fill(table, true).await;
        let answer = self.lab.post(sent).await.unwrap_err();
        assert!(matches!(answer, Error::Unavailable { .. }), "{answer}");
    }

    async fn fill(&self, table: &str, is_full: bool) {
        let setting = "min_free_disk_bytes_to_perform_insert";
        let alter = if is_full { format!("MODIFY SETTING {setting} = 1000000000000000") } else { format!("RESET SETTING {setting}") };
        self.lab.warehouse.run_ddl(&format!("ALTER TABLE {table} {alter}")).await.unwrap();
    }

    async fn finished(&self) {
        eventually("nothing is left", async || (self.left() == 0).then_some(())).await;
    }

    /// Ends that the disk of a table is full: nobody sends anything again.
    async fn recovers(&self, table: &str, numbers: [&str; 2]) {
        self.fill(table, false).await;
        self.finished().await;
        assert_eq!(self.numbers().await, numbers, "{table} was full");
    }

    async fn numbers(&self) -> [String; 2] {
        assert_read_as_final(&self.lab).await;
        [self.lab.number("count").await, self.lab.number("sum").await]
    }
}

fn sent(time: &str, value: u32) -> Value {
    event("e", "u", "s", time, json!({ "v": value }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_confirmed_comes_to_all_tables_though_nobody_sends_it_again() {
    let two = Two::new().await;
    let events = two.lab.warehouse.table("events");
    for (at, table) in [&events, &two.tables[0], &two.tables[1]].into_iter().enumerate() {
        let (id, number) = (format!("e{at}"), (at + 1).to_string());
        two.fails(table, &event(&id, "u", "s", TIME, json!({ "v": 1 }))).await;
        assert_eq!(two.left(), 1, "{table}");
        two.recovers(table, [&number, &number]).await;
        let listed = two.lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap();
        let listed = listed.items.iter().filter(|event| event.event_type == "u").count();
        assert_eq!(listed.to_string(), number, "{table} was full");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_all_tables_and_comes_late_once_more_counts_once() {
    let two = Two::new().await;
    two.way.loses_answers.store(true, Ordering::SeqCst);
    two.lab.post(&sent(TIME, 1)).await.unwrap_err();
    assert_eq!((two.left(), two.numbers().await), (1, ["1", "1"].map(str::to_owned)));
    two.way.loses_answers.store(false, Ordering::SeqCst);
    two.finished().await;
    assert_eq!(two.numbers().await, ["1", "1"]);
}

/// Another sending that was acknowledged meanwhile stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_is_given_up() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    two.lab.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.unwrap();
    two.fill(&two.tables[0], false).await;
    two.finished().await;
    assert_eq!((two.lab.metrics.abandoned_events.get(), two.numbers().await), (1, ["0", "0"].map(str::to_owned)));
    // Its identity is free.
    eventually("it is let in", async || two.lab.post(&sent(LATER, 7)).await.ok()).await;
    assert_eq!(two.numbers().await, ["1", "7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_events_has_comes_to_all_tables_also_when_others_are_purged() {
    let two = Two::new().await;
    two.way.loses_answers.store(true, Ordering::SeqCst);
    two.lab.post(&sent(TIME, 1)).await.unwrap_err();
    two.fill(&two.tables[1], true).await;
    // It waits for the INSERT that may run by now.
    two.lab.warehouse.purge(NAMESPACE, &["other"], Duration::from_secs(60)).await.unwrap();
    two.way.loses_answers.store(false, Ordering::SeqCst);
    two.lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {}", two.tables[1])).await.unwrap();
    assert_eq!((two.left(), two.numbers().await), (1, ["1", "0"].map(str::to_owned)));
    two.recovers(&two.tables[1], ["1", "1"]).await;
}

/// As a view that can't take a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clickhouse_refused_it_may_take_later() {
    let two = Two::new().await;
    let alter = async |what: &str| two.lab.warehouse.run_ddl(&format!("ALTER TABLE {} {what}", two.tables[0])).await.unwrap();
    alter("ADD CONSTRAINT broken CHECK subject != 's'").await;
    two.lab.post(&sent(TIME, 1)).await.unwrap_err();
    assert_eq!(two.left(), 1);
    alter("DROP CONSTRAINT broken").await;
    two.finished().await;
    assert_eq!(two.numbers().await, ["1", "1"]);
}

/// Its first sending was claimed and never stored, the second one came to `events` and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_completed_half_way_comes_to_all_tables() {
    let two = Two::new().await;
    let events = two.lab.warehouse.table("events");
    Lab::post_to(&two.lab.another_gateway(), &sent(TIME, 1)).await.unwrap();
    for table in [&events, &two.tables[0], &two.tables[1]] {
        two.lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {table}")).await.unwrap();
    }
    two.fails(&two.tables[0], &sent(LATER, 7)).await;
    assert_eq!(two.left(), 1);
    two.recovers(&two.tables[0], ["1", "7"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_and_again_is_kept_once() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    for _ in 0..3 {
        two.lab.post(&sent(TIME, 1)).await.unwrap_err();
    }
    // Its first sending, and what came again; while that is tried once more it may be there twice.
    eventually("both are kept once", async || (two.left() == 2).then_some(())).await;
    two.recovers(&two.tables[0], ["1", "1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_when_a_gateway_ends_is_told() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    let Lab { service, metrics, .. } = two.lab;
    drop(service);
    eventually("it is told", async || (metrics.abandoned_events.get() == 1 && metrics.unfinished_events.get() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_claims_any_more_is_given_up() {
    let two = Two::new().await;
    two.fails(&two.tables[0], &sent(TIME, 1)).await;
    // Nothing is on its way meanwhile: no fence stops what has read the claims before they go.
    let (comes, go) = two.way.hold(Asked::Keys);
    comes.await.unwrap();
    for table in ["identities", "events"].map(|name| two.lab.warehouse.table(name)).iter().chain([&two.tables[1]]) {
        two.lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {table}")).await.unwrap();
    }
    two.fill(&two.tables[0], false).await;
    go.send(()).unwrap();
    two.finished().await;
    assert_eq!((two.lab.metrics.abandoned_events.get(), two.numbers().await), (1, ["0", "0"].map(str::to_owned)));
}
