//! The HTTP mapping alone: a fake service behind the real router.

mod bodies;
mod calls;
mod document;
mod fake;
mod framework;
mod properties;
mod queries;
mod serving;
mod tls;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, request};
use serde_json::Value;
use tower::ServiceExt as _;

use super::{HttpOptions, router};
use crate::telemetry::Metrics;
use fake::Fake;

/// An answer, read.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts that it is a whole problem with this status and code; gives its detail.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!((&body["type"], &body["status"]), (&Value::from("about:blank"), &Value::from(status)));
        assert_eq!(body["title"], self.status.canonical_reason().unwrap());
        assert_eq!(self.headers.contains_key("retry-after"), matches!(status, 429 | 503), "Retry-After of {status}");
        body["detail"].as_str().unwrap().to_owned()
    }
}

pub fn options() -> HttpOptions {
    HttpOptions::new(Arc::new(Metrics::new().unwrap()), crate::auth::Auth::off())
}

pub fn request(method: &str, uri: &str) -> request::Builder {
    Request::builder().method(method).uri(uri)
}

/// A request with a JSON body.
pub fn with_json(method: &str, uri: &str, body: &str) -> Request<Body> {
    request(method, uri).header("content-type", "application/json; charset=utf-8").body(Body::from(body.to_owned())).unwrap()
}

/// A request without a body.
pub fn bare(method: &str, uri: &str) -> Request<Body> {
    request(method, uri).body(Body::empty()).unwrap()
}

pub async fn send_with(fake: &Arc<Fake>, options: HttpOptions, request: Request<Body>) -> Answer {
    let response = router(Arc::clone(fake), options).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub async fn send(fake: &Arc<Fake>, request: Request<Body>) -> Answer {
    send_with(fake, options(), request).await
}
