//! `kubemeter dev`: a folder of manifests becomes tables, through edits, restarts and crashes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Running, eventually};

struct Dev {
    running: Running,
    api: String,
    clickhouse: String,
}

impl Dev {
    fn start(manifests: &Path, data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        command.args(["dev", "--stop-with-stdin", "--listen", "127.0.0.1:0", "--manifests"]).arg(manifests).arg("--data-dir").arg(data);
        let api = Mutex::new(String::new());
        let (running, (api, clickhouse)) = Running::start(&mut command, move |line| {
            let url = |name| line.trim().strip_prefix(name)?.split_whitespace().next().map(str::to_owned);
            if let Some(url) = url("API ") {
                *api.lock().unwrap() = url;
            }
            Some((api.lock().unwrap().clone(), url("ClickHouse ")?))
        });
        Self { running, api, clickhouse }
    }

    async fn ask(&self, sql: &str) -> Option<String> {
        let answer = reqwest::Client::new().post(&self.clickhouse).body(sql.to_owned()).send().await.ok()?;
        Some(answer.error_for_status().ok()?.text().await.ok()?.trim().to_owned())
    }

    /// Calls the API: status and body.
    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let answer = reqwest::Client::new().request(method, format!("{}{path}", self.api)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// The tables of meters, once there are as many.
    async fn meter_tables(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} meter tables"), async || {
            let tables = "SELECT name FROM system.tables WHERE database = 'kubemeter' AND name LIKE 'meter\\_%' AND engine LIKE '%MergeTree' ORDER BY name";
            let tables: Vec<_> = self.ask(tables).await?.lines().map(str::to_owned).collect();
            (tables.len() == count).then_some(tables)
        })
        .await
    }
}

fn meter(name: &str, event_type: &str) -> String {
    format!(
        "apiVersion: kubemeter.io/v1alpha1\nkind: Meter\nmetadata: {{name: {name}}}\nspec: {{eventType: {event_type}, aggregation: Count, deletionPolicy: Delete}}\n"
    )
}

#[tokio::test]
async fn tables_follow_the_folder_also_while_dev_is_off() {
    let (manifests, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| fs::write(manifests.path().join(name), text).unwrap();
    write("a.yaml", &meter("a", "one"));
    write("bad.yaml", "kind: [");
    let mut dev = Dev::start(manifests.path(), data.path());
    let first = dev.meter_tables(1).await;

    write("b.yaml", &meter("b", "one"));
    let both = dev.meter_tables(2).await;
    assert!(both.contains(&first[0]));

    // A restart takes the tables for its own.
    dev.running.stop();
    let mut dev = Dev::start(manifests.path(), data.path());
    assert_eq!(dev.meter_tables(2).await, both);

    // Removed while nobody looked: gone at the next start. Made again: another table.
    dev.running.stop();
    fs::remove_file(manifests.path().join("a.yaml")).unwrap();
    let dev = Dev::start(manifests.path(), data.path());
    let rest = dev.meter_tables(1).await;
    assert_ne!(rest, first);
    write("a.yaml", &meter("a", "one"));
    let again = dev.meter_tables(2).await;
    assert!(!again.contains(&first[0]), "a meter of the same name has a table of its own");
}

#[tokio::test]
async fn the_api_and_the_folder_are_one() {
    let (manifests, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dev = Dev::start(manifests.path(), data.path());
    let file = manifests.path().join("meter-default-calls.yaml");

    let document = json!({"meterId": "calls", "eventType": "call", "aggregation": "Count"});
    assert_eq!(dev.call(Method::POST, "/meters", document.clone()).await.0, 201);
    assert!(fs::read_to_string(&file).unwrap().contains("eventType: call"));
    assert_eq!(dev.call(Method::POST, "/meters", document).await.0, 409);

    // What is written into the folder is the API's at once, and counts what was stored before it.
    fs::write(manifests.path().join("late.yaml"), meter("late", "call")).unwrap();
    let event = json!({"specversion": "1.0", "type": "call", "source": "s", "id": "1", "subject": "acme", "time": "2026-01-01T00:00:00Z"});
    let (status, answer) = dev.call(Method::POST, "/events", json!([event, event])).await;
    assert_eq!((status, &answer["accepted"]), (202, &json!(2)), "{answer}");
    for meter in ["calls", "late"] {
        eventually(meter, async || {
            let (_, usage) = dev.call(Method::GET, &format!("/usage/{meter}"), Value::Null).await;
            (usage["data"][0]["value"] == "1").then_some(())
        })
        .await;
    }

    assert_eq!(dev.call(Method::DELETE, "/meters/calls", Value::Null).await.0, 202);
    assert!(!file.exists());
    assert_eq!(dev.call(Method::GET, "/meters/calls", Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_killed_dev_leaves_no_engine_behind() {
    let (manifests, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(manifests.path().join("a.yaml"), meter("a", "one")).unwrap();
    let mut dev = Dev::start(manifests.path(), data.path());
    let tables = dev.meter_tables(1).await;
    dev.running.kill();
    eventually("the end of its engine", async || dev.ask("SELECT 1").await.is_none().then_some(())).await;
    let dev = Dev::start(manifests.path(), data.path());
    assert_eq!(dev.meter_tables(1).await, tables);
}

/// What `helm test` runs.
#[tokio::test]
async fn check_says_whether_an_event_counts() {
    let (manifests, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(manifests.path().join("a.yaml"), meter("checked", "kubemeter.check")).unwrap();
    let dev = Dev::start(manifests.path(), data.path());
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        let output = command.args(["check", "--url", &dev.api, "--event-type", "kubemeter.check"]).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (passed, said) = check(&["--meter", "checked"]);
    assert!(passed && said.contains("counted it once") && said.contains("taken back"), "{said}");
    assert_eq!(dev.call(Method::GET, "/usage/checked", Value::Null).await.1["data"], json!([]));
    for (arguments, words) in [
        (["--meter", "none", "--timeout-seconds", "1"], "the event is counted. GET /usage/none"),
        (["--meter", "checked", "--event-type", "other"], "cannot be used multiple times"),
        (["--meter", "checked", "--token-file", "none"], "can't read the token file none"),
        (["--meter", "checked", "--timeout-seconds", "soon"], "invalid value 'soon'"),
    ] {
        let (passed, said) = check(&arguments);
        assert!(!passed && said.contains(words), "{said:?} does not say {words:?}");
    }
    assert_eq!(dev.call(Method::GET, "/usage/checked", Value::Null).await.1["data"], json!([]), "a check that fails takes back too");
}

#[test]
fn what_stops_it_from_starting_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        command.arg("dev").args(arguments).stdin(Stdio::null()).current_dir(folder.path());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len(), said.lines().count()), (Some(1), 0, 1), "{said}");
        said
    };
    fs::create_dir(folder.path().join("some")).unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = "127.0.0.1:0";
    for (arguments, parts) in [
        (["--manifests", "some", "--data-dir", "data", "--listen", &address], ["can't listen on", &address]),
        (["--manifests", "none", "--data-dir", "data", "--listen", free], ["no manifests folder none", "--manifests"]),
        (["--manifests", "some", "--data-dir", "file", "--listen", free], ["can't write to the data folder file", ""]),
    ] {
        let said = refused(&arguments);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    let said = refused(&["--manifests", "some", "--listen", free, "--engine", "none.so"]);
    assert!(said.contains("none.so") && said.contains("make setup"), "{said}");
}
