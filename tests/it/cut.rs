//! An operator that ends between any two steps of a plan: whoever comes after it finishes what it finds.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use kubemeter::api::{Aggregation, Meter};
use kubemeter::reconcile::Reconciler;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::again::assert_read_as_final;
use crate::lab::{Lab, NAMESPACE, event, spec};
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

/// A purge that was cut off anywhere leaves tables that take events, and is finished by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_was_cut_off_anywhere_is_finished_by_the_next() {
    const LABS: usize = 8;
    // Each takes seconds, so they are others each time.
    const EACH: usize = 60;
    let offset = fastrand::usize(0..EACH);
    let cut_off_from = async |first: usize| {
        let lab = Lab::new();
        lab.meter("m", spec("t", Aggregation::Count, None, &[])).await;
        for (done, steps) in (first..STEPS * 20).step_by(LABS * EACH).enumerate() {
            let (id, subject) = (format!("e{steps}"), format!("s{steps}"));
            let count = async || lab.number("m").await.parse::<usize>().unwrap() - done;
            let post = async |time: &str| {
                let sent = event(&id, "t", &subject, time, json!({}));
                // A gateway may have read the fence before a purge.
                eventually("it is let in", async || lab.post(&sent).await.ok()).await;
            };
            let purge = async || lab.warehouse.purge(NAMESPACE, &[&subject], Duration::from_secs(60)).await;
            post("2026-03-04T05:06:07Z").await;
            let is_whole = cut(steps, purge()).await.is_some();
            post("2026-05-04T05:06:07Z").await;
            let has = count().await;
            assert!(has <= 1, "{has}, cut off after {steps} steps");
            purge().await.unwrap();
            assert_eq!(count().await, 0, "cut off after {steps} steps");
            assert!(!lab.warehouse.fence().await.unwrap().is_purging);
            post("2026-06-04T05:06:07Z").await;
            assert_eq!(count().await, 1, "cut off after {steps} steps");
            let keys = format!("SELECT uniqExact(id), uniqExact(id, time) FROM {}", lab.warehouse.table("events"));
            let (ids, keys) = lab.warehouse.query(&keys).one::<(u64, u64)>().await.unwrap();
            assert_eq!(keys, ids, "one identity, one key; cut off after {steps} steps");
            if is_whole {
                return steps;
            }
        }
        panic!("a purge has more than {} steps", STEPS * 20);
    };
    let whole = futures::future::join_all((1..=LABS).map(|lab| cut_off_from(lab * EACH - offset))).await;
    assert!(whole.iter().all(|steps| *steps > 100), "a purge has more steps than {whole:?}");
}
