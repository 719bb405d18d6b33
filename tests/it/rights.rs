//! Who may call what, on a real API server: every cell of the table in docs/rights.md, which is read from there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::HeaderMap;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Config;
use kube::api::{Api, DeleteParams};
use kubemeter::auth::{Action, Auth, Cached, Error, KubeReviewer, Times};
use kubemeter::limits;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cluster::{admin, install_crds};
use crate::support::{ClickHouse, ControlPlane, eventually, free_address};

/// A program of Kubemeter's, killed when the test ends.
pub struct Program {
    pub address: String,
    child: Child,
}

impl Program {
    /// Operator or gateway, with an administrator's rights in the cluster.
    pub fn start(command: &str, plane: &ControlPlane, clickhouse: &str, more: &[&str], log: Stdio) -> Self {
        let address = free_address();
        let child = Command::new(env!("CARGO_BIN_EXE_kubemeter"))
            .args([command, "--clickhouse-url", clickhouse, "--listen", &address])
            .args(more)
            .env("KUBECONFIG", &plane.kubeconfig)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn();
        Self { address, child: child.unwrap() }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Status, headers and body of a call.
    pub async fn call(&self, method: Method, path: &str, headers: HeaderMap, body: &Value) -> (StatusCode, HeaderMap, Value) {
        let url = format!("http://{}{path}", self.address);
        let request = reqwest::Client::new().request(method, url).headers(headers).json(body);
        let answer = request.timeout(Duration::from_secs(30)).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        (status, headers, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        let url = format!("http://{}/readyz", self.address);
        eventually("it is ready", async || reqwest::get(&url).await.ok()?.status().is_success().then_some(())).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn bearer(token: &str) -> HeaderMap {
    [(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect()
}

fn api_key(key: &str) -> HeaderMap {
    [(http::HeaderName::from_static("x-api-key"), key.parse().unwrap())].into_iter().collect()
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    method: Method,
    path: String,
    command: bool,
    /// (verb, resource)
    rights: Vec<(String, String)>,
    /// no token, wrong audience, no right, right, other namespace
    answers: [u16; 5],
}

impl Row {
    /// Whether the API server gets the caller's own token.
    fn is_passed_on(&self) -> bool {
        self.command || self.path.starts_with("/meters") || self.path.starts_with("/customers")
    }
}

/// The table in docs/rights.md.
fn table() -> Vec<Row> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rights.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with("| call | right |")).skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            let (method, path) = cells[0].split('`').nth(1).unwrap().split_once(' ').unwrap();
            let right = |right: &str| right.split_once(' ').map(|(verb, resource)| (verb.to_owned(), resource.to_owned()));
            Row {
                method: method.parse().unwrap(),
                path: path.to_owned(),
                command: cells[0].contains("onboarding"),
                rights: cells[1].split('`').skip(1).step_by(2).filter_map(right).collect(),
                answers: std::array::from_fn(|at| cells[at + 2].parse().unwrap_or_else(|_| panic!("{line}"))),
            }
        })
        .collect()
}

#[test]
fn the_table_has_every_call() {
    let document: Value = serde_json::from_str(&kubemeter::http::openapi().unwrap()).unwrap();
    let served: BTreeSet<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase())))
        .collect();
    let told: BTreeSet<_> = table().iter().map(|row| format!("{} {}", row.method, row.path)).collect();
    assert_eq!(served, told);
}

#[test]
fn the_bounds_are_as_told() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rights.md")).unwrap();
    let thousands = |number: u64| format!("{},{:03}", number / 1_000, number % 1_000);
    for told in [
        format!("| a yes of the API server | {} s:", limits::REVIEW_YES.as_secs()),
        format!("| a no | {} s |", limits::REVIEW_NO.as_secs()),
        format!("reached | {} s from", limits::REVIEW_STALE.as_secs()),
        format!("| how many | {} tokens and {} rights;", thousands(limits::KNOWN_TOKENS), thousands(limits::KNOWN_RIGHTS)),
        format!("| reviews at a time | {},", limits::REVIEWS),
        format!("Keys shorter than {} characters", limits::API_KEY_BYTES.start()),
    ] {
        assert!(text.contains(&told), "docs/rights.md does not say {told:?}");
    }
}

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "test", "type": "call", "subject": "acme"})
}

fn onboarding() -> Value {
    json!({"detail-type": "onboardingRequest", "source": "test", "id": "on-1", "detail": {"tenantId": "hooli"}})
}

fn body(row: &Row) -> Value {
    let meter = |name: &str| json!({"meterId": name, "eventType": "call", "aggregation": "Count", "deletionPolicy": "Delete"});
    match (row.method.as_str(), row.path.as_str()) {
        ("POST", "/events") if row.command => onboarding(),
        ("POST", "/events") => event("e1"),
        ("POST", "/meters") => meter("made"),
        ("PUT", "/meters/{meterId}") => meter("calls"),
        ("POST", "/customers") => json!({"customerId": "made"}),
        ("PUT", "/customers/{customerId}") => json!({"displayName": "Acme"}),
        ("DELETE", "/usage") => json!({"events": [{"source": "test", "id": "e1"}]}),
        ("POST", "/events/rejected/replay") => json!({}),
        _ => Value::Null,
    }
}

#[tokio::test]
async fn every_cell_of_the_table_is_true() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
    install_crds(&plane.client().await).await;
    let (namespace, other) = (plane.namespace().await, plane.namespace().await);
    let watch = ["--watch-namespace", &namespace];
    let _operator =
        Program::start("operator", plane, clickhouse.url(), &[&watch[..], &["--leader-election=false"]].concat(), Stdio::inherit());
    let gateway = Program::start("gateway", plane, clickhouse.url(), &watch, Stdio::inherit());
    gateway.ready().await;

    let all = plane.service_account(&namespace, "all", None).await;
    plane.grant(&namespace, "all", &[(&["*"], &["*"], &[])]).await;
    for name in ["calls", "spare"] {
        let meter = json!({"meterId": name, "eventType": "call", "aggregation": "Count", "deletionPolicy": "Delete"});
        let (status, _, said) = gateway.call(Method::POST, "/meters", bearer(&all), &meter).await;
        assert_eq!((status.as_u16(), &said["namespace"]), (201, &json!(namespace)), "the namespace is the account's own: {said}");
        assert_eq!(gateway.call(Method::POST, "/customers", bearer(&all), &json!({"customerId": name})).await.0, 201);
    }
    eventually("the meter answers", async || {
        (gateway.call(Method::GET, "/usage/calls", bearer(&all), &Value::Null).await.0 == 200).then_some(())
    })
    .await;
    let unprivileged = "nobody";
    plane.service_account(&namespace, unprivileged, None).await;

    let mut cancellation = "0195d3a4-7c1f-7b6e-8a3c-0123456789ab".to_owned();
    for (number, row) in table().iter().enumerate() {
        let spare = if row.method == Method::DELETE { "spare" } else { "calls" };
        let path = row.path.replace("{meterId}", spare).replace("{customerId}", spare).replace("{cancellationId}", &cancellation);
        let in_other = format!("{path}?namespace={other}");
        let account = format!("row-{number}");
        plane.service_account(&namespace, &account, None).await;
        let names: &[&str] = if row.path == "/usage/{meterId}" { &["calls"] } else { &[] };
        let rules: Vec<_> = row.rights.iter().map(|(verb, resource)| ([verb.as_str()], [resource.as_str()])).collect();
        let rules: Vec<(&[&str], &[&str], &[&str])> = rules.iter().map(|(verbs, resources)| (&verbs[..], &resources[..], names)).collect();
        plane.grant(&namespace, &account, &rules).await;

        let (may, ours) = (async |audience| plane.token(&namespace, &account, audience).await, Some("kubemeter"));
        let right_audience = if row.is_passed_on() { None } else { ours };
        let no_right = plane.token(&namespace, unprivileged, right_audience).await;
        let mut cells = vec![
            (0, &path, HeaderMap::new()),
            (1, &path, bearer(&may(Some("vault")).await)),
            (2, &path, bearer(&no_right)),
            (4, &in_other, bearer(&may(right_audience).await)),
            (3, &path, bearer(&may(right_audience).await)),
        ];
        match row.is_passed_on() {
            // The API server itself takes no token that is only for the gateway.
            true => cells.insert(1, (1, &path, bearer(&may(ours).await))),
            // One for the API server is as good; but the first answer may have changed what the second finds.
            false if row.method != Method::DELETE => cells.push((3, &path, bearer(&may(None).await))),
            false => {}
        }
        for (column, path, headers) in cells {
            let (status, headers, said) = gateway.call(row.method.clone(), path, headers, &body(row)).await;
            let what = ["no token", "wrong audience", "no right", "right", "other namespace"][column];
            assert_eq!(status.as_u16(), row.answers[column], "{} {path}, {what}: {said}", row.method);
            if status.is_client_error() {
                assert_eq!(headers[http::header::CONTENT_TYPE], "application/problem+json");
                assert!(row.is_passed_on() || names_the_remedy(&said, row, &namespace, unprivileged, &account), "{said}");
            }
            if let Some(id) = said["cancellationId"].as_str() {
                cancellation = id.to_owned();
            }
        }
    }

    // Records say who it was.
    let (_, _, said) = gateway.call(Method::GET, "/usage/cancellations", bearer(&all), &Value::Null).await;
    for (row, field) in [("/usage", "cancelledBy"), ("/usage/cancellations/{cancellationId}/revert", "revertedBy")] {
        let number = table().iter().position(|one| one.path == row).unwrap();
        let who = format!("system:serviceaccount:{namespace}:row-{number}");
        assert!(said["items"].as_array().unwrap().iter().any(|item| item[field] == who), "{field}: {said}");
    }

    // By name: another meter is another right.
    let reader = table().iter().position(|row| row.path == "/usage/{meterId}").unwrap();
    let reader = plane.token(&namespace, &format!("row-{reader}"), Some("kubemeter")).await;
    assert_eq!(gateway.call(Method::GET, "/usage/other", bearer(&reader), &Value::Null).await.0, 403);
    // Who may bring events may not onboard.
    let sender = table().iter().position(|row| row.path == "/events" && !row.command).unwrap();
    let sender = plane.token(&namespace, &format!("row-{sender}"), None).await;
    let (status, _, said) = gateway.call(Method::POST, "/events", bearer(&sender), &onboarding_again()).await;
    assert!(status == 403 && said["detail"].as_str().unwrap().contains("customers.kubemeter.io"), "{status} {said}");
}

fn onboarding_again() -> Value {
    json!({"detail-type": "onboardingRequest", "source": "test", "id": "on-2", "detail": {"tenantId": "pied-piper"}})
}

/// A refusal says what to do.
fn names_the_remedy(said: &Value, row: &Row, namespace: &str, unprivileged: &str, account: &str) -> bool {
    let detail = said["detail"].as_str().unwrap();
    let (verb, resource) = &row.rights[0];
    let command = |account: &str| detail.contains("kubectl create rolebinding") && detail.contains(&format!("={namespace}:{account}"));
    match said["status"].as_u64().unwrap() {
        401 => detail.contains("kubectl create token") && detail.contains("--audience kubemeter"),
        _ => detail.contains(&format!("may not {verb} {resource} of kubemeter.io")) && (command(unprivileged) || command(account)),
    }
}

#[tokio::test]
async fn a_key_from_outside_may_what_its_line_says() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
    install_crds(&plane.client().await).await;
    let namespace = plane.namespace().await;
    let (key, folder) = ("0123456789abcdef0123456789abcdef", tempfile::tempdir().unwrap());
    let path = folder.path().join("api-keys");
    let write = |path: &Path, actions: &str| {
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(path, format!("# for a test\npartner {hash} {namespace} {actions}\n")).unwrap();
    };
    write(&path, "ingest");
    let options = ["--watch-namespace", &namespace, "--api-keys", path.to_str().unwrap()];
    let gateway = Program::start("gateway", plane, clickhouse.url(), &options, Stdio::inherit());
    gateway.ready().await;

    let status = async |method, path: &str, body: &Value| gateway.call(method, path, api_key(key), body).await.0.as_u16();
    assert_eq!(status(Method::POST, "/events", &event("1")).await, 202, "in the key's own namespace");
    assert_eq!(status(Method::POST, "/events?namespace=default", &event("1")).await, 403);
    assert_eq!(status(Method::GET, "/events", &Value::Null).await, 403);
    assert_eq!(status(Method::GET, "/meters", &Value::Null).await, 403, "nobody to Kubernetes");
    assert_eq!(status(Method::POST, "/events", &onboarding()).await, 403);
    let strange = gateway.call(Method::POST, "/events", api_key(&key.replace('0', "f")), &event("1")).await;
    assert_eq!(strange.0, 401);
    write(&path, "list");
    eventually("the changed line", async || (status(Method::GET, "/events", &Value::Null).await == 200).then_some(())).await;
    assert_eq!(status(Method::POST, "/events", &event("1")).await, 403);
}

/// What a gateway does at its door, with times that a test can wait for.
async fn door(config: Config, times: Times) -> Auth {
    let reviewer = KubeReviewer::new(kube::Client::try_from(config).unwrap(), "kubemeter".to_owned());
    Auth::on(Cached::new(reviewer, times).unwrap(), None, "kubemeter".to_owned(), "kubemeter".to_owned())
}

async fn enter(door: &Auth, token: &str) -> Result<(), Error> {
    let identity = door.identify(&bearer(token)).await?;
    let namespace = identity.namespace().expect("it is a service account's");
    door.allow(&identity, &namespace, Action::Ingest).await
}

#[tokio::test]
async fn a_right_that_is_taken_away_ends_and_one_that_is_given_begins() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace().await;
    let times = Times { yes: Duration::from_secs(1), no: Duration::from_millis(100), stale: Duration::from_secs(600) };
    let door = door(admin().await, times).await;
    let token = plane.service_account(&namespace, "checkout", Some("kubemeter")).await;
    assert!(matches!(enter(&door, &token).await, Err(Error::Forbidden(_))));
    plane.grant(&namespace, "checkout", &[(&["create"], &["usageevents"], &[])]).await;
    eventually("the right begins", async || enter(&door, &token).await.ok()).await;
    let bindings: Api<RoleBinding> = Api::namespaced(plane.client().await, &namespace);
    bindings.delete("checkout", &DeleteParams::default()).await.unwrap();
    eventually("the right ends", async || matches!(enter(&door, &token).await, Err(Error::Forbidden(_))).then_some(())).await;

    // So does a token with its account.
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(plane.client().await, &namespace);
    accounts.delete("checkout", &DeleteParams::default()).await.unwrap();
    eventually("the token ends", async || matches!(enter(&door, &token).await, Err(Error::Unauthenticated { .. })).then_some(())).await;
}

#[tokio::test]
async fn while_the_api_server_is_away_known_callers_go_on_and_others_wait() {
    if std::env::var_os("KUBEMETER_TEST_KUBECONFIG").is_some() {
        return; // A cluster that is not the test's can't be ended.
    }
    let (plane, clickhouse) = (ControlPlane::start(), ClickHouse::start_own());
    let client = plane.client().await;
    // Not `install_crds`, which does so once, for the shared one.
    for crd in [<kubemeter::api::Meter as kube::CustomResourceExt>::crd(), <kubemeter::api::Customer as kube::CustomResourceExt>::crd()] {
        Api::all(client.clone()).create(&Default::default(), &crd).await.unwrap();
    }
    let namespace = plane.namespace().await;
    let (known, unknown) =
        (plane.service_account(&namespace, "known", Some("kubemeter")).await, plane.token(&namespace, "known", Some("kubemeter")).await);
    plane.grant(&namespace, "known", &[(&["create"], &["usageevents"], &[]), (&["get"], &["meters/usage"], &[])]).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let operator = Program::start("operator", &plane, clickhouse.url(), &["--leader-election=false"], Stdio::inherit());
    let gateway = Program::start("gateway", &plane, clickhouse.url(), &[], log.reopen().unwrap().into());
    gateway.ready().await;
    let post = async |token: &str, id: &str| gateway.call(Method::POST, "/events", bearer(token), &event(id)).await;
    let meter = json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": "calls"},
                       "spec": {"eventType": "call", "aggregation": "Count"}});
    let meters: Api<kubemeter::api::Meter> = Api::namespaced(client.clone(), &namespace);
    meters.create(&Default::default(), &serde_json::from_value(meter).unwrap()).await.unwrap();
    let read = async || gateway.call(Method::GET, "/usage/calls", bearer(&known), &Value::Null).await;
    eventually("the meter answers", async || (read().await.0 == 200).then_some(())).await;
    assert_eq!(post(&known, "1").await.0, 202);
    drop(operator);
    let kubeconfig = std::fs::read_to_string(&plane.kubeconfig).unwrap();
    drop(plane);

    // Past the time for which a yes is believed otherwise: nothing else tells this test from the one above it.
    tokio::time::sleep(limits::REVIEW_YES + Duration::from_secs(1)).await;
    assert_eq!(post(&known, "2").await.0, 202, "known callers go on");
    let (status, _, said) = read().await;
    assert_eq!((status.as_u16(), &said["data"][0]["value"]), (200, &json!("2")), "by the meters that were known: {said}");
    let (status, headers, said) = post(&unknown, "3").await;
    assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (503, "5"), "{said}");
    assert_eq!(gateway.call(Method::GET, "/meters", bearer(&known), &Value::Null).await.0, 503);
    gateway.ready().await;
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(said.matches("can't be reached: who was let in").count(), 1, "told once: {said}");

    // One that starts now says what it waits for, takes nobody in, and is not ready.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig).unwrap();
    let away = ControlPlane::of(path);
    let log = tempfile::NamedTempFile::new().unwrap();
    let late = Program::start("gateway", &away, clickhouse.url(), &[], log.reopen().unwrap().into());
    let ask = async |path: &str| {
        let answer = reqwest::get(format!("http://{}{path}", late.address)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    };
    let (status, body) = eventually("an answer", async || ask("/readyz").await).await;
    assert!(status == 503 && body.contains("meters and customers have not been read yet"), "{status} {body}");
    assert_eq!(ask("/healthz").await.unwrap().0, 200, "nobody restarts it");
    assert_eq!(late.call(Method::POST, "/events", bearer(&known), &event("4")).await.0, 503);
    eventually("it says what it waits for", async || {
        let said = std::fs::read_to_string(log.path()).unwrap();
        (said.contains("can't watch") && said.contains("Connection refused")).then_some(())
    })
    .await;
}
