//! `Customer`: whose usage it is.
#![allow(clippy::duplicated_attributes, reason = "each printcolumn has a type_")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Customer says whose usage it is: the subjects of events that belong to one payer.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "kubemeter.io",
    version = "v1alpha1",
    kind = "Customer",
    plural = "customers",
    shortname = "cust",
    category = "kubemeter",
    namespaced,
    derive = "PartialEq",
    status = "CustomerStatus",
    doc = "A Customer says whose usage it is: the subjects of events that belong to one payer.",
    printcolumn(name = "Display Name", type_ = "string", json_path = ".spec.displayName"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomerSpec {
    /// The customer's name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub display_name: Option<String>,

    /// The CloudEvents subjects that are this customer. Absent: one, the Customer's own name. A subject belongs to one customer; of two that claim it, the older has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x1f\x7f]+$")), extend("x-kubernetes-list-type" = "set"))]
    pub subjects: Vec<String>,

    /// What becomes of the customer's events when the Customer is deleted.
    #[serde(default)]
    pub deletion_policy: CustomerDeletionPolicy,
}

/// What becomes of a deleted Customer's events.
#[derive(Serialize, Deserialize, JsonSchema, utoipa::ToSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CustomerDeletionPolicy {
    /// The events stay; each subject is its own customer from then on.
    #[default]
    Retain,
    /// The events are removed from every table before the object goes.
    Purge,
}

/// What the operator last saw and did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomerStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` always; `Reconciling` and `Stalled` only while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
