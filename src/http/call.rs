//! What every call has: who asks, in which namespace, with which parameters, with which body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use futures::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpOptions;
use super::params::{self, Params};
use super::problem::Problem;
use crate::limits;
use crate::metering::{Caller, Records};
use crate::telemetry::Metrics;

/// Bytes of one permit of [`App::bodies`].
const PERMIT_BYTES: usize = 1_024;
/// Longest name of a Meter, as its CRD has it.
pub const METER_NAME: usize = 63;
/// Longest name of a Customer: what Kubernetes allows.
pub const CUSTOMER_NAME: usize = 253;

/// What all handlers share.
pub struct App<S> {
    /// Who does the work.
    pub service: Arc<S>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    body_timeout: Duration,
    bodies: Arc<Semaphore>,
}

impl<S> Clone for App<S> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            metrics: Arc::clone(&self.metrics),
            body_timeout: self.body_timeout,
            bodies: Arc::clone(&self.bodies),
        }
    }
}

/// A request body, and its part of the memory that bodies may take; freed when this goes.
pub struct Held {
    /// The body, decompressed.
    pub bytes: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl<S: Records> App<S> {
    /// Bundles what handlers share.
    pub fn new(service: Arc<S>, options: &HttpOptions) -> Self {
        let bodies = Arc::new(Semaphore::new(options.bodies_bytes / PERMIT_BYTES));
        Self { service, metrics: Arc::clone(&options.metrics), body_timeout: options.body_timeout, bodies }
    }

    /// Reads caller and parameters; `known` are the parameters besides `namespace`.
    pub fn call(&self, parts: &Parts, known: &[&str]) -> Result<(Caller, Params), Problem> {
        let params = Params::parse(parts.uri.query(), known)?;
        let token = bearer(&parts.headers)?;
        let namespace = match params.one("namespace")? {
            Some(name) if params::is_namespace(name) => name.to_owned(),
            Some(name) => {
                let why = format_args!("{} is no namespace: write 1 to 63 of a-z, 0-9 and -", params::shown(name));
                return Err(Problem::parameter("namespace", why));
            }
            None => token.as_deref().and_then(namespace_of).unwrap_or_else(|| self.service.default_namespace().to_owned()),
        };
        Ok((Caller { namespace, token }, params))
    }

    /// Reads a body into memory: as long, as fast and as many at a time as the limits allow.
    pub async fn read(&self, body: Body) -> Result<Held, Problem> {
        let slow =
            |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not come in time; send it faster or in parts");
        tokio::time::timeout(self.body_timeout, self.collect(body)).await.map_err(slow)?
    }

    async fn collect(&self, body: Body) -> Result<Held, Problem> {
        let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if expected > limits::BODY_BYTES {
            return Err(too_large());
        }
        let mut memory = self.memory(1 + expected / PERMIT_BYTES)?;
        let mut all = BytesMut::with_capacity(expected);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|why| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "unreadable_body",
                    format!("the body broke off, or is not what Content-Encoding says: {why}"),
                )
            })?;
            let length = all.len() + chunk.len();
            if length > limits::BODY_BYTES {
                return Err(too_large());
            }
            let more = (1 + length / PERMIT_BYTES).saturating_sub(memory.num_permits());
            if more > 0 {
                memory.merge(self.memory(more)?);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: all.freeze(), _memory: memory })
    }

    fn memory(&self, permits: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        Arc::clone(&self.bodies).try_acquire_many_owned(permits).map_err(|_| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", "too many requests are being read; try again").retry_after(1)
        })
    }

    /// Reads a JSON body.
    pub async fn json<T: DeserializeOwned>(&self, headers: &HeaderMap, body: Body) -> Result<T, Problem> {
        let held = self.read(body).await?;
        require_json(headers)?;
        parse_json(&held.bytes)
    }

    /// Reads a JSON body that may be left out.
    pub async fn optional_json<T: DeserializeOwned>(&self, headers: &HeaderMap, body: Body) -> Result<Option<T>, Problem> {
        let held = self.read(body).await?;
        if held.bytes.is_empty() {
            return Ok(None);
        }
        require_json(headers)?;
        parse_json(&held.bytes).map(Some)
    }
}

fn too_large() -> Problem {
    let detail = format!("the body is larger than {} bytes (after decompression); send it in parts", limits::BODY_BYTES);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = format!("Content-Type: {} is not taken here; send application/json", params::shown(kind));
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
}

/// Parses JSON; errors name the field, line and column.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|why| {
        let path = why.path().to_string();
        let why = why.into_inner();
        let invalid = if why.is_data() { "invalid_body" } else { "invalid_json" };
        let detail = if path == "." { why.to_string() } else { format!("{path}: {why}") };
        Problem::new(StatusCode::BAD_REQUEST, invalid, detail)
    })?;
    json.end().map_err(|why| Problem::new(StatusCode::BAD_REQUEST, "invalid_json", why.to_string()))?;
    Ok(value)
}

/// The bearer token, if there is an `Authorization` at all.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        let token = token.trim();
        // RFC 6750's b64token.
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        let bounded = (1..=limits::TOKEN_BYTES).contains(&token.len());
        (scheme.eq_ignore_ascii_case("bearer") && bounded && token.bytes().all(good)).then(|| token.to_owned())
    });
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(Problem::new(StatusCode::UNAUTHORIZED, "invalid_token", "Authorization: write Bearer and a service account's token")),
    }
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
    sub: Option<String>,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: Option<String>,
}

/// The namespace of the service account that a token is for.
///
/// The signature is not checked: this is only where an unnamed namespace defaults to. What the caller may do there is
/// for the API server to say, which gets the very same token.
fn namespace_of(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let of_subject = || Some(claims.sub.as_deref()?.strip_prefix("system:serviceaccount:")?.split_once(':')?.0.to_owned());
    let named = claims.kubernetes.and_then(|k| k.namespace).or_else(of_subject)?;
    params::is_namespace(&named).then_some(named)
}
