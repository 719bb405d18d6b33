//! Keys of events: of identities, and of what a cancellation is about.

use super::{Param, Source, Statement, Value, conditions};
use crate::metering::UsageQuery;
use crate::warehouse::counted::counted;
use crate::warehouse::identities::CHUNK;
use crate::warehouse::sql::identifier;

/// Keys (subject, time, id) of the events that a question's number is made of.
pub fn counted_keys(source: &Source<'_>, query: &UsageQuery) -> Statement {
    let mut params = Vec::new();
    let (keys, others) = conditions(source, query, &mut params);
    let rows = counted(source.database, source.table, source.reading, &keys, &others);
    Statement { sql: format!("SELECT subject, time, id FROM {rows}"), params }
}

/// No cancellation.
pub const NIL: &str = "toUUID('00000000-0000-0000-0000-000000000000')";

/// The condition that `id` is one of these identities, however many, and its values.
pub fn is_one_of(ids: &[u128]) -> (String, Vec<Param>) {
    let chunks = ids.chunks(CHUNK).map(<[u128]>::to_vec).chain(ids.is_empty().then(Vec::new));
    let params: Vec<_> = chunks.enumerate().map(|(part, ids)| Param { name: format!("ids{part}"), value: Value::Ids(ids) }).collect();
    let arrays: Vec<_> = params.iter().map(|param| format!("{{{}:Array(UInt128)}}", param.name)).collect();
    (format!("id IN arrayConcat({})", arrays.join(", ")), params)
}

/// SQL: the month (`yyyymm`, UTC) of a key: `events` has a partition of each.
pub const MONTH: &str = "toYYYYMM(time)";

/// The condition that rows of `events` have the keys, in one month, of these identities, and its values.
///
/// All months at once would take much longer. A granule of a month that holds the end of one subject and the begin of the next may have, as
/// far as ClickHouse's index can tell, any later key of the one and any earlier key of the other.
pub fn keys_of(database: &str, ids: &[u128], month: u32) -> (String, Vec<Param>) {
    let (is_one_of, mut params) = is_one_of(ids);
    params.push(Param { name: "month".to_owned(), value: Value::Int(month.into()) });
    let keys = "namespace, type, subject, time, id";
    let of = format!("SELECT {keys} FROM {}.identities WHERE {is_one_of} AND {MONTH} = {{month:UInt32}}", identifier(database));
    (format!("{MONTH} = {{month:UInt32}} AND ({keys}) IN ({of})"), params)
}

/// Keys (type, subject, time, id) and cancellation of the events, in one month, with these identities.
pub fn cancel_by_ids(database: &str, namespace: &str, ids: &[u128], month: u32) -> Statement {
    let (keys, mut params) = keys_of(database, ids, month);
    params.push(Param { name: "namespace".to_owned(), value: Value::Text(namespace.to_owned()) });
    Statement {
        sql: format!(
            "SELECT type, subject, time, id, cancellation FROM {}.events FINAL WHERE namespace = {{namespace:String}} AND {keys}",
            identifier(database)
        ),
        params,
    }
}

/// Keys (type, subject, time, id) and cancellation of the events of a type whose (subject, time, id) a statement gives.
pub fn cancel_by_keys(database: &str, namespace: &str, event_type: &str, keys: Statement) -> Statement {
    let Statement { sql, mut params } = keys;
    debug_assert!(params.iter().any(|param| param.name == "namespace"), "the keys' statement binds the namespace {namespace}");
    params.push(Param { name: "type".to_owned(), value: Value::Text(event_type.to_owned()) });
    Statement {
        sql: format!(
            "SELECT type, subject, time, id, cancellation FROM {}.events FINAL WHERE namespace = {{namespace:String}} \
             AND type = {{type:String}} AND (subject, time, id) IN ({sql})",
            identifier(database)
        ),
        params,
    }
}
