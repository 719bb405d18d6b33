//! `DELETE /usage` and `/usage/cancellations`: taking events out of what counts, and back.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::call::{App, METER_NAME};
use super::params;
use super::problem::Problem;
use crate::auth::Action;
use crate::limits;
use crate::metering::{CancelRequest, CancelTarget, CancellationRecord, Cancelled, EventRef, Listing, Metering, Records, UsageQuery};

/// Which events to cancel: exactly one of `events`, and `meterId` with `filter`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CancelDocument {
    /// Exactly these events; at most 10,000.
    #[serde(default)]
    events: Option<Vec<EventRef>>,
    /// What this meter counts within `filter`.
    #[serde(default)]
    meter_id: Option<String>,
    /// At least one of its fields.
    #[serde(default)]
    filter: Option<CancelFilter>,
    /// For people, kept with the cancellation; at most 1,024 bytes.
    #[serde(default)]
    reason: Option<String>,
    /// Only count what would be cancelled.
    #[serde(default)]
    dry_run: bool,
}

/// Which of a meter's events.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CancelFilter {
    /// Only this customer's.
    #[serde(default)]
    customer: Option<String>,
    /// Only this subject's.
    #[serde(default)]
    subject: Option<String>,
    /// Inclusive, RFC 3339.
    #[serde(default)]
    from: Option<String>,
    /// Exclusive, RFC 3339.
    #[serde(default)]
    to: Option<String>,
    /// Only events whose groups have these values.
    #[serde(default)]
    group_by: BTreeMap<String, String>,
}

/// Cancels events: from the next read on they count nowhere, and a re-send stays cancelled.
#[utoipa::path(
    delete, path = "/usage", tag = "usage", operation_id = "cancelUsageEvents",
    request_body = CancelDocument,
    responses((status = 200, description = "Cancelled, or counted in a dry run.", body = Cancelled))
)]
pub async fn cancel<S: Metering + Records>(State(app): State<App<S>>, request: Request) -> Result<Json<Cancelled>, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Cancel).await?;
    let document: CancelDocument = app.json(&parts.headers, body).await?;
    Ok(Json(app.service.cancel_usage_events(&caller, checked(document)?).await?))
}

/// Lists cancellations, newest first.
#[utoipa::path(
    get, path = "/usage/cancellations", tag = "usage", operation_id = "listCancellations",
    params(("limit" = Option<u32>, Query, description = "Most items of the page, 1 to 1000."), ("continue" = Option<String>, Query, description = "What the page before gave as `continue`.")),
    responses((status = 200, description = "A page.", body = Listing<CancellationRecord>))
)]
pub async fn list<S: Metering + Records>(State(app): State<App<S>>, parts: Parts) -> Result<Json<Listing<CancellationRecord>>, Problem> {
    let (caller, params) = app.call(&parts, &["limit", "continue"], Action::List).await?;
    Ok(Json(app.service.list_cancellations(&caller, params.page()?).await?))
}

/// Undoes a cancellation: its events count again. Twice is once.
#[utoipa::path(
    post, path = "/usage/cancellations/{cancellationId}/revert", tag = "usage", operation_id = "revertCancellation",
    params(("cancellationId" = String, Path, description = "What the cancellation was answered with.")),
    responses((status = 200, description = "Reverted.", body = CancellationRecord))
)]
pub async fn revert<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(id): Path<String>,
    parts: Parts,
) -> Result<Json<CancellationRecord>, Problem> {
    let (caller, _) = app.call(&parts, &[], Action::Revert).await?;
    let id = params::uuid("cancellationId", &id)?;
    Ok(Json(app.service.revert_cancellation(&caller, id).await?))
}

fn checked(document: CancelDocument) -> Result<CancelRequest, Problem> {
    let CancelDocument { events, meter_id, filter, reason, dry_run } = document;
    if let Some(reason) = &reason {
        text("reason", reason, limits::REASON_BYTES)?;
    }
    let target = match (events, meter_id, filter) {
        (Some(events), None, None) => CancelTarget::Events(identities(events)?),
        (None, Some(meter_id), Some(filter)) => {
            params::object_name(&meter_id, METER_NAME).map_err(|why| Problem::field("meterId", why))?;
            CancelTarget::Filter { meter_id, query: Box::new(within(filter)?) }
        }
        (Some(_), _, _) => {
            return Err(Problem::field("events", "stands beside meterId or filter; write either events, or meterId and filter"));
        }
        (None, Some(_), None) => return Err(Problem::field("filter", "is missing; say which of the meter's events")),
        (None, None, Some(_)) => return Err(Problem::field("meterId", "is missing; say which meter's events")),
        (None, None, None) => return Err(Problem::field("events", "is missing; write either events, or meterId and filter")),
    };
    Ok(CancelRequest { target, reason, dry_run })
}

fn identities(events: Vec<EventRef>) -> Result<Vec<EventRef>, Problem> {
    if events.is_empty() || events.len() > limits::CANCEL_EVENTS {
        return Err(Problem::field("events", format_args!("has {} entries; write 1 to {}", events.len(), limits::CANCEL_EVENTS)));
    }
    for (index, event) in events.iter().enumerate() {
        text(&format!("events[{index}].source"), &event.source, limits::ATTRIBUTE_BYTES)?;
        text(&format!("events[{index}].id"), &event.id, limits::ATTRIBUTE_BYTES)?;
    }
    Ok(events)
}

fn within(filter: CancelFilter) -> Result<UsageQuery, Problem> {
    let CancelFilter { customer, subject, from, to, group_by } = filter;
    if customer.is_none() && subject.is_none() && from.is_none() && to.is_none() && group_by.is_empty() {
        // A forgotten field must not cancel a meter's whole history.
        return Err(Problem::field("filter", "is empty, which would cancel all that the meter counts; say at least from when"));
    }
    let time = |name: &str, text: Option<String>| {
        text.map(|text| params::timestamp(&text).map_err(|why| Problem::field(&format!("filter.{name}"), why))).transpose()
    };
    let (from, to) = (time("from", from)?, time("to", to)?);
    params::in_order(from, to).map_err(|why| Problem::field("filter.from", why))?;
    for (name, one) in [("filter.customer", &customer), ("filter.subject", &subject)] {
        one.as_deref().map_or(Ok(()), |one| text(name, one, limits::ATTRIBUTE_BYTES))?;
    }
    let mut filters = BTreeMap::new();
    for (name, value) in group_by {
        let field = || format!("filter.groupBy[{}]", params::shown(&name));
        params::group(&name).map_err(|why| Problem::field(&field(), why))?;
        if value.len() > limits::FILTER_BYTES {
            return Err(Problem::field(&field(), format_args!("is longer than {} bytes", limits::FILTER_BYTES)));
        }
        filters.insert(name, vec![value]);
    }
    Ok(UsageQuery {
        from,
        to,
        window_size: None,
        time_zone: TimeZone::UTC,
        customers: customer.into_iter().collect(),
        subjects: subject.into_iter().collect(),
        group_by: BTreeSet::new(),
        filters,
    })
}

/// Only length: these are bound as parameters and compared or kept as they are.
fn text(field: &str, text: &str, max: usize) -> Result<(), Problem> {
    match text.len() {
        0 => Err(Problem::field(field, "is empty; write a value")),
        length if length > max => Err(Problem::field(field, format_args!("is {length} bytes long; at most {max} are allowed"))),
        _ => Ok(()),
    }
}
