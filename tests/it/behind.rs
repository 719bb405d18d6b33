//! A gateway that has heard nothing more of Meters gives the right number or none.

use std::sync::Arc;

use kubemeter::api::{Aggregation, DeletionPolicy, Meter, MeterSpec};
use kubemeter::catalog::Catalog;
use kubemeter::metering::{CancelRequest, CancelTarget, Error, EventFilter, Metering as _, Page, Records as _};
use kubemeter::service::Service;
use kubemeter::telemetry::Metrics;
use kubemeter::warehouse::layout::view;
use kubemeter::warehouse::note::{TableNote, TableState};
use serde_json::json;

use crate::lab::{Lab, NAMESPACE, active, event, spec, total};
use crate::nowhere::Nowhere;

/// A gateway that knows this Meter, and heard nothing since.
pub fn that_knows(lab: &Lab, meter: &Meter) -> Service<Nowhere> {
    let (catalog, metrics) = (Catalog::default(), Arc::new(Metrics::new().unwrap()));
    catalog.set_synced();
    catalog.put_meter(meter);
    Service::new(Nowhere, catalog, lab.warehouse.clone(), metrics, NAMESPACE.to_owned(), false)
}

/// Its number of the Meter `m`.
pub async fn number(gateway: &Service<Nowhere>) -> Result<String, Error> {
    let usage = gateway.fetch_usage(&Lab::caller(), "m", total()).await?;
    Ok(usage.data.first().map_or_else(|| "0".to_owned(), |row| row.value.clone()))
}

/// Whether it says of all that it would read of the Meter `m` that it can't now, and cancels nothing.
pub async fn answers_nothing(gateway: &Service<Nowhere>) -> bool {
    let is_unavailable = |error: Error| matches!(error, Error::Unavailable { .. });
    let cancel = |dry_run| CancelRequest {
        target: CancelTarget::Filter { meter_id: "m".to_owned(), query: Box::new(total()) },
        dry_run,
        reason: Some("test".to_owned()),
    };
    let filter = EventFilter { uncounted_by: Some("m".to_owned()), ..EventFilter::default() };
    let caller = Lab::caller();
    number(gateway).await.is_err_and(is_unavailable)
        && gateway.cancel_usage_events(&caller, cancel(true)).await.is_err_and(is_unavailable)
        && gateway.cancel_usage_events(&caller, cancel(false)).await.is_err_and(is_unavailable)
        && gateway.list_events(&caller, filter, Page::default()).await.is_err_and(is_unavailable)
        && gateway.list_cancellations(&caller, Page::default()).await.unwrap().items.is_empty()
}

fn one(id: &str) -> serde_json::Value {
    event(id, "t", "s", "2026-03-04T05:06:07Z", json!({"v": 1}))
}

/// A Meter that has counted an event, which it keeps when it goes, and a gateway that hears nothing from now on.
async fn counted_once() -> (Lab, Meter, Service<Nowhere>) {
    let lab = Lab::new();
    let sum = MeterSpec { deletion_policy: DeletionPolicy::Retain, ..spec("t", Aggregation::Sum, Some("$.v"), &[]) };
    let meter = lab.meter("m", sum).await;
    lab.post(&one("a")).await.unwrap();
    let behind = that_knows(&lab, &meter);
    assert_eq!(number(&behind).await.unwrap(), "1");
    (lab, meter, behind)
}

#[tokio::test]
async fn a_retained_table_answers_no_more() {
    let (lab, meter, behind) = counted_once().await;
    lab.reconciler.forget_meter(&meter).await.unwrap();
    lab.post(&one("b")).await.unwrap();
    assert!(answers_nothing(&behind).await);
}

#[tokio::test]
async fn a_table_that_lost_its_view_answers_no_more_wherever_it_was_lost() {
    let (lab, meter, behind) = counted_once().await;
    // As a drop leaves it that was cut off, before the operator or anybody knows.
    lab.warehouse.query(&lab.warehouse.topology().drop_one(lab.warehouse.database(), &view(&active(&meter)))).run().await.unwrap();
    lab.post(&one("b")).await.unwrap();
    assert!(answers_nothing(&behind).await);
    let again = lab.settle(meter).await;
    assert_eq!((lab.number("m").await.as_str(), number(&that_knows(&lab, &again)).await.unwrap().as_str()), ("2", "2"));
    assert!(answers_nothing(&behind).await, "another table took its place");
}

#[tokio::test]
async fn a_table_that_is_not_complete_answers_no_more() {
    let (lab, meter, behind) = counted_once().await;
    let note = lab.note(&meter).await;
    for (state, is_whole) in [
        (TableState::Ahead(202_601), false),
        (TableState::New, false),
        (TableState::Filling(202_601), false),
        (TableState::Live, true),
        (TableState::Retired(1), true),
        (TableState::Going, false),
        (TableState::Retained, false),
    ] {
        let note = TableNote { state, ..note.clone() };
        lab.warehouse.run_ddl(&note.alter(lab.warehouse.topology(), lab.warehouse.database(), &active(&meter)).unwrap()).await.unwrap();
        if is_whole {
            assert_eq!(number(&behind).await.unwrap(), "1", "{note:?}");
        } else {
            assert!(answers_nothing(&behind).await, "{note:?}");
        }
    }
}
