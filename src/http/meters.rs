//! `/meters`: the CRD API's Meters, with the caller's own rights.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value};

use super::call::{App, METER_NAME};
use super::params;
use super::problem::Problem;
use crate::auth::Action;
use crate::metering::{Listing, MeterDocument, Metering, Records};

/// Creates a meter.
#[utoipa::path(
    post, path = "/meters", tag = "meters", operation_id = "createMeter",
    request_body = MeterDocument,
    responses(
        (status = 201, description = "Created; the operator provisions it.", body = MeterDocument, headers(("Location" = String, description = "Path of the meter"))),
    )
)]
pub async fn create<S: Metering + Records>(State(app): State<App<S>>, request: Request) -> Result<impl IntoResponse, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    let meter: MeterDocument = app.json(&parts.headers, body).await?;
    params::object_name(&meter.meter_id, METER_NAME).map_err(|why| Problem::field("meterId", why))?;
    same("namespace", meter.namespace.as_deref(), &caller.namespace)?;
    let made = app.service.create_meter(&caller, meter).await?;
    let location = location("meters", &made.meter_id, &caller.namespace);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(made)))
}

/// Lists meters, a page at a time.
#[utoipa::path(
    get, path = "/meters", tag = "meters", operation_id = "fetchAllMeters",
    params(("limit" = Option<u32>, Query, description = "Most items of the page, 1 to 1000."), ("continue" = Option<String>, Query, description = "What the page before gave as `continue`.")),
    responses((status = 200, description = "A page.", body = Listing<MeterDocument>))
)]
pub async fn list<S: Metering + Records>(State(app): State<App<S>>, parts: Parts) -> Result<Json<Listing<MeterDocument>>, Problem> {
    let (caller, params) = app.call(&parts, &["limit", "continue"], Action::Proxy).await?;
    Ok(Json(app.service.fetch_all_meters(&caller, params.page()?).await?))
}

/// Reads a meter.
#[utoipa::path(
    get, path = "/meters/{meterId}", tag = "meters", operation_id = "fetchMeter",
    params(("meterId" = String, Path, description = "The Meter's name.")),
    responses(
        (status = 200, description = "The meter.", body = MeterDocument),
    )
)]
pub async fn fetch<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(meter_id): Path<String>,
    parts: Parts,
) -> Result<Json<MeterDocument>, Problem> {
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    meter_name(&meter_id)?;
    Ok(Json(app.service.fetch_meter(&caller, &meter_id).await?))
}

/// Replaces what a meter says. `meterId` in the body may be left out.
#[utoipa::path(
    put, path = "/meters/{meterId}", tag = "meters", operation_id = "updateMeter",
    params(("meterId" = String, Path, description = "The Meter's name.")),
    request_body = MeterDocument,
    responses(
        (status = 200, description = "Replaced; the old meter answers until the new one is complete.", body = MeterDocument),
    )
)]
pub async fn update<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(meter_id): Path<String>,
    request: Request,
) -> Result<Json<MeterDocument>, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    meter_name(&meter_id)?;
    let meter: MeterDocument = named(app.json(&parts.headers, body).await?, "meterId", &meter_id)?;
    same("meterId", Some(&meter.meter_id), &meter_id)?;
    same("namespace", meter.namespace.as_deref(), &caller.namespace)?;
    Ok(Json(app.service.update_meter(&caller, &meter_id, meter).await?))
}

/// Deletes a meter. Its table goes or stays by its `deletionPolicy`.
#[utoipa::path(
    delete, path = "/meters/{meterId}", tag = "meters", operation_id = "deleteMeter",
    params(("meterId" = String, Path, description = "The Meter's name.")),
    responses(
        (status = 202, description = "Accepted; the operator cleans up.", body = Object),
    )
)]
pub async fn delete<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(meter_id): Path<String>,
    parts: Parts,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    meter_name(&meter_id)?;
    app.service.delete_meter(&caller, &meter_id).await?;
    Ok((StatusCode::ACCEPTED, Json(Value::Object(Map::new()))))
}

/// Checks the name of a meter in a path.
pub fn meter_name(name: &str) -> Result<(), Problem> {
    params::object_name(name, METER_NAME).map_err(|why| Problem::parameter("meterId", why))
}

/// Gives a document its name from the path where its body has none, and parses it.
pub fn named<T: serde::de::DeserializeOwned>(mut body: Map<String, Value>, key: &str, name: &str) -> Result<T, Problem> {
    body.entry(key).or_insert_with(|| Value::String(name.to_owned()));
    serde_path_to_error::deserialize(Value::Object(body)).map_err(|why| Problem::field(&why.path().to_string(), why.inner()))
}

/// A read-only field may be sent back, but not say something else.
pub fn same(field: &str, given: Option<&str>, actual: &str) -> Result<(), Problem> {
    match given {
        Some(given) if given != actual => {
            let why = format_args!("{} is not {actual:?}, which this request is about; leave it out", params::shown(given));
            Err(Problem::field(field, why))
        }
        _ => Ok(()),
    }
}

/// Path of an object that was made. Names and namespaces need no escaping: they are checked.
pub fn location(kind: &str, name: &str, namespace: &str) -> String {
    format!("/{kind}/{name}?namespace={namespace}")
}
