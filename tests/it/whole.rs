//! The whole on a real API server: operator and gateway as processes, custom resources in, usage out, crashes between.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kubemeter::api::{Customer, Meter};
use reqwest::Method;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::cluster::{admin, install_crds};
use crate::support::{ClickHouse, ControlPlane, eventually, free_address};

/// A process that is killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Operator and gateway of one namespace.
struct Whole {
    namespace: String,
    client: kube::Client,
    clickhouse: ClickHouse,
    gateway_address: String,
    /// Of somebody who may do everything here.
    token: String,
    processes: Vec<Process>,
}

impl Whole {
    async fn start() -> Self {
        let plane = ControlPlane::shared();
        let client = kube::Client::try_from(admin().await).unwrap();
        install_crds(&client).await;
        let namespace = plane.namespace().await;
        let token = plane.service_account(&namespace, "ann", None).await;
        plane.grant(&namespace, "ann", &[(&["*"], &["*"], &[])]).await;
        let mut whole =
            Self { namespace, client, clickhouse: ClickHouse::start_own(), gateway_address: free_address(), token, processes: vec![] };
        let operator = whole.run("operator", &free_address(), &["--leader-election=false"]);
        let gateway = whole.run("gateway", &whole.gateway_address.clone(), &[]);
        whole.processes = vec![operator, gateway];
        whole.ready().await;
        whole
    }

    fn run(&self, command: &str, listen: &str, more: &[&str]) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_kubemeter"))
            .args([command, "--clickhouse-url", self.clickhouse.url(), "--listen", listen, "--watch-namespace", &self.namespace])
            .args(more)
            .env("KUBECONFIG", &ControlPlane::shared().kubeconfig)
            .stdin(Stdio::null())
            .spawn();
        Process(child.unwrap())
    }

    fn kill_gateway(&mut self) {
        drop(self.processes.pop());
        let gateway = self.run("gateway", &self.gateway_address, &[]);
        self.processes.push(gateway);
    }

    async fn ready(&self) {
        eventually("the gateway is ready", async || (self.call(Method::GET, "/readyz", Value::Null).await?.0 == 200).then_some(())).await;
    }

    /// Status and body; None when nobody listens.
    async fn call(&self, method: Method, path: &str, body: Value) -> Option<(u16, Value)> {
        let sign = if path.contains('?') { '&' } else { '?' };
        let url = format!("http://{}{path}{sign}namespace={}", self.gateway_address, self.namespace);
        let url = if path.starts_with("/readyz") { format!("http://{}{path}", self.gateway_address) } else { url };
        let answer = reqwest::Client::new().request(method, url).bearer_auth(&self.token).json(&body).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.unwrap_or_default()))
    }

    async fn total(&self, meter: &str) -> String {
        let (status, usage) = self.call(Method::GET, &format!("/usage/{meter}"), Value::Null).await.unwrap();
        assert_eq!(status, 200, "{usage}");
        usage["data"][0]["value"].as_str().unwrap_or("0").to_owned()
    }

    fn meters(&self) -> Api<Meter> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The Meter once it is Ready for its newest generation.
    async fn ready_meter(&self, name: &str) -> Meter {
        eventually(&format!("meter {name} is ready"), async || {
            let meter = self.meters().get(name).await.unwrap();
            let generation = meter.metadata.generation;
            let conditions = &meter.status.as_ref()?.conditions;
            conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True" && c.observed_generation == generation)
                .then(|| meter.clone())
        })
        .await
    }

    async fn tables(&self) -> Vec<String> {
        let sql = "SELECT name FROM system.tables WHERE database = 'kubemeter' AND name LIKE 'meter\\_%' ORDER BY name";
        let answer = reqwest::Client::new().post(self.clickhouse.url()).body(sql).send().await.unwrap();
        answer.text().await.unwrap().lines().map(str::to_owned).collect()
    }
}

fn events(from: usize, to: usize) -> Value {
    (from..to)
        .map(|i| {
            let subject = ["acme-prod", "acme-eu", "globex"][i % 3];
            json!({"specversion": "1.0", "id": format!("req-{i}"), "source": "inference", "type": "llm.completion",
                "subject": subject, "time": "2026-03-29T00:30:00Z",
                "data": {"tokens": "0.1", "words": 2, "model": "large", "direction": "input"}})
        })
        .collect()
}

#[tokio::test]
async fn from_a_meters_yaml_to_a_usage_number() {
    let mut whole = Whole::start().await;
    for file in ["api-calls", "llm-tokens", "storage", "customers"] {
        let text = std::fs::read_to_string(format!("{}/examples/{file}.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).unwrap();
            let (name, apply) = (object["metadata"]["name"].as_str().unwrap(), PatchParams::apply("test"));
            if object["kind"] == "Meter" {
                whole.meters().patch(name, &apply, &Patch::Apply(&object)).await.unwrap();
            } else {
                let customers: Api<Customer> = Api::namespaced(whole.client.clone(), &whole.namespace);
                customers.patch(name, &apply, &Patch::Apply(&object)).await.unwrap();
            }
        }
    }
    for name in ["api-calls", "llm-tokens", "storage"] {
        whole.ready_meter(name).await;
    }
    let told: Api<Event> = Api::namespaced(whole.client.clone(), &whole.namespace);
    eventually("an Event says so", async || {
        told.list(&ListParams::default()).await.unwrap().items.iter().any(|e| e.reason.as_deref() == Some("Provisioned")).then_some(())
    })
    .await;

    // The same batch ten times, also concurrently and around a gateway's SIGKILL.
    let batch = events(0, 300);
    eventually("the gateway knows the meter", async || {
        (whole.call(Method::GET, "/usage/llm-tokens", Value::Null).await?.0 == 200).then_some(())
    })
    .await;
    let posts = futures::future::join_all((0..5).map(|_| whole.call(Method::POST, "/events", batch.clone()))).await;
    assert!(posts.iter().all(|post| post.as_ref().unwrap().0 == 202));
    let cut_off = {
        let whole = &whole;
        let sent = AtomicBool::new(false);
        let post = async {
            sent.store(true, Ordering::SeqCst);
            whole.call(Method::POST, "/events", events(200, 600)).await
        };
        let kill = async {
            eventually("the post is under way", async || sent.load(Ordering::SeqCst).then_some(())).await;
            let pid = whole.processes[1].0.id().to_string();
            Command::new("kill").args(["-KILL", &pid]).status().unwrap();
        };
        tokio::join!(post, kill).0
    };
    whole.kill_gateway();
    whole.ready().await;
    // Whatever became of the post that was cut off, the client sends it again.
    for _ in 0..5 {
        let again = whole.call(Method::POST, "/events", events(200, 600)).await.unwrap();
        assert_eq!(again.0, 202, "after {cut_off:?}: {}", again.1);
    }
    assert_eq!(whole.total("llm-tokens").await, "60");
    let by_customer = whole.call(Method::GET, "/usage/llm-tokens?groupBy=customer", Value::Null).await.unwrap().1;
    let rows: Vec<_> = by_customer["data"].as_array().unwrap().iter().map(|row| (row["customer"].clone(), row["value"].clone())).collect();
    assert_eq!(rows, [(json!("acme"), json!("40")), (json!("globex"), json!("20"))]);

    // Commands are carried out once each, also when one comes again after its opposite.
    let command = |id: &str, kind: &str| json!({"detail-type": kind, "source": "control-plane", "id": id, "detail": {"tenantId": "hooli"}});
    for (id, kind, there) in [
        ("1", "onboardingRequest", 200),
        ("2", "offboardingRequest", 404),
        ("3", "onboardingRequest", 200),
        ("2", "OFFBOARDING_REQUEST", 200),
    ] {
        eventually("the command is taken", async || (whole.call(Method::POST, "/events", command(id, kind)).await?.0 == 202).then_some(()))
            .await;
        eventually(&format!("after {kind} {id} the customer answers {there}"), async || {
            (whole.call(Method::GET, "/customers/hooli", Value::Null).await?.0 == there).then_some(())
        })
        .await;
    }
    let usage = json!({"detail-type": "ingestUsage", "source": "control-plane", "id": "4",
        "detail": {"tenantId": "hooli", "meterId": "llm-tokens", "value": "12.5", "model": "small"}});
    assert_eq!(whole.call(Method::POST, "/events", usage).await.unwrap().0, 202);
    let of_hooli = whole.call(Method::GET, "/usage/llm-tokens?customer=hooli&groupBy=model", Value::Null).await.unwrap().1;
    assert_eq!((&of_hooli["data"][0]["value"], &of_hooli["data"][0]["groupBy"]["model"]), (&json!("12.5"), &json!("small")));
    let cancel = json!({"events": [{"source": "control-plane", "id": "4"}]});
    assert_eq!(whole.call(Method::DELETE, "/usage", cancel).await.unwrap().1["cancelled"], 1);

    // An edit over HTTP: all history follows.
    let mut meter = whole.call(Method::GET, "/meters/llm-tokens", Value::Null).await.unwrap().1;
    let old = meter["resourceVersion"].clone();
    meter["valueProperty"] = json!("$.words");
    let (status, edited) = whole.call(Method::PUT, "/meters/llm-tokens", meter.clone()).await.unwrap();
    assert_eq!(status, 200, "{edited}");
    meter["resourceVersion"] = old;
    assert_eq!(whole.call(Method::PUT, "/meters/llm-tokens", meter).await.unwrap().0, 409, "a stale edit is refused");
    whole.ready_meter("llm-tokens").await;
    eventually("usage follows the edit", async || (whole.total("llm-tokens").await == "1200").then_some(())).await;

    // Deleted with Delete: its tables and views go. With Retain (api-calls): the table stays, and no later Meter adopts it.
    let delete = json!({"spec": {"deletionPolicy": "Delete"}});
    whole.meters().patch("llm-tokens", &PatchParams::default(), &Patch::Merge(&delete)).await.unwrap();
    let table_of = |meter: &Meter| meter.status.as_ref().unwrap().active.as_ref().unwrap().table.clone();
    let (gone, kept) = (table_of(&whole.ready_meter("llm-tokens").await), table_of(&whole.ready_meter("api-calls").await));
    let spec = whole.meters().get("api-calls").await.unwrap().spec;
    for name in ["llm-tokens", "api-calls"] {
        whole.meters().delete(name, &DeleteParams::default()).await.unwrap();
        eventually("the meter goes", async || whole.meters().get_opt(name).await.unwrap().is_none().then_some(())).await;
    }
    let left = whole.tables().await;
    assert!(!left.iter().any(|table| table.starts_with(&gone)), "{gone} in {left:?}");
    assert!(left.contains(&kept) && !left.contains(&format!("{kept}_view")), "{kept} in {left:?}");
    let mut again = Meter::new("api-calls", spec);
    again.metadata.namespace = Some(whole.namespace.clone());
    whole.meters().create(&Default::default(), &again).await.unwrap();
    assert_ne!(table_of(&whole.ready_meter("api-calls").await), kept);
}

#[tokio::test]
async fn clickhouse_away_is_a_condition_and_503_and_passes() {
    let mut whole = Whole::start().await;
    whole.clickhouse.kill();
    let meter = json!({"meterId": "calls", "eventType": "call", "aggregation": "Count"});
    assert_eq!(whole.call(Method::POST, "/meters", meter).await.unwrap().0, 201);
    let condition = eventually("a condition says so", async || {
        let meter = whole.meters().get("calls").await.unwrap();
        meter.status?.conditions.into_iter().find(|c| c.type_ == "Ready")
    })
    .await;
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "ClickHouseUnavailable"));
    let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "call", "subject": "acme"});
    let (status, problem) = whole.call(Method::POST, "/events", event.clone()).await.unwrap();
    assert_eq!((status, problem["code"].as_str()), (503, Some("unavailable")), "{problem}");
    assert_eq!(whole.call(Method::GET, "/readyz", Value::Null).await.unwrap().0, 503);

    whole.clickhouse.restart();
    whole.ready_meter("calls").await;
    whole.ready().await;
    assert_eq!(whole.call(Method::POST, "/events", event).await.unwrap().0, 202);
    eventually("it counts", async || {
        let (status, usage) = whole.call(Method::GET, "/usage/calls", Value::Null).await?;
        (status == 200 && usage["data"][0]["value"] == "1").then_some(())
    })
    .await;
}
