//! Events: CloudEvents in all their forms, the values in them, their identity.

mod attributes;
mod body;
mod cloudevent;
mod command;
mod decimal;
mod envelope;
mod flatten;
mod identity;
mod item;
mod jsonpath;
mod leaves;
mod rebuild;
#[cfg(test)]
mod tests;

pub use attributes::Attributes;
pub use body::{BodyError, Form, names, parse, subject};
pub use decimal::{Decimal, DecimalError, value};
pub use flatten::DataError;
pub use identity::identity;
pub use item::{Command, Incoming, Item, Refusal};
pub use jsonpath::{InvalidPath, JsonPath};
pub use leaves::{Leaves, Scalar, plain_key, put_bytes, put_varint};

/// One usage event, parsed and within bounds.
///
/// Its identity is (namespace, source, id), as CloudEvents says; the namespace is the Kubernetes namespace it was posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CloudEvents `id`, `source`, `type` and `subject`.
    pub attributes: Attributes,
    /// CloudEvents `time` in milliseconds since 1970 UTC; absent: the time of arrival counts.
    pub time_ms: Option<i64>,
    /// The scalars of `data`.
    pub data: Leaves,
}
