//! `IMetering`: the metering interface of AWS's SaaS Builder Toolkit, as one trait, and the records beside it.
//!
//! The HTTP layer calls [`Metering`] and [`Records`] and nothing else: whatever implements both can stand behind the
//! same API.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::{Aggregation, CustomerDeletionPolicy, DeletionPolicy};
use crate::event::Item;

/// The ten functions of `IMetering`, by their names there.
pub trait Metering: Send + Sync + 'static {
    /// createMeter. Errors: [`Error::Conflict`] when the name is taken, [`Error::Upstream`] with the API server's words.
    fn create_meter(&self, caller: &Caller, meter: MeterDocument) -> impl Future<Output = Result<MeterDocument, Error>> + Send;
    /// fetchMeter.
    fn fetch_meter(&self, caller: &Caller, meter_id: &str) -> impl Future<Output = Result<MeterDocument, Error>> + Send;
    /// fetchAllMeters, a page at a time.
    fn fetch_all_meters(&self, caller: &Caller, page: Page) -> impl Future<Output = Result<Listing<MeterDocument>, Error>> + Send;
    /// updateMeter. Errors: [`Error::Conflict`] when a `resourceVersion` is given that is not the current one.
    fn update_meter(
        &self,
        caller: &Caller,
        meter_id: &str,
        meter: MeterDocument,
    ) -> impl Future<Output = Result<MeterDocument, Error>> + Send;
    /// deleteMeter: accepted; the operator cleans up by the meter's deletion policy.
    fn delete_meter(&self, caller: &Caller, meter_id: &str) -> impl Future<Output = Result<(), Error>> + Send;
    /// ingestUsageEvent, for any number of events. When it returns Ok, ClickHouse has confirmed every accepted event.
    fn ingest_usage_events(&self, caller: &Caller, items: Vec<Item>, atomic: bool) -> impl Future<Output = Result<Ingested, Error>> + Send;
    /// fetchUsage.
    fn fetch_usage(&self, caller: &Caller, meter_id: &str, query: UsageQuery) -> impl Future<Output = Result<Usage, Error>> + Send;
    /// cancelUsageEvents. Effective in the next read.
    fn cancel_usage_events(&self, caller: &Caller, cancel: CancelRequest) -> impl Future<Output = Result<Cancelled, Error>> + Send;
    /// createCustomer.
    fn create_customer(&self, caller: &Caller, customer: CustomerDocument) -> impl Future<Output = Result<CustomerDocument, Error>> + Send;
    /// deleteCustomer: accepted; the operator maps or purges by the customer's deletion policy.
    fn delete_customer(&self, caller: &Caller, customer_id: &str) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What the API offers beside `IMetering`: the other half of the customers' proxy, listings, replay, revert.
pub trait Records: Send + Sync + 'static {
    /// One customer.
    fn fetch_customer(&self, caller: &Caller, customer_id: &str) -> impl Future<Output = Result<CustomerDocument, Error>> + Send;
    /// Customers, a page at a time.
    fn fetch_all_customers(&self, caller: &Caller, page: Page) -> impl Future<Output = Result<Listing<CustomerDocument>, Error>> + Send;
    /// Replaces a customer.
    fn update_customer(
        &self,
        caller: &Caller,
        customer_id: &str,
        customer: CustomerDocument,
    ) -> impl Future<Output = Result<CustomerDocument, Error>> + Send;
    /// Stored events with their state, by type, subject, time.
    fn list_events(
        &self,
        caller: &Caller,
        filter: EventFilter,
        page: Page,
    ) -> impl Future<Output = Result<Listing<StoredEvent>, Error>> + Send;
    /// Events that were refused and kept, oldest first.
    fn list_rejected(&self, caller: &Caller, page: Page) -> impl Future<Output = Result<Listing<RejectedEvent>, Error>> + Send;
    /// Tries kept rejects again, all or the named ones; those that pass now are counted and leave the list.
    fn replay_rejected(&self, caller: &Caller, only: Vec<Uuid>) -> impl Future<Output = Result<Ingested, Error>> + Send;
    /// Cancellations, newest first.
    fn list_cancellations(&self, caller: &Caller, page: Page) -> impl Future<Output = Result<Listing<CancellationRecord>, Error>> + Send;
    /// Undoes a cancellation: the events that it cancelled count again. Twice is once.
    fn revert_cancellation(&self, caller: &Caller, id: Uuid) -> impl Future<Output = Result<CancellationRecord, Error>> + Send;
    /// Ok when events can be taken and usage answered; else what is missing.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Namespace of a caller that names none and has none.
    fn default_namespace(&self) -> &str;
}

/// Who asks, and where. Whether the caller may is decided before: see [`crate::auth`].
#[derive(Clone, Debug)]
pub struct Caller {
    /// Kubernetes namespace of the meters and events in question.
    pub namespace: String,
    /// With whose rights Meters and Customers are read and written.
    pub acts_as: ActsAs,
    /// Who it is, for records, at most [`crate::limits::CALLER_BYTES`] long; none where nobody is asked.
    pub name: Option<String>,
}

impl Caller {
    /// Somebody in a namespace for whom the gateway acts with its own rights.
    pub fn trusted(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), acts_as: ActsAs::Gateway, name: None }
    }
}

/// Who a caller is to the Kubernetes API.
#[derive(Clone)]
pub enum ActsAs {
    /// The gateway itself: in `dev`, and where authentication is off, for callers without a token.
    Gateway,
    /// The holder of this bearer token, which is passed on to the Kubernetes API and never logged.
    Token(String),
    /// Nobody: the holder of an API key.
    Nobody,
}

impl fmt::Debug for ActsAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "Gateway",
            Self::Token(_) => "Token(…)",
            Self::Nobody => "Nobody",
        })
    }
}

/// A Meter as the HTTP API shows it: the CRD's fields, flat.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeterDocument {
    /// `metadata.name`.
    pub meter_id: String,
    /// See the CRD's field, as all that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[allow(missing_docs)]
    pub event_type: String,
    #[allow(missing_docs)]
    pub aggregation: Aggregation,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_property: Option<String>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group_by: BTreeMap<String, String>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[allow(missing_docs)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<String>,
    #[allow(missing_docs)]
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Read-only, except that an update with it is refused when it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Read-only, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<DocumentStatus>,
}

/// The `Ready` condition, flat.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentStatus {
    /// Whether the object does its work now.
    pub ready: bool,
    /// Stable reason.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A Customer as the HTTP API shows it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomerDocument {
    /// `metadata.name`.
    pub customer_id: String,
    /// The customer's name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The subjects that are this customer; none: its own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// What becomes of its events when it goes.
    #[serde(default)]
    pub deletion_policy: CustomerDeletionPolicy,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Read-only, except that an update with it is refused when it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Read-only, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<DocumentStatus>,
}

/// Which page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Most items; None: [`crate::limits::PAGE_DEFAULT`]. Checked against [`crate::limits::PAGE_MAX`] at the border.
    pub limit: Option<u32>,
    /// What the page before gave as `continue`.
    pub token: Option<String>,
}

/// One page of a listing.
#[derive(Serialize, Clone, Debug, PartialEq, utoipa::ToSchema)]
pub struct Listing<T> {
    /// The page.
    pub items: Vec<T>,
    /// Pass it as `continue=` for the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What became of posted events.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq, utoipa::ToSchema)]
pub struct Ingested {
    /// Events that ClickHouse has confirmed, duplicates and carried-out commands included.
    pub accepted: usize,
    /// Events that were not taken, each with its reason.
    pub rejected: Vec<Rejection>,
}

/// One event that was not taken.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
pub struct Rejection {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its source, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its id, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Stable code.
    pub code: RejectCode,
    /// For people: what, where, what to do.
    pub message: String,
}

/// Why an event is not taken.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RejectCode {
    /// No JSON, or no CloudEvent.
    InvalidEvent,
    /// A required attribute is missing.
    MissingAttribute,
    /// The value that a meter counts is no decimal number.
    InvalidValue,
    /// The value that a meter counts is missing.
    MissingValue,
    /// The value can't be kept exactly: more than 26 digits before or 12 after the point.
    InexactNumber,
    /// `time` is outside 2000 to 2099.
    TimeOutOfRange,
    /// No Customer has the subject, and the gateway takes only known ones.
    UnknownCustomer,
    /// A bound on size or depth is passed.
    TooLarge,
}

impl RejectCode {
    /// The code as text, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidEvent => "invalid_event",
            Self::MissingAttribute => "missing_attribute",
            Self::InvalidValue => "invalid_value",
            Self::MissingValue => "missing_value",
            Self::InexactNumber => "inexact_number",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::UnknownCustomer => "unknown_customer",
            Self::TooLarge => "too_large",
        }
    }
}

/// Length of a usage window.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum WindowSize {
    Minute,
    Hour,
    Day,
    /// From Monday, as ISO 8601 has it.
    Week,
    Month,
}

/// A checked question for usage.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// Inclusive; None: from the first event.
    pub from: Option<Timestamp>,
    /// Exclusive; None: to the last event.
    pub to: Option<Timestamp>,
    /// None: one total.
    pub window_size: Option<WindowSize>,
    /// Whose calendar days, weeks and months follow. Named in the IANA database.
    pub time_zone: TimeZone,
    /// Only these customers; empty: all.
    pub customers: Vec<String>,
    /// Only these subjects; empty: all.
    pub subjects: Vec<String>,
    /// Names to group by: declared ones, `customer`, `subject`. Checked against the meter by the implementation.
    pub group_by: BTreeSet<String>,
    /// Only events whose group has one of the values.
    pub filters: BTreeMap<String, Vec<String>>,
}

/// An answer for usage.
#[derive(Serialize, Clone, Debug, PartialEq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    #[allow(missing_docs)]
    pub meter_id: String,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// As asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub from: Option<Timestamp>,
    /// As asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub to: Option<Timestamp>,
    /// As asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_size: Option<WindowSize>,
    /// As asked.
    pub window_time_zone: String,
    /// Ordered by window, then groups. Windows without events are absent.
    pub data: Vec<UsageRow>,
}

/// One window of one group.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageRow {
    /// Inclusive; the window cut to what was asked. Absent: from the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub window_start: Option<Timestamp>,
    /// Exclusive; the window cut to what was asked. Absent: to the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub window_end: Option<Timestamp>,
    /// When grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// When grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Declared groups.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub group_by: BTreeMap<String, String>,
    /// Exact decimal.
    pub value: String,
}

/// Which events to cancel, and why.
#[derive(Clone, Debug)]
pub struct CancelRequest {
    /// By identity or by filter.
    pub target: CancelTarget,
    /// For people, kept with the cancellation.
    pub reason: Option<String>,
    /// Count only, change nothing.
    pub dry_run: bool,
}

/// Events by identity or by filter.
#[derive(Clone, Debug)]
pub enum CancelTarget {
    /// Exactly these.
    Events(Vec<EventRef>),
    /// All that a meter counts within a filter.
    Filter {
        /// The meter.
        meter_id: String,
        /// Customers, time and groups; windows and grouping are not used.
        query: Box<UsageQuery>,
    },
}

/// An event's identity within its namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EventRef {
    pub source: String,
    pub id: String,
}

/// What a cancellation did.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cancelled {
    /// For the listing and the revert; null in a dry run, which makes none.
    #[schema(value_type = Option<String>, required = true)]
    pub cancellation_id: Option<Uuid>,
    /// Events that counted before and don't now (or wouldn't, in a dry run).
    pub cancelled: u64,
    /// Named events that are not stored.
    pub not_found: Vec<EventRef>,
    /// As asked.
    pub dry_run: bool,
}

/// A cancellation that was made.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CancellationRecord {
    #[allow(missing_docs)]
    #[schema(value_type = String)]
    pub cancellation_id: Uuid,
    #[allow(missing_docs)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// RFC 3339.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// How many events it cancelled.
    pub cancelled: u64,
    /// When it was reverted, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub reverted_at: Option<Timestamp>,
    /// Who made it: the Kubernetes user, or `apikey:` and the key's name. Absent where nobody was asked for a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    /// Who reverted it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverted_by: Option<String>,
}

/// Which stored events to list.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct EventFilter {
    pub event_type: Option<String>,
    pub subject: Option<String>,
    pub customer: Option<String>,
    /// Only events that this Meter would count, by their type, but in which it finds nothing to count.
    pub uncounted_by: Option<String>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
}

/// A stored event with its state.
#[derive(Serialize, Clone, Debug, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct StoredEvent {
    pub id: String,
    pub source: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub subject: String,
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// When it came first.
    #[schema(value_type = String)]
    pub received: Timestamp,
    /// The data that is counted: as sent, but for duplicate keys and `null`s.
    #[schema(value_type = Object)]
    pub data: Box<serde_json::value::RawValue>,
    /// Meters that count it now.
    pub meters: Vec<String>,
    /// The cancellation by which it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cancellation_id: Option<Uuid>,
}

/// An event that was refused and kept.
#[derive(Serialize, Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct RejectedEvent {
    #[schema(value_type = String)]
    pub reject_id: Uuid,
    #[schema(value_type = String)]
    pub received: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub code: String,
    pub message: String,
    /// The event as it came.
    pub event: String,
}

/// Why a call failed. Each variant is one HTTP status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request is wrong; `code` is stable, `message` names the field or parameter.
    #[error("{message}")]
    Invalid {
        /// Stable code.
        code: &'static str,
        /// What, where, what to do.
        message: String,
    },
    /// 400 with the list of rejects: nothing of what was posted is good.
    #[error("no event was taken")]
    AllRejected(Ingested),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// The Kubernetes API refused: its own status code, words and causes (field, message).
    #[error("{message}")]
    Upstream {
        /// HTTP status of the API server.
        status: u16,
        /// Its reason, such as `Forbidden`.
        reason: String,
        /// Its message.
        message: String,
        /// Its causes: (field, message).
        causes: Vec<(String, String)>,
    },
    /// 429: queues are full; try again.
    #[error("{message}")]
    Overloaded {
        /// What is full.
        message: String,
        /// Seconds to wait.
        retry_after: u32,
    },
    /// 503: a part that is needed does not answer.
    #[error("{message}")]
    Unavailable {
        /// Which part, and what it said.
        message: String,
        /// Seconds to wait.
        retry_after: u32,
    },
    /// 500: a defect or a refusal nobody foresaw.
    #[error("{0}")]
    Internal(String),
}
