//! `/healthz`, `/readyz`, `/metrics`: for the kubelet and Prometheus. The operator serves them too.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::problem::{self, Problem};
use crate::telemetry::Metrics;

/// A probe that takes longer says no: better than a kubelet that gives up by itself.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// The three paths. `ready` says what is missing, if something is.
pub fn probes<F, R>(ready: F, metrics: Arc<Metrics>) -> Router
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + Send + 'static,
{
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(move || readyz(ready())))
        .route("/metrics", get(move || std::future::ready(self::metrics(&metrics))))
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200, description = "It does.", body = String)))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Events can be taken and usage answered.
#[utoipa::path(get, path = "/readyz", tag = "probes", responses((status = 200, description = "They can.", body = String)))]
async fn readyz(ready: impl Future<Output = Result<(), String>>) -> Response {
    let late = |_| Err(format!("no part answered within {} s", READY_WITHIN.as_secs()));
    match tokio::time::timeout(READY_WITHIN, ready).await.unwrap_or_else(late) {
        Ok(()) => "ok\n".into_response(),
        Err(missing) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", missing).into_response(),
    }
}

/// Counters, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "probes", responses((status = 200, description = "All counters.", body = String)))]
fn metrics(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))], text).into_response(),
        Err(why) => {
            tracing::error!(error = %why, "metrics can't be written");
            problem::internal().into_response()
        }
    }
}
