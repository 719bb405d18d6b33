//! `/events`: taking usage events, and looking at what was taken and what was refused.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use uuid::Uuid;

use super::call::App;
use super::forms;
use super::problem::Problem;
use crate::auth::Action;
use crate::event::Item;
use crate::limits;
use crate::metering::{Error, EventFilter, Ingested, Listing, Metering, Records, RejectedEvent, StoredEvent};

/// Takes usage events: CloudEvents 1.0 in any of its forms, or an EventBridge envelope.
///
/// 202 means that ClickHouse has confirmed every accepted event; a duplicate counts as accepted and changes nothing.
/// Binary mode is one event in `ce-*` headers with its data as the body. `Content-Encoding` may be gzip or zstd.
#[utoipa::path(
    post, path = "/events", tag = "events", operation_id = "ingestUsageEvent",
    params(("atomic" = Option<bool>, Query, description = "All or nothing: one bad event refuses all. Default: false, event by event.")),
    request_body(content(
        (super::openapi::CloudEvent = "application/cloudevents+json"),
        (Vec<super::openapi::CloudEvent> = "application/cloudevents-batch+json"),
        (super::openapi::EventOrEvents = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses((status = 202, description = "Accepted: all, or all but the rejected.", body = Ingested))
)]
pub async fn ingest<S: Metering + Records>(State(app): State<App<S>>, request: Request) -> Result<(StatusCode, Json<Ingested>), Problem> {
    let (parts, body) = request.into_parts();
    let (caller, params) = app.call(&parts, &["atomic"], Action::Ingest).await?;
    let atomic = params.flag("atomic")?;
    // Held to the end: what is parsed shares the body's memory.
    let mut held = app.read(body).await?;
    let items = forms::parse(&parts.headers, held.bytes.clone())?;
    app.hold(&mut held, items.iter().map(Item::weight).sum())?;
    let answer = app.service.ingest_usage_events(&caller, items, atomic).await;
    count(&app, &answer);
    Ok((StatusCode::ACCEPTED, Json(answer?)))
}

/// Lists stored events with their state, by type, subject and time.
#[utoipa::path(
    get, path = "/events", tag = "events", operation_id = "listEvents",
    params(
        ("type" = Option<String>, Query, description = "Only this CloudEvents type."),
        ("subject" = Option<String>, Query, description = "Only this subject."),
        ("customer" = Option<String>, Query, description = "Only this customer's subjects."),
        ("uncountedBy" = Option<String>, Query, description = "Only events of this meter's type in which it finds nothing to count."),
        ("from" = Option<String>, Query, format = DateTime, description = "Inclusive, RFC 3339."),
        ("to" = Option<String>, Query, format = DateTime, description = "Exclusive, RFC 3339."),
        ("limit" = Option<u32>, Query, description = "Most items of the page, 1 to 1000."),
        ("continue" = Option<String>, Query, description = "What the page before gave as `continue`."),
    ),
    responses((status = 200, description = "A page.", body = Listing<StoredEvent>))
)]
pub async fn list<S: Metering + Records>(State(app): State<App<S>>, parts: Parts) -> Result<Json<Listing<StoredEvent>>, Problem> {
    let (caller, params) =
        app.call(&parts, &["type", "subject", "customer", "uncountedBy", "from", "to", "limit", "continue"], Action::List).await?;
    let (from, to) = params.range()?;
    let text = |name| params.text(name, limits::ATTRIBUTE_BYTES);
    let filter = EventFilter {
        event_type: text("type")?,
        subject: text("subject")?,
        customer: text("customer")?,
        uncounted_by: text("uncountedBy")?,
        from,
        to,
    };
    Ok(Json(app.service.list_events(&caller, filter, params.page()?).await?))
}

/// Lists events that were refused and kept, oldest first.
#[utoipa::path(
    get, path = "/events/rejected", tag = "events", operation_id = "listRejectedEvents",
    params(("limit" = Option<u32>, Query, description = "Most items of the page, 1 to 1000."), ("continue" = Option<String>, Query, description = "What the page before gave as `continue`.")),
    responses((status = 200, description = "A page.", body = Listing<RejectedEvent>))
)]
pub async fn list_rejected<S: Metering + Records>(
    State(app): State<App<S>>,
    parts: Parts,
) -> Result<Json<Listing<RejectedEvent>>, Problem> {
    let (caller, params) = app.call(&parts, &["limit", "continue"], Action::List).await?;
    Ok(Json(app.service.list_rejected(&caller, params.page()?).await?))
}

/// Which kept rejects to try again.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayRequest {
    /// Only these; absent: all.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    reject_ids: Option<Vec<Uuid>>,
}

/// Most rejects that a replay names: as many as a page lists.
const MOST_REPLAYED: usize = limits::PAGE_MAX as usize;

/// Tries kept rejects again; those that pass now count and leave the list.
#[utoipa::path(
    post, path = "/events/rejected/replay", tag = "events", operation_id = "replayRejectedEvents",
    request_body(content = Option<ReplayRequest>, description = "No body: all."),
    responses((status = 200, description = "What passed now, and what is still refused.", body = Ingested))
)]
pub async fn replay<S: Metering + Records>(State(app): State<App<S>>, request: Request) -> Result<Json<Ingested>, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Ingest).await?;
    let only = match app.optional_json::<ReplayRequest>(&parts.headers, body).await?.and_then(|request| request.reject_ids) {
        None => Vec::new(),
        Some(ids) if (1..=MOST_REPLAYED).contains(&ids.len()) => ids,
        Some(ids) => {
            let why = format_args!("has {} ids; name 1 to {MOST_REPLAYED}, or leave it out for all", ids.len());
            return Err(Problem::field("rejectIds", why));
        }
    };
    let answer = app.service.replay_rejected(&caller, only).await;
    count(&app, &answer);
    match answer {
        // The request itself was in order: that nothing passes yet is its answer.
        Err(Error::AllRejected(ingested)) => Ok(Json(ingested)),
        answer => Ok(Json(answer?)),
    }
}

fn count<S>(app: &App<S>, answer: &Result<Ingested, Error>) {
    if let Ok(ingested) | Err(Error::AllRejected(ingested)) = answer {
        app.metrics.events_accepted.inc_by(ingested.accepted as u64);
        for rejection in &ingested.rejected {
            app.metrics.event_rejected(rejection.code);
        }
    }
}
