//! Many objects: an operator that has nothing to do asks for nothing, and its restart changes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::api::{Api, ListParams, PostParams};
use kube::{CustomResourceExt, Resource};
use kubemeter::api::{Aggregation, Customer, CustomerSpec, Meter};
use kubemeter::warehouse::Warehouse;
use serde_json::Value;

use crate::lab::spec;
use crate::rights::Program;
use crate::support::{ClickHouse, ControlPlane, eventually};

/// Objects of each kind.
const OBJECTS: usize = 30;
/// Longer than from one renewal of the lease to the next.
const IDLE: Duration = Duration::from_secs(8);
/// Without a call for so long it has come to rest.
const REST: Duration = Duration::from_secs(3);

/// The operator's calls that the API server has logged, with how often each was made.
fn calls(audit: &Path) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    for line in std::fs::read_to_string(audit).unwrap().lines() {
        // The last may be half written.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        if event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("kubemeter-operator/")) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let resource = [&event["objectRef"]["resource"], &event["objectRef"]["subresource"]].map(text).join("/");
            ids.insert(text(&event["auditID"]), format!("{} {}", text(&event["verb"]), resource.trim_end_matches('/')));
        }
    }
    let mut calls = BTreeMap::new();
    ids.into_values().for_each(|call| *calls.entry(call).or_default() += 1);
    calls
}

fn is_of_the_lease(call: &str) -> bool {
    call.ends_with(" leases")
}

/// What an operator needs not do without a reason.
fn work(audit: &Path) -> BTreeMap<String, usize> {
    calls(audit).into_iter().filter(|(call, _)| !is_of_the_lease(call) && !call.starts_with("watch ")).collect()
}

/// Waits until the operator has nothing to do.
async fn at_rest(audit: &Path) {
    let (mut last, mut since) = (work(audit), Instant::now());
    eventually("it comes to rest", async || {
        let now = work(audit);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > REST).then_some(())
    })
    .await;
}

/// Statements that ClickHouse has counted: those that read, and those that neither read nor insert.
async fn statements(warehouse: &Warehouse) -> (i64, i64) {
    let count = "SELECT toInt64(sumIf(value, event = 'SelectQuery')), toInt64(sumIf(value, event = 'Query')) - \
                 toInt64(sumIf(value, event IN ('SelectQuery', 'InsertQuery'))) FROM system.events";
    warehouse.query(count).one().await.unwrap()
}

async fn all_ready<K>(api: &Api<K>) -> Option<()>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let items = api.list(&ListParams::default()).await.unwrap().items;
    let ready = |item: &K| {
        let status = serde_json::to_value(item).unwrap()["status"]["conditions"].clone();
        status.as_array().is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    (items.len() == OBJECTS && items.iter().all(ready)).then_some(())
}

#[tokio::test]
async fn an_idle_operator_asks_for_nothing_and_its_restart_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.log");
    let (plane, clickhouse) = (ControlPlane::start_audited(&audit), ClickHouse::start_own());
    let client = plane.client().await;
    for crd in [Meter::crd(), Customer::crd()] {
        Api::all(client.clone()).create(&PostParams::default(), &crd).await.unwrap();
    }
    let namespace = plane.namespace().await;
    let (meters, customers): (Api<Meter>, Api<Customer>) =
        (Api::namespaced(client.clone(), &namespace), Api::namespaced(client.clone(), &namespace));
    let start = || Program::start("operator", &plane, clickhouse.url(), &[], Stdio::inherit());
    let reconciled = async |operator: &Program| {
        let text = reqwest::get(format!("http://{}/metrics", operator.address)).await.ok()?.text().await.ok()?;
        let lines = text.lines().filter(|line| line.starts_with("kubemeter_reconciles_total{") && line.contains("\"ok\""));
        Some(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>())
    };

    let operator = start();
    eventually("the kinds are served", async || meters.list(&ListParams::default()).await.ok()).await;
    for number in 0..OBJECTS {
        let meter = Meter::new(&format!("m{number}"), spec(&format!("type-{number}"), Aggregation::Sum, Some("$.n"), &[("g", "$.g")]));
        meters.create(&PostParams::default(), &meter).await.unwrap();
        customers.create(&PostParams::default(), &Customer::new(&format!("c{number}"), CustomerSpec::default())).await.unwrap();
    }
    eventually("the meters are ready", async || all_ready(&meters).await).await;
    eventually("the customers are ready", async || all_ready(&customers).await).await;
    let is_counted = |meter: &Meter| meter.status.as_ref().is_some_and(|status| status.events.is_some());
    let are_counted = async || meters.list(&ListParams::default()).await.unwrap().items.iter().all(is_counted).then_some(());
    eventually("their events are counted", are_counted).await;
    at_rest(&audit).await;

    let (before, leases) = (work(&audit), calls(&audit)["patch leases"]);
    // Nothing can be awaited here: it is that nothing comes.
    tokio::time::sleep(IDLE).await;
    assert_eq!(work(&audit), before, "an idle operator has something to do");
    assert!(calls(&audit)["patch leases"] > leases, "the lease is renewed, and seen in the log");

    drop(operator);
    let url = clickhouse.url().to_owned();
    let options = crate::lab::options(&url, "kubemeter", kubemeter::warehouse::Topology::Single);
    let warehouse = Warehouse::new(&options);
    let (writes, (read, changed)) = (writes(&audit), statements(&warehouse).await);
    let operator = start();
    eventually("it has looked at all", async || (reconciled(&operator).await? >= 2 * OBJECTS).then_some(())).await;
    at_rest(&audit).await;
    let (reads, changes) = statements(&warehouse).await;
    assert!(reads - read >= 2 * OBJECTS as i64, "it looks at each");
    // `SHOW CREATE TABLE`, to see whether landing tables know the fence.
    assert_eq!(changes - changed, 1, "DDL");
    assert_eq!(self::writes(&audit), writes, "it writes nothing that is written already");
}

/// Calls that changed something, but the lease.
fn writes(audit: &Path) -> BTreeMap<String, usize> {
    work(audit).into_iter().filter(|(call, _)| !["get", "list"].iter().any(|verb| call.starts_with(verb))).collect()
}
