//! What happens to events when ClickHouse goes away, comes back, comes back empty, or two gateways write at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use kubemeter::api::Aggregation;
use kubemeter::event::{Form, identity, parse};
use kubemeter::ingest::{Judge, Judged};
use kubemeter::metering::{CancelRequest, CancelTarget, CancellationRecord, Error, EventRef, Metering as _, Records as _, UsageQuery};
use kubemeter::reconcile::Reconciler;
use kubemeter::warehouse::row::{ARRIVAL_MARK, COLUMNS, Turn, VERSION_MARK};
use kubemeter::warehouse::schema::Landings;
use kubemeter::warehouse::select::cancel_by_ids;
use kubemeter::warehouse::{Insert, Recorded, Warehouse};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::again::assert_read_as_final;
use crate::lab::{Lab, NAMESPACE, event, spec, total};
use crate::load::{BATCH, Load, batch, counted};
use crate::support::{ClickHouse, eventually};
use crate::way::{Asked, Way};

const TIME: &str = "2026-03-04T05:06:07Z";

/// As when the disk is full: the embedded engine by itself would go on, and confirm what it has not written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_is_a_crash_and_confirms_nothing() {
    let mut clickhouse = ClickHouse::start_own();
    let lab = Lab::on(clickhouse.url());
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab.post(&event("small", "t", "s", TIME, json!({}))).await.unwrap();
    clickhouse.limit_files(64 * 1024);
    let filled = |n: u64| (0..8).map(|part| fastrand::Rng::with_seed(8 * n + part).u128(..).to_string()).collect::<String>();
    let large: Vec<_> = (0..5_000).map(|n| event(&n.to_string(), "t", "s", TIME, json!({"v": filled(n)}))).collect();
    let large = json!(large);
    let (answer, ()) = tokio::join!(lab.post(&large), eventually("ClickHouse ends", async || (!clickhouse.runs()).then_some(())),);
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    let _running = tokio::task::spawn_blocking(move || {
        clickhouse.restart();
        clickhouse
    })
    .await
    .unwrap();
    eventually("it is taken", async || lab.post(&large).await.ok()).await;
    assert_eq!(lab.number("count").await, "5001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clickhouse_killed_under_load_loses_and_doubles_nothing() {
    let mut clickhouse = ClickHouse::start_own();
    let lab = Arc::new(Lab::on(clickhouse.url()));
    lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;

    let load = Load::start(&lab, 8);
    for _ in 0..2 {
        load.more_good(30).await;
        clickhouse.kill();
        load.one_refused().await;
        assert!(lab.service.ready().await.is_err() || !lab.catalog.synced());
        clickhouse = tokio::task::spawn_blocking(move || {
            clickhouse.restart();
            clickhouse
        })
        .await
        .unwrap();
    }
    // A short one, which posts wait out.
    load.more_good(30).await;
    clickhouse.kill();
    clickhouse = tokio::task::spawn_blocking(move || {
        clickhouse.restart();
        clickhouse
    })
    .await
    .unwrap();
    load.more_good(30).await;
    let (good, failed) = load.end().await;
    let numbers = counted(&lab).await;
    for number in &good {
        assert_eq!(numbers.get(number), Some(&(BATCH as u64)), "batch {number} was answered Ok");
    }
    for number in &failed {
        assert!(numbers.get(number).copied().unwrap_or(0) <= BATCH as u64, "batch {number} was refused");
    }
    // Whoever was refused sends again.
    for number in &failed {
        assert_eq!(lab.post(&batch(*number)).await.unwrap().accepted, BATCH);
    }
    let numbers = counted(&lab).await;
    assert_eq!(numbers.len(), good.len() + failed.len());
    assert!(
        numbers.values().all(|count| *count == BATCH as u64),
        "{:?}",
        numbers.iter().filter(|(_, count)| **count != BATCH as u64).collect::<Vec<_>>()
    );
    assert_eq!(lab.number("sum").await, (numbers.len() * BATCH / 2).to_string());
    drop(clickhouse);
}

/// A crash may come between the parts that one INSERT writes: some of the tables have the event, others don't, and the
/// sender was told nothing. Whatever it sends again completes the event and counts it once.
#[tokio::test]
async fn an_insert_that_got_half_way_is_completed_by_the_next_sending() {
    for timed in [true, false] {
        // The claim is confirmed before the INSERT: it is not lost by a crash in it.
        for lost in [&["events"] as &[&str], &["meter"], &["events", "meter"]] {
            let lab = Lab::new();
            let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
            let meter = meter.status.unwrap().active.unwrap().table;
            let mut sent = event("e", "t", "s", TIME, json!({}));
            if !timed {
                sent.as_object_mut().unwrap().remove("time");
            }
            lab.post(&sent).await.unwrap();
            for table in lost {
                let table = lab.warehouse.table(if *table == "meter" { &meter } else { table });
                lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {table}")).await.unwrap();
            }
            // One that was never told that all tables have it.
            let gateway = lab.another_gateway();
            for _ in 0..2 {
                Lab::post_to(&gateway, &sent).await.unwrap();
                assert_eq!(lab.number("count").await, "1", "{lost:?} lost, timed: {timed}");
                let listed = lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap().items;
                assert_eq!(listed.len(), 1, "{lost:?} lost, timed: {timed}");
                assert_eq!(twice(&lab).await, 0);
            }
        }
    }
}

/// Of sendings with different values one counts, and the same in every table, also when those before got to some of them only.
#[tokio::test]
async fn sendings_that_got_half_way_leave_all_tables_with_the_same_one() {
    let lab = Lab::new();
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let meter = meter.status.unwrap().active.unwrap().table;
    let (events, meter) = ("events".to_owned(), meter);
    // Some tables take nothing.
    let send = async |value: u32, broken: &[&String]| {
        let alter = async |table: &String, what: &str| {
            lab.warehouse.run_ddl(&format!("ALTER TABLE {} {what}", lab.warehouse.table(table))).await.unwrap();
        };
        for table in broken {
            alter(table, "ADD CONSTRAINT broken CHECK subject != 's'").await;
        }
        let sent = event("e", "t", "s", TIME, json!({"v": value.to_string()}));
        let sent = Lab::post_to(&lab.another_gateway(), &sent).await;
        assert_eq!(sent.is_err(), !broken.is_empty(), "{value}");
        for table in broken {
            alter(table, "DROP CONSTRAINT broken").await;
        }
    };
    send(1, &[&events, &meter]).await;
    for value in [2, 3, 4] {
        send(value, &[&events]).await;
        assert_eq!(lab.number("sum").await, "0", "a Meter has what `events` has not");
    }
    send(5, &[&meter]).await;
    send(6, &[&meter]).await;
    send(7, &[]).await;
    let listed = lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap().items;
    assert_eq!(listed.iter().map(|event| event.data.get()).collect::<Vec<_>>(), [r#"{"v":"5"}"#]);
    assert_eq!(lab.number("sum").await, "5");
}

/// Of an event without a time of its own the next sending would have another time: its key is claimed before it is written.
#[tokio::test]
async fn an_event_without_time_has_its_key_before_its_insert() {
    let lab = Lab::new();
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let mut sent = event("e", "t", "s", TIME, json!({}));
    sent.as_object_mut().unwrap().remove("time");
    let tables = [meter.status.unwrap().active.unwrap().table, "events".to_owned()].map(|table| lab.warehouse.table(&table));
    for table in &tables {
        lab.warehouse.run_ddl(&format!("ALTER TABLE {table} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
    }
    lab.post(&sent).await.unwrap_err();
    let places = format!("SELECT toUnixTimestamp64Milli(time) FROM {}", lab.warehouse.table("identities"));
    let place: i64 = lab.warehouse.query(&places).one().await.unwrap();
    for table in &tables {
        lab.warehouse.run_ddl(&format!("ALTER TABLE {table} DROP CONSTRAINT broken")).await.unwrap();
    }
    lab.post(&sent).await.unwrap();
    let listed = lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap().items;
    assert_eq!(listed.iter().map(|event| event.time.as_millisecond()).collect::<Vec<_>>(), [place]);
    assert_eq!(lab.number("count").await, "1");
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Turned {
    version: u64,
    turned: Vec<u64>,
}

/// Those who take the place of the same row at once do it differently: all tables agree who was it.
#[tokio::test]
async fn different_turns_of_one_row_never_have_the_same_version() {
    let lab = Lab::new();
    let turns: Vec<Turn> = (0..4).map(|n| Turn { cancellation: Uuid::from_u128(n / 2), is_cancelled: n % 2 == 0 }).collect();
    let versions: Vec<String> = turns.iter().map(|turn| format!("toUInt64({})", turn.version_sql())).collect();
    let sql = format!(
        "SELECT version, [{}] AS turned FROM (SELECT toUInt64(arrayJoin([100, {ARRIVAL_MARK}, {VERSION_MARK}, {}])) + number AS version \
         FROM numbers(7))",
        versions.join(", "),
        VERSION_MARK + (1 << 58) + (1 << 40)
    );
    let rows: Vec<Turned> = lab.warehouse.query(&sql).rows().await.unwrap();
    assert_eq!(rows.len(), 28);
    for Turned { version, turned } in rows {
        assert!(turned.iter().all(|turned| *turned > version.max(VERSION_MARK)), "{version} {turned:?}");
        assert_eq!(turned.iter().collect::<std::collections::BTreeSet<_>>().len(), turns.len(), "{version} {turned:?}");
    }
}

/// A cancellation that was written down and hit nothing, because it was cut off, is reverted, or another one hits what it should have.
#[tokio::test]
async fn what_a_cancellation_never_came_to_counts_once_after_its_revert() {
    for (lost, then_cancelled) in [("events", false), ("meter", false), ("events", true), ("meter", true)] {
        let lab = Lab::new();
        let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
        let table = meter.status.as_ref().unwrap().active.as_ref().unwrap().table.clone();
        lab.post(&event("e", "t", "s", TIME, json!({"v": "7"}))).await.unwrap();
        // One that was filled by a copy: rows of different kinds never merge.
        let later = lab.meter("later", spec("t", Aggregation::Max, Some("$.v"), &[])).await;
        assert_eq!(lab.number("later").await, "7");
        let lost = lab.warehouse.table(if lost == "events" { "events" } else { &table });
        lab.warehouse.run_ddl(&format!("ALTER TABLE {lost} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
        let cancel = || CancelRequest {
            target: CancelTarget::Events(vec![EventRef { source: "test".to_owned(), id: "e".to_owned() }]),
            reason: None,
            dry_run: false,
        };
        lab.service.cancel_usage_events(&Lab::caller(), cancel()).await.unwrap_err();
        lab.warehouse.run_ddl(&format!("ALTER TABLE {lost} DROP CONSTRAINT broken")).await.unwrap();
        let listed = lab.service.list_cancellations(&Lab::caller(), Default::default()).await.unwrap().items;
        assert_eq!(listed.len(), 1, "it is written down before it hits anything");
        if then_cancelled {
            lab.service.cancel_usage_events(&Lab::caller(), cancel()).await.unwrap();
            assert_eq!((lab.number("sum").await, lab.number("later").await), ("0".to_owned(), "0".to_owned()), "{lost}");
            let listed = lab.service.list_cancellations(&Lab::caller(), Default::default()).await.unwrap().items;
            for cancellation in listed {
                lab.service.revert_cancellation(&Lab::caller(), cancellation.cancellation_id).await.unwrap();
            }
        } else {
            lab.service.revert_cancellation(&Lab::caller(), listed[0].cancellation_id).await.unwrap();
        }
        assert_eq!((lab.number("sum").await, lab.number("later").await), ("7".to_owned(), "7".to_owned()), "{lost}");
        assert_read_as_final(&lab).await;
        drop(later);
    }
}

/// A cancellation of the event `e` that is written down, and hit nothing yet.
async fn recorded(lab: &Lab) -> Recorded {
    let (cancellation_id, hit) = (Uuid::now_v7(), identity(NAMESPACE, "test", "e"));
    let (month, _) = lab.warehouse.by_month(&[hit]).await.unwrap().pop_first().unwrap();
    let target = cancel_by_ids(lab.warehouse.database(), NAMESPACE, &[hit], month);
    let cancelled = lab.warehouse.note_to_cancel(vec![target], NAMESPACE, cancellation_id).await.unwrap();
    let (created_at, reason) = (jiff::Timestamp::now(), None);
    let record =
        CancellationRecord { cancellation_id, reason, created_at, cancelled, reverted_at: None, cancelled_by: None, reverted_by: None };
    lab.warehouse.begin_cancellation(NAMESPACE, record).await.unwrap()
}

/// What another cancellation has hit first, and then was cut off, all tables know of when this one is confirmed.
#[tokio::test]
async fn a_cancellation_spreads_what_another_that_was_cut_off_has_hit_first() {
    let lab = Lab::new();
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let table = lab.warehouse.table(&meter.status.unwrap().active.unwrap().table);
    lab.post(&event("e", "t", "s", TIME, json!({"v": "7"}))).await.unwrap();
    let slow = recorded(&lab).await;
    lab.warehouse.run_ddl(&format!("ALTER TABLE {table} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
    let cut_off = CancelRequest {
        target: CancelTarget::Events(vec![EventRef { source: "test".to_owned(), id: "e".to_owned() }]),
        reason: None,
        dry_run: false,
    };
    lab.service.cancel_usage_events(&Lab::caller(), cut_off).await.unwrap_err();
    lab.warehouse.run_ddl(&format!("ALTER TABLE {table} DROP CONSTRAINT broken")).await.unwrap();
    assert_eq!(lab.number("sum").await, "7");
    lab.warehouse.turn(&slow).await.unwrap();
    assert_eq!(lab.number("sum").await, "0");
}

/// A cancellation by filter asks one Meter what counts. That one may know of a cancellation that was cut off before another Meter did.
#[tokio::test]
async fn a_cancellation_by_filter_completes_one_that_was_cut_off_between_two_meters() {
    let lab = Lab::new();
    lab.meter("asked", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let other = lab.meter("other", spec("t", Aggregation::Min, Some("$.v"), &[])).await;
    let other = lab.warehouse.table(&other.status.unwrap().active.unwrap().table);
    lab.post(&event("e", "t", "s", TIME, json!({"v": "7"}))).await.unwrap();
    let cancel = async || {
        let query = UsageQuery { subjects: vec!["s".to_owned()], ..total() };
        let target = CancelTarget::Filter { meter_id: "asked".to_owned(), query: Box::new(query) };
        lab.service.cancel_usage_events(&Lab::caller(), CancelRequest { target, reason: None, dry_run: false }).await
    };
    let full = "min_free_disk_bytes_to_perform_insert";
    lab.warehouse.run_ddl(&format!("ALTER TABLE {other} MODIFY SETTING {full} = 1000000000000000")).await.unwrap();
    cancel().await.unwrap_err();
    lab.warehouse.run_ddl(&format!("ALTER TABLE {other} RESET SETTING {full}")).await.unwrap();
    // Which Meters have heard by then goes by chance: the one that is asked has now.
    let cut_off = lab.warehouse.unfinished(NAMESPACE).await.unwrap().pop_first().unwrap();
    let view = format!("{}_view`", other.trim_end_matches('`'));
    lab.warehouse.run_ddl(&format!("DETACH TABLE {view} SYNC")).await.unwrap();
    lab.warehouse.spread(NAMESPACE, cut_off).await.unwrap();
    lab.warehouse.run_ddl(&format!("ATTACH TABLE {view}")).await.unwrap();
    assert_eq!((lab.number("asked").await.as_str(), lab.number("other").await.as_str()), ("0", "7"), "one has heard of it");

    let again = cancel().await.unwrap();
    assert_eq!(again.cancelled, 0, "the first has them, and gives them back");
    assert_eq!(lab.number("other").await, "0");
    lab.service.revert_cancellation(&Lab::caller(), cut_off).await.unwrap();
    assert_eq!((lab.number("asked").await.as_str(), lab.number("other").await.as_str()), ("7", "7"));
    assert_eq!(lab.warehouse.unfinished(NAMESPACE).await.unwrap(), [].into());
    assert_read_as_final(&lab).await;
}

/// A revert that was confirmed is the last word, also of a cancellation that is written down and has not come to its events yet.
#[tokio::test]
async fn a_cancellation_that_was_reverted_before_it_came_to_its_events_hits_none() {
    let lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    lab.post(&event("e", "t", "s", TIME, json!({"v": "7"}))).await.unwrap();
    let slow = recorded(&lab).await;
    lab.service.revert_cancellation(&Lab::caller(), slow.record().cancellation_id).await.unwrap();
    lab.warehouse.turn(&slow).await.unwrap();
    assert_eq!(lab.number("sum").await, "7");
    // Of two that have written down the same event one takes it, and only that one gives it back.
    let both = [recorded(&lab).await, recorded(&lab).await];
    for cancellation in &both {
        lab.warehouse.turn(cancellation).await.unwrap();
    }
    let counted = both.map(|cancellation| lab.warehouse.count_cancelled(NAMESPACE, cancellation.record().cancellation_id));
    assert_eq!(futures::future::try_join_all(counted).await.unwrap(), [1, 0]);
}

/// A gateway was killed while its statement was on its way. Sent again it is another cancellation, and the revert of that is the last word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_of_a_gateway_that_is_gone_hits_nothing_later() {
    let way = Way::default();
    let lab = Lab::on(ClickHouse::shared().url());
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    lab.post(&event("e", "t", "s", TIME, json!({"v": "7"}))).await.unwrap();
    let gone = Lab::in_database(&way.to(ClickHouse::shared().url()).await, lab.warehouse.database());
    let slow = recorded(&lab).await;
    let (comes, go) = way.hold(Asked::Turn);
    let turned = slow.clone();
    let turning = tokio::spawn(async move { gone.warehouse.turn(&turned).await });
    comes.await.unwrap();
    turning.abort();

    let events = vec![EventRef { source: "test".to_owned(), id: "e".to_owned() }];
    let request = CancelRequest { target: CancelTarget::Events(events), reason: None, dry_run: false };
    let again = lab.service.cancel_usage_events(&Lab::caller(), request).await.unwrap();
    assert_eq!((again.cancelled, lab.number("sum").await.as_str()), (1, "0"));
    lab.service.revert_cancellation(&Lab::caller(), again.cancellation_id.unwrap()).await.unwrap();
    assert_eq!(lab.number("sum").await, "7");
    let before = way.answers.load(Ordering::SeqCst);
    go.send(()).unwrap();
    eventually("the statement came, and has ended", async || (way.answers.load(Ordering::SeqCst) > before).then_some(())).await;
    lab.warehouse.spread(NAMESPACE, slow.record().cancellation_id).await.unwrap();
    assert_eq!(lab.number("sum").await, "7");
    assert_read_as_final(&lab).await;
}

/// A crash may come between the parts of a tombstone, or of its revert, too: the meter may not have heard of it.
#[tokio::test]
async fn a_cancellation_or_revert_that_got_half_way_is_completed_by_a_revert() {
    let lab = Lab::new();
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let name = meter.status.unwrap().active.unwrap().table;
    let table = lab.warehouse.table(&name);
    lab.warehouse.run_ddl(&format!("SYSTEM STOP MERGES {table}")).await.unwrap();
    lab.post(&event("e", "t", "s", TIME, json!({}))).await.unwrap();
    let lose_latest = async || {
        let parts = "SELECT name FROM system.parts WHERE database = {database:String} AND table = {table:String} AND active ORDER BY min_block_number";
        let parts = lab.warehouse.query(parts).bind("database", lab.warehouse.database()).bind("table", &name);
        let parts: Vec<String> = parts.rows().await.unwrap();
        lab.warehouse.run_ddl(&format!("ALTER TABLE {table} DROP PART '{}'", parts.last().unwrap())).await.unwrap();
    };
    let cancel = async || {
        let events = vec![EventRef { source: "test".to_owned(), id: "e".to_owned() }];
        let request = CancelRequest { target: CancelTarget::Events(events), reason: None, dry_run: false };
        lab.service.cancel_usage_events(&Lab::caller(), request).await.unwrap().cancellation_id.unwrap()
    };
    let id = cancel().await;
    assert_eq!(lab.number("count").await, "0");
    lose_latest().await;
    assert_eq!(lab.number("count").await, "1", "the meter has not heard");
    lab.service.revert_cancellation(&Lab::caller(), id).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
    let id = cancel().await;
    assert_eq!(lab.number("count").await, "0");

    lab.service.revert_cancellation(&Lab::caller(), id).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
    lose_latest().await;
    assert_eq!(lab.number("count").await, "0", "the meter has not heard");
    lab.service.revert_cancellation(&Lab::caller(), id).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clickhouse_that_comes_back_empty_is_filled_anew() {
    let mut clickhouse = ClickHouse::start_own();
    let lab = Arc::new(Lab::on(clickhouse.url()));
    // The operator is another process: it does not hear what the gateway finds out.
    let operator = Reconciler::new(Warehouse::new(&lab.options));
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    operator.meter(&meter).await.unwrap();
    lab.post(&batch(0)).await.unwrap();

    clickhouse.kill();
    clickhouse = tokio::task::spawn_blocking(move || {
        clickhouse.restart_empty();
        clickhouse
    })
    .await
    .unwrap();
    // The operator comes first, or the gateway does, or both: each makes what it needs.
    let mut meter = meter;
    let operate = async {
        eventually("the operator has made the tables again", async || {
            let outcome = operator.meter(&meter).await.ok()?;
            let ready = outcome.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            meter.status = Some(outcome.status);
            ready.then_some(())
        })
        .await;
    };
    let posts = join_all((1..9).map(|number| {
        let lab = Arc::clone(&lab);
        async move { (number, eventually("a post is taken", async || lab.post(&batch(number)).await.ok()).await) }
    }));
    let ((), answers) = tokio::join!(operate, posts);
    lab.catalog.put_meter(&meter);
    let numbers = counted(&lab).await;
    assert_eq!(answers.len(), 8);
    for (number, _) in answers {
        assert_eq!(numbers.get(&number), Some(&(BATCH as u64)), "batch {number} was answered Ok by the empty ClickHouse");
    }
    assert!(!numbers.contains_key(&0), "the old data are gone: only a backup has them");
    assert!(lab.post(&batch(0)).await.is_ok());
    assert_eq!(counted(&lab).await.len(), 9);
    drop(clickhouse);
}

#[tokio::test]
async fn an_operator_alone_makes_the_tables_of_an_empty_clickhouse_again() {
    let mut clickhouse = ClickHouse::start_own();
    let mut lab = Lab::on(clickhouse.url());
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let customer = lab.customer("c", &["s"]).await;
    clickhouse.kill();
    lab.reconciler.meter(&meter).await.unwrap_err();
    clickhouse.restart_empty();
    eventually("the meter's tables", async || lab.reconciler.meter(&meter).await.ok()).await;
    eventually("the customer's subjects", async || lab.reconciler.customer(&customer, &lab.customers).await.ok()).await;
    lab.settle(meter).await;
    lab.post(&event("e", "t", "s", TIME, json!({}))).await.unwrap();
    let usage = lab.usage("count", UsageQuery { customers: vec!["c".to_owned()], ..total() }).await;
    assert_eq!(usage.data[0].value, "1");
}

/// A second gateway on the database of a lab.
fn second(lab: &Lab) -> Lab {
    Lab::with(&lab.options)
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Twice {
    keys: u64,
}

/// How many keys of `table` are not the first of their identity: in `identities` claims that came too late, in `events`
/// what must not be.
async fn twice_in(lab: &Lab, table: &str) -> u64 {
    let sql = format!("SELECT uniqExact(type, subject, time) AS keys FROM {} GROUP BY id HAVING keys > 1", lab.warehouse.table(table));
    let rows: Vec<Twice> = lab.warehouse.query(&sql).rows().await.unwrap();
    rows.iter().map(|row| row.keys - 1).sum()
}

/// Identities that have rows under more than one key.
async fn twice(lab: &Lab) -> u64 {
    assert_read_as_final(lab).await;
    twice_in(lab, "events").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_count_the_same_batch_once() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    let other = second(&lab);
    for number in [0, 2, 4, 6] {
        let batch = batch(number);
        let posts = join_all((0..6).map(|n| if n % 2 == 0 { lab.post(&batch) } else { other.post(&batch) })).await;
        assert!(posts.iter().all(|post| post.as_ref().is_ok_and(|answer| answer.accepted == BATCH)));
    }
    assert!(counted(&lab).await.values().all(|count| *count == BATCH as u64));
    assert_eq!(twice(&lab).await, 0);
}

/// Of one event sent to two gateways in the same moment without a time, each gives it another. It counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_that_get_one_event_without_time_in_one_moment_count_it_once() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[("batch", "$.batch")])).await;
    let other = second(&lab);
    let once = async || counted(&lab).await.values().all(|count| *count == BATCH as u64);
    for number in (1..60).step_by(2) {
        let batch = batch(number);
        let (a, b) = tokio::join!(lab.post(&batch), other.post(&batch));
        assert!(a.is_ok() && b.is_ok());
        assert!(once().await, "{number}");
    }
    assert!(twice_in(&lab, "identities").await > 0, "no race happened: the test showed nothing");
    assert_eq!(twice(&lab).await, 0);
    for number in (1..60).step_by(2) {
        lab.post(&batch(number)).await.unwrap();
        other.post(&batch(number)).await.unwrap();
    }
    assert!(once().await);
    assert_eq!(counted(&lab).await.len(), 30);
}

/// Of two sendings with the same key and other data the first one counts, however they come: in order, or by two gateways
/// the later of which wrote first.
#[tokio::test]
async fn what_is_sent_again_with_other_data_changes_nothing() {
    let lab = Lab::new();
    let count = spec("t", Aggregation::Sum, Some("$.v"), &[]);
    lab.meter("sum", count.clone()).await;
    let sent = |v: u64| event("again", "t", "s", TIME, json!({"v": v}));
    for v in [1, 1_000, 2_000] {
        lab.post(&sent(v)).await.unwrap();
        assert_eq!(lab.number("sum").await, "1");
    }
    for (arrival_us, v) in [(1_772_600_000_000_002, 1_000), (1_772_600_000_000_001, 10), (1_772_600_000_000_003, 2_000)] {
        let items = parse(Form::Json, event("race", "t", "s", TIME, json!({"v": v})).to_string().into()).unwrap();
        let judged = Judge::new(&lab.catalog, crate::lab::NAMESPACE, false, arrival_us).judge(items[0].parsed.clone());
        let Ok(Judged::Row(row)) = judged else { panic!("{judged:?}") };
        let mut bytes = Vec::new();
        // As from an INSERT that is tried again.
        row.encode(&mut bytes, true);
        let landing = Landings::NEW.table(row.landing);
        let deadline = Duration::from_secs(30);
        let insert = Insert { table: &landing, columns: COLUMNS, bytes: bytes.len(), name: "test", deadline, is_alone: true, fence: None };
        lab.warehouse.insert(insert, std::iter::once(bytes.into())).await.unwrap();
    }
    assert_eq!(lab.number("sum").await, "11");
    // By the backfill it is the same.
    lab.meter("later", count).await;
    assert_eq!(lab.number("later").await, "11");
}

/// Another gateway claimed the same identity and died before the INSERT: what is confirmed here counts, under that key.
#[tokio::test]
async fn a_claim_whose_event_never_came_takes_nothing_away() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    // So that the gateway's memory is of this table, and older than the claims.
    lab.post(&event("first", "t", "s", TIME, json!({}))).await.unwrap();
    let claim = async |id: &str, event_type: &str, time: &str| {
        let sql = format!(
            "INSERT INTO {} SELECT {{id:UInt128}}, '{}', {{type:String}}, 'claimed', parseDateTime64BestEffort({{time:String}}, 3, 'UTC')",
            lab.warehouse.table("identities"),
            crate::lab::NAMESPACE
        );
        let identity = kubemeter::event::identity(crate::lab::NAMESPACE, "test", id);
        lab.warehouse.query(&sql).bind("id", identity).bind("type", event_type).bind("time", time).run().await.unwrap();
    };
    claim("e", "t", "2026-05-01T00:00:00Z").await;
    claim("e", "t", "2026-01-01T00:00:00Z").await;
    for time in [TIME, "2026-02-01T00:00:00Z", "2026-05-01T00:00:00Z"] {
        lab.post(&event("e", "t", "s", time, json!({}))).await.unwrap();
        assert_eq!(lab.number("count").await, "2");
        let listed = lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap().items;
        let keys: Vec<_> = listed.iter().filter(|e| e.id == "e").map(|e| (e.subject.as_str(), e.time.to_string())).collect();
        assert_eq!(keys, [("claimed", "2026-05-01T00:00:00Z".to_owned())], "the first claim is the key");
    }

    // Claimed for an event of another type that was never stored: acknowledging would count nothing.
    claim("other", "u", TIME).await;
    let good = event("good", "t", "s", TIME, json!({}));
    let of_t = event("other", "t", "s", TIME, json!({}));
    let answer = lab.post(&json!([of_t, good])).await.unwrap();
    assert_eq!((answer.accepted, answer.rejected.len(), answer.rejected[0].index), (1, 1, 0));
    assert!(answer.rejected[0].message.contains("another type"), "{}", answer.rejected[0].message);
    assert_eq!(lab.number("count").await, "3");
    let kept = lab.service.list_rejected(&Lab::caller(), Default::default()).await.unwrap().items;
    assert_eq!(kept.len(), 1);
    assert_eq!(lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap().rejected.len(), 1);
    // All or nothing: nothing.
    let items = parse(Form::Json, json!([of_t, event("alone", "t", "s", TIME, json!({}))]).to_string().into()).unwrap();
    let refused = lab.service.ingest_usage_events(&Lab::caller(), items, true).await;
    assert!(matches!(refused, Err(Error::AllRejected(ref answer)) if answer.rejected.len() == 1), "{refused:?}");
    assert_eq!(lab.number("count").await, "3");
    // Once that one is stored, this one repeats it.
    lab.post(&event("other", "u", "s", TIME, json!({}))).await.unwrap();
    assert_eq!(lab.post(&of_t).await.unwrap().accepted, 1);
    assert_eq!(lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap().accepted, 1);
    assert_eq!(lab.number("count").await, "3");
    assert_eq!(twice(&lab).await, 0);
}

/// A sender whose first try got half-way may say something else the second time: all tables then agree on one of them.
#[tokio::test]
async fn a_second_try_that_says_something_else_counts_alike_everywhere() {
    for broken in ["events", "meter"] {
        let lab = Lab::new();
        let sum = spec("t", Aggregation::Sum, Some("$.v"), &[]);
        let meter = lab.meter("sum", sum.clone()).await;
        let table = if broken == "meter" { meter.status.unwrap().active.unwrap().table } else { broken.to_owned() };
        let table = lab.warehouse.table(&table);
        let sent = |v: u64| event("e", "t", "s", TIME, json!({"v": v}));
        lab.warehouse.run_ddl(&format!("ALTER TABLE {table} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
        lab.post(&sent(1)).await.unwrap_err();
        lab.warehouse.run_ddl(&format!("ALTER TABLE {table} DROP CONSTRAINT broken")).await.unwrap();
        for v in [2, 4, 8] {
            lab.post(&sent(v)).await.unwrap();
            let listed = lab.service.list_events(&Lab::caller(), Default::default(), Default::default()).await.unwrap().items;
            let value: Value = serde_json::from_str(listed[0].data.get()).unwrap();
            assert_eq!(lab.number("sum").await, value["v"].to_string(), "{broken} was broken");
        }
        let number = lab.number("sum").await;
        assert!(number == "1" || number == "2", "{number}: what was stored is changed by a later sending");
        lab.meter("later", sum).await;
        assert_eq!(lab.number("later").await, number, "by the backfill it is the same");
    }
}
