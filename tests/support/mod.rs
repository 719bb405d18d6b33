//! The real parts that the integration tests run against: a Kubernetes control plane and a ClickHouse.
#![allow(dead_code, unused_imports, reason = "the rig is whole, whichever part of it the tests use")]

mod child;
mod clock;
mod control_plane;
mod engine;
mod relay;

pub use child::Running;
pub use clock::Clock;
pub use control_plane::ControlPlane;
pub use engine::{CLUSTER, ClickHouse, Environment, free_address, free_port};

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything that has to happen may take before the test has failed. Far above what it does take, so that a
/// busy machine fails no test.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks `check` again until it has an answer. Panics with `what` after [`DEADLINE`].
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = check().await {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where `helm`, `helm3` or `kubectl` is. Panics when the set-up has not put it there.
pub fn tool(name: &str) -> PathBuf {
    let script = "import sys; sys.path.insert(0, sys.argv[1]); import parts; print(parts.tool(sys.argv[2]) or '')";
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
    let output = Command::new("python3").args(["-c", script, scripts, name]).output().expect("python3 runs");
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(!path.is_empty(), "{name} is missing: run `make setup`");
    path.into()
}
