//! The embedded ClickHouse: what it says when it can't start, and that it comes and goes with who started it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kubemeter::engine::{self, EngineOptions, EngineProcess};

use crate::support::eventually;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn options(data_dir: &Path) -> EngineOptions {
    let named = std::env::var_os("KUBEMETER_ENGINE").map(PathBuf::from);
    EngineOptions {
        executable: env!("CARGO_BIN_EXE_kubemeter").into(),
        library: engine::find(named.as_deref()).unwrap(),
        data_dir: data_dir.to_owned(),
        listen: ANY_PORT,
    }
}

async fn ask(url: &str, sql: &str) -> Result<String, reqwest::Error> {
    let answer = reqwest::Client::new().post(url).body(sql.to_owned()).send().await?.error_for_status()?;
    Ok(answer.text().await?.trim_end().to_owned())
}

/// ClickHouse notes its process in its data folder.
fn process_id(data_dir: &Path) -> String {
    let status = fs::read_to_string(data_dir.join("status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PID: ")).unwrap().to_owned()
}

fn kill(process: &str) {
    assert!(Command::new("kill").args(["-KILL", process]).status().unwrap().success());
}

/// Runs `kubemeter clickhouse` to its end and returns the one line that it says.
fn refused(data_dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
    command.args(["clickhouse", "--data-dir"]).arg(data_dir).args(arguments).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(1), 0));
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[tokio::test]
async fn its_settings_are_those_of_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineProcess::spawn(options(folder.path())).await.unwrap();
    let settings = "SELECT timezone() IN ('UTC', 'Etc/UTC'), getServerSetting('max_concurrent_queries') >= 100";
    assert_eq!(ask(engine.url(), settings).await.unwrap(), "1\t1");
    assert_eq!(ask(engine.url(), "SELECT min(keep_free_space) FROM system.disks").await.unwrap(), (256 << 20).to_string());
    // Defaults of the pool's other settings make a table of a small pool be refused, or never merge a quiet partition.
    ask(engine.url(), "CREATE TABLE t (n UInt8) ENGINE = MergeTree ORDER BY n").await.unwrap();
    let free = "SELECT max(toUInt64(value)) FROM system.merge_tree_settings WHERE name LIKE 'number_of_free_entries_in_pool%'";
    let most: u64 = ask(engine.url(), free).await.unwrap().parse().unwrap();
    let pool =
        "SELECT toUInt64(getServerSetting('background_pool_size') * getServerSetting('background_merges_mutations_concurrency_ratio'))";
    assert!(most < ask(engine.url(), pool).await.unwrap().parse().unwrap());
    engine.stop().await;
}

#[tokio::test]
async fn one_that_dies_is_started_again_with_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineProcess::spawn(options(folder.path())).await.unwrap();
    let url = engine.url().to_owned();
    ask(&url, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n").await.unwrap();
    ask(&url, "INSERT INTO kept SELECT number FROM numbers(1000)").await.unwrap();
    let first = process_id(folder.path());
    kill(&first);
    let count = eventually("the engine's return", async || ask(&url, "SELECT count() FROM kept").await.ok()).await;
    assert_eq!(count, "1000");
    assert_ne!(process_id(folder.path()), first);

    engine.stop().await;
    ask(&url, "SELECT 1").await.unwrap_err();
    let again = EngineProcess::spawn(options(folder.path())).await.unwrap();
    assert_eq!(ask(again.url(), "SELECT count() FROM kept").await.unwrap(), "1000");
}

#[tokio::test]
async fn what_stops_it_from_starting_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");

    let taken = TcpListener::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&data, &["--listen", &address]);
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");

    let said = refused(&data, &["--listen", "127.0.0.1:0", "--engine", "/nowhere/libchdb.so"]);
    assert!(said.contains("/nowhere/libchdb.so") && said.contains("make setup"), "{said}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let said = refused(&file, &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("can't write to the data folder") && said.contains(file.to_str().unwrap()), "{said}");

    let engine = EngineProcess::spawn(options(&data)).await.unwrap();
    let said = refused(&data, &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("in use by another kubemeter") && said.contains(data.to_str().unwrap()), "{said}");
    assert_eq!(ask(engine.url(), "SELECT 1").await.unwrap(), "1", "the first one does not mind");
}
