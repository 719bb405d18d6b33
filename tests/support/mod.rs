//! The real parts that the integration tests run against: a Kubernetes control plane and a ClickHouse.
#![allow(dead_code, unused_imports, reason = "the rig is whole, whichever part of it the tests use")]

mod child;
mod control_plane;
mod engine;

pub use control_plane::ControlPlane;
pub use engine::ClickHouse;

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
