//! `kubemeter dev`: a folder of manifests becomes tables, through edits, restarts and crashes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Running, eventually};

struct Dev {
    running: Running,
    clickhouse: String,
}

impl Dev {
    fn start(manifests: &Path, data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        command.args(["dev", "--stop-with-stdin", "--listen", "127.0.0.1:0", "--manifests"]).arg(manifests).arg("--data-dir").arg(data);
        let (running, clickhouse) = Running::start(&mut command, |line| {
            let url = line.trim().strip_prefix("ClickHouse")?.trim();
            url.split_whitespace().next().map(str::to_owned)
        });
        Self { running, clickhouse }
    }

    async fn ask(&self, sql: &str) -> Option<String> {
        let answer = reqwest::Client::new().post(&self.clickhouse).body(sql.to_owned()).send().await.ok()?;
        Some(answer.error_for_status().ok()?.text().await.ok()?.trim().to_owned())
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
