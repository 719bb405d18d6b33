//! `GET /usage/{meterId}`: how much was used, as JSON or CSV.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use jiff::tz::TimeZone;

use super::accept::{self, Format};
use super::call::App;
use super::meters::meter_name;
use super::params::{self, FILTER, Params};
use super::problem::{self, Problem};
use crate::auth::Action;
use crate::limits;
use crate::metering::{Metering, Records, Usage, UsageQuery, WindowSize};

const KNOWN: &[&str] = &["from", "to", "windowSize", "windowTimeZone", "customer", "subject", "groupBy", FILTER];

/// How much was used, per window and group. `value` is an exact decimal in text.
///
/// Ordered by window, then groups; windows without events are absent. As CSV the columns are windowStart, windowEnd,
/// customer and subject when grouped by, the groups by name, and value last. Cells are as stored: a spreadsheet must
/// import them as text, because one that starts with `=` would run as a formula.
#[utoipa::path(
    get, path = "/usage/{meterId}", tag = "usage", operation_id = "fetchUsage",
    params(
        ("meterId" = String, Path, description = "The Meter's name."),
        ("from" = Option<String>, Query, format = DateTime, description = "Inclusive, RFC 3339. Absent: from the first event."),
        ("to" = Option<String>, Query, format = DateTime, description = "Exclusive, RFC 3339. Absent: to the last event."),
        ("windowSize" = Option<WindowSize>, Query, description = "Absent: one total."),
        ("windowTimeZone" = Option<String>, Query, description = "IANA name, such as Europe/Paris, whose calendar windows follow. Default: UTC."),
        ("customer" = Option<Vec<String>>, Query, description = "Only these customers."),
        ("subject" = Option<Vec<String>>, Query, description = "Only these subjects."),
        ("groupBy" = Option<Vec<String>>, Query, description = "Declared names, `customer`, `subject`."),
        ("filter" = Option<std::collections::HashMap<String, Vec<String>>>, Query, style = DeepObject, explode, description = "`filter[method]=GET`: only events whose group has the value; of one name repeated, any of the values."),
    ),
    responses((status = 200, description = "The usage.", content((Usage = "application/json"), (String = "text/csv"))))
)]
pub async fn fetch<S: Metering + Records>(
    State(app): State<App<S>>,
    Path(meter_id): Path<String>,
    parts: Parts,
) -> Result<Response, Problem> {
    // Before it is part of a question to the API server.
    meter_name(&meter_id)?;
    let (caller, params) = app.call(&parts, KNOWN, Action::Usage(&meter_id)).await?;
    let format = accept::negotiate(&parts.headers)?;
    let query = query(&params)?;
    let columns = query.group_by.clone();
    let timer = app.metrics.usage_seconds.start_timer();
    let usage = app.service.fetch_usage(&caller, &meter_id, query).await?;
    timer.observe_duration();
    let mut response = match format {
        Format::Json => Json(usage).into_response(),
        Format::Csv => {
            let kind = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
            ([(header::CONTENT_TYPE, kind)], csv(&usage, &columns)?).into_response()
        }
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

fn query(params: &Params) -> Result<UsageQuery, Problem> {
    let (from, to) = params.range()?;
    let window_size = params.one("windowSize")?.map(|text| {
        window(text).ok_or_else(|| {
            let why =
                format_args!("{} is none: write MINUTE, HOUR, DAY, WEEK or MONTH, or leave it out for one total", params::shown(text));
            Problem::parameter("windowSize", why)
        })
    });
    let mut group_by = BTreeSet::new();
    for name in params.texts("groupBy", limits::ATTRIBUTE_BYTES)? {
        if !matches!(name.as_str(), "customer" | "subject") {
            crate::meter::group_name(&name).map_err(|why| Problem::parameter("groupBy", format_args!("{} {why}", params::shown(&name))))?;
        }
        group_by.insert(name);
    }
    Ok(UsageQuery {
        from,
        to,
        window_size: window_size.transpose()?,
        time_zone: params.one("windowTimeZone")?.map_or(Ok(TimeZone::UTC), |name| params::time_zone("windowTimeZone", name))?,
        customers: params.texts("customer", limits::ATTRIBUTE_BYTES)?,
        subjects: params.texts("subject", limits::ATTRIBUTE_BYTES)?,
        group_by,
        filters: params.filters()?,
    })
}

fn window(text: &str) -> Option<WindowSize> {
    Some(match text {
        "MINUTE" => WindowSize::Minute,
        "HOUR" => WindowSize::Hour,
        "DAY" => WindowSize::Day,
        "WEEK" => WindowSize::Week,
        "MONTH" => WindowSize::Month,
        _ => return None,
    })
}

/// The rows as CSV (RFC 4180). Nothing is put before a `=` or `-`: these are figures for programs, and exact.
fn csv(usage: &Usage, columns: &BTreeSet<String>) -> Result<Vec<u8>, Problem> {
    let by = |name: &'static str| columns.contains(name).then_some(name);
    let groups = || columns.iter().map(String::as_str).filter(|name| !matches!(*name, "customer" | "subject"));
    let mut table = csv::Writer::from_writer(Vec::new());
    let header = ["windowStart", "windowEnd"].into_iter().chain(by("customer")).chain(by("subject")).chain(groups());
    let mut written = table.write_record(header.chain(["value"]));
    for row in &usage.data {
        let time = |time: Option<jiff::Timestamp>| time.map(|t| t.to_string()).unwrap_or_default();
        let (start, end) = (time(row.window_start), time(row.window_end));
        let customer = by("customer").map(|_| row.customer.as_deref().unwrap_or_default());
        let subject = by("subject").map(|_| row.subject.as_deref().unwrap_or_default());
        let values = groups().map(|name| row.group_by.get(name).map_or("", String::as_str));
        let cells = [start.as_str(), end.as_str()].into_iter().chain(customer).chain(subject).chain(values);
        written = written.and_then(|()| table.write_record(cells.chain([row.value.as_str()])));
    }
    // Writing to memory with as many cells a row as the header has can't fail.
    written.ok().and_then(|()| table.into_inner().ok()).ok_or_else(problem::internal)
}
