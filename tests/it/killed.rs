//! The real operator, ended by SIGKILL before one statement after the other, and started again each time.

use std::collections::BTreeMap;
use std::process::Stdio;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kubemeter::api::{Aggregation, Customer, CustomerDeletionPolicy, CustomerSpec, Meter};
use kubemeter::event::{Form, parse};
use kubemeter::metering::{Caller, Metering as _, UsageQuery};
use serde_json::{Value, json};

use crate::again::assert_read_as_final;
use crate::cluster::install_crds;
use crate::halt::{End, Halt};
use crate::lab::{Lab, event, new_database, spec, total};
use crate::rights::Program;
use crate::support::{ClickHouse, ControlPlane, eventually};

/// More statements than an operator has that starts with something to do.
const STATEMENTS: usize = 300;

/// An operator on a way that can be shut, and a gateway in this process.
struct Killed {
    lab: Lab,
    halt: Halt,
    url: String,
    client: kube::Client,
    namespace: String,
}

impl Killed {
    async fn new() -> Self {
        let client = ControlPlane::shared().client().await;
        install_crds(&client).await;
        let namespace = ControlPlane::shared().namespace().await;
        let clickhouse = ClickHouse::shared().url();
        let (halt, lab) = (Halt::default(), Lab::in_database(clickhouse, &new_database()));
        let url = halt.to(clickhouse).await;
        Self { lab, halt, url, client, namespace }
    }

    /// Is killed when it is dropped.
    fn operator(&self) -> Program {
        let database = &self.lab.options.database;
        let options = ["--leader-election=false", "--watch-namespace", &self.namespace, "--clickhouse-database", database];
        Program::start("operator", ControlPlane::shared(), &self.url, &options, Stdio::null())
    }

    /// Lets operators work until something is so that takes more than `least` of them: the first is killed before its statement number
    /// `first`, each other one `step` statements later than the one before.
    async fn until(&self, what: &str, [first, step, least]: [usize; 3], is_so: impl AsyncFn() -> bool) {
        for (killed, number) in (first..STATEMENTS).step_by(step).enumerate() {
            let is_shut = self.halt.open_until(End::Before(number));
            let operator = self.operator();
            let is_done = tokio::select! {
                _ = is_shut => false,
                () = eventually(what, async || is_so().await.then_some(())) => true,
            };
            drop(operator);
            if is_done {
                assert!(killed > least, "{what}, and only {killed} operators were killed");
                return;
            }
        }
        panic!("{what}: it takes more than {STATEMENTS} statements");
    }

    fn api<K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn new_meter(&self, name: &str, aggregation: Aggregation, value: Option<&str>) {
        let meter = Meter::new(name, spec("t", aggregation, value, &[]));
        self.api().create(&PostParams::default(), &meter).await.unwrap();
    }

    async fn new_customer(&self, name: &str, subject: &str, deletion_policy: CustomerDeletionPolicy) {
        let customer = Customer::new(name, CustomerSpec { subjects: vec![subject.to_owned()], deletion_policy, ..CustomerSpec::default() });
        self.api().create(&PostParams::default(), &customer).await.unwrap();
    }

    /// Whether its spec that is there now answers. Then the gateway knows it, too.
    async fn is_made(&self, name: &str) -> bool {
        let meter: Meter = self.api().get(name).await.unwrap();
        let is_made = is_ready(&meter);
        if is_made {
            self.lab.catalog.put_meter(&meter);
        }
        is_made
    }

    /// Whether all Customers' specs that are there now answer.
    async fn are_mapped(&self) -> bool {
        self.api::<Customer>().list(&Default::default()).await.unwrap().items.iter().all(is_ready)
    }

    /// Whether the operator has let it go.
    async fn is_gone<K>(&self, name: &str) -> bool
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::de::DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.unwrap().is_none()
    }

    async fn post(&self, events: &Value) {
        let items = parse(Form::Json, events.to_string().into()).unwrap();
        self.lab.service.ingest_usage_events(&Caller::trusted(&self.namespace), items, false).await.unwrap();
    }

    /// Usage by customer, which must be these.
    async fn assert_usage(&self, meter: &str, expected: &[(&str, &str)]) {
        let query = UsageQuery { group_by: ["customer".to_owned()].into(), ..total() };
        let usage = self.lab.service.fetch_usage(&Caller::trusted(&self.namespace), meter, query).await.unwrap();
        let usage: BTreeMap<_, _> = usage.data.into_iter().map(|row| (row.customer.unwrap(), row.value)).collect();
        assert_eq!(usage, expected.iter().map(|(customer, value)| ((*customer).to_owned(), (*value).to_owned())).collect());
        assert_read_as_final(&self.lab).await;
    }

    /// What a Customer claims in ClickHouse, which must be these.
    async fn assert_claims(&self, name: &str, expected: &[&str]) {
        let customer: Customer = self.api().get(name).await.unwrap();
        let uid = customer.metadata.uid.unwrap().parse().unwrap();
        assert_eq!(self.lab.warehouse.claims(&self.namespace, uid).await.unwrap(), expected, "{name}");
    }
}

fn is_ready(object: &impl serde::Serialize) -> bool {
    let object = serde_json::to_value(object).unwrap();
    let is_ready = |conditions: &Vec<Value>| conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
        && object["status"]["conditions"].as_array().is_some_and(is_ready)
}

fn sent(number: usize, subject: &str) -> Value {
    event(&format!("{subject}{number}"), "t", subject, &format!("2026-0{}-04T05:06:07Z", 1 + number % 3), json!({"n": 2}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_was_killed_at_before_any_statement_is_finished_by_the_next() {
    let killed = Killed::new().await;
    killed.new_meter("count", Aggregation::Count, None).await;
    killed.until("a Meter is made in an empty database", [0, 1, 10], async || killed.is_made("count").await).await;
    let events: Vec<Value> = (0..5).flat_map(|number| ["kept", "moved"].map(|subject| sent(number, subject))).collect();
    killed.post(&json!(events)).await;
    killed.new_meter("sum", Aggregation::Sum, Some("$.n")).await;
    killed.until("a Meter over events is made", [10, 1, 10], async || killed.is_made("sum").await).await;
    killed.assert_usage("sum", &[("kept", "10"), ("moved", "10")]).await;

    killed.api::<Meter>().delete("count", &DeleteParams::default()).await.unwrap();
    killed.until("a Meter goes", [3, 1, 3], async || killed.is_gone::<Meter>("count").await).await;
    let tables = killed.lab.warehouse.tables_with_prefix("meter_").await.unwrap();
    assert_eq!(tables.iter().filter(|(name, _)| !name.ends_with("_view")).count(), 1, "{tables:?}");

    killed.new_customer("old", "moved", CustomerDeletionPolicy::Retain).await;
    killed.until("a Customer is mapped", [fastrand::usize(6..9), 3, 3], async || killed.are_mapped().await).await;
    killed.assert_usage("sum", &[("kept", "10"), ("old", "10")]).await;
    let other = json!({"spec": {"subjects": ["kept"]}});
    killed.api::<Customer>().patch("old", &PatchParams::default(), &Patch::Merge(&other)).await.unwrap();
    killed.new_customer("new", "moved", CustomerDeletionPolicy::Purge).await;
    killed.until("a subject has moved to another Customer", [fastrand::usize(6..9), 3, 3], async || killed.are_mapped().await).await;
    killed.assert_usage("sum", &[("new", "10"), ("old", "10")]).await;
    killed.assert_claims("old", &["kept"]).await;
    killed.assert_claims("new", &["moved"]).await;

    killed.api::<Customer>().delete("new", &DeleteParams::default()).await.unwrap();
    // Each has to wait for the gateways, which takes seconds.
    let first = fastrand::usize(15..45);
    killed.until("a Customer goes with its events", [first, 30, 1], async || killed.is_gone::<Customer>("new").await).await;
    killed.assert_usage("sum", &[("old", "10")]).await;
    assert!(!killed.lab.warehouse.fence().await.unwrap().is_purging);
    killed.post(&json!(events)).await;
    killed.assert_usage("sum", &[("moved", "10"), ("old", "10")]).await;
}
