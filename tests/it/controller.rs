//! The controllers' machinery on a real API server: finalizers, status, Events, back-off, giving up, rivals.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use kubemeter::api::{
    Aggregation, ConditionType, Conditions, Customer, CustomerSpec, CustomerStatus, FINALIZER, Meter, MeterSpec, Reason, SKIP_CLEANUP,
};
use kubemeter::command::{ClickhouseAccount, ClickhouseOptions};
use kubemeter::controller::{self, Backoff, Managed, Options, Setup, Work};
use kubemeter::reconcile::{Error, Notice, Outcome, Reconciler};
use kubemeter::telemetry::Metrics;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use crate::cluster::install_crds;
use crate::support::{ControlPlane, eventually};

struct Running {
    client: Client,
    namespace: String,
    metrics: Arc<Metrics>,
    _stop: DropGuard,
}

async fn run<K: Managed, W: Work<K>>(work: W, cleanup_tries: u32) -> Running {
    let plane = ControlPlane::shared();
    let client = plane.client().await;
    install_crds(&client).await;
    let namespace = plane.namespace().await;
    let backoff = Backoff { min: Duration::from_millis(20), max: Duration::from_millis(50) };
    let metrics = Arc::new(Metrics::new().unwrap());
    let setup = Setup {
        client: client.clone(),
        namespace: Some(namespace.clone()),
        options: Options { backoff, cleanup_tries, ..Options::default() },
        metrics: metrics.clone(),
        instance: "test".into(),
    };
    let (listed, stop) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(controller::run::<K, W>(setup, work, listed.clone(), stop.clone()));
    tokio::time::timeout(crate::support::DEADLINE, listed.cancelled()).await.unwrap();
    Running { client, namespace, metrics, _stop: stop.drop_guard() }
}

impl Running {
    fn api<K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn event(&self, reason: &str, of: &str) -> Event {
        let events: Api<Event> = self.api();
        eventually(&format!("Event {reason} of {of}"), async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            all.items
                .into_iter()
                .find(|e| e.reason.as_deref() == Some(reason) && e.regarding.as_ref().is_some_and(|o| o.name.as_deref() == Some(of)))
        })
        .await
    }
}

/// A reconciler whose ClickHouse is not there.
async fn without_clickhouse() -> Reconciler {
    let options = ClickhouseOptions {
        clickhouse_url: "http://127.0.0.1:1".into(),
        account: ClickhouseAccount {
            clickhouse_database: "kubemeter".into(),
            clickhouse_user: "default".into(),
            clickhouse_password_file: None,
            clickhouse_cluster: None,
            clickhouse_shards: None,
            clickhouse_replicas: 1,
            clickhouse_nodes: Vec::new(),
        },
    };
    Reconciler::connect(&options).await.unwrap()
}

fn meter(name: &str) -> Meter {
    let spec = MeterSpec {
        description: None,
        event_type: "a".into(),
        aggregation: Aggregation::Count,
        value_property: None,
        group_by: Default::default(),
        unit: None,
        retention: None,
        deletion_policy: Default::default(),
    };
    Meter::new(name, spec)
}

#[tokio::test]
async fn without_clickhouse_a_meter_says_so_and_goes_after_bounded_tries() {
    let running = run::<Meter, _>(without_clickhouse().await, 3).await;
    let meters: Api<Meter> = running.api();
    meters.create(&PostParams::default(), &meter("m")).await.unwrap();
    let condition = eventually("a condition", async || {
        let meter = meters.get("m").await.unwrap();
        assert!(meter.status.is_none() || meter.finalizers().contains(&FINALIZER.to_owned()), "no work before the finalizer");
        meter.status?.conditions.into_iter().find(|c| c.type_ == "Ready")
    })
    .await;
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "ClickHouseUnavailable"), "{}", condition.message);
    let event = running.event("ClickHouseUnavailable", "m").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));

    // It is tried again and again, and neither status nor Events tell the same twice.
    let before = meters.get("m").await.unwrap().resource_version();
    eventually("five failures", async || {
        let text = String::from_utf8(running.metrics.text().unwrap()).unwrap();
        let line = text.lines().find(|line| line.contains("result=\"ClickHouseUnavailable\"")).map(str::to_owned)?;
        (line.rsplit(' ').next()?.parse::<u64>().ok()? >= 5).then_some(())
    })
    .await;
    assert_eq!(meters.get("m").await.unwrap().resource_version(), before);

    meters.delete("m", &DeleteParams::default()).await.unwrap();
    eventually("the Meter goes", async || meters.get_opt("m").await.unwrap().is_none().then_some(())).await;
    let event = running.event("CleanupSkipped", "m").await;
    assert!(event.note.unwrap_or_default().contains("failed 3 times"));
}

#[tokio::test]
async fn an_annotation_skips_the_cleaning() {
    let running = run::<Meter, _>(without_clickhouse().await, u32::MAX).await;
    let meters: Api<Meter> = running.api();
    meters.create(&PostParams::default(), &meter("m")).await.unwrap();
    eventually("the finalizer", async || (!meters.get("m").await.unwrap().finalizers().is_empty()).then_some(())).await;
    meters.delete("m", &DeleteParams::default()).await.unwrap();
    running.event("ClickHouseUnavailable", "m").await;
    assert!(meters.get_opt("m").await.unwrap().is_some(), "it waits for ClickHouse");
    let annotation = Patch::Merge(json!({"metadata": {"annotations": {SKIP_CLEANUP: "true"}}}));
    meters.patch("m", &PatchParams::default(), &annotation).await.unwrap();
    eventually("the Meter goes", async || meters.get_opt("m").await.unwrap().is_none().then_some(())).await;
    running.event("CleanupSkipped", "m").await;
}

/// What was asked: verb, customer, rivals.
type Asked = (&'static str, String, Vec<String>);

/// Work that always succeeds and notes what it was asked.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<Asked>>>);

impl Ledger {
    fn note(&self, verb: &'static str, customer: &Customer, rivals: &[Customer]) {
        let rivals = rivals.iter().map(ResourceExt::name_any).collect();
        self.0.lock().unwrap().push((verb, customer.name_any(), rivals));
    }

    async fn waits_for(&self, verb: &str, name: &str, rivals: &[&str]) {
        eventually(&format!("{verb} {name} {rivals:?}"), async || {
            self.0.lock().unwrap().iter().any(|(v, n, r)| *v == verb && n == name && r == rivals).then_some(())
        })
        .await;
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl Work<Customer> for Ledger {
    async fn apply(&self, customer: &Customer, rivals: &[Customer]) -> Result<Outcome<CustomerStatus>, Error> {
        self.note("apply", customer, rivals);
        let before = customer.status.clone().unwrap_or_default().conditions;
        let now = k8s_openapi::jiff::Timestamp::now();
        let conditions =
            Conditions::after(&before, customer.metadata.generation, now).with(ConditionType::Ready, true, Reason::Mapped, "fine").build();
        let notices = vec![Notice { warning: false, reason: Reason::Mapped, message: "fine".into() }];
        Ok(Outcome { status: CustomerStatus { observed_generation: customer.metadata.generation, conditions }, notices, requeue: None })
    }

    async fn forget(&self, customer: &Customer, rivals: &[Customer]) -> Result<(), Error> {
        self.note("forget", customer, rivals);
        Ok(())
    }

    fn failed(_: &Customer, _: &Error) -> CustomerStatus {
        CustomerStatus::default()
    }
}

fn customer(name: &str, subjects: &[&str]) -> Customer {
    Customer::new(name, CustomerSpec { subjects: subjects.iter().map(|s| (*s).to_owned()).collect(), ..CustomerSpec::default() })
}

#[tokio::test]
async fn rivals_are_reconciled_when_a_customer_changes_or_goes() {
    let ledger = Ledger::default();
    let running = run::<Customer, _>(ledger.clone(), 3).await;
    let customers: Api<Customer> = running.api();
    for (name, subjects) in [("a", ["x"]), ("b", ["x"])] {
        customers.create(&PostParams::default(), &customer(name, &subjects)).await.unwrap();
        ledger.waits_for("apply", name, if name == "a" { &[] } else { &["a"] }).await;
    }
    ledger.waits_for("apply", "a", &["b"]).await;
    ledger.clear();
    let subjects = Patch::Merge(json!({"spec": {"subjects": ["y"]}}));
    customers.patch("b", &PatchParams::default(), &subjects).await.unwrap();
    ledger.waits_for("apply", "a", &[]).await;
    ledger.clear();
    let subjects = Patch::Merge(json!({"spec": {"subjects": ["x"]}}));
    customers.patch("b", &PatchParams::default(), &subjects).await.unwrap();
    ledger.waits_for("apply", "a", &["b"]).await;
    ledger.clear();
    customers.delete("b", &DeleteParams::default()).await.unwrap();
    ledger.waits_for("forget", "b", &["a"]).await;
    ledger.waits_for("apply", "a", &[]).await;
    running.event("Mapped", "a").await;
}

#[tokio::test]
async fn what_does_not_matter_brings_nothing_back() {
    let ledger = Ledger::default();
    let running = run::<Customer, _>(ledger.clone(), 3).await;
    let customers: Api<Customer> = running.api();
    customers.create(&PostParams::default(), &customer("a", &[])).await.unwrap();
    ledger.waits_for("apply", "a", &[]).await;
    eventually("a status", async || customers.get("a").await.unwrap().status).await;
    ledger.clear();
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "shop"}}}));
    customers.patch("a", &PatchParams::default(), &label).await.unwrap();
    let status = Patch::Merge(json!({"status": {"observedGeneration": 7}}));
    customers.patch_status("a", &PatchParams::default(), &status).await.unwrap();
    // Another object's reconcile comes after both changes were seen.
    customers.create(&PostParams::default(), &customer("z", &[])).await.unwrap();
    ledger.waits_for("apply", "z", &[]).await;
    let notes = ledger.0.lock().unwrap().clone();
    assert!(notes.iter().all(|(_, name, _)| name == "z"), "{notes:?}");
}
