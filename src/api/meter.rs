//! `Meter`: what to count.
#![allow(clippy::duplicated_attributes, reason = "each printcolumn has a type_")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Meter says what to count: which events, which number in them, grouped by what.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kubemeter.io",
    version = "v1alpha1",
    kind = "Meter",
    plural = "meters",
    shortname = "mtr",
    category = "kubemeter",
    namespaced,
    derive = "PartialEq",
    status = "MeterStatus",
    doc = "A Meter says what to count: which events, which number in them, grouped by what. The operator provisions a ClickHouse table and view for it.",
    printcolumn(name = "Event Type", type_ = "string", json_path = ".spec.eventType"),
    printcolumn(name = "Aggregation", type_ = "string", json_path = ".spec.aggregation"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Events", type_ = "integer", json_path = ".status.events", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a Meter's name has at most 63 characters"),
    validation = Rule::new("self.metadata.name != 'cancellations'").message("a Meter can't be named cancellations: GET /usage/cancellations is something else"),
    selectable = ".spec.eventType"
)]
#[x_kube(
    validation = Rule::new("self.aggregation == 'Count' || has(self.valueProperty)").message("valueProperty is required unless aggregation is Count").field_path(".valueProperty"),
    validation = Rule::new("self.aggregation != 'Count' || !has(self.valueProperty)").message("valueProperty must be absent when aggregation is Count: events are counted, not values").field_path(".valueProperty")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeterSpec {
    /// What the meter is for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,

    /// The CloudEvents `type` of the events that are counted, such as `api.request`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(r"!self.matches('[\\x00-\\x1f\\x7f]')").message("an event type has no control characters"))]
    pub event_type: String,

    /// How the values of a window become one number.
    pub aggregation: Aggregation,

    /// JSONPath of the value in the event's `data`: `$.a.b`, `$['a']`, `$.a[0]`. Required, except for `Count`, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 256))]
    #[x_kube(validation = Rule::new(r"self.matches('^\\$(\\.[A-Za-z_][A-Za-z0-9_]*|\\[\'([^\'\\\\\\x00-\\x1f]|\\\\[\'\\\\])+\'\\]|\\[[0-9]{1,4}\\])+$')").message("a JSONPath such as $.a.b, $['a'] or $.a[0] is expected"))]
    pub value_property: Option<String>,

    /// Names to group usage by, each with the JSONPath of its value in the event's `data`. `customer` and `subject` are always there and need no entry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^[a-z][a-z0-9_]{0,62}$'))").message("group names are 1 to 63 of a-z, 0-9 and _, and start with a letter"),
        validation = Rule::new("!('customer' in self) && !('subject' in self)").message("customer and subject are built in: leave them out of groupBy"),
        validation = Rule::new(r"self.all(k, self[k].matches('^\\$(\\.[A-Za-z_][A-Za-z0-9_]*|\\[\'([^\'\\\\\\x00-\\x1f]|\\\\[\'\\\\])+\'\\]|\\[[0-9]{1,4}\\])+$'))").message("each groupBy value is a JSONPath such as $.a.b, $['a'] or $.a[0]")
    )]
    #[schemars(extend("maxProperties" = 16), schema_with = "group_by_schema")]
    pub group_by: BTreeMap<String, String>,

    /// What one of the value is, such as `ms`, `tokens` or `GiB`. For people; nothing is converted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub unit: Option<String>,

    /// How long usage stays in this meter at least, in days (`400d`): it goes by whole months (UTC). Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 6))]
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}d$')").message("days such as 400d are expected"))]
    pub retention: Option<String>,

    /// What becomes of the meter's ClickHouse table when the Meter is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// How the values of a window become one number.
#[derive(Serialize, Deserialize, JsonSchema, utoipa::ToSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aggregation {
    /// How many events.
    Count,
    /// The sum of the values.
    Sum,
    /// The least value.
    Min,
    /// The greatest value.
    Max,
    /// The sum over the count, rounded half-even to 12 decimals.
    Average,
    /// How many different values, compared as text.
    UniqueCount,
    /// The value of the event with the greatest (time, source, id).
    Latest,
}

/// What becomes of a deleted Meter's table.
#[derive(Serialize, Deserialize, JsonSchema, utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// The table stays for people to read; no later Meter adopts it.
    #[default]
    Retain,
    /// The table goes.
    Delete,
}

/// What the operator last saw and did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeterStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` always; `Reconciling` and `Stalled` only while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The table that answers queries now, and how to read it. During an edit it is the old one until the new one is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveMeter>,
    /// How far the table that is being built has come, while one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillProgress>,
    /// Events in the active table, as last counted: every five minutes, or as often as counting a large table ends. Absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<i64>,
    /// Of those, events whose value is missing or no decimal number: stored, visible, but in no sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted_events: Option<i64>,
}

/// A complete table of a Meter and how to read it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ActiveMeter {
    /// Name of the ClickHouse table.
    pub table: String,
    /// The event type that it counts.
    pub event_type: String,
    /// The aggregation that it answers.
    pub aggregation: Aggregation,
    /// JSONPath of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_property: Option<String>,
    /// Group names, each a column, with the JSONPath of the value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group_by: BTreeMap<String, String>,
    /// Unit of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// How long usage stays at least, in days such as 400d; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<String>,
}

/// How far a backfill has come.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackfillProgress {
    /// Name of the ClickHouse table that is being filled.
    pub table: String,
    /// Months of stored events copied so far.
    pub months_done: i64,
    /// Months of stored events in all.
    pub months_total: i64,
}

/// A map of text to text: its bounds and rules stand at the field.
fn group_by_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "minLength": 2, "maxLength": 256}})
}
