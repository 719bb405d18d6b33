//! What is seen from outside: metrics by a real Prometheus, logs, and traces by a collector in this process.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kubemeter::api::Meter;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::chart::{CHART, run};
use crate::cluster::install_crds;
use crate::rights::Program;
use crate::support::{ClickHouse, ControlPlane, eventually, free_address, tool};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const CARD: &str = "4111-1111-1111-1111";

fn alerts() -> String {
    format!("{CHART}/files/alerts.yaml")
}

#[test]
fn the_alerts_pass_promtool() {
    let checked = run("promtool", &["check", "rules", &alerts()], "").unwrap();
    let rules: Value = serde_yaml::from_str(&std::fs::read_to_string(alerts()).unwrap()).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(checked.contains(&format!("SUCCESS: {} rules found", rules.len())), "{checked}");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/alerts.yaml");
    run("promtool", &["test", "rules", tests], "").unwrap();

    let tests: Value = serde_yaml::from_str(&std::fs::read_to_string(tests).unwrap()).unwrap();
    let cases: Vec<_> = tests["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array().unwrap()).collect();
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/observability.md")).unwrap();
    for rule in rules {
        let alert = rule["alert"].as_str().unwrap();
        for fires in [true, false] {
            let shown = cases.iter().any(|case| case["alertname"] == alert && case["exp_alerts"].is_array() == fires);
            assert!(shown, "tests/alerts.yaml shows no time when {alert} fires: {fires}");
        }
        assert!(docs.contains(&format!("### {alert}\n")), "docs/observability.md does not say what to do about {alert}");
    }
}

/// A Prometheus that is killed when the test ends.
struct Prometheus {
    child: std::process::Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let jobs: Vec<_> = targets
            .iter()
            .map(|(job, address)| json!({"job_name": job, "static_configs": [{"targets": [address], "labels": {"namespace": "metering"}}]}))
            .collect();
        let config = json!({"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [alerts()], "scrape_configs": jobs});
        let file = folder.path().join("prometheus.yaml");
        std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
        let address = free_address();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(tool("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self { child: child.unwrap(), url: format!("http://{address}"), _folder: folder }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/{path}", self.url)).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        reqwest::get(url).await.ok()?.json().await.ok()
    }

    /// The one value of an expression.
    async fn value(&self, expression: &str) -> Option<f64> {
        let answer = self.get("query", &[("query", expression)]).await?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn usage_event(id: &str, data: &Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "shop", "type": "call", "subject": "acme", "data": data})
}

/// An operator and a gateway of a namespace of their own.
struct Started {
    gateway: Program,
    operator: Program,
    client: kube::Client,
    namespace: String,
    clickhouse: ClickHouse,
}

impl Started {
    async fn new() -> Self {
        let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
        let client = plane.client().await;
        install_crds(&client).await;
        let namespace = plane.namespace().await;
        let start = |command, more: &[&str]| {
            Program::start(command, plane, clickhouse.url(), &[&["--watch-namespace", &namespace], more].concat(), Stdio::null())
        };
        let operator = start("operator", &["--leader-election=false"]);
        let gateway = start("gateway", &["--insecure-no-auth", "--namespace", &namespace]);
        gateway.ready().await;
        Self { gateway, operator, client, namespace, clickhouse }
    }
}

#[tokio::test]
async fn a_prometheus_scrapes_operator_and_gateway_and_takes_the_alerts() {
    let Started { clickhouse: _clickhouse, namespace, client, operator, gateway } = Started::new().await;
    let prometheus = Prometheus::start(&[("gateway", &gateway.address), ("operator", &operator.address)]);

    let meters: Api<Meter> = Api::namespaced(client, &namespace);
    for (name, value) in [("calls", json!(null)), ("tokens", json!("$.tokens"))] {
        let aggregation = if value.is_null() { "Count" } else { "Sum" };
        let meter = json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": name},
            "spec": {"eventType": "call", "aggregation": aggregation, "valueProperty": value}});
        meters.create(&PostParams::default(), &serde_json::from_value(meter).unwrap()).await.unwrap();
    }
    eventually("the gateway knows the Meters", async || {
        let events = json!([usage_event("1", &json!({"tokens": 3})), usage_event("2", &json!({"tokens": "much"}))]);
        let (_, _, answer) = gateway.call(Method::POST, "/events", Default::default(), &events).await;
        (answer["rejected"][0]["code"] == "invalid_value").then_some(())
    })
    .await;

    for (expression, enough) in [
        (r#"up{job="gateway"}"#, 1.0),
        (r#"up{job="operator"}"#, 1.0),
        (r#"kubemeter_events_accepted_total{job="gateway"} > 0"#, 1.0),
        (r#"kubemeter_events_rejected_total{job="gateway", code="invalid_value"}"#, 1.0),
        (r#"kubemeter_insert_duration_seconds_count{job="gateway"}"#, 1.0),
        (r#"kubemeter_queue_limit_bytes{job="gateway"}"#, 1.0),
        (r#"kubemeter_leading{job="operator"}"#, 1.0),
        (r#"kubemeter_reconciles_total{job="operator", kind="Meter", result="ok"}"#, 2.0),
        (r#"kubemeter_objects{job="operator", kind="Meter", ready="True"}"#, 2.0),
        (r#"count(kubemeter_watch_age_seconds <= 70)"#, 4.0),
    ] {
        eventually(&format!("{expression} is {enough}"), async || prometheus.value(expression).await.filter(|found| *found >= enough))
            .await;
    }
    let rules = eventually("the alerts are evaluated", async || {
        let rules = prometheus.get("rules", &[]).await?["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    })
    .await;
    let firing: Vec<_> = rules.iter().filter(|rule| rule["state"] == "firing").map(|rule| &rule["name"]).collect();
    assert!(rules.len() >= 10 && firing.is_empty(), "{firing:?} of {} fire", rules.len());
}

/// The one value of a metric's line that has all these, as a process tells it.
async fn told(program: &Program, name: &str, labels: &[&str]) -> Option<String> {
    let text = reqwest::get(format!("http://{}/metrics", program.address)).await.ok()?.text().await.ok()?;
    let is_meant = |line: &&str| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label));
    let mut lines = text.lines().filter(is_meant).map(str::to_owned);
    let line = lines.next()?;
    assert_eq!(lines.next(), None, "{name} of {labels:?} is told twice");
    line.rsplit(' ').next().map(str::to_owned)
}

/// Stored before there was a Meter, so that nobody was told: status, metric and listing say the same of them, until they count.
#[tokio::test]
async fn events_in_which_a_meter_finds_nothing_are_told_by_status_metric_and_listing() {
    let Started { clickhouse: _clickhouse, namespace, client, operator, gateway } = Started::new().await;
    let events = [json!({"tokens": 3}), json!({"tokens": "much"}), json!({"words": 1}), json!({"tokens": 4})];
    let events: Vec<_> = events.iter().enumerate().map(|(n, data)| usage_event(&n.to_string(), data)).collect();
    let (status, _, answer) = gateway.call(Method::POST, "/events", Default::default(), &json!(events)).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(4)), "{answer}");

    let meters: Api<Meter> = Api::namespaced(client, &namespace);
    let meter = |name: &str, aggregation: &str, value: Value| {
        json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": name},
            "spec": {"eventType": "call", "aggregation": aggregation, "valueProperty": value}})
    };
    for meter in [meter("calls", "Count", Value::Null), meter("tokens", "Sum", json!("$.tokens"))] {
        meters.create(&PostParams::default(), &serde_json::from_value(meter).unwrap()).await.unwrap();
    }
    let counts = async |name: &str| meters.get(name).await.unwrap().status.map(|status| (status.events, status.uncounted_events));
    let counted = async |name: &str, events| {
        eventually(&format!("the status of {name} counts {events:?}"), async || (counts(name).await? == events).then_some(())).await;
    };
    let metric = async |name: &str| {
        let labels = [format!("meter_namespace=\"{namespace}\""), format!("meter=\"{name}\"")];
        told(&operator, "kubemeter_uncounted_events", &labels.each_ref().map(String::as_str)).await
    };
    let listed = async |name: &str| {
        eventually("the gateway knows the Meter", async || {
            let path = format!("/events?uncountedBy={name}");
            let (status, _, answer) = gateway.call(Method::GET, &path, Default::default(), &Value::Null).await;
            let ids = answer["items"].as_array()?.iter().map(|event| event["id"].as_str().unwrap().to_owned());
            status.is_success().then(|| ids.collect::<BTreeSet<_>>())
        })
        .await
    };
    counted("tokens", (Some(4), Some(2))).await;
    // The operator hears of its own status from the API server.
    eventually("the metric says so", async || (metric("tokens").await? == "2").then_some(())).await;
    assert_eq!(listed("tokens").await, ["1", "2"].map(str::to_owned).into());
    counted("calls", (Some(4), Some(0))).await;
    assert_eq!((metric("calls").await, listed("calls").await), (None, BTreeSet::new()), "it counts all there are");

    let mended = Patch::Merge(json!({"spec": {"aggregation": "UniqueCount"}}));
    meters.patch("tokens", &PatchParams::default(), &mended).await.unwrap();
    counted("tokens", (Some(4), Some(1))).await;
    eventually("the metric says so", async || (metric("tokens").await? == "1").then_some(())).await;
    eventually("the gateway, too", async || (listed("tokens").await == [String::from("2")].into()).then_some(())).await;
}

/// A collector of OTLP over HTTP.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    /// Whether it refuses.
    out: Arc<AtomicBool>,
}

impl Collector {
    async fn start() -> (Self, String) {
        let (collector, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (kept, out) = (Arc::clone(&collector.spans), Arc::clone(&collector.out));
        let take = async move |body: Bytes| {
            if out.load(Ordering::SeqCst) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let spans = request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
            kept.lock().unwrap().extend(spans);
            StatusCode::OK
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(take))).await });
        (collector, url)
    }

    async fn span(&self, name: &str, of: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("a span {name}"), async || {
            self.spans.lock().unwrap().iter().find(|span| span.name == name && of(span)).cloned()
        })
        .await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn logged(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    // The last line may be under way.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn a_request_is_followed_to_its_insert_by_traces_and_logs_without_what_was_sent() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
    install_crds(&plane.client().await).await;
    let (namespace, folder) = (plane.namespace().await, tempfile::tempdir().unwrap());
    let (collector, endpoint) = Collector::start().await;
    let log = folder.path().join("log");
    let options = ["--insecure-no-auth", "--namespace", &namespace, "--watch-namespace", &namespace, "--log-format", "json"];
    let options = [&options[..], &["--otlp-endpoint", &endpoint]].concat();
    let gateway = Program::start("gateway", plane, clickhouse.url(), &options, std::fs::File::create(&log).unwrap().into());
    gateway.ready().await;

    let mut bad = usage_event("bad-one", &json!({"card": CARD}));
    bad.as_object_mut().unwrap().remove("subject");
    let mut long = usage_event(&"l".repeat(500), &json!({"card": CARD}));
    long["time"] = json!(CARD);
    let events = json!([usage_event("good-one", &json!({"card": CARD})), bad, long]);
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let headers =
        [("traceparent", traceparent.as_str()), ("x-request-id", "order-42"), ("authorization", "Bearer token-that-nobody-may-see")];
    let headers = headers.map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).into_iter().collect();
    let (status, headers, answer) = gateway.call(Method::POST, "/events", headers, &events).await;
    assert_eq!((status.as_u16(), &answer["accepted"]), (202, &json!(1)), "{answer}");
    assert_eq!(headers["x-request-id"], "order-42");

    let ours = |span: &Span| hex(&span.trace_id) == TRACE;
    let request = collector.span("request", ours).await;
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind()), (PARENT, SpanKind::Server));
    let below = |parent: &Span| {
        let parent = parent.span_id.clone();
        move |span: &Span| span.parent_span_id == parent && hex(&span.trace_id) == TRACE
    };
    let commit = collector.span("commit", below(&request)).await;
    collector.span("claim", below(&commit)).await;
    let insert = collector.span("INSERT", below(&commit)).await;
    assert!(insert.start_time_unix_nano >= request.start_time_unix_nano && insert.end_time_unix_nano <= request.end_time_unix_nano);
    let spans = format!("{:?}", collector.spans.lock().unwrap());
    assert!(!spans.contains("/readyz"), "probes are no traces");

    let line = eventually("the refused events are logged", async || {
        logged(&log).into_iter().find(|line| line["fields"]["message"] == "events were not taken")
    })
    .await;
    assert_eq!((&line["span"]["id"], &line["fields"]["of"]), (&json!("order-42"), &json!(2)), "{line}");
    let named = line["fields"]["events"].as_str().unwrap();
    assert!(named.contains("shop bad-one") && named.contains(&"l".repeat(128)) && !named.contains(&"l".repeat(129)), "{named}");
    // A collector that is away is told of once, and holds nothing up.
    collector.out.store(true, Ordering::SeqCst);
    let (status, ..) = gateway.call(Method::POST, "/events", Default::default(), &usage_event("another", &json!({}))).await;
    assert_eq!(status.as_u16(), 202);
    let told = |what: &str| logged(&log).iter().filter(|line| line["fields"]["message"].as_str().is_some_and(|m| m.contains(what))).count();
    eventually("it is told", async || (told("traces can't be sent") == 1).then_some(())).await;
    collector.out.store(false, Ordering::SeqCst);
    eventually("traces come again", async || {
        gateway.call(Method::GET, "/meters", Default::default(), &Value::Null).await;
        (told("traces are sent again") == 1).then_some(())
    })
    .await;
    let text = std::fs::read_to_string(&log).unwrap();
    for secret in [CARD, "token-that-nobody-may-see"] {
        assert!(!text.contains(secret) && !spans.contains(secret), "{secret} was told");
    }
}
