//! A real ClickHouse: `kubemeter clickhouse` with the engine that `make setup` has fetched.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::process::Command;

use tempfile::TempDir;

use super::child::Running;

/// A ClickHouse: the one that `KUBEMETER_TEST_CLICKHOUSE_URL` names, else an empty one of its own that ends on drop.
pub struct ClickHouse {
    url: String,
    own: Option<Own>,
}

struct Own {
    running: Running,
    directory: TempDir,
}

impl ClickHouse {
    /// Starts one on a free port, which takes some 0.5 s.
    pub fn start() -> Self {
        match std::env::var("KUBEMETER_TEST_CLICKHOUSE_URL") {
            Ok(url) => Self { url, own: None },
            Err(_) => Self::start_own(),
        }
    }

    /// The one that tests share, each in a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: std::sync::OnceLock<ClickHouse> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts one whatever the environment says, for a test that ends it.
    pub fn start_own() -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder can be made");
        let (running, url) = run(&directory, &format!("127.0.0.1:{}", free_port()));
        Self { url, own: Some(Own { running, directory }) }
    }

    /// Where it serves HTTP: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it logged, if it is one of its own.
    pub fn log(&self) -> String {
        let file = self.own.as_ref().map(|own| own.directory.path().join("data/clickhouse.log"));
        let bytes = file.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.own().running.runs()
    }

    /// Ends it by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.own().running.kill();
    }

    /// Ends it by SIGTERM and waits until it has ended.
    pub fn stop(&mut self) {
        self.own().running.stop();
    }

    /// Starts it again after [`ClickHouse::kill`] or [`ClickHouse::stop`]: same data, same URL.
    pub fn restart(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        let own = self.own();
        (own.running, _) = run(&own.directory, &address);
    }

    /// Starts another one with no data in its place: same URL.
    pub fn restart_empty(&mut self) {
        self.own().directory = tempfile::tempdir().expect("a temporary folder can be made");
        self.restart();
    }

    fn own(&mut self) -> &mut Own {
        self.own.as_mut().expect("a test that ends its ClickHouse starts it by start_own")
    }
}

fn run(directory: &TempDir, listen: &str) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
    command.args(["clickhouse", "--stop-with-stdin", "--listen", listen, "--data-dir"]).arg(directory.path().join("data"));
    Running::start(&mut command, |line| line.split_once("listening on ").map(|(_, url)| url.trim().to_owned()))
}

/// A port that nobody listens on, below those that the kernel gives to outgoing connections: between a kill and a
/// restart one of these could take it.
pub fn free_port() -> u16 {
    loop {
        let port = 20_000 + (RandomState::new().hash_one(()) % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
