//! Questions as SQL text with bound values. Pure: text depends only on a Meter's definition and on which parts of a
//! question are there; what a request says goes into [`Param`]s.

use jiff::Timestamp;
use serde::Serialize;

use super::counted::{Balanced, MONTH_OF_PARTITION, Reading, balanced, begins_month, counted};
use super::identities::CHUNK;
use super::retention::{Month, after};
use super::sql::identifier;
use crate::limits;
use crate::meter::{DecimalAggregation, Definition, Measure};
use crate::metering::{EventFilter, UsageQuery, WindowSize};
use crate::warehouse::layout::group_column;

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

/// One row of [`usage`].
#[derive(clickhouse::Row, serde::Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// Start of the window, s since 1970; 0 in a total.
    pub window_start: u32,
    /// End of the window, s since 1970; 0 in a total.
    pub window_end: u32,
    /// Empty unless grouped by it.
    pub customer: String,
    /// Empty unless grouped by it.
    pub subject: String,
    /// Values of the declared groups asked for, in the order of their names.
    pub groups: Vec<String>,
    /// The aggregate as decimal text; for an average the sum.
    pub value: String,
    /// How many events are in it.
    pub events: u64,
}

/// Subjects with their `owner` (another name than the answer's `customer`, which GROUP BY must not take it for): of several that claim one the oldest has it.
fn owners(claims: &str) -> String {
    format!("(SELECT subject, argMin(customer, (created, customer)) AS owner FROM {claims} GROUP BY subject)")
}

/// Who claims which subject since when. Needs `{namespace:String}`.
fn claims(database: &str) -> String {
    format!("{}.subjects FINAL WHERE namespace = {{namespace:String}}", identifier(database))
}

/// Subjects that are one of `{customers:Array(String)}`: those mapped to it, and the customer's own name where no other has that,
/// as if the customer claimed it after all others.
pub fn subjects_of_customers(database: &str) -> String {
    let own = "SELECT arrayJoin({customers:Array(String)}) AS subject, subject AS customer, toDateTime64('2299-12-31 00:00:00', 3, 'UTC') AS created";
    let claims = format!("(SELECT subject, customer, created FROM {} UNION ALL {own})", claims(database));
    format!("(SELECT subject FROM {} WHERE owner IN {{customers:Array(String)}})", owners(&claims))
}

/// Who has the subjects that one of `{customers:Array(String)}` claims or is named like, so many at most: of several claims the
/// oldest, as in [`owners`]. The inner SELECT finds claims that were taken back, too, which the outer one leaves out.
pub fn owners_of_claimed(database: &str, most: Option<usize>) -> String {
    const CUSTOMERS: &str = "{customers:Array(String)}";
    let (claims, table) = (claims(database), format!("{}.subjects", identifier(database)));
    let limit = most.map(|most| format!(" LIMIT {most}")).unwrap_or_default();
    format!(
        "SELECT subject, argMin(customer, (created, customer)) AS owner FROM {claims} AND (subject IN {CUSTOMERS} OR subject IN \
         (SELECT subject FROM {table} WHERE namespace = {{namespace:String}} AND customer IN {CUSTOMERS})) GROUP BY subject{limit}"
    )
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

/// The aggregate function with a combinator (`""` or `"State"`).
fn aggregate(measure: &Measure, combinator: &str) -> String {
    use DecimalAggregation as D;
    match measure {
        Measure::Count => format!("count{combinator}()"),
        Measure::UniqueCount(_) => format!("uniqExact{combinator}(assumeNotNull(value))"),
        // Summed in 256 bits: 10^26 times 10^18 rows fit.
        Measure::Decimal(D::Sum | D::Average, _) => format!("sum{combinator}(toDecimal256(assumeNotNull(value), 12))"),
        Measure::Decimal(D::Min, _) => format!("min{combinator}(assumeNotNull(value))"),
        Measure::Decimal(D::Max, _) => format!("max{combinator}(assumeNotNull(value))"),
        Measure::Decimal(D::Latest, _) => format!("argMax{combinator}(assumeNotNull(value), (time, source, event_id))"),
    }
}

/// What is aggregated of some rows, to be aggregated on by [`merge`]. What can be added is a number, and can be taken off.
fn state(measure: &Measure) -> String {
    match measure {
        Measure::Count => "toInt64(count())".to_owned(),
        measure if measure.is_additive() => aggregate(measure, ""),
        measure => aggregate(measure, "State"),
    }
}

/// The same function over what [`state`] gives.
const fn merge(measure: &Measure) -> &'static str {
    use DecimalAggregation as D;
    match measure {
        Measure::Count | Measure::Decimal(D::Sum | D::Average, _) => "sum(u.state)",
        Measure::UniqueCount(_) => "uniqExactMerge(u.state)",
        Measure::Decimal(D::Min, _) => "minMerge(u.state)",
        Measure::Decimal(D::Max, _) => "maxMerge(u.state)",
        Measure::Decimal(D::Latest, _) => "argMaxMerge(u.state)",
    }
}

/// Why ClickHouse refuses a question: a contra row without its first sending, which must not be.
const TOO_MUCH_TAKEN: &str = "more is taken off than there is";

/// How events are put into windows.
struct Window {
    /// What all events of a window share, as few bytes as can be: ClickHouse finds a short key sooner. None: there is one window.
    key: Option<&'static str>,
    /// Where the window of `window_key` starts and ends, s since 1970 in 32 bits: events are of the years 2000 to 2099.
    start: &'static str,
    end: &'static str,
}

/// Days, weeks and months follow `{zone:String}`'s calendar.
const fn window(size: Option<WindowSize>) -> Window {
    /// Where the day of a date starts.
    const OF_DATE: &str = "toUnixTimestamp(toDateTime(window_key, {zone:String}))";
    let (key, start, end) = match size {
        None => return Window { key: None, start: "toUInt32(0)", end: "toUInt32(0)" },
        Some(WindowSize::Minute) => ("toUnixTimestamp(toStartOfMinute(time))", "window_key", "toUInt32(window_key + 60)"),
        // Counted from the start of the day. Where clocks change by half an hour, the day's last one is as much shorter.
        Some(WindowSize::Hour) => (
            "toUnixTimestamp(toStartOfHour(toTimeZone(time, {zone:String})))",
            "window_key",
            "toUInt32(least(window_key + 3600, toUnixTimestamp(toDateTime(addDays(toDate(toDateTime(window_key, {zone:String})), 1), {zone:String}))))",
        ),
        Some(WindowSize::Day) => {
            ("toDate(toTimeZone(time, {zone:String}))", OF_DATE, "toUnixTimestamp(toDateTime(addDays(window_key, 1), {zone:String}))")
        }
        Some(WindowSize::Week) => (
            "toStartOfWeek(toTimeZone(time, {zone:String}), 1)",
            OF_DATE,
            "toUnixTimestamp(toDateTime(addDays(window_key, 7), {zone:String}))",
        ),
        Some(WindowSize::Month) => (
            "toStartOfMonth(toTimeZone(time, {zone:String}))",
            OF_DATE,
            "toUnixTimestamp(toDateTime(addMonths(window_key, 1), {zone:String}))",
        ),
    };
    Window { key: Some(key), start, end }
}

/// Keys of 96 bits together for the values of groups, which ClickHouse groups by in two thirds of the time of several strings: a
/// column's hashes are made once for each value of its dictionary, and with a window's date they fit 128 bits. Two of n groups are
/// taken for one with a probability of about n² / 2⁹⁷, whatever their values are, for nobody knows `{hash_key:Int64}` beforehand.
fn group_hash(columns: &[String]) -> [String; 2] {
    let sum = |part| {
        let hash = |(index, column)| format!("sipHash64Keyed((toUInt64({{hash_key:Int64}}), toUInt64({})), {column})", 2 * index + part);
        columns.iter().enumerate().map(hash).collect::<Vec<_>>().join(" + ")
    };
    [sum(0), format!("toUInt32({})", sum(1))]
}

/// An array of texts.
fn texts(values: &[String]) -> String {
    if values.is_empty() {
        return "emptyArrayString()".to_owned();
    }
    format!("[{}]", values.iter().map(|value| format!("toString({value})")).collect::<Vec<_>>().join(", "))
}

/// Usage from a meter's table: duplicates and cancelled events are gone whatever was merged.
///
/// Grouped by customer, subjects are aggregated to states first, then mapped: the map meets few rows, not every event.
/// `hash_key` is drawn by chance for each question: see [`group_hash`].
pub fn usage(source: &Source<'_>, query: &UsageQuery, hash_key: i64) -> Statement {
    let Source { database, table, definition, reading, .. } = *source;
    let mut params = Vec::new();
    let (key_conditions, others) = conditions(source, query, &mut params);
    if query.window_size.is_some_and(|size| size != WindowSize::Minute) {
        let zone = query.time_zone.iana_name().unwrap_or("UTC").to_owned();
        params.push(Param { name: "zone".to_owned(), value: Value::Text(zone) });
    }
    let Window { key, start, end } = window(query.window_size);
    let columns: Vec<_> = query
        .group_by
        .iter()
        .filter(|name| *name != "customer" && *name != "subject")
        .map(|name| identifier(&group_column(name)))
        .collect();
    let by_subject = query.group_by.contains("subject");
    let by_customer = query.group_by.contains("customer");
    let is_hashed = !columns.is_empty() && columns.len() + usize::from(key.is_some() || by_subject || by_customer) > 1;
    let mut keys: Vec<String> = key.map(|_| "window_key".to_owned()).into_iter().collect();
    keys.extend((by_subject || by_customer).then(|| "subject".to_owned()));
    if is_hashed {
        params.push(Param { name: "hash_key".to_owned(), value: Value::Int(hash_key) });
        keys.extend(group_hash(&columns));
    } else {
        keys.extend(columns.clone());
    }
    if keys.is_empty() {
        // Without any key there would be a row for no events.
        keys.push("window_key".to_owned());
    }
    let (key, keys) = (key.unwrap_or("toUInt32(0)"), keys.join(", "));
    let groups: Vec<_> = columns.iter().map(|column| if is_hashed { format!("any({column})") } else { column.clone() }).collect();

    let is_balanced = matches!(reading, Reading::Balanced | Reading::NearlyBalanced);
    let sql = if by_customer || is_balanced {
        let states = |sign: &str, from: &str| {
            format!(
                "SELECT {key} AS window_key, {subject}, {groups} AS groups, {sign}{state} AS state, {sign}toInt64(count()) AS events \
                 FROM {from} GROUP BY {keys}",
                subject = if by_subject || by_customer { "subject" } else { "'' AS subject" },
                groups = texts(&groups),
                state = state(&definition.measure),
            )
        };
        let (states, refused) = if is_balanced {
            debug_assert!(definition.measure.is_additive(), "only sums can be taken off");
            let looks_up = *reading == Reading::NearlyBalanced;
            let Balanced { added, taken, refused } = balanced(database, table, looks_up, &key_conditions, &others);
            let added = added.iter().map(|from| states("", from));
            (added.chain(taken.iter().map(|from| states("-", from))).collect::<Vec<_>>().join(" UNION ALL "), refused)
        } else {
            (states("", &counted(database, table, reading, &key_conditions, &others)), None)
        };
        let (customer, join) = if by_customer {
            let join = format!(" LEFT JOIN {} AS m ON m.subject = u.subject", owners(&claims(database)));
            ("if(m.owner = '', u.subject, m.owner)", join)
        } else {
            ("''", String::new())
        };
        let (subject, by) = if by_subject { ("u.subject", ", u.subject") } else { ("''", "") };
        let refused = refused.map_or_else(String::new, |from| {
            // The same columns.
            format!(" UNION ALL SELECT toUInt32(0), toUInt32(0), '', '', emptyArrayString(), '', toUInt64(0) {from}")
        });
        format!(
            "SELECT {start} AS window_start, {end} AS window_end, {customer} AS customer, {subject} AS subject, u.groups AS groups, \
             toString({merge}) AS value, toUInt64(sum(u.events)) AS events FROM ({states}) AS u{join} GROUP BY window_key, customer{by}, groups \
             HAVING NOT throwIf(sum(u.events) < 0, '{TOO_MUCH_TAKEN}') AND sum(u.events) > 0{refused}",
            merge = merge(&definition.measure),
        )
    } else {
        let subject = if by_subject { "subject" } else { "''" };
        let source = counted(database, table, reading, &key_conditions, &others);
        format!(
            "WITH {key} AS window_key SELECT {start} AS window_start, {end} AS window_end, '' AS customer, {subject} AS subject, \
             {groups} AS groups, toString({aggregate}) AS value, count() AS events FROM {source} GROUP BY {keys}",
            groups = texts(&groups),
            aggregate = aggregate(&definition.measure, ""),
        )
    };
    // One more than may be, so that too many are noticed.
    let sql = format!("SELECT * FROM ({sql}) ORDER BY window_start, customer, subject, groups LIMIT {}", limits::USAGE_ROWS + 1);
    Statement { sql, params }
}

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
