//! The custom resources, `kubemeter.io/v1alpha1`, and their conditions.

mod condition;
mod customer;
mod meter;

pub use condition::{ConditionType, Conditions, Reason};
pub use customer::{Customer, CustomerDeletionPolicy, CustomerSpec, CustomerStatus};
pub use meter::{ActiveMeter, Aggregation, BackfillProgress, DeletionPolicy, Meter, MeterSpec, MeterStatus};

use kube::CustomResourceExt;

use crate::yaml;

/// API group of the custom resources.
pub const GROUP: &str = "kubemeter.io";
/// Version of the custom resources.
pub const VERSION: &str = "v1alpha1";
/// Finalizer on Meters and Customers: ClickHouse is cleaned before the object goes.
pub const FINALIZER: &str = "kubemeter.io/clickhouse";
/// Annotation that lets an object go without cleaning ClickHouse (`"true"`), for when ClickHouse is gone for good.
pub const SKIP_CLEANUP: &str = "kubemeter.io/skip-cleanup";

/// Both CRDs as YAML documents, exactly as `crds/` holds them: (file name, text).
///
/// # Errors
/// When a schema can't be written as YAML; the types make that impossible, a test shows it.
pub fn crds() -> Result<Vec<(&'static str, String)>, yaml::Error> {
    Ok(vec![("meters.yaml", yaml::to_string(&Meter::crd())?), ("customers.yaml", yaml::to_string(&Customer::crd())?)])
}

/// Whether a text is a namespace's name: an RFC 1123 label.
pub fn is_namespace(name: &str) -> bool {
    name.len() <= 63 && is_label(name)
}

/// Whether a text is made as an RFC 1123 label is, of any length.
pub fn is_label(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.bytes().all(inside) && !name.starts_with('-') && !name.ends_with('-')
}
