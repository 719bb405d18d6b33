//! A service that notes what it was called with and answers what it is told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::api::{Aggregation, CustomerDeletionPolicy, DeletionPolicy};
use crate::event::Item;
use crate::metering::*;

/// Namespace of callers without one.
pub const DEFAULT_NAMESPACE: &str = "shop";

#[derive(Default)]
pub struct Fake {
    /// Every call, with its arguments as they print.
    pub calls: Mutex<Vec<String>>,
    /// What every call fails with.
    pub error: Option<fn() -> Error>,
    /// Every call panics.
    pub panics: bool,
    /// Every call takes so long.
    pub delay: Duration,
    /// What ingest answers.
    pub ingested: Option<Ingested>,
}

impl Fake {
    pub fn failing(error: fn() -> Error) -> Arc<Self> {
        Arc::new(Self { error: Some(error), ..Self::default() })
    }

    pub fn last(&self) -> String {
        self.calls.lock().unwrap().last().cloned().unwrap_or_default()
    }

    async fn answer<T>(&self, call: String, answer: T) -> Result<T, Error> {
        self.calls.lock().unwrap().push(call);
        assert!(!self.panics, "secret of the inside");
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        self.error.map_or(Ok(answer), |error| Err(error()))
    }
}

pub fn meter(name: &str) -> MeterDocument {
    MeterDocument {
        meter_id: name.to_owned(),
        description: None,
        event_type: "api.request".to_owned(),
        aggregation: Aggregation::Count,
        value_property: None,
        group_by: [("method".to_owned(), "$.method".to_owned())].into(),
        unit: None,
        retention: None,
        deletion_policy: DeletionPolicy::Retain,
        namespace: None,
        resource_version: None,
        created_at: None,
        status: None,
    }
}

fn customer(name: &str) -> CustomerDocument {
    CustomerDocument {
        customer_id: name.to_owned(),
        display_name: None,
        subjects: vec!["acme-prod".to_owned()],
        deletion_policy: CustomerDeletionPolicy::Retain,
        namespace: None,
        resource_version: None,
        created_at: None,
        status: None,
    }
}

fn page<T>(item: T) -> Listing<T> {
    Listing { items: vec![item], next: Some("more".to_owned()) }
}

fn cancellation(id: Uuid) -> CancellationRecord {
    CancellationRecord {
        cancellation_id: id,
        reason: None,
        created_at: "2026-01-31T00:00:00Z".parse().unwrap(),
        cancelled: 3,
        reverted_at: None,
        cancelled_by: None,
        reverted_by: None,
    }
}

impl Metering for Fake {
    async fn create_meter(&self, caller: &Caller, meter: MeterDocument) -> Result<MeterDocument, Error> {
        self.answer(format!("create_meter {caller:?} {meter:?}"), meter).await
    }
    async fn fetch_meter(&self, caller: &Caller, meter_id: &str) -> Result<MeterDocument, Error> {
        self.answer(format!("fetch_meter {caller:?} {meter_id}"), meter(meter_id)).await
    }
    async fn fetch_all_meters(&self, caller: &Caller, asked: Page) -> Result<Listing<MeterDocument>, Error> {
        self.answer(format!("fetch_all_meters {caller:?} {asked:?}"), page(meter("calls"))).await
    }
    async fn update_meter(&self, caller: &Caller, meter_id: &str, meter: MeterDocument) -> Result<MeterDocument, Error> {
        self.answer(format!("update_meter {caller:?} {meter_id} {meter:?}"), meter).await
    }
    async fn delete_meter(&self, caller: &Caller, meter_id: &str) -> Result<(), Error> {
        self.answer(format!("delete_meter {caller:?} {meter_id}"), ()).await
    }
    async fn ingest_usage_events(&self, caller: &Caller, items: Vec<Item>, atomic: bool) -> Result<Ingested, Error> {
        let ingested = self.ingested.clone().unwrap_or(Ingested { accepted: items.len(), rejected: Vec::new() });
        self.answer(format!("ingest {caller:?} atomic={atomic} items={} {items:?}", items.len()), ingested).await
    }
    async fn fetch_usage(&self, caller: &Caller, meter_id: &str, query: UsageQuery) -> Result<Usage, Error> {
        let row = |method: &str, value: &str| UsageRow {
            window_start: query.from,
            window_end: query.to,
            customer: query.group_by.contains("customer").then(|| "acme, \"Inc\"".to_owned()),
            subject: query.group_by.contains("subject").then(|| "=1+1".to_owned()),
            group_by: query.group_by.iter().filter(|g| *g == "method").map(|g| (g.clone(), method.to_owned())).collect(),
            value: value.to_owned(),
        };
        let usage = Usage {
            meter_id: meter_id.to_owned(),
            unit: Some("ms".to_owned()),
            from: query.from,
            to: query.to,
            window_size: query.window_size,
            window_time_zone: query.time_zone.iana_name().unwrap_or("?").to_owned(),
            data: vec![row("GET", "-1234.500000000001"), row("", "12345678901234567890.123456789")],
        };
        let zone = query.time_zone.iana_name().unwrap_or("?").to_owned();
        let UsageQuery { from, to, window_size, customers, subjects, group_by, filters, .. } = query;
        let asked = format!("{from:?} {to:?} {window_size:?} {zone} {customers:?} {subjects:?} {group_by:?} {filters:?}");
        self.answer(format!("fetch_usage {caller:?} {meter_id} {asked}"), usage).await
    }
    async fn cancel_usage_events(&self, caller: &Caller, cancel: CancelRequest) -> Result<Cancelled, Error> {
        let cancellation_id = (!cancel.dry_run).then(Uuid::nil);
        let answer = Cancelled { cancellation_id, cancelled: 1, not_found: Vec::new(), dry_run: cancel.dry_run };
        self.answer(format!("cancel {caller:?} {cancel:?}"), answer).await
    }
    async fn create_customer(&self, caller: &Caller, customer: CustomerDocument) -> Result<CustomerDocument, Error> {
        self.answer(format!("create_customer {caller:?} {customer:?}"), customer).await
    }
    async fn delete_customer(&self, caller: &Caller, customer_id: &str) -> Result<(), Error> {
        self.answer(format!("delete_customer {caller:?} {customer_id}"), ()).await
    }
}

impl Records for Fake {
    async fn fetch_customer(&self, caller: &Caller, customer_id: &str) -> Result<CustomerDocument, Error> {
        self.answer(format!("fetch_customer {caller:?} {customer_id}"), customer(customer_id)).await
    }
    async fn fetch_all_customers(&self, caller: &Caller, asked: Page) -> Result<Listing<CustomerDocument>, Error> {
        self.answer(format!("fetch_all_customers {caller:?} {asked:?}"), page(customer("acme"))).await
    }
    async fn update_customer(&self, caller: &Caller, customer_id: &str, customer: CustomerDocument) -> Result<CustomerDocument, Error> {
        self.answer(format!("update_customer {caller:?} {customer_id} {customer:?}"), customer).await
    }
    async fn list_events(&self, caller: &Caller, filter: EventFilter, asked: Page) -> Result<Listing<StoredEvent>, Error> {
        let time = "2026-01-31T00:00:00.250Z".parse().unwrap();
        let event = StoredEvent {
            id: "e1".to_owned(),
            source: "gw".to_owned(),
            event_type: "api.request".to_owned(),
            subject: "acme".to_owned(),
            time,
            received: time,
            data: serde_json::value::RawValue::from_string("{\"a\":1.50}".to_owned()).unwrap(),
            meters: vec!["calls".to_owned()],
            cancellation_id: None,
        };
        self.answer(format!("list_events {caller:?} {filter:?} {asked:?}"), page(event)).await
    }
    async fn list_rejected(&self, caller: &Caller, asked: Page) -> Result<Listing<RejectedEvent>, Error> {
        let rejected = RejectedEvent {
            reject_id: Uuid::nil(),
            received: "2026-01-31T00:00:00Z".parse().unwrap(),
            source: None,
            id: None,
            code: "invalid_event".to_owned(),
            message: "no JSON".to_owned(),
            event: "{".to_owned(),
        };
        self.answer(format!("list_rejected {caller:?} {asked:?}"), page(rejected)).await
    }
    async fn replay_rejected(&self, caller: &Caller, only: Vec<Uuid>) -> Result<Ingested, Error> {
        self.answer(format!("replay {caller:?} {only:?}"), Ingested { accepted: 2, rejected: Vec::new() }).await
    }
    async fn list_cancellations(&self, caller: &Caller, asked: Page) -> Result<Listing<CancellationRecord>, Error> {
        self.answer(format!("list_cancellations {caller:?} {asked:?}"), page(cancellation(Uuid::nil()))).await
    }
    async fn revert_cancellation(&self, caller: &Caller, id: Uuid) -> Result<CancellationRecord, Error> {
        self.answer(format!("revert {caller:?} {id}"), cancellation(id)).await
    }
    async fn ready(&self) -> Result<(), String> {
        self.answer("ready".to_owned(), ()).await.map_err(|why| why.to_string())
    }
    fn default_namespace(&self) -> &str {
        DEFAULT_NAMESPACE
    }
}
