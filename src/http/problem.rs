//! `application/problem+json` (RFC 9457): the one shape of every error.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::auth;
use crate::metering::{Error, Ingested, Rejection};

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What a client is told to wait while the API server can't be asked for its rights, in seconds.
const REVIEW_RETRY_AFTER: u32 = 5;

/// An error as it is answered. Boxed: most requests have none.
#[derive(Debug)]
pub struct Problem {
    body: Box<ProblemDocument>,
    retry_after: Option<u32>,
}

/// What went wrong, for programs (`code`) and for people (`detail`).
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// `about:blank`: the title is the status's own phrase, and `code` tells the cases apart.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(example = "Bad Request")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 400)]
    status: u16,
    /// Stable, for programs.
    #[schema(value_type = String, example = "invalid_parameter")]
    code: Cow<'static, str>,
    /// What is wrong, where, and what to do.
    #[schema(example = "windowSize: \"FORTNIGHT\" is none: write MINUTE, HOUR, DAY, WEEK or MONTH")]
    detail: String,
    /// The Kubernetes API's causes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    causes: Vec<Cause>,
    /// Where events were posted: how many were taken, 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<usize>,
    /// Where events were posted: why each was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Vec<Rejection>>,
}

/// One field that the Kubernetes API refused.
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct Cause {
    /// Path of the field, such as `spec.valueProperty`.
    field: String,
    /// What is wrong with it.
    message: String,
}

impl Problem {
    /// A problem with a status, a stable code and a text for people.
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        let body = ProblemDocument {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code: code.into(),
            detail: detail.into(),
            causes: Vec::new(),
            accepted: None,
            rejected: None,
        };
        Self { body: Box::new(body), retry_after: None }
    }

    /// 400: a query or path parameter is wrong. `why` goes on after the parameter's name.
    pub fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", format!("{name}: {why}"))
    }

    /// 400: a body's field is wrong. `why` goes on after the field's name.
    pub fn field(name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", format!("{name}: {why}"))
    }

    /// Tells the client when to come again.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn with_rejected(mut self, ingested: Ingested) -> Self {
        self.body.accepted = Some(ingested.accepted);
        self.body.rejected = Some(ingested.rejected);
        self
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { code, message } => Self::new(StatusCode::BAD_REQUEST, code, message),
            Error::AllRejected(ingested) => {
                // With one event its own code says more than that all of one were refused.
                let (code, detail) = match ingested.rejected.as_slice() {
                    [only] => (only.code.as_str(), only.message.clone()),
                    many => ("all_rejected", format!("none of the events was taken; `rejected` says why for each of {}", many.len())),
                };
                Self::new(StatusCode::BAD_REQUEST, code, detail).with_rejected(ingested)
            }
            Error::NotFound(message) => Self::new(StatusCode::NOT_FOUND, "not_found", message),
            Error::Conflict(message) => Self::new(StatusCode::CONFLICT, "conflict", message),
            Error::Upstream { status, reason, message, causes } => {
                let failure = StatusCode::from_u16(status).ok().filter(|s| s.is_client_error() || s.is_server_error());
                let mut problem = Self::new(failure.unwrap_or(StatusCode::BAD_GATEWAY), upstream_code(&reason), message);
                problem.body.causes = causes.into_iter().map(|(field, message)| Cause { field, message }).collect();
                problem
            }
            Error::Overloaded { message, retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message).retry_after(retry_after)
            }
            Error::Unavailable { message, retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).retry_after(retry_after)
            }
            Error::Internal(message) => {
                // The only place that sees the text: it may name tables and hosts, so it is logged and not answered.
                tracing::error!(error = message, "a request failed inside");
                internal()
            }
        }
    }
}

impl From<auth::Error> for Problem {
    fn from(error: auth::Error) -> Self {
        let detail = error.to_string();
        match error {
            auth::Error::Unauthenticated { code, .. } => Self::new(StatusCode::UNAUTHORIZED, code, detail),
            auth::Error::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", detail),
            auth::Error::Unavailable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(REVIEW_RETRY_AFTER),
        }
    }
}

/// 500 without a word about the inside.
pub fn internal() -> Problem {
    let detail = "an error inside; the log has it under the x-request-id of this answer";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
}

/// `AlreadyExists` → `already_exists`; a text that is no reason → `upstream`.
fn upstream_code(reason: &str) -> Cow<'static, str> {
    if reason.is_empty() || reason.len() > 64 || !reason.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Cow::Borrowed("upstream");
    }
    let mut code = String::with_capacity(reason.len() + 4);
    for c in reason.chars() {
        if c.is_ascii_uppercase() && !code.is_empty() {
            code.push('_');
        }
        code.push(c.to_ascii_lowercase());
    }
    Cow::Owned(code)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Plain texts and numbers: writing them can't fail.
        let body = serde_json::to_vec(&self.body).unwrap_or_default();
        let status = StatusCode::from_u16(self.body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response();
        let busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(seconds) = self.retry_after.or(busy.then_some(1)) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Makes a problem of an error that the framework answered by itself: unknown routes, methods, encodings, timeouts.
pub async fn from_framework(response: Response) -> Response {
    let status = response.status();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == MEDIA_TYPE);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (code, detail) = match status {
        StatusCode::NOT_FOUND => ("not_found", "there is nothing at this path; GET /openapi.json lists all paths"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this path takes the methods in the Allow header"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_encoding", "Content-Encoding: send gzip, zstd or none"),
        StatusCode::SERVICE_UNAVAILABLE => ("timeout", "no answer within the time allowed; try again, the same events count once"),
        status if status.is_server_error() => ("internal", "an error inside; the log has it under the x-request-id of this answer"),
        _ => ("bad_request", "the request's path or headers can't be read; check their percent-encoding"),
    };
    let (mut parts, _) = response.into_parts();
    let mut answer = Problem::new(status, code, detail).into_response();
    for name in [header::ALLOW, header::ACCEPT_ENCODING] {
        if let Some(value) = parts.headers.remove(&name) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
