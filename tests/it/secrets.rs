//! No secret in a log or an answer: what is told at the most talkative, when everything goes wrong.

use std::process::Stdio;

use http::HeaderMap;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::install_crds;
use crate::rights::{Program, bearer};
use crate::support::{ClickHouse, ControlPlane, eventually};

const PASSWORD: &str = "clickhouse-password-that-nobody-may-see";
const API_KEY: &str = "api-key-that-nobody-may-see-0123456789";

#[tokio::test]
async fn neither_tokens_nor_keys_nor_passwords_are_told() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
    install_crds(&plane.client().await).await;
    let (namespace, folder) = (plane.namespace().await, tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("password"), PASSWORD).unwrap();
    // The key itself where its hash belongs, by mistake.
    std::fs::write(path("wrong-keys"), format!("partner {API_KEY} {namespace} ingest")).unwrap();
    std::fs::write(path("keys"), "").unwrap();
    let log = || Stdio::from(std::fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap());
    let start = |command, password: bool, more: &[&str]| {
        let talk = ["--log", "debug,kubemeter=trace", "--watch-namespace", &namespace];
        let file = path("password");
        let password: &[&str] = if password { &["--clickhouse-password-file", &file] } else { &[] };
        Program::start(command, plane, clickhouse.url(), &[&talk, password, more].concat(), log())
    };

    // ClickHouse refuses the password, which is one that it does not have.
    let _operator = start("operator", true, &["--leader-election=false"]);
    let refused = start("gateway", true, &["--api-keys", &path("keys")]);
    let good = start("gateway", false, &["--api-keys", &path("keys")]);
    let _not_started = start("gateway", false, &["--api-keys", &path("wrong-keys")]);
    good.ready().await;

    let token = plane.service_account(&namespace, "checkout", None).await;
    plane.grant(&namespace, "checkout", &[(&["create", "list"], &["usageevents", "meters"], &[])]).await;
    let scoped = plane.token(&namespace, "checkout", Some("kubemeter")).await;
    let foreign = plane.token(&namespace, "checkout", Some("vault")).await;
    let key: HeaderMap = [(http::HeaderName::from_static("x-api-key"), API_KEY.parse().unwrap())].into_iter().collect();
    let event =
        json!({"specversion": "1.0", "id": "1", "source": "test", "type": "call", "subject": "acme", "data": {"card": "4111-1111"}});
    let mut told = String::new();
    let meter = json!({"meterId": "calls", "eventType": "call", "aggregation": "Count"});
    for gateway in [&good, &refused] {
        eventually("it listens", async || reqwest::get(format!("http://{}/healthz", gateway.address)).await.ok()).await;
        for (headers, expected) in [(bearer(&token), 202), (bearer(&scoped), 202), (bearer(&foreign), 401), (key.clone(), 401)] {
            for (method, path, body) in [
                (Method::POST, "/events", &event),
                (Method::DELETE, "/usage", &json!({"events": [{"source": "test", "id": "1"}]})),
                (Method::GET, "/events", &Value::Null),
                (Method::POST, "/meters", &meter),
                (Method::GET, "/usage/calls", &Value::Null),
            ] {
                let (status, headers, said) = gateway.call(method, path, headers.clone(), body).await;
                if gateway.address == good.address && path == "/events" && !body.is_null() {
                    assert_eq!(status.as_u16(), expected, "{said}");
                }
                told += &format!("{headers:?} {said}\n");
            }
        }
    }
    let log = path("log");
    eventually("all went wrong that was to", async || {
        let text = std::fs::read_to_string(&log).unwrap();
        (text.contains("ClickHouse") && text.contains("Authentication failed") && told.contains("nobody has this key")).then_some(())
    })
    .await;
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(!logged.contains("4111-1111"), "the data of an event are logged");
    told += &logged;
    assert!(told.contains("the second field is no SHA-256"), "the file of keys was refused");

    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let admin = std::fs::read_to_string(&plane.kubeconfig).unwrap();
    let admin: Value = serde_yaml::from_str(&admin).unwrap();
    let admin = admin["users"][0]["user"]["token"].as_str().unwrap_or("no token in this kubeconfig").to_owned();
    for secret in [PASSWORD, API_KEY, &signature(&token), &signature(&scoped), &signature(&foreign), &admin] {
        let around = told.find(secret).map(|at| &told[told.floor_char_boundary(at.saturating_sub(300))..at]);
        assert_eq!(around, None, "{secret} was told");
    }
}
