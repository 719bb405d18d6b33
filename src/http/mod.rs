//! The HTTP API: every path of the contract, over [`Metering`] and [`Records`] and nothing else.
//!
//! A request passes, from outside in: `observe` (id, log, count), `problem` (framework errors become problems), a catch
//! for panics, the time limit, decompression; then a handler, which lets the caller in and reads what it needs through
//! `call` and `params`.

mod accept;
mod call;
mod cancel;
mod customers;
mod encoding;
mod events;
mod forms;
mod meters;
mod observe;
mod openapi;
mod params;
mod probes;
mod problem;
mod serve;
#[cfg(test)]
mod tests;
mod tls;
mod usage;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_request, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

pub use openapi::openapi;
pub use probes::probes;
pub use serve::serve;
pub use tls::{Tls, TlsError};

use crate::auth::Auth;
use crate::limits;
use crate::metering::{Metering, Records};
use crate::telemetry::Metrics;
use call::App;

/// How the HTTP layer behaves.
#[derive(Clone)]
pub struct HttpOptions {
    /// Who is let in.
    pub auth: Auth,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Longest wait for an answer, the body's reading included.
    pub request_timeout: Duration,
    /// Longest wait for a request's body.
    pub body_timeout: Duration,
    /// Most bytes of bodies in memory at a time.
    pub bodies_bytes: usize,
}

impl HttpOptions {
    /// What production uses.
    pub const fn new(metrics: Arc<Metrics>, auth: Auth) -> Self {
        Self {
            auth,
            metrics,
            request_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            bodies_bytes: limits::BODIES_BYTES,
        }
    }
}

/// The whole API over a service.
pub fn router<S: Metering + Records>(service: Arc<S>, options: HttpOptions) -> Router {
    let app = App::new(Arc::clone(&service), &options);
    let document = bytes::Bytes::from(openapi().unwrap_or_default());
    let ready = move || {
        let service = Arc::clone(&service);
        async move { service.ready().await }
    };
    let api = Router::new()
        .route("/meters", post(meters::create::<S>).get(meters::list::<S>))
        .route("/meters/{meterId}", get(meters::fetch::<S>).put(meters::update::<S>).delete(meters::delete::<S>))
        .route("/customers", post(customers::create::<S>).get(customers::list::<S>))
        .route("/customers/{customerId}", get(customers::fetch::<S>).put(customers::update::<S>).delete(customers::delete::<S>))
        .route("/events", post(events::ingest::<S>).get(events::list::<S>))
        .route("/events/rejected", get(events::list_rejected::<S>))
        .route("/events/rejected/replay", post(events::replay::<S>))
        .route("/usage", delete(cancel::cancel::<S>))
        .route("/usage/{meterId}", get(usage::fetch::<S>))
        .route("/usage/cancellations", get(cancel::list::<S>))
        .route("/usage/cancellations/{cancellationId}/revert", post(cancel::revert::<S>))
        .route("/openapi.json", get(move || std::future::ready(openapi::openapi_json(document))))
        .with_state(app);
    with_layers(api.merge(probes(ready, Arc::clone(&options.metrics))), &options)
}

/// Wraps routes in what every request passes; the last is the outermost.
fn with_layers(routes: Router, options: &HttpOptions) -> Router {
    routes
        .layer(map_request(encoding::decompress))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, options.request_timeout))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(map_response(problem::from_framework))
        .layer(from_fn_with_state(Arc::clone(&options.metrics), observe::observe))
}

/// The panic hook has written where and why; the client learns neither.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request's handler panicked");
    problem::internal().into_response()
}
