//! A real ClickHouse: `kubemeter clickhouse` with the engine that `make setup` has fetched.

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
        if let Ok(url) = std::env::var("KUBEMETER_TEST_CLICKHOUSE_URL") {
            return Self { url, own: None };
        }
        let directory = tempfile::tempdir().expect("a temporary folder can be made");
        let (running, url) = run(&directory, "127.0.0.1:0");
        Self { url, own: Some(Own { running, directory }) }
    }

    /// Where it serves HTTP: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
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

    fn own(&mut self) -> &mut Own {
        self.own.as_mut().expect("the ClickHouse of KUBEMETER_TEST_CLICKHOUSE_URL is not the test's to end")
    }
}

fn run(directory: &TempDir, listen: &str) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
    command.args(["clickhouse", "--listen", listen, "--data-dir"]).arg(directory.path().join("data"));
    let (running, url) = Running::start(&mut command, |line| line.split_once("listening on ").map(|(_, url)| url.trim().to_owned()));
    (running.leashed(directory.path()), url)
}
