//! Two operators that both believe to lead: the lease is taken from one while meters are edited, and no step of a plan is
//! harmed.

use std::process::Stdio;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kubemeter::api::{Aggregation, DeletionPolicy, Meter};
use kubemeter::controller::leader::LEASE;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::install_crds;
use crate::lab::{Lab, event, spec};
use crate::rights::Program;
use crate::support::{ClickHouse, ControlPlane, eventually};

const METERS: usize = 6;
const EVENTS: usize = 300;
/// As often is the lease taken, and more often until both have led at a time.
const ROUNDS: usize = 3;
/// See [`ROUNDS`].
const MOST: usize = 10;
const NAMES: [&str; 3] = ["a", "b", "c"];

async fn leads(operator: &Program) -> bool {
    let Ok(answer) = reqwest::get(format!("http://{}/metrics", operator.address)).await else { return false };
    answer.text().await.is_ok_and(|text| text.contains("\nkubemeter_leading 1\n"))
}

/// Whether the spec that is there now answers.
fn is_settled(meter: &Meter) -> bool {
    let status = serde_json::to_value(&meter.status).unwrap();
    status["observedGeneration"].as_i64() == meter.metadata.generation
        && status["conditions"].as_array().is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

#[tokio::test]
async fn a_lease_that_is_taken_while_meters_are_edited_harms_nothing() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::shared());
    let client = plane.client().await;
    install_crds(&client).await;
    let namespace = plane.namespace().await;
    let (meters, leases): (Api<Meter>, Api<Lease>) =
        (Api::namespaced(client.clone(), &namespace), Api::namespaced(client.clone(), &namespace));
    let database = format!("leaders_{}", Uuid::new_v4().simple());
    let lab = Lab::in_database(clickhouse.url(), &database);
    let options = ["--watch-namespace", &namespace, "--lease-namespace", &namespace, "--clickhouse-database", &database];
    // In a pod the kubelet starts it again.
    let start = || Program::start("operator", plane, clickhouse.url(), &options, Stdio::null());

    let mut first = start();
    eventually("the first leads", async || leads(&first).await.then_some(())).await;
    for number in 0..METERS {
        let mut wanted = spec("call", Aggregation::Sum, Some("$.n"), &[("a", "$.a")]);
        wanted.deletion_policy = DeletionPolicy::Retain;
        meters.create(&PostParams::default(), &Meter::new(&format!("m{number}"), wanted)).await.unwrap();
    }
    let all = async || meters.list(&Default::default()).await.unwrap().items;
    let settled = async || {
        let all = all().await;
        (all.len() == METERS && all.iter().all(is_settled)).then_some(all)
    };
    eventually("all are ready", settled).await;
    // What the gateway would take: the same namespace, and the same database.
    let events: Vec<Value> = (0..EVENTS)
        .map(|n| {
            let mut event = event(&n.to_string(), "call", "acme", "2026-01-01T00:00:00Z", json!({"n": n, "a": "x", "b": "y", "c": "z"}));
            event["time"] = json!(format!("2026-{:02}-01T00:00:00Z", 1 + n % 12));
            event
        })
        .collect();
    let items = kubemeter::event::parse(kubemeter::event::Form::Json, Value::from(events).to_string().into()).unwrap();
    let caller = kubemeter::metering::Caller::trusted(&namespace);
    kubemeter::metering::Metering::ingest_usage_events(&lab.service, &caller, items, false).await.unwrap();

    let renewed = async || leases.get(LEASE).await.unwrap().spec.unwrap().renew_time;
    let (mut overlaps, mut rounds) = (0, 0);
    while rounds < ROUNDS || (overlaps == 0 && rounds < MOST) {
        let round = rounds;
        rounds += 1;
        let edit = async |name: &str| {
            for number in 0..METERS {
                let path = format!("$.{name}");
                let patch = Patch::Merge(json!({"spec": {"groupBy": {"a": null, "b": null, "c": null, (name): path}}}));
                meters.patch(&format!("m{number}"), &PatchParams::default(), &patch).await.unwrap();
            }
        };
        // The first notices when it renews again, in six seconds; who starts now finds the lease free.
        let before = renewed().await;
        eventually("the first renews", async || (renewed().await != before).then_some(())).await;
        let free = json!({"spec": {"holderIdentity": null, "renewTime": null, "acquireTime": null}});
        leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
        let second = start();
        edit(NAMES[(round + 1) % NAMES.len()]).await;
        eventually("the second leads", async || leads(&second).await.then_some(())).await;
        overlaps += usize::from(leads(&first).await);
        // Back to a table that is retired, and on: both revive, make and retire.
        edit(NAMES[round % NAMES.len()]).await;
        edit(NAMES[(round + 2) % NAMES.len()]).await;
        eventually("all are ready", settled).await;
        // Its end is its own doing, at the latest when it can't renew.
        eventually("the first ends", async || first.has_ended().then_some(())).await;
        first = second;
    }
    assert!(overlaps > 0, "they never led at the same time: this test showed nothing");

    let sum = (EVENTS * (EVENTS - 1) / 2).to_string();
    let last = format!("group_{}", NAMES[(rounds + 1) % NAMES.len()]);
    for meter in eventually("all are ready", settled).await {
        let table = meter.status.unwrap().active.unwrap().table;
        let total =
            format!("SELECT toString(toInt64(ifNull(sum(value), 0))) FROM {} FINAL WHERE {last} != ''", lab.warehouse.table(&table));
        assert_eq!(lab.warehouse.query(&total).one::<String>().await.unwrap(), sum, "{table}");
    }
    // What was put in the place of others stays, they go.
    eventually("one table is left of each meter", async || {
        let tables = lab.warehouse.tables_with_prefix("meter_").await.unwrap();
        (tables.iter().filter(|(name, _)| !name.ends_with("_view")).count() == METERS).then_some(())
    })
    .await;
    drop(first);
}
