//! `GET /openapi.json`: written by the handlers' own attributes, with what all calls share added here.

use std::collections::HashMap;

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, PathItem, Ref, RefOr, Required};
use utoipa::{Modify, OpenApi, ToSchema};

use super::problem::ProblemDocument;
use super::{cancel, customers, events, meters, probes, usage};

/// A CloudEvent 1.0 in structured mode; its fields are CloudEvents' own.
#[derive(ToSchema)]
#[allow(dead_code, missing_docs)]
pub struct CloudEvent {
    /// With `source`, the event's identity: the same again counts once, for ever.
    #[schema(example = "5c1f")]
    id: String,
    #[schema(example = "gateway-1")]
    source: String,
    #[schema(example = "1.0")]
    specversion: String,
    #[schema(rename = "type", example = "api.request")]
    r#type: String,
    /// Whose usage it is.
    #[schema(example = "acme-prod")]
    subject: String,
    /// RFC 3339, kept to the millisecond. Absent: the time of arrival.
    #[schema(format = DateTime)]
    time: Option<String>,
    /// A JSON object.
    data: Option<HashMap<String, serde_json::Value>>,
}

/// An event as EventBridge delivers it.
#[derive(ToSchema)]
#[allow(dead_code, missing_docs)]
pub struct EventBridgeEvent {
    id: String,
    source: String,
    #[schema(rename = "detail-type", example = "ingestUsage")]
    detail_type: String,
    #[schema(format = DateTime)]
    time: Option<String>,
    detail: HashMap<String, serde_json::Value>,
}

/// What `application/json` may be: an event, several, or an EventBridge envelope.
#[derive(ToSchema)]
#[allow(dead_code, missing_docs)]
#[serde(untagged)]
pub enum EventOrEvents {
    One(CloudEvent),
    Many(Vec<CloudEvent>),
    EventBridge(EventBridgeEvent),
}

/// All that is served.
#[derive(OpenApi)]
#[openapi(
    info(title = "Kubemeter", description = "Exact usage metering for SaaS on Kubernetes, kept in ClickHouse."),
    paths(
        meters::create, meters::list, meters::fetch, meters::update, meters::delete,
        customers::create, customers::list, customers::fetch, customers::update, customers::delete,
        events::ingest, events::list, events::list_rejected, events::replay,
        usage::fetch, cancel::cancel, cancel::list, cancel::revert,
        probes::healthz, probes::readyz, probes::metrics, openapi_json,
    ),
    components(schemas(ProblemDocument, CloudEvent, EventBridgeEvent)),
    tags(
        (name = "meters", description = "What is counted. A proxy of the Kubernetes API, with the caller's own bearer token."),
        (name = "customers", description = "Whose usage it is. A proxy of the Kubernetes API, as meters are."),
        (name = "events", description = "What was used."),
        (name = "usage", description = "How much was used."),
        (name = "probes", description = "For the kubelet, Prometheus and tools."),
    ),
    modifiers(&Shared),
)]
struct Document;

/// The OpenAPI document, exactly as `docs/openapi.json` holds it.
///
/// # Errors
/// When it can't be written as JSON; its types make that impossible, a test shows it.
pub fn openapi() -> Result<String, serde_json::Error> {
    Document::openapi().to_pretty_json().map(|text| text + "\n")
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "probes", responses((status = 200, description = "OpenAPI 3.1.", body = Object)))]
pub fn openapi_json(text: bytes::Bytes) -> axum::response::Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// Problems that a call may answer besides those that any call may, by its path and method.
fn own_problems(path: &str, method: &HttpMethod) -> &'static [u16] {
    match (path, method) {
        ("/meters" | "/customers", HttpMethod::Post) => &[408, 409, 413, 415, 422, 429],
        ("/meters/{meterId}" | "/customers/{customerId}", HttpMethod::Put) => &[404, 408, 409, 413, 415, 422, 429],
        ("/meters" | "/customers", _) => &[410],
        ("/meters/{meterId}" | "/customers/{customerId}", _) => &[404],
        ("/events", HttpMethod::Post) => &[408, 413, 415, 429],
        ("/events/rejected/replay", _) | ("/usage", _) => &[404, 408, 413, 415, 429],
        ("/usage/{meterId}", _) => &[404, 406],
        ("/usage/cancellations/{cancellationId}/revert", _) => &[404],
        _ => &[],
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "A parameter, a field or all events are wrong: `detail` names it, `rejected` lists the events.",
        401 => "No credentials, or nobody knows them; `detail` says what to send.",
        403 => "The caller may not; `detail` names the right, and how to grant it.",
        404 => "There is none.",
        406 => "Accept admits neither application/json nor text/csv.",
        408 => "The body did not come in time.",
        409 => "The name is taken, or `resourceVersion` is stale.",
        410 => "`continue` is too old; start again.",
        413 => "The body is over the limit, after decompression.",
        415 => "Content-Type or Content-Encoding is not taken here.",
        422 => "The Kubernetes API refused it; `causes` name the fields.",
        429 => "Queues are full; come again after Retry-After.",
        503 => "A part that is needed does not answer; come again after Retry-After.",
        _ => "An error inside; the log has it under x-request-id.",
    }
}

fn problem(status: u16) -> Response {
    let schema = Ref::from_schema_name("ProblemDocument");
    ResponseBuilder::new().description(meaning(status)).content(super::problem::MEDIA_TYPE, Content::new(Some(schema))).build()
}

/// Adds what every call has: the namespace, the token, the common problems.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        if let Some(components) = &mut document.components {
            let scheme = HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("A Kubernetes token: for the audience `kubemeter`, or for the API server itself."))
                .build();
            components.add_security_scheme("serviceAccount", SecurityScheme::Http(scheme));
            let key = ApiKeyValue::with_description("X-Api-Key", "A key of the gateway's file of API keys, for events and usage.");
            components.add_security_scheme("apiKey", SecurityScheme::ApiKey(ApiKey::Header(key)));
        }
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations(item) {
                let probe = operation.tags.iter().flatten().any(|tag| tag == "probes");
                let common: &[u16] = if path == "/readyz" {
                    &[503]
                } else if probe {
                    &[]
                } else {
                    &[400, 401, 403, 500, 503]
                };
                for status in common.iter().chain(own_problems(path, &method)) {
                    operation.responses.responses.insert(status.to_string(), RefOr::T(problem(*status)));
                }
                if !probe {
                    operation.parameters.get_or_insert_default().push(RefOr::T(namespace()));
                    let proxied = operation.tags.iter().flatten().any(|tag| tag == "meters" || tag == "customers");
                    let schemes = ["serviceAccount"].into_iter().chain((!proxied).then_some("apiKey"));
                    let one = |scheme| SecurityRequirement::new::<_, [String; 0], String>(scheme, []);
                    // None is needed in `dev`.
                    operation.security = Some(schemes.map(one).chain([SecurityRequirement::default()]).collect());
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, &mut item.get),
        (HttpMethod::Post, &mut item.post),
        (HttpMethod::Put, &mut item.put),
        (HttpMethod::Delete, &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn namespace() -> Parameter {
    ParameterBuilder::new()
        .name("namespace")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("Kubernetes namespace. Absent: that of the caller's service account, else the configured default."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .build()
}
