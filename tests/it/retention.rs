//! What a Meter's `retention` lets go, and that no wrong clock lets more go.

use jiff::{SignedDuration, Timestamp};
use kubemeter::api::{Aggregation, Meter, MeterSpec};
use kubemeter::metering::{Error, Metering as _, UsageQuery};
use kubemeter::warehouse::layout::Layout;
use kubemeter::warehouse::note::TableNote;
use kubemeter::warehouse::retention::{may_go, month_of};
use serde_json::json;

use crate::behind::{answers_nothing, that_knows};
use crate::lab::{Lab, active, event, spec, total};
use crate::support::{ClickHouse, Clock, eventually};

fn kept(days: u32) -> MeterSpec {
    MeterSpec { retention: Some(format!("{days}d")), ..spec("t", Aggregation::Sum, Some("$.v"), &[]) }
}

/// Posts an event of each value, which many days ago.
async fn post(lab: &Lab, values: &[(i64, i64)]) {
    let past = |days: i64| (Timestamp::now() - SignedDuration::from_hours(24 * days)).to_string();
    let events: Vec<_> = values.iter().map(|(v, days)| event(&format!("{v} {days}"), "t", "s", &past(*days), json!({"v": v}))).collect();
    lab.post(&json!(events)).await.unwrap();
}

/// What stands in the Meter's table, whether any number has it or not.
async fn stored(lab: &Lab, meter: &Meter) -> String {
    let sum = format!("SELECT toString(sum(value)) FROM {} FINAL", lab.warehouse.table(&active(meter)));
    lab.warehouse.query(&sum).one::<Option<String>>().await.unwrap().unwrap_or_default()
}

/// What is kept for at least 30 days of these values, by whole months.
fn kept_of(values: &[(i64, i64)]) -> String {
    let now = Timestamp::now();
    let is_kept = |days: &i64| month_of(now - SignedDuration::from_hours(24 * days)) > may_go(now, 30);
    values.iter().filter(|(_, days)| is_kept(days)).map(|(v, _)| v).sum::<i64>().to_string()
}

#[tokio::test]
async fn months_that_are_past_go_whole() {
    let values = [(1, 29), (10, 33), (100, 0), (1_000, 60), (10_000, 100), (100_000, 200)];
    for lab in [Lab::new(), Lab::on_shards(ClickHouse::shared_shards())] {
        let meter = lab.meter("m", kept(30)).await;
        post(&lab, &values).await;
        // A repetition is of another kind of rows, and so of another partition.
        post(&lab, &[(10_000, 100)]).await;
        let all: i64 = values.iter().map(|(v, _)| v).sum();
        assert_eq!((lab.number("m").await, stored(&lab, &meter).await), (kept_of(&values), all.to_string()));
        let meter = lab.settle(meter).await;
        assert_eq!(lab.note(&meter).await.let_go, Some(may_go(Timestamp::now(), 30)));
        assert_eq!((lab.number("m").await, stored(&lab, &meter).await), (kept_of(&values), kept_of(&values)));
        // What comes later goes, too, and a new table begins without.
        post(&lab, &[(20_000, 100)]).await;
        assert_eq!(lab.number("m").await, kept_of(&values));
        let meter = lab.settle(meter).await;
        assert_eq!(stored(&lab, &meter).await, kept_of(&values));
        let other = lab.meter("other", MeterSpec { aggregation: Aggregation::Average, ..kept(30) }).await;
        assert_ne!(active(&other), active(&meter));
        assert_eq!(stored(&lab, &other).await, kept_of(&values));
    }
}

/// Of two months that are kept the first is let go, as by clocks that were wrong.
#[tokio::test]
async fn what_is_not_asked_for_need_not_be_there() {
    let lab = Lab::new();
    let meter = lab.meter("m", kept(90)).await;
    post(&lab, &[(1, 0), (10, 40)]).await;
    let gone = month_of(Timestamp::now() - SignedDuration::from_hours(24 * 40));
    let wrong = TableNote { let_go: Some(gone), ..lab.note(&meter).await };
    lab.warehouse.run_ddl(&wrong.alter(lab.warehouse.topology(), lab.warehouse.database(), &active(&meter)).unwrap()).await.unwrap();
    let of = async |days: i64| {
        let from = Some(Timestamp::now() - SignedDuration::from_hours(24 * days));
        let usage = lab.service.fetch_usage(&Lab::caller(), "m", UsageQuery { from, ..total() }).await?;
        Ok::<_, Error>(usage.data[0].value.clone())
    };
    assert_eq!(of(1).await.unwrap(), "1");
    assert!(matches!(of(41).await, Err(Error::Unavailable { .. })) && answers_nothing(&lab.service).await);
    lab.settle(meter).await;
    assert_eq!((of(1).await.unwrap(), of(41).await.unwrap()), ("1".to_owned(), "11".to_owned()));
}

/// ClickHouse refuses to drop what is over 50 GB, unless it is told that this is meant. Here it is all that is over a byte.
#[tokio::test]
async fn what_goes_may_be_large() {
    let clickhouse = ClickHouse::start_own_configured(
        "<max_table_size_to_drop>1</max_table_size_to_drop><max_partition_size_to_drop>1</max_partition_size_to_drop>",
    );
    let lab = Lab::on(clickhouse.url());
    let meter = lab.meter("m", kept(30)).await;
    post(&lab, &[(1, 0), (1_000, 100)]).await;
    let plainly = format!("DROP TABLE {} SYNC", lab.warehouse.table(&active(&meter)));
    assert!(lab.warehouse.query(&plainly).run().await.unwrap_err().to_string().contains("max_[table/partition]_size_to_drop"));
    let meter = lab.settle(meter).await;
    assert_eq!(stored(&lab, &meter).await, "1");
    lab.reconciler.forget_meter(&meter).await.unwrap();
    assert_eq!(lab.warehouse.tables_with_prefix("meter_").await.unwrap(), []);
}

/// ClickHouse's clock is a year ahead, whatever ClickHouse does by itself meanwhile.
#[tokio::test]
async fn a_clock_that_is_ahead_lets_nothing_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut clock = Clock::new(folder.path(), "clickhouse");
    let clickhouse = ClickHouse::start_own_with(clock.environment());
    let lab = Lab::on(clickhouse.url());
    let meter = lab.meter("m", kept(30)).await;
    post(&lab, &[(1, 1), (10, 29), (100, 0)]).await;
    put_ahead(&mut clock, &lab).await;
    let meter = lab.settle(meter).await;
    lab.warehouse.run_ddl(&format!("OPTIMIZE TABLE {} FINAL", lab.warehouse.table(&active(&meter)))).await.unwrap();
    let settled = lab.settle(meter.clone()).await;
    assert_eq!((active(&settled), lab.note(&meter).await.let_go), (active(&meter), Some(may_go(Timestamp::now(), 30))));
    assert_eq!((lab.number("m").await.as_str(), stored(&lab, &meter).await.as_str()), ("111", "111"));
    clock.set(0);
    assert_eq!(lab.number("m").await, "111");
}

/// The operator's clock and ClickHouse's were a year ahead: what went is not missing in a number of a gateway whose clock is right, neither
/// then nor when all are right again, and comes back.
#[tokio::test]
async fn what_wrong_clocks_let_go_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut clock = Clock::new(folder.path(), "clickhouse");
    let clickhouse = ClickHouse::start_own_with(clock.environment());
    let lab = Lab::on(clickhouse.url());
    let meter = lab.meter("m", kept(30)).await;
    post(&lab, &[(1, 1), (10, 29), (100, 0)]).await;
    put_ahead(&mut clock, &lab).await;
    // As an operator does then.
    let (topology, database) = (lab.warehouse.topology(), lab.warehouse.database());
    let gone = may_go(Timestamp::now() + SignedDuration::from_hours(365 * 24), 30);
    let wrong = TableNote { let_go: Some(gone), ..lab.note(&meter).await };
    lab.warehouse.run_ddl(&wrong.alter(topology, database, &active(&meter)).unwrap()).await.unwrap();
    for partition in lab.warehouse.partitions_until(&active(&meter), gone).await.unwrap() {
        let drop = Layout::drop_partition(topology, database, &active(&meter), &partition);
        lab.warehouse.run_ddl(&drop).await.unwrap();
    }
    assert_eq!(stored(&lab, &meter).await, "");
    assert!(answers_nothing(&lab.service).await, "the gateway's clock says that it is kept");
    clock.set(0);
    eventually("ClickHouse's clock is right", async || (!is_ahead(&lab).await).then_some(())).await;
    let behind = that_knows(&lab, &meter);
    assert!(answers_nothing(&behind).await);
    let meter = lab.settle(meter).await;
    assert_eq!(lab.number("m").await, "111");
    assert!(lab.note(&meter).await.let_go.is_some_and(|gone| gone < month_of(Timestamp::now())));
    assert!(answers_nothing(&behind).await, "another table took its place");
}

/// Puts ClickHouse's clock a year ahead.
async fn put_ahead(clock: &mut Clock, lab: &Lab) {
    clock.set(365 * 86_400);
    eventually("ClickHouse's clock is ahead", async || is_ahead(lab).await.then_some(())).await;
}

async fn is_ahead(lab: &Lab) -> bool {
    lab.warehouse.now().await.unwrap() > Timestamp::now() + SignedDuration::from_hours(24)
}
