//! An operator that ends between any two steps of a plan: whoever comes after it finishes what it finds.

use std::future::{Future, poll_fn};
use std::task::Poll;

use kubemeter::api::{Aggregation, Meter};
use kubemeter::reconcile::Reconciler;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::again::assert_read_as_final;
use crate::lab::{Lab, NAMESPACE, event, spec};

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
