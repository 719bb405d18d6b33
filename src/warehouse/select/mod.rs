//! Questions as SQL text with bound values. Pure: text depends only on a Meter's definition and on which parts of a
//! question are there; what a request says goes into [`Param`]s.

mod customers;
mod events;
mod keys;
mod usage;

use jiff::Timestamp;
use serde::Serialize;

use super::counted::{MONTH_OF_PARTITION, Reading, begins_month};
use super::layout::group_column;
use super::retention::{Month, after};
use super::sql::identifier;
use crate::meter::{Definition, Measure};
use crate::metering::UsageQuery;

pub use customers::{owners_of_claimed, subjects_of_customers};
pub use events::{EventCursor, events};
pub use keys::{MONTH, NIL, cancel_by_ids, cancel_by_keys, counted_keys, is_one_of, keys_of};
pub use usage::{UsageRecord, usage};

/// A bound value.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name in `{name:Type}`.
    pub name: String,
    /// Value.
    pub value: Value,
}

/// Values that can be bound.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Value {
    Text(String),
    Texts(Vec<String>),
    Int(i64),
    Ids(Vec<u128>),
}

/// Text and values of a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// With `{name:Type}` where values go.
    pub sql: String,
    /// The values.
    pub params: Vec<Param>,
}

/// What answers a question.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Database.
    pub database: &'a str,
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// A Meter's table.
    pub table: &'a str,
    /// What the table was made by.
    pub definition: &'a Definition,
    /// How it is read.
    pub reading: &'a Reading,
    /// The last month that the table has let go, and that is not read.
    pub let_go: Option<Month>,
    /// The subjects of the question's customers. None: the statement looks them up.
    pub subjects: Option<&'a [String]>,
}

/// Conditions on the rows that a question is about, and their values: those on what all rows of a key share, and others. What
/// usage counts and what a cancellation by filter hits is the same.
fn conditions(source: &Source<'_>, query: &UsageQuery, params: &mut Vec<Param>) -> (Vec<String>, Vec<String>) {
    let Source { database, namespace, definition, .. } = *source;
    let (mut keys, mut others) = (Vec::new(), Vec::new());
    let mut bind = |name: &str, value| params.push(Param { name: name.to_owned(), value });
    bind("namespace", Value::Text(namespace.to_owned()));
    keys.extend(is_kept(source, &mut bind));
    for (name, comparison, time) in [("from", ">=", query.from), ("to", "<", query.to)] {
        let Some(time) = time else { continue };
        if let Some(month) = begins_month(time) {
            bind(name, Value::Text(month));
            keys.push(format!("{MONTH_OF_PARTITION} {comparison} {{{name}:String}}"));
        } else {
            bind(name, Value::Int(ceil_ms(time)));
            keys.push(format!("time {comparison} fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')"));
        }
    }
    if !query.subjects.is_empty() {
        bind("subjects", Value::Texts(query.subjects.clone()));
        keys.push("subject IN {subjects:Array(String)}".to_owned());
    }
    match source.subjects {
        _ if query.customers.is_empty() => {}
        Some(subjects) => {
            bind("of_customers", Value::Texts(subjects.to_vec()));
            keys.push("subject IN {of_customers:Array(String)}".to_owned());
        }
        None => {
            bind("customers", Value::Texts(query.customers.clone()));
            keys.push(format!("subject IN {}", subjects_of_customers(database)));
        }
    }
    for (index, (group, values)) in query.filters.iter().enumerate() {
        bind(&format!("filter{index}"), Value::Texts(values.clone()));
        others.push(format!("{} IN {{filter{index}:Array(String)}}", identifier(&group_column(group))));
    }
    if definition.measure != Measure::Count {
        // Stored, but its value is none: it is in no number.
        others.push("value IS NOT NULL".to_owned());
    }
    (keys, others)
}

/// The condition that a row is of no month that was let go: partitions go one after the other, a cancellation may go before what it cancels.
fn is_kept(source: &Source<'_>, bind: &mut impl FnMut(&str, Value)) -> Option<String> {
    let gone = source.let_go?;
    bind("kept_from", Value::Text(format!("{:06}", after(gone))));
    Some(format!("{MONTH_OF_PARTITION} >= {{kept_from:String}}"))
}

/// Start of the year 1, in ms: no event is earlier, and a time before it that is sent on to a shard as text is none there.
const YEAR_ONE: i64 = -62_135_596_800_000;

/// Stored times are whole milliseconds, so a bound between two of them is the later one, for `>=` and for `<`.
fn ceil_ms(time: Timestamp) -> i64 {
    let ms = time.as_millisecond();
    if i128::from(ms) * 1_000_000 < time.as_nanosecond() { ms + 1 } else { ms }.max(YEAR_ONE)
}
