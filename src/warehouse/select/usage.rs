//! What a Meter counted, by windows and groups.

use super::customers::{claims, owners};
use super::{Param, Source, Statement, Value, conditions};
use crate::limits;
use crate::meter::{DecimalAggregation, Measure};
use crate::metering::{UsageQuery, WindowSize};
use crate::warehouse::counted::{Balanced, Reading, balanced, counted};
use crate::warehouse::layout::group_column;
use crate::warehouse::sql::identifier;

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
