//! Meters made, edited and deleted while events flow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kubemeter::api::{Aggregation, DeletionPolicy, Meter, MeterSpec};
use kubemeter::event::{Form, parse};
use kubemeter::ingest::{Judge, Judged};
use kubemeter::metering::{Error, Metering as _, UsageQuery};
use kubemeter::warehouse::layout::{self, Layout};
use kubemeter::warehouse::note::{StoredBefore, TableNote, TableState};
use kubemeter::warehouse::row::COLUMNS;
use kubemeter::warehouse::run::Run;
use kubemeter::warehouse::schema::Landings;
use kubemeter::warehouse::{Begun, Insert, Topology, insert_name};
use serde_json::{Value, json};

use crate::again::assert_read_as_final;
use crate::behind::{number, that_knows};
use crate::lab::{Lab, NAMESPACE, active, event, new_database, options, spec, total};
use crate::support::{ClickHouse, eventually};
use crate::way::{Asked, Way};

/// Posts batches until told to stop; counts the events that were answered Ok and those that were sent.
struct Flow {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

const BATCH: u64 = 20;

impl Flow {
    /// `make` makes the event of a number.
    fn start(lab: &Arc<Lab>, make: impl Fn(u64) -> Value + Clone + Send + 'static) -> Self {
        let (stop, accepted, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..3).map(|_| {
            let (lab, stop, accepted, sent, make) =
                (Arc::clone(lab), Arc::clone(&stop), Arc::clone(&accepted), Arc::clone(&sent), make.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let first = sent.fetch_add(BATCH, Ordering::SeqCst);
                    let batch: Vec<Value> = (first..first + BATCH).map(&make).collect();
                    assert_eq!(lab.post(&json!(batch)).await.unwrap().accepted, batch.len());
                    accepted.fetch_add(BATCH, Ordering::SeqCst);
                }
            })
        });
        Self { tasks: tasks.collect(), stop, accepted, sent }
    }

    async fn more(&self, events: u64) {
        let target = self.accepted.load(Ordering::SeqCst) + events;
        eventually("events flow", async || (self.accepted.load(Ordering::SeqCst) >= target).then_some(())).await;
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        assert_eq!(self.accepted.load(Ordering::SeqCst), self.sent.load(Ordering::SeqCst));
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Old events of a year, and new ones: the backfill has several months to do.
fn flowing(n: u64) -> Value {
    let time = format!("2026-{:02}-04T05:06:07Z", 1 + n % 12);
    event(
        &n.to_string(),
        "t",
        &format!("s{}", n % 3),
        &time,
        json!({"old": 1, "new": 1_000_000, "g": "old", "h": "new", "u": (n % 7).to_string()}),
    )
}

fn edited(meter: &Meter, spec: MeterSpec) -> Meter {
    let mut next = meter.clone();
    next.spec = spec;
    next.metadata.generation = next.metadata.generation.map(|generation| generation + 1);
    next
}

async fn tables(lab: &Lab, meter: &Meter) -> BTreeMap<String, Option<TableNote>> {
    let prefix = format!("meter_{}_", meter.metadata.uid.as_ref().unwrap().replace('-', ""));
    let found = lab.warehouse.tables_with_prefix(&prefix).await.unwrap();
    found.into_iter().map(|(name, comment)| (name, serde_json::from_str(&comment).ok())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_or_doubled_while_a_meter_is_made() {
    let lab = Arc::new(Lab::new());
    let flow = Flow::start(&lab, flowing);
    flow.more(200).await;
    for n in 0..4 {
        lab.meter(&format!("m{n}"), spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
        flow.more(40).await;
    }
    let accepted = flow.end().await;
    for n in 0..4 {
        assert_eq!(lab.number(&format!("m{n}")).await, accepted.to_string(), "m{n}");
    }
}

/// An INSERT into the landing table of type `t` that has begun, as a gateway begins it, and has not ended yet.
struct SlowInsert {
    begun: Begun,
    id: String,
}

impl SlowInsert {
    async fn begin(lab: &Lab, name: &str) -> Self {
        let sent = event(name, "t", "slow", "2026-03-04T05:06:07Z", json!({"v": 5}));
        let items = parse(Form::Json, sent.to_string().into()).unwrap();
        let judged = Judge::new(&lab.catalog, NAMESPACE, false, 1_772_600_000_000_000).judge(items[0].parsed.clone());
        let Ok(Judged::Row(event)) = judged else { panic!("{judged:?}") };
        let mut row = Vec::new();
        event.encode(&mut row, false);

        let landing = Landings::NEW.table(event.landing);
        lab.warehouse.ensure_landing(&landing).await.unwrap();
        let id = format!("{}-{name}", insert_name(&landing));
        let deadline = Duration::from_secs(30);
        let insert = Insert { table: &landing, columns: COLUMNS, bytes: row.len(), name: &id, deadline, is_alone: true, fence: None };
        let row = bytes::Bytes::from(row);
        let begun = eventually("an INSERT is begun", async || {
            lab.warehouse.learn_to_begin().await.unwrap();
            lab.warehouse.begin(insert, 1, std::future::ready(true), std::iter::once(row.clone())).await.unwrap()
        })
        .await;
        let slow = Self { begun, id };
        eventually("ClickHouse has prepared the row", async || slow.written(lab).await.filter(|written| *written > 0)).await;
        slow
    }

    /// How many rows ClickHouse has prepared while it runs.
    async fn written(&self, lab: &Lab) -> Option<u64> {
        let written = "SELECT written_rows FROM system.processes WHERE startsWith(query_id, {id:String})";
        lab.warehouse.query(written).bind("id", &self.id).rows::<u64>().await.unwrap().first().copied()
    }

    async fn end(self, lab: &Lab) {
        lab.warehouse.finish(self.begun, std::iter::empty()).await.unwrap();
    }
}

#[tokio::test]
async fn an_insert_that_is_not_ended_is_not_seen_and_broken_off_it_never_was() {
    let lab = Lab::new();
    lab.meter("m", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let stored = async || {
        let stored: u64 = lab.warehouse.query(&format!("SELECT count() FROM {}", lab.warehouse.table("events"))).one().await.unwrap();
        (stored, lab.number("m").await)
    };
    let slow = SlowInsert::begin(&lab, "slow").await;
    assert_eq!(stored().await, (0, "0".to_owned()));
    let SlowInsert { begun, id } = slow;
    drop(begun);
    let running = "SELECT count() FROM system.processes WHERE startsWith(query_id, {id:String})";
    eventually("it has ended", async || (lab.warehouse.query(running).bind("id", &id).one::<u64>().await.unwrap() == 0).then_some(()))
        .await;
    assert_eq!(stored().await, (0, "0".to_owned()));
    let slow = SlowInsert::begin(&lab, "slow").await;
    lab.post(&event("quick", "t", "slow", "2026-03-04T05:06:07Z", json!({"v": 1}))).await.unwrap();
    slow.end(&lab).await;
    assert_eq!(stored().await, (2, "6".to_owned()));
    if *lab.warehouse.topology() == Topology::Single {
        // Its block has its number since it is seen, not since it was prepared: a Meter's filling goes by these.
        let sql = format!("SELECT event_id FROM {} ORDER BY _block_number", lab.warehouse.table("events"));
        assert_eq!(lab.warehouse.query(&sql).rows::<String>().await.unwrap(), ["quick", "slow"]);
    }
}

#[tokio::test]
async fn an_insert_that_began_before_the_view_is_waited_for() {
    let lab = Lab::new();
    let slow = SlowInsert::begin(&lab, "slow").await;
    let mut making = std::pin::pin!(lab.meter("m", spec("t", Aggregation::Sum, Some("$.v"), &[])));
    let meanwhile = async {
        eventually("the meter's view", async || {
            let views = lab.warehouse.tables_with_prefix("meter_").await.unwrap();
            views.iter().any(|(name, _)| name.ends_with("_view")).then_some(())
        })
        .await;
        // Others go on, by the view already.
        lab.post(&event("quick", "t", "s", "2026-03-04T05:06:07Z", json!({"v": 1}))).await.unwrap();
        // Long enough for a meter that does not wait to get ready.
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tokio::select! {
        _ = &mut making => panic!("it is ready while the INSERT runs"),
        () = meanwhile => {}
    }
    tokio::join!(making, slow.end(&lab));
    assert_eq!(lab.number("m").await, "6");
}

/// Asks all the time. Every answer must be all of one definition: each event worth 1, or each worth 1,000,000; and have
/// all that was confirmed before.
fn watch(lab: &Arc<Lab>, flow: &Flow, stop: &Arc<AtomicBool>, query: UsageQuery) -> tokio::task::JoinHandle<(u64, u64)> {
    let (lab, stop, accepted, sent) = (Arc::clone(lab), Arc::clone(stop), Arc::clone(&flow.accepted), Arc::clone(&flow.sent));
    tokio::spawn(async move {
        let (mut old, mut new) = (0, 0);
        while !stop.load(Ordering::SeqCst) {
            let confirmed = accepted.load(Ordering::SeqCst);
            let usage = lab.service.fetch_usage(&Lab::caller(), "m", query.clone()).await.unwrap();
            let sent = sent.load(Ordering::SeqCst);
            let values: Vec<u64> = usage.data.iter().map(|row| row.value.parse().unwrap()).collect();
            let all_new = values.iter().all(|value| value % 1_000_000 == 0);
            assert!(all_new || values.iter().all(|value| *value < 1_000_000), "a mixture: {values:?}");
            let events = values.iter().sum::<u64>() / if all_new { 1_000_000 } else { 1 };
            assert!((confirmed..=sent).contains(&events), "{confirmed} events were confirmed, {sent} sent, {events} counted");
            *(if all_new { &mut new } else { &mut old }) += 1;
        }
        (old, new)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_while_events_flow_is_never_answered_as_a_mixture() {
    let lab = Arc::new(Lab::new());
    let old = spec("t", Aggregation::Sum, Some("$.old"), &[("g", "$.g")]);
    let meter = lab.meter("m", old.clone()).await;
    let flow = Flow::start(&lab, flowing);
    flow.more(400).await;
    let stop = Arc::new(AtomicBool::new(false));
    let by_month = UsageQuery { window_size: Some(kubemeter::metering::WindowSize::Month), ..total() };
    let watchers = [watch(&lab, &flow, &stop, total()), watch(&lab, &flow, &stop, by_month)];
    // Value and group path at once, while all the above goes on.
    let new = spec("t", Aggregation::Sum, Some("$.new"), &[("g", "$.h")]);
    let after = lab.settle(edited(&meter, new)).await;
    assert_ne!(active(&after), active(&meter));
    flow.more(100).await;
    // And taken back: the old table was fed all along.
    let back = lab.settle(edited(&after, old)).await;
    assert_eq!(active(&back), active(&meter));
    flow.more(100).await;
    let again = lab.settle(edited(&back, after.spec.clone())).await;
    assert_eq!(active(&again), active(&after));
    flow.more(100).await;
    stop.store(true, Ordering::SeqCst);
    for watcher in watchers {
        let (old, new) = watcher.await.unwrap();
        assert!(old > 0 && new > 0, "both definitions answered: {old}, {new}");
    }
    let accepted = flow.end().await;
    let usage = lab.usage("m", UsageQuery { group_by: ["g".to_owned()].into(), ..total() }).await;
    assert_eq!(
        usage.data.iter().map(|row| (row.group_by["g"].as_str(), row.value.clone())).collect::<Vec<_>>(),
        [("new", (accepted * 1_000_000).to_string())]
    );
    assert_read_as_final(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_history_follows_each_new_spec() {
    let lab = Arc::new(Lab::new());
    let first = spec("t", Aggregation::Sum, Some("$.old"), &[]);
    let mut meter = lab.meter("m", first).await;
    let mut events: Vec<Value> = (0..70).map(flowing).collect();
    events.extend((0..5).map(|n| event(&format!("other{n}"), "other", "s", "2026-03-04T05:06:07Z", json!({"old": 3, "new": 4, "u": "x"}))));
    lab.post(&json!(events)).await.unwrap();
    let steps = [
        (spec("t", Aggregation::Max, Some("$.old"), &[]), "1", true),
        (spec("t", Aggregation::Max, Some("$.new"), &[]), "1000000", false),
        (spec("t", Aggregation::UniqueCount, Some("$.u"), &[]), "7", false),
        (spec("t", Aggregation::Count, None, &[]), "70", false),
        (spec("t", Aggregation::Count, None, &[("g", "$.g"), ("h", "$.h")]), "70", false),
        (spec("other", Aggregation::Average, Some("$.new"), &[]), "4", false),
        (spec("other", Aggregation::Sum, Some("$.new"), &[]), "20", true),
        (spec("none", Aggregation::Count, None, &[]), "0", false),
        (spec("t", Aggregation::Sum, Some("$.old"), &[]), "70", false),
    ];
    for (spec, number, same_table) in steps {
        let before = active(&meter);
        meter = lab.settle(edited(&meter, spec.clone())).await;
        assert_eq!(lab.number("m").await, number, "{spec:?}");
        assert_eq!(active(&meter) == before, same_table, "{spec:?}");
    }
    // The first reconcile after the switch finds the new table in the stored status, and retires the old ones.
    meter = lab.settle(meter).await;
    // Tables that no longer answer go after their grace, which is over when their notes say so.
    for (table, note) in tables(&lab, &meter).await {
        if let Some(note @ TableNote { state: TableState::Retired(_), .. }) = note {
            let long_ago = TableNote { state: TableState::Retired(1), ..note };
            lab.warehouse.run_ddl(&long_ago.alter(lab.warehouse.topology(), lab.warehouse.database(), &table).unwrap()).await.unwrap();
        }
    }
    meter = lab.settle(meter).await;
    let target = active(&meter);
    assert_eq!(tables(&lab, &meter).await.into_keys().collect::<Vec<_>>(), [target.clone(), layout::view(&target)]);
    assert_eq!(lab.number("m").await, "70");
}

#[tokio::test]
async fn an_edit_taken_back_half_way_leaves_the_first_table_answering() {
    let lab = Lab::new();
    let meter = lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    lab.post(&json!((0..30).map(flowing).collect::<Vec<_>>())).await.unwrap();
    // The other table as a reconcile that was cut off leaves it, in each state.
    let next = edited(&meter, spec("t", Aggregation::Sum, Some("$.new"), &[]));
    let layout = |meter: &Meter| {
        let definition = kubemeter::meter::Definition::parse(&meter.spec).unwrap();
        Layout::of(Landings::NEW, NAMESPACE, &definition)
    };
    let uid = meter.metadata.uid.clone().unwrap();
    let table = layout(&next).stem(&uid);
    let known = lab.warehouse.stored_before().await.unwrap();
    // Of a table that was restored from a backup since then, and of a ClickHouse that was started anew.
    let restored = known.map(|known| StoredBefore { block: u64::MAX, events: uuid::Uuid::nil(), ..known });
    let long_ago = known.map(|known| StoredBefore { block: u64::MAX, run: Run { started_s: 1, uptime_s: 0 }, ..known });
    for (state, has_view, before, copied) in [
        (TableState::Ahead(202_601), false, known, None),
        (TableState::Ahead(202_601), false, long_ago, None),
        (TableState::Ahead(999_912), false, long_ago, None),
        (TableState::Ahead(0), true, known, None),
        (TableState::New, false, None, None),
        (TableState::New, false, long_ago, Some(u64::MAX)),
        (TableState::New, false, restored, Some(u64::MAX)),
        (TableState::Ahead(0), false, restored, None),
        (TableState::New, true, None, None),
        (TableState::Filling(202_603), true, known, None),
    ] {
        let (namespace, name) = (NAMESPACE.to_owned(), "m".to_owned());
        let note = TableNote { uid: uid.clone(), namespace, meter: name, state: state.clone(), before, copied, let_go: None };
        let database = lab.warehouse.database();
        let half = async || {
            lab.warehouse
                .run_all_ddl(&layout(&next).create_table(lab.warehouse.topology(), database, &table, &note).unwrap())
                .await
                .unwrap();
            if has_view {
                lab.warehouse.run_ddl(&layout(&next).create_view(lab.warehouse.topology(), database, &table)).await.unwrap();
            }
        };
        half().await;
        let back = lab.settle(meter.clone()).await;
        assert_eq!((active(&back), lab.number("m").await.as_str()), (active(&meter), "30"), "{state:?}");
        assert!(!tables(&lab, &meter).await.contains_key(&table), "{state:?}: the half-made table goes");
        // Gone on with instead, it holds all there is.
        half().await;
        if let TableState::Ahead(noted) | TableState::Filling(noted) = state {
            // Months up to the noted one are there already.
            let copy = layout(&next).backfill(lab.warehouse.topology(), database, &table);
            for month in [202_601_u32, 202_602, 202_603].into_iter().filter(|month| *month <= noted) {
                let copy = lab.warehouse.query(&copy).bind("month", month).bind("copied", 0).bind("until", u64::MAX);
                copy.bind("block", 0).bind("started", 0).bind("uptime", 0).run().await.unwrap();
            }
        }
        let there = lab.settle(next.clone()).await;
        assert_eq!(lab.number("m").await, "30000000", "{state:?}");
        // What a view has brought before all was copied ahead may be copied, too: such a table is not gone on with.
        let is_spoiled = has_view && matches!(state, TableState::Ahead(_));
        assert_eq!(active(&there) == table, !is_spoiled, "{state:?}");
        assert_read_as_final(&lab).await;
        let again = lab.settle(meter.clone()).await;
        let long_ago = TableNote { state: TableState::Retired(1), ..note.clone() };
        lab.warehouse.run_ddl(&long_ago.alter(lab.warehouse.topology(), database, &active(&there)).unwrap()).await.unwrap();
        lab.settle(again).await;
        let left = tables(&lab, &meter).await;
        assert!(!left.contains_key(&table) && !left.contains_key(&active(&there)), "{state:?}: {left:?}");
    }
}

#[tokio::test]
async fn a_table_that_is_made_again_has_another_name() {
    let lab = Lab::new();
    let first = lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    lab.post(&json!((0..30).map(flowing).collect::<Vec<_>>())).await.unwrap();
    let second = lab.settle(edited(&first, spec("t", Aggregation::Sum, Some("$.new"), &[]))).await;
    // Retired, and its grace over.
    let second = lab.settle(second).await;
    let note = tables(&lab, &first).await.remove(&active(&first)).flatten().unwrap();
    let long_ago = TableNote { state: TableState::Retired(1), ..note };
    lab.warehouse.run_ddl(&long_ago.alter(lab.warehouse.topology(), lab.warehouse.database(), &active(&first)).unwrap()).await.unwrap();
    let second = lab.settle(second).await;
    assert!(!tables(&lab, &first).await.contains_key(&active(&first)));

    let third = lab.settle(edited(&second, first.spec.clone())).await;
    assert_eq!(lab.number("m").await, "30");
    assert_ne!(active(&third), active(&first));
    // Else it would answer from a table that is being filled.
    assert!(matches!(number(&that_knows(&lab, &first)).await, Err(Error::Unavailable { .. })));
    assert!(number(&that_knows(&lab, &third)).await.is_ok());
    let mut going = third;
    going.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
    assert!(matches!(number(&that_knows(&lab, &going)).await, Err(Error::Unavailable { .. })), "it is no longer fed");
}

#[tokio::test]
async fn a_table_that_lost_its_view_answers_no_more_until_it_is_complete() {
    let lab = Lab::new();
    let meter = lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    lab.post(&json!((0..10).map(flowing).collect::<Vec<_>>())).await.unwrap();
    lab.warehouse.run_ddl(&lab.warehouse.topology().drop_one(lab.warehouse.database(), &layout::view(&active(&meter)))).await.unwrap();
    lab.post(&json!((10..30).map(flowing).collect::<Vec<_>>())).await.unwrap();
    let again = lab.settle(meter.clone()).await;
    assert_eq!((lab.number("m").await.as_str(), active(&again)), ("30", format!("{}_2", active(&meter))));
    assert!(matches!(number(&that_knows(&lab, &meter)).await, Err(Error::Unavailable { .. })), "what lost its view is never filled again");
    let again = lab.settle(again).await;
    assert_eq!(tables(&lab, &again).await.into_keys().collect::<Vec<_>>(), [active(&again), layout::view(&active(&again))]);
}

#[tokio::test]
async fn a_view_lost_while_its_table_is_filled_is_noticed_by_who_fills_it() {
    let way = Way::default();
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &new_database(), Topology::Single));
    let warm = lab.meter("other", spec("t", Aggregation::Count, None, &[])).await;
    let of = |id: &str, month: u8| event(id, "t", "s", &format!("2026-{month:02}-04T05:06:07Z"), json!({}));
    lab.post(&json!([of("a", 1), of("b", 2)])).await.unwrap();
    let meter = Meter {
        metadata: ObjectMeta { uid: Some(uuid::Uuid::new_v4().to_string()), name: Some("m".to_owned()), ..warm.metadata.clone() },
        status: None,
        ..warm
    };
    // The second month ahead, then once more, which waits.
    let mut held = way.hold(Asked::Copy(202_602));
    let reach_the_last = async {
        (&mut held.0).await.unwrap();
        let (_, go) = std::mem::replace(&mut held, way.hold(Asked::Copy(202_602)));
        go.send(()).unwrap();
        (&mut held.0).await.unwrap();
    };
    let filling = eventually("it is filled behind its view", async || {
        let table = lab.reconciler.meter(&meter).await.unwrap().status.backfill?.table;
        let note = tables(&lab, &meter).await.remove(&table)??;
        (note.state == TableState::Filling(202_601)).then_some(table)
    });
    let (table, ()) = tokio::join!(filling, reach_the_last);
    lab.warehouse.run_ddl(&lab.warehouse.topology().drop_one(lab.warehouse.database(), &layout::view(&table))).await.unwrap();
    lab.post(&of("c", 1)).await.unwrap();
    let _ = lab.reconciler.meter(&meter).await.unwrap();
    let _ = held.1.send(());
    lab.settle(meter).await;
    assert_eq!(lab.number("m").await, "3");
}

/// So that after a crash no month is taken for copied that is not.
#[tokio::test]
async fn two_months_are_copied_at_once_and_noted_in_their_order() {
    let way = Way::default();
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &new_database(), Topology::Single));
    let old = lab.meter("m", spec("t", Aggregation::Count, None, &[])).await;
    let of = |id: &str, month: u8| event(id, "t", "s", &format!("2026-{month:02}-04T05:06:07Z"), json!({}));
    lab.post(&json!([of("a", 1), of("b", 2), of("c", 3)])).await.unwrap();
    let (came, go) = way.hold(Asked::Copy(202_601));
    way.forget();
    let meter = edited(&old, spec("t", Aggregation::Count, None, &[("group", "$.group")]));
    let table = eventually("it is copied", async || Some(lab.reconciler.meter(&meter).await.unwrap().status.backfill?.table)).await;
    came.await.unwrap();
    let rows = format!("SELECT count() FROM {}.{table} WHERE toMonth(time) = 2", lab.warehouse.database());
    eventually("the second month is there", async || (lab.warehouse.query(&rows).one::<u64>().await.unwrap() == 1).then_some(())).await;
    let asked = |month| way.asked.lock().unwrap().contains(&Asked::Copy(month));
    assert_eq!((asked(202_602), asked(202_603)), (true, false));
    assert_eq!(tables(&lab, &meter).await.remove(&table).unwrap().unwrap().state, TableState::Ahead(0));
    go.send(()).unwrap();
    lab.settle(meter).await;
    assert_eq!(lab.number("m").await, "3");
}

/// Counting a large table takes minutes. Until then the status says nothing of it, and not what was counted in another.
#[tokio::test]
async fn the_status_counts_the_table_that_answers() {
    let way = Way::default();
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &new_database(), Topology::Single));
    lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    lab.post(&json!((0..30).map(flowing).collect::<Vec<_>>())).await.unwrap();
    let counts = |meter: &Meter| meter.status.as_ref().map(|status| (status.events, status.uncounted_events)).unwrap();
    let meter = lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    let meter = lab.counted(meter).await;
    assert_eq!(counts(&meter), (Some(30), Some(0)));

    let (came, go) = way.hold(Asked::Count);
    let next = lab.settle(edited(&meter, spec("t", Aggregation::Sum, Some("$.neither"), &[]))).await;
    came.await.unwrap();
    assert_eq!(counts(&next), (None, None));
    // An edit that can't be: what answers is still counted.
    let wrong = edited(&next, spec("t", Aggregation::Sum, None, &[]));
    let told = lab.reconciler.meter(&wrong).await.unwrap();
    assert!(told.requeue.is_some_and(|again| again < Duration::from_secs(60)));
    go.send(()).unwrap();
    eventually("it is counted", async || {
        let told = lab.reconciler.meter(&wrong).await.unwrap().status;
        (told.active.is_some() && (told.events, told.uncounted_events) == (Some(30), Some(30))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_view_without_its_table_goes() {
    let lab = Lab::new();
    let meter = lab.meter("m", spec("t", Aggregation::Count, None, &[])).await;
    let (topology, database, table) = (lab.warehouse.topology(), lab.warehouse.database(), active(&meter));
    for statement in topology.drop(database, &table) {
        lab.warehouse.run_ddl(&format!("{statement} SETTINGS check_table_dependencies = 0")).await.unwrap();
    }
    assert!(matches!(lab.post(&flowing(0)).await, Err(Error::Unavailable { .. })), "ClickHouse takes no event of its type");
    // As a new operator finds it: its Meter has gone, and there is another.
    let next = Lab::with(&lab.options);
    next.meter("other", spec("t", Aggregation::Count, None, &[])).await;
    assert!(tables(&lab, &meter).await.is_empty());
    // What was not taken the first gateway goes on with, and may have stored by now.
    next.post(&json!([flowing(0), flowing(1)])).await.unwrap();
    assert_eq!(next.number("other").await, "2");
}

#[tokio::test]
async fn deleting_drops_or_retains_and_nothing_adopts_what_is_retained() {
    let lab = Lab::new();
    let retain = MeterSpec { deletion_policy: DeletionPolicy::Retain, ..spec("t", Aggregation::Sum, Some("$.old"), &[]) };
    let dropped = lab.meter("dropped", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
    let retained = lab.meter("m", retain.clone()).await;
    lab.post(&json!((0..30).map(flowing).collect::<Vec<_>>())).await.unwrap();
    for meter in [&dropped, &retained] {
        lab.reconciler.forget_meter(meter).await.unwrap();
        lab.reconciler.forget_meter(meter).await.unwrap();
    }
    assert!(tables(&lab, &dropped).await.is_empty());
    let left = tables(&lab, &retained).await;
    assert_eq!(left.keys().cloned().collect::<Vec<_>>(), [active(&retained)], "the view goes, the table stays");
    assert_eq!(left.values().flatten().map(|note| note.state.clone()).collect::<Vec<_>>(), [TableState::Retained]);

    lab.post(&json!((100..110).map(flowing).collect::<Vec<_>>())).await.unwrap();
    let heir = lab.meter("m", retain).await;
    assert_ne!(active(&heir), active(&retained));
    assert_eq!(lab.number("m").await, "40");
    let count = async || lab.warehouse.count_events(&active(&retained), true).await.unwrap().0;
    assert_eq!(count().await, 30, "what is retained is as it was");
    lab.reconciler
        .forget_meter(&Meter { spec: MeterSpec { deletion_policy: DeletionPolicy::Delete, ..heir.spec.clone() }, ..heir })
        .await
        .unwrap();
    assert_eq!(count().await, 30);

    // A table of such a name that somebody else made is nobody's, whatever its name says.
    let mut squatted = Meter::new("squatted", spec("t", Aggregation::Count, None, &[]));
    squatted.metadata.namespace = Some(NAMESPACE.to_owned());
    squatted.metadata.uid = Some("00000000-0000-4000-8000-000000000001".to_owned());
    let theirs = lab.warehouse.table("meter_00000000000040008000000000000001_theirs");
    lab.warehouse.run_ddl(&format!("CREATE TABLE {theirs} (n UInt8) ENGINE = MergeTree ORDER BY n COMMENT 'ours'")).await.unwrap();
    let squatted = lab.settle(squatted).await;
    lab.reconciler.forget_meter(&squatted).await.unwrap();
    assert_eq!(tables(&lab, &squatted).await.len(), 1, "it is not dropped");
}

/// Gateways and operators go by what the database says of its landing tables, not by what they would make now.
#[tokio::test]
async fn the_landing_tables_are_those_that_the_database_has() {
    if std::env::var_os("KUBEMETER_TEST_SHARDS").is_some() {
        return;
    }
    for (comment, prefix) in [("", "landing_0"), (r#"{"landings":16}"#, "landing_16_00"), (r#"{"landings":8192}"#, "landing_8192_")] {
        let first = Lab::new();
        first.warehouse.ensure_bootstrap().await.unwrap();
        let say = |comment: &str| format!("ALTER TABLE {} MODIFY COMMENT '{comment}'", first.warehouse.table("events"));
        first.warehouse.run_ddl(&say(comment)).await.unwrap();
        let lab = Lab::in_database(&first.options.url, &first.options.database);
        let meter = lab.meter("m", spec("t", Aggregation::Sum, Some("$.old"), &[])).await;
        lab.post(&json!([flowing(1), flowing(2)])).await.unwrap();
        Lab::post_to(&lab.another_gateway(), &json!([flowing(2), flowing(3)])).await.unwrap();
        let landings = lab.warehouse.tables_with_prefix("landing_").await.unwrap();
        assert_eq!(landings.len(), 2, "one table and its view: {landings:?}");
        assert!(landings.iter().all(|(name, _)| name.starts_with(prefix)), "{comment}: {landings:?}");
        assert_eq!(lab.number("m").await, "3", "{comment}");
        lab.settle(edited(&meter, spec("t", Aggregation::Sum, Some("$.new"), &[]))).await;
        lab.post(&flowing(4)).await.unwrap();
        assert_eq!(lab.number("m").await, "4000000", "{comment}");

        first.warehouse.run_ddl(&say("no number")).await.unwrap();
        let refused = Lab::in_database(&first.options.url, &first.options.database).warehouse.ensure_bootstrap().await.unwrap_err();
        assert!(refused.to_string().contains("\"no number\", not how many landing tables there are"), "{refused}");
    }
}
