//! What every call has: who asks, in which namespace, with which parameters, with which body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::BytesMut;
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpOptions;
use super::params::{self, Params};
use super::problem::Problem;
use crate::api::is_namespace;
use crate::auth::{Action, Auth};
use crate::limits;
use crate::metering::{Caller, Records};
use crate::telemetry::Metrics;

/// Bytes of one permit of [`App::bodies`].
const PERMIT_BYTES: usize = 1_024;
/// What a body costs while it comes, when its length is not known beforehand: zstd's tables and buffers, measured, and some.
const DECODER_BYTES: usize = 512 * 1_024;
/// How long a body waits until others have gone.
const MEMORY_WAIT: Duration = Duration::from_secs(2);
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
    auth: Auth,
    body_timeout: Duration,
    bodies: Arc<Semaphore>,
}

impl<S> Clone for App<S> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            metrics: Arc::clone(&self.metrics),
            auth: self.auth.clone(),
            body_timeout: self.body_timeout,
            bodies: Arc::clone(&self.bodies),
        }
    }
}

/// A request body, and its part of the memory that bodies may take; freed when this goes.
pub struct Held {
    /// The body, decompressed.
    pub bytes: Bytes,
    memory: OwnedSemaphorePermit,
}

impl<S: Records> App<S> {
    /// Bundles what handlers share.
    pub fn new(service: Arc<S>, options: &HttpOptions) -> Self {
        let bodies = Arc::new(Semaphore::new(options.bodies_bytes / PERMIT_BYTES));
        Self { service, metrics: Arc::clone(&options.metrics), auth: options.auth.clone(), body_timeout: options.body_timeout, bodies }
    }

    /// Lets the caller in and reads the parameters; `known` are those besides `namespace`.
    pub async fn call(&self, parts: &Parts, known: &[&str], action: Action<'_>) -> Result<(Caller, Params), Problem> {
        let identity = self.auth.identify(&parts.headers).await?;
        let params = Params::parse(parts.uri.query(), known)?;
        let namespace = match params.one("namespace")? {
            Some(name) if is_namespace(name) => name.to_owned(),
            Some(name) => {
                let why = format_args!("{} is no namespace: write 1 to 63 of a-z, 0-9 and -", params::shown(name));
                return Err(Problem::parameter("namespace", why));
            }
            None => identity.namespace().unwrap_or_else(|| self.service.default_namespace().to_owned()),
        };
        self.auth.allow(&identity, &namespace, action).await?;
        let name = identity.name();
        Ok((Caller { namespace, acts_as: identity.acts_as(), name }, params))
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
        let decoder = if body.size_hint().exact().is_some() { 0 } else { DECODER_BYTES / PERMIT_BYTES };
        let mut memory = self.wait_for_memory(1 + expected / PERMIT_BYTES + decoder).await?;
        // Given back when the body is read.
        let _decoder = memory.split(decoder);
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
        Ok(Held { bytes: all.freeze(), memory })
    }

    /// Takes a larger part of the memory for what was made of a body, where that is more than a body usually becomes.
    pub fn hold(&self, held: &mut Held, bytes: usize) -> Result<(), Problem> {
        let more = (bytes / limits::BODY_GROWS / PERMIT_BYTES).saturating_sub(held.memory.num_permits());
        if more > 0 {
            held.memory.merge(self.memory(more)?);
        }
        Ok(())
    }

    /// Waits its turn. Only who holds nothing yet may: else two could wait for each other.
    async fn wait_for_memory(&self, permits: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let memory = tokio::time::timeout(MEMORY_WAIT, Arc::clone(&self.bodies).acquire_many_owned(permits)).await;
        memory.ok().and_then(Result::ok).ok_or_else(overloaded)
    }

    fn memory(&self, permits: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        Arc::clone(&self.bodies).try_acquire_many_owned(permits).map_err(|_| overloaded())
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

fn overloaded() -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", "too many requests are being read; try again").retry_after(1)
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
