//! Stored events, page by page.

use serde::Serialize;

use super::{Param, Source, Statement, Value, ceil_ms, is_kept, subjects_of_customers};
use crate::meter::Measure;
use crate::metering::EventFilter;
use crate::warehouse::counted::counted;
use crate::warehouse::sql::identifier;

/// Where a page of stored events ended.
#[derive(Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct EventCursor {
    /// Type of the last event.
    pub event_type: String,
    /// Its subject.
    pub subject: String,
    /// Its time, ms since 1970.
    pub time_ms: i64,
    /// Its identity, in decimal.
    pub id: String,
}

/// Subject, time and id of a page's last event.
const AFTER: &str = "{after_subject:String}, fromUnixTimestamp64Milli({after_time:Int64}, 'UTC'), {after_id:UInt128}";

/// Stored events with their state, in the order of their keys; all, or those that a Meter can't count. Of these at most
/// `most_keys` are looked up, and the second statement, with the same parameters, says how many there are up to that.
pub fn events(
    database: &str,
    namespace: &str,
    filter: &EventFilter,
    uncounted_by: Option<&Source<'_>>,
    after: Option<EventCursor>,
    (limit, most_keys): (usize, usize),
) -> (Statement, Option<String>) {
    let mut params = Vec::new();
    let mut count_keys = None;
    let mut bind = |name: &str, value| params.push(Param { name: name.to_owned(), value });
    bind("namespace", Value::Text(namespace.to_owned()));
    // A Meter's table has these columns, too.
    let mut keys = Vec::new();
    if let Some(subject) = &filter.subject {
        bind("subject", Value::Text(subject.clone()));
        keys.push("subject = {subject:String}".to_owned());
    }
    if let Some(customer) = &filter.customer {
        bind("customers", Value::Texts(vec![customer.clone()]));
        keys.push(format!("subject IN {}", subjects_of_customers(database)));
    }
    for (name, comparison, time) in [("from", ">=", filter.from), ("to", "<", filter.to)] {
        let Some(time) = time else { continue };
        bind(name, Value::Int(ceil_ms(time)));
        keys.push(format!("time {comparison} fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')"));
    }
    let mut conditions = vec!["namespace = {namespace:String}".to_owned()];
    if let Some(event_type) = &filter.event_type {
        bind("type", Value::Text(event_type.clone()));
        conditions.push("type = {type:String}".to_owned());
    }
    let is_first = after.is_none();
    if let Some(after) = after {
        bind("after_type", Value::Text(after.event_type));
        bind("after_subject", Value::Text(after.subject));
        bind("after_time", Value::Int(after.time_ms));
        bind("after_id", Value::Text(after.id));
        conditions.push(format!("(type, subject, time, id) > ({{after_type:String}}, {AFTER})"));
    }
    if let Some(source @ Source { table, definition, reading, .. }) = uncounted_by {
        bind("counted_type", Value::Text(definition.event_type.clone()));
        conditions.push("type = {counted_type:String}".to_owned());
        if definition.measure == Measure::Count {
            conditions.push("false".to_owned());
        } else {
            let after = (!is_first).then(|| format!("(subject, time, id) > ({AFTER})"));
            let keys: Vec<_> = keys.iter().cloned().chain(after).chain(is_kept(source, &mut bind)).collect();
            let uncounted = counted(database, table, reading, &keys, &["value IS NULL".to_owned()]);
            conditions.push(format!(
                "(subject, time, id) IN (SELECT subject, time, id FROM {uncounted} ORDER BY subject, time, id LIMIT {most_keys})"
            ));
            count_keys = Some(format!("SELECT count() FROM (SELECT 1 FROM {uncounted} LIMIT {most_keys})"));
        }
    }
    conditions.extend(keys);
    let statement = Statement {
        sql: format!(
            "SELECT event_id, toString(source) AS source, toString(type) AS event_type, subject, toUnixTimestamp64Milli(time) AS time_ms, \
             toUnixTimestamp64Micro(received) AS received_us, CAST(mapKeys(data), 'Array(String)') AS keys, mapValues(data) AS vals, \
             toString(cancellation) AS cancellation_id, toString(id) AS identity \
             FROM (SELECT * FROM {}.events FINAL WHERE {} ORDER BY namespace, type, subject, time, id LIMIT {limit})",
            identifier(database),
            conditions.join(" AND ")
        ),
        params,
    };
    (statement, count_keys)
}
