//! Traces, sent to a collector by OTLP over HTTP. Without an endpoint nothing of this runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::Error;

/// How long one batch of spans may take.
const SEND: Duration = Duration::from_secs(10);
/// How long the last spans may take at the end.
const FINISH: Duration = Duration::from_secs(3);
/// Largest answer of a collector that is read, in bytes.
const ANSWER_BYTES: usize = 64 * 1_024;

/// Where spans go; by default nowhere.
#[derive(Default)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Sends spans to a collector, batch by batch; what it does not take is dropped.
    pub(super) fn to(endpoint: &str) -> Result<Self, Error> {
        let uri: Uri = endpoint.parse().map_err(|why| Error::Endpoint(format!("{endpoint:?} is no URL ({why})")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(Error::Endpoint(format!("{endpoint:?} does not begin with http:// or https://")));
        }
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new().with_provider_and_webpki_roots(provider);
        let connector = connector.map_err(|why| Error::Endpoint(why.to_string()))?.https_or_http().enable_http1().build();
        let sender = Sender {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: Handle::current(),
            failing: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(SEND)
            .build()
            .map_err(|why| Error::Endpoint(why.to_string()))?;
        let resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        // What OTEL_SERVICE_NAME says is in it already.
        let resource = if std::env::var_os("OTEL_SERVICE_NAME").is_some() { resource } else { resource.with_service_name("kubemeter") };
        Ok(Self(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())))
    }

    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.0.as_ref().map(|provider| provider.tracer(env!("CARGO_PKG_NAME")))
    }

    /// Sends what is left, for a bounded time. The runtime must still run.
    pub fn finish(self) {
        if let Some(provider) = self.0
            && let Err(why) = provider.shutdown_with_timeout(FINISH)
        {
            tracing::warn!("the last traces could not be sent: {why}");
        }
    }
}

/// Makes a span part of the trace that a request's `traceparent` names, if it names one.
pub fn continues(span: &tracing::Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        // An error says that no traces are sent.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
    }
}

/// Posts spans, from the exporter's own thread, on our runtime and with our TLS.
#[derive(Debug)]
struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    failing: AtomicBool,
}

impl Sender {
    /// Tells of the first failure after a success, and of the first success after a failure.
    fn tell(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let why = match sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answers {}", response.status())),
            Err(why) => Some(why.to_string()),
        };
        match (self.failing.swap(why.is_some(), Ordering::Relaxed), why) {
            (false, Some(why)) => tracing::warn!("traces can't be sent and are dropped: {why}"),
            (true, None) => tracing::info!("traces are sent again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.request(request.map(Full::new));
        let answered = async {
            let (parts, body) = sent.await?.into_parts();
            Ok::<_, HttpError>(Response::from_parts(parts, Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes()))
        };
        let done = self.runtime.spawn(async { tokio::time::timeout(SEND, answered).await? }).await;
        let done = done.map_err(HttpError::from).flatten();
        self.tell(&done);
        done
    }
}
