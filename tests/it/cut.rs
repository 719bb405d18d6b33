//! An operator that ends between any two steps of a plan: whoever comes after it finishes what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kubemeter::api::{Aggregation, Customer, CustomerSpec, Meter};
use kubemeter::metering::UsageQuery;
use kubemeter::reconcile::Reconciler;
use kubemeter::warehouse::{Warehouse, WarehouseOptions};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::again::assert_read_as_final;
use crate::halt::{End, Halt};
use crate::lab::{Lab, NAMESPACE, event, spec, total};
use crate::support::eventually;

/// Most steps of one reconcile: far more than any has.
const STEPS: usize = 200;

/// Work that ends where it waits for the `steps`-th time, once that has come to pass: most waits are for a statement's answer. None:
/// it was cut off.
async fn cut<T>(steps: usize, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut left) = (Box::pin(work), steps);
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Events number `from` to `from + 9`, each worth 1 by `$.old` and 100 by `$.new`.
fn events(from: usize) -> Value {
    let one = |n| event(&format!("e{n}"), "t", "s", &format!("2026-0{}-04T05:06:07Z", 1 + n % 3), json!({"old": 1, "new": 100}));
    json!((from..from + 10).map(one).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_reconcile_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let mut lab = Lab::new();
    lab.post(&events(0)).await.unwrap();
    let mut stored = 10;
    let by = |path| spec("t", Aggregation::Sum, Some(path), &[]);
    let mut cuts = 0;
    for steps in 1..STEPS {
        let mut is_whole = true;
        let mut meter = Meter::new("m", by("$.old"));
        meter.metadata.namespace = Some(NAMESPACE.to_owned());
        meter.metadata.uid = Some(Uuid::new_v4().to_string());
        for (generation, path, worth) in [(1, "$.old", 1), (2, "$.new", 100), (3, "$.old", 1)] {
            meter.spec = by(path);
            meter.metadata.generation = Some(generation);
            // Nothing of what it knew is left, nor of what it had begun; the status is as it was.
            is_whole &= cut(steps, Reconciler::new(lab.warehouse.clone()).meter(&meter)).await.is_some();
            // By a view, if there is one by now, or by a copy.
            lab.post(&events(stored)).await.unwrap();
            stored += 10;
            lab.reconciler = Reconciler::new(lab.warehouse.clone());
            meter = lab.settle(meter).await;
            assert_eq!(lab.number("m").await, (stored * worth).to_string(), "{path}, cut off after {steps} steps");
            assert_read_as_final(&lab).await;
        }
        is_whole &= cut(steps, Reconciler::new(lab.warehouse.clone()).forget_meter(&meter)).await.is_some();
        Reconciler::new(lab.warehouse.clone()).forget_meter(&meter).await.unwrap();
        assert_eq!(lab.warehouse.tables_with_prefix("meter_").await.unwrap(), [], "cut off after {steps} steps");
        if is_whole {
            assert!(cuts > 10, "a reconcile has more than {cuts} steps");
            return;
        }
        cuts = steps;
    }
    panic!("a reconcile has more than {STEPS} steps");
}

/// A purge that was cut off at any statement leaves tables that take events, and is finished by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_was_cut_off_at_any_statement_is_finished_by_the_next() {
    // A purge waits for gateways, which takes seconds.
    const LABS: usize = 12;
    let purge = async |warehouse: &Warehouse, subject: &str| warehouse.purge(NAMESPACE, &[subject], Duration::from_secs(60)).await.unwrap();
    let count_statements = async {
        let (lab, halt, way) = lab_with_a_way().await;
        lab.post(&event("e", "t", "s", "2026-03-04T05:06:07Z", json!({}))).await.unwrap();
        halt.count(purge(&way, "s")).await
    };
    let statements = count_statements.await;
    assert!((40..STEPS).contains(&statements), "a purge has {statements} statements");
    let cut_off_from = async |first: usize| {
        let (lab, halt, way) = lab_with_a_way().await;
        for (done, number) in (first..statements).step_by(LABS).enumerate() {
            let end = *fastrand::choice(&[End::Before(number), End::During(number), End::After(number)]).unwrap();
            let (id, subject) = (format!("e{number}"), format!("s{number}"));
            let count = async || lab.number("m").await.parse::<usize>().unwrap() - done;
            let post = async |time: &str| {
                let sent = event(&id, "t", &subject, time, json!({}));
                // A gateway may have read the fence before a purge.
                eventually("it is let in", async || lab.post(&sent).await.ok()).await;
            };
            post("2026-03-04T05:06:07Z").await;
            halt.cut(end, purge(&way, &subject)).await;
            post("2026-05-04T05:06:07Z").await;
            let has = count().await;
            assert!(has <= 1, "{has}, cut off {end:?}");
            purge(&lab.warehouse, &subject).await;
            assert_eq!(count().await, 0, "cut off {end:?}");
            assert!(!lab.warehouse.fence().await.unwrap().is_purging);
            post("2026-06-04T05:06:07Z").await;
            assert_eq!(count().await, 1, "cut off {end:?}");
            let keys = format!("SELECT uniqExact(id), uniqExact(id, time) FROM {}", lab.warehouse.table("events"));
            let (ids, keys) = lab.warehouse.query(&keys).one::<(u64, u64)>().await.unwrap();
            assert_eq!(keys, ids, "one identity, one key; cut off {end:?}");
        }
    };
    futures::future::join_all((0..LABS).map(cut_off_from)).await;
}

/// A lab that counts events, and another way to its ClickHouse, that can be shut.
async fn lab_with_a_way() -> (Lab, Halt, Warehouse) {
    let (lab, halt) = (Lab::new(), Halt::default());
    lab.meter("m", spec("t", Aggregation::Count, None, &[])).await;
    let way = Warehouse::new(&WarehouseOptions { url: halt.to(&lab.options.url).await, ..lab.options.clone() });
    // That the tables are there is seen once in a process's life.
    way.ensure_bootstrap().await.unwrap();
    (lab, halt, way)
}

/// What becomes of one of two Customers, and which subjects each claims and has then.
struct Step {
    of: usize,
    /// None: it goes.
    subjects: Option<&'static [&'static str]>,
    claims: [&'static [&'static str]; 2],
    has: [&'static [&'static str]; 2],
}

/// The first, which is older, is onboarded, then the second. A subject moves to the second: first it is given up, then claimed. It moves
/// back: first it is claimed, and is the older one's at once, then given up. Both are offboarded.
const MOVES: &[Step] = &[
    Step { of: 0, subjects: Some(&["kept", "s"]), claims: [&["kept", "s"], &[]], has: [&["first", "kept", "s"], &["second"]] },
    Step {
        of: 1,
        subjects: Some(&["other", "own"]),
        claims: [&["kept", "s"], &["other", "own"]],
        has: [&["first", "kept", "s"], &["other", "own", "second"]],
    },
    Step {
        of: 0,
        subjects: Some(&["kept", "new"]),
        claims: [&["kept", "new"], &["other", "own"]],
        has: [&["first", "kept", "new"], &["other", "own", "second"]],
    },
    Step {
        of: 1,
        subjects: Some(&["own", "s"]),
        claims: [&["kept", "new"], &["own", "s"]],
        has: [&["first", "kept", "new"], &["own", "s", "second"]],
    },
    Step {
        of: 0,
        subjects: Some(&["kept", "s"]),
        claims: [&["kept", "s"], &["own", "s"]],
        has: [&["first", "kept", "s"], &["own", "second"]],
    },
    Step { of: 1, subjects: Some(&["own"]), claims: [&["kept", "s"], &["own"]], has: [&["first", "kept", "s"], &["own", "second"]] },
    Step { of: 0, subjects: None, claims: [&[], &["own"]], has: [&["first"], &["own", "second"]] },
    Step { of: 1, subjects: None, claims: [&[], &[]], has: [&["first"], &["second"]] },
];

const NAMES: [&str; 2] = ["first", "second"];
const SUBJECTS: [&str; 7] = ["first", "second", "kept", "s", "other", "own", "new"];

fn set<'a>(names: impl IntoIterator<Item = &'a &'a str>) -> BTreeSet<String> {
    names.into_iter().map(|name| (*name).to_owned()).collect()
}

fn new_customers() -> [Customer; 2] {
    [0, 1].map(|number: usize| {
        let mut customer = Customer::new(NAMES[number], CustomerSpec::default());
        let created = Timestamp::from_second(1_700_000_000 + number as i64).unwrap();
        customer.metadata.namespace = Some(NAMESPACE.to_owned());
        customer.metadata.uid = Some(Uuid::new_v4().to_string());
        customer.metadata.creation_timestamp = Some(Time(created));
        customer
    })
}

/// What a reconcile does for a step, which knows nothing of those before.
async fn take(warehouse: &Warehouse, step: &Step, customers: &[Customer; 2]) {
    let reconciler = Reconciler::new(warehouse.clone());
    if step.subjects.is_some() {
        reconciler.customer(&customers[step.of], customers).await.unwrap();
    } else {
        reconciler.forget_customer(&customers[step.of]).await.unwrap();
    }
}

async fn claims(lab: &Lab, customer: &Customer) -> BTreeSet<String> {
    let uid = customer.metadata.uid.as_ref().unwrap().parse().unwrap();
    lab.warehouse.claims(NAMESPACE, uid).await.unwrap().into_iter().collect()
}

/// Asserts whose the subjects are: by what a purge would take, and by usage, of which each subject has 1.
async fn assert_has(lab: &Lab, has: &[&[&str]; 2], told: &str) {
    let mut usage: BTreeMap<String, usize> = SUBJECTS.iter().map(|subject| ((*subject).to_owned(), 1)).collect();
    for (name, subjects) in NAMES.iter().zip(has) {
        let found = lab.warehouse.subjects_of(NAMESPACE, name).await.unwrap();
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), set(*subjects), "{name}, {told}");
        usage.retain(|subject, _| !subjects.contains(&subject.as_str()));
        usage.insert((*name).to_owned(), subjects.len());
    }
    let query = UsageQuery { group_by: ["customer".to_owned()].into(), ..total() };
    let rows = lab.usage("m", query).await.data.into_iter();
    let counted: BTreeMap<_, usize> = rows.map(|row| (row.customer.unwrap(), row.value.parse().unwrap())).collect();
    assert_eq!(counted, usage, "{told}");
}

/// The mapping of Customers is cut off before and after every statement of every reconcile by which subjects come, move and go.
#[tokio::test]
async fn customers_whose_reconcile_was_cut_off_at_any_statement_have_what_the_next_says() {
    let (lab, halt, way) = lab_with_a_way().await;
    let events = SUBJECTS.map(|subject| event(subject, "t", subject, "2026-03-04T05:06:07Z", json!({})));
    lab.post(&json!(events)).await.unwrap();
    let mut half_done = 0;
    for end in End::all().take(STEPS) {
        let (mut customers, mut is_whole) = (new_customers(), true);
        for (number, step) in MOVES.iter().enumerate() {
            let told = format!("step {number}, cut off {end:?}");
            let before = claims(&lab, &customers[step.of]).await;
            let wanted = set(step.claims[step.of]);
            customers[step.of].spec.subjects = step.subjects.iter().flat_map(|subjects| subjects.iter()).map(|s| (*s).to_owned()).collect();
            is_whole &= halt.cut(end, take(&way, step, &customers)).await.is_some();
            // What stays is never let go, and what comes does so before anything goes.
            let between = claims(&lab, &customers[step.of]).await;
            let both: BTreeSet<_> = before.union(&wanted).cloned().collect();
            assert!([&before, &both, &wanted].contains(&&between), "{between:?}, {told}");
            half_done += usize::from(between == both && between != before && between != wanted);
            take(&lab.warehouse, step, &customers).await;
            for (customer, expected) in customers.iter().zip(&step.claims) {
                assert_eq!(claims(&lab, customer).await, set(*expected), "{told}");
            }
            assert_has(&lab, &step.has, &told).await;
        }
        if is_whole {
            assert!(half_done >= 6, "three reconciles claim and take back, each is to be cut off twice in between, not {half_done} times");
            return;
        }
    }
    panic!("a reconcile has more than {} statements", STEPS / 2);
}
