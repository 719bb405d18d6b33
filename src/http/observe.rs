//! What is seen of every request: its id, a span, a log line, a count. Never its body, token or query.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument as _, field};

use crate::limits;
use crate::telemetry::{self, Metrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What these say is for whoever asks; asked every few seconds, it would fill the log.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The outermost layer.
pub async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = method(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let span = if PROBES.contains(&route) {
        tracing::debug_span!("request", id = id.to_str().unwrap_or_default(), method, route)
    } else {
        tracing::info_span!("request", id = id.to_str().unwrap_or_default(), method, route, otel.kind = "server", status = field::Empty)
    };
    telemetry::continues(&span, request.headers());
    let mut response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    span.record("status", status.as_u16());
    let elapsed = started.elapsed();
    metrics.http_request(method, route, status.as_u16(), elapsed);
    let milliseconds = elapsed.as_millis();
    span.in_scope(|| {
        if status.is_server_error() && !PROBES.contains(&route) {
            tracing::warn!(status = status.as_u16(), milliseconds, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), milliseconds, "answered");
        }
    });
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's id when it is short and plain enough for a log line, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(b);
    let given = headers.get(&REQUEST_ID).filter(|id| (1..=limits::REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(plain));
    given.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::now_v7().to_string();
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// Anybody can send any method: as a label there are only these.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        _ => "other",
    }
}
