//! `/customers`: the CRD API's Customers, with the caller's own rights.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value};

use super::call::{App, CUSTOMER_NAME};
use super::meters::{location, named, same};
use super::params;
use super::problem::Problem;
use crate::auth::Action;
use crate::metering::{CustomerDocument, Listing, Metering, Records};

/// Creates a customer.
#[utoipa::path(
    post, path = "/customers", tag = "customers", operation_id = "createCustomer",
    request_body = CustomerDocument,
    responses(
        (status = 201, description = "Created; its subjects are its own from the operator's next look.", body = CustomerDocument, headers(("Location" = String, description = "Path of the customer"))),
    )
)]
pub async fn create<S: Metering + Records>(State(app): State<App<S>>, request: Request) -> Result<impl IntoResponse, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    let customer: CustomerDocument = app.json(&parts.headers, body).await?;
    params::object_name(&customer.customer_id, CUSTOMER_NAME).map_err(|why| Problem::field("customerId", why))?;
    same("namespace", customer.namespace.as_deref(), &caller.namespace)?;
    let made = app.service.create_customer(&caller, customer).await?;
    let location = location("customers", &made.customer_id, &caller.namespace);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(made)))
}

/// Lists customers, a page at a time.
#[utoipa::path(
    get, path = "/customers", tag = "customers", operation_id = "fetchAllCustomers",
    params(("limit" = Option<u32>, Query, description = "Most items of the page, 1 to 1000."), ("continue" = Option<String>, Query, description = "What the page before gave as `continue`.")),
    responses((status = 200, description = "A page.", body = Listing<CustomerDocument>))
)]
pub async fn list<S: Metering + Records>(State(app): State<App<S>>, parts: Parts) -> Result<Json<Listing<CustomerDocument>>, Problem> {
    let (caller, params) = app.call(&parts, &["limit", "continue"], Action::Proxy).await?;
    Ok(Json(app.service.fetch_all_customers(&caller, params.page()?).await?))
}

/// Reads a customer.
#[utoipa::path(
    get, path = "/customers/{customerId}", tag = "customers", operation_id = "fetchCustomer",
    params(("customerId" = String, Path, description = "The Customer's name.")),
    responses(
        (status = 200, description = "The customer.", body = CustomerDocument),
    )
)]
pub async fn fetch<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(customer_id): Path<String>,
    parts: Parts,
) -> Result<Json<CustomerDocument>, Problem> {
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    customer_name(&customer_id)?;
    Ok(Json(app.service.fetch_customer(&caller, &customer_id).await?))
}

/// Replaces what a customer says. `customerId` in the body may be left out.
#[utoipa::path(
    put, path = "/customers/{customerId}", tag = "customers", operation_id = "updateCustomer",
    params(("customerId" = String, Path, description = "The Customer's name.")),
    request_body = CustomerDocument,
    responses(
        (status = 200, description = "Replaced.", body = CustomerDocument),
    )
)]
pub async fn update<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(customer_id): Path<String>,
    request: Request,
) -> Result<Json<CustomerDocument>, Problem> {
    let (parts, body) = request.into_parts();
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    customer_name(&customer_id)?;
    let customer: CustomerDocument = named(app.json(&parts.headers, body).await?, "customerId", &customer_id)?;
    same("customerId", Some(&customer.customer_id), &customer_id)?;
    same("namespace", customer.namespace.as_deref(), &caller.namespace)?;
    Ok(Json(app.service.update_customer(&caller, &customer_id, customer).await?))
}

/// Deletes a customer. Its events stay or go by its `deletionPolicy`.
#[utoipa::path(
    delete, path = "/customers/{customerId}", tag = "customers", operation_id = "deleteCustomer",
    params(("customerId" = String, Path, description = "The Customer's name.")),
    responses(
        (status = 202, description = "Accepted; the operator cleans up.", body = Object),
    )
)]
pub async fn delete<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(customer_id): Path<String>,
    parts: Parts,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (caller, _) = app.call(&parts, &[], Action::Proxy).await?;
    customer_name(&customer_id)?;
    app.service.delete_customer(&caller, &customer_id).await?;
    Ok((StatusCode::ACCEPTED, Json(Value::Object(Map::new()))))
}

/// Checks the name of a customer in a path.
fn customer_name(name: &str) -> Result<(), Problem> {
    params::object_name(name, CUSTOMER_NAME).map_err(|why| Problem::parameter("customerId", why))
}
