//! SQL and Rust read events alike: what the gateway accepts is what a meter's table holds, by the live view and by backfill.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use kubemeter::api::{Aggregation, Meter, MeterSpec};
use kubemeter::catalog::Catalog;
use kubemeter::event::{Attributes, Decimal, Event, Incoming, JsonPath, Leaves, Scalar};
use kubemeter::ingest::{Committer, Judge, Judged, Submission};
use kubemeter::limits;
use kubemeter::telemetry::Metrics;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::lab::{Lab, NAMESPACE, spec};

/// What makes the values of a run: other ones each time, unless `KUBEMETER_PARITY_SEED` says the seed of one that failed, which has been
/// printed.
fn runner() -> TestRunner {
    const SEED: &str = "KUBEMETER_PARITY_SEED";
    let seed = std::env::var(SEED)
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed} is no number")));
    // Shown of a test that fails.
    eprintln!("again: {SEED}={seed}");
    TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() })
}

/// Values of a strategy, for tests whose cases share one INSERT. What fails is printed, which stands for shrinking.
fn samples<S: Strategy>(runner: &mut TestRunner, count: usize, strategy: &S) -> Vec<S::Value> {
    (0..count).map(|_| strategy.new_tree(runner).unwrap().current()).collect()
}

/// Stores events without judging them by meters: the gateway that took them knew of none.
async fn store(lab: &Lab, data: Vec<Leaves>) -> Vec<u128> {
    let catalog = Catalog::default();
    let mut judge = Judge::new(&catalog, NAMESPACE, false, 1_772_600_000_000_000);
    let mut rows = Vec::new();
    for (n, data) in data.into_iter().enumerate() {
        let event = Event {
            attributes: Attributes::new(&n.to_string(), "parity", "t", &format!("s{}", n % 10)),
            time_ms: Some(1_772_600_000_000 + i64::try_from(n).unwrap()),
            data,
        };
        match judge.judge(Ok(Incoming::Event(event))) {
            Ok(Judged::Row(row)) => rows.push(row),
            other => panic!("{other:?}"),
        }
    }
    let ids = rows.iter().map(|row| row.identity).collect();
    let committer = Committer::start(lab.warehouse.clone(), Arc::new(Metrics::new().unwrap()));
    committer.commit(Submission { rows, ..Submission::default() }).await.unwrap();
    ids
}

fn table(meter: &Meter) -> &str {
    &meter.status.as_ref().unwrap().active.as_ref().unwrap().table
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Stored {
    id: u128,
    value: Option<String>,
    groups: Vec<String>,
}

/// A meter table's rows by identity: value and groups as text.
async fn rows(lab: &Lab, meter: &Meter, groups: usize) -> HashMap<u128, (Option<String>, Vec<String>)> {
    let columns: Vec<_> = (0..groups).map(|n| format!("toString(group_g{n:02})")).collect();
    let sql = format!(
        "SELECT id, toString(t.value) AS value, [{}]::Array(String) AS groups FROM {} AS t",
        columns.join(", "),
        lab.warehouse.table(table(meter))
    );
    let rows: Vec<Stored> = lab.warehouse.query(&sql).rows().await.unwrap();
    rows.into_iter().map(|row| (row.id, (row.value, row.groups))).collect()
}

fn number_text() -> impl Strategy<Value = String> {
    let long = |text: fn(usize) -> String| (100_usize..135).prop_map(text);
    prop_oneof![
        6 => "-?[0-9]{1,40}(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
        4 => "-?[0-9]{1,4}(\\.[0-9]{1,4})?[eE][+-]?[0-9]{1,2}",
        4 => "-?0{0,30}[0-9]{0,5}\\.?0{0,30}[0-9]{0,3}0{0,30}([eE]-?[0-9]{1,2})?",
        4 => "-?(99999999999999999999999999|100000000000000000000000000|170141183460469231731687303|99999999999999999999999998)0{0,3}(\\.[09]{1,14}0{0,9})?(e[+-]?[0-9]{1,2})?",
        2 => "-?[0-9]{1,26}\\.[0-9]{11,13}0{0,60}",
        2 => "[+ .\\-0-9eExXaNif_,\\t\\n\\x00]{0,8}",
        1 => "-?0[0.]{0,12}[eE][+-]?[0-9]{1,3}",
        1 => long(|n| format!("{}7", "0".repeat(n))),
        1 => long(|n| format!("1.{}", "0".repeat(n))),
        1 => long(|n| format!("1{}e-{n}", "0".repeat(n))),
        1 => long(|n| format!("0.{}1e{}", "0".repeat(n), n + 1)),
        1 => long(|n| "9".repeat(n)),
        1 => long(|n| format!("0.{}1", "0".repeat(n))),
        2 => proptest::sample::select(vec![
            "", ".5", "1.", "5.e1", "+1", " 1", "1 ", "1\n", "\n1", "1\0", "\0", "0x10", "１２", "٣", "1e5\n", "NaN", "nan", "inf", "Infinity",
            "-", "--1", "1_000", "1,5", "true", "{}", "[]", "1e", "1e+", "1e1000", "1e-1000", "1e999", "1e-999", "0e999", "-0", "-0.0", "00", "1e0",
            "1E+00", "1e-0", "1e26", "1e25", "1e-12", "1e-13", "10e-13", "0.1e26", "0.1e27", "99999999999999999999999999.9999999999999",
            "-99999999999999999999999999.999999999999", "9007199254740993", "12345678901234567890.123456789", "\u{feff}1", "1\u{a0}", "−1", "½",
        ]).prop_map(str::to_owned),
    ]
}

fn is_literal(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok_and(|raw| raw.get() == text)
        && text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

#[tokio::test]
async fn a_meter_holds_exactly_the_decimals_that_the_gateway_accepts() {
    let lab = Lab::new();
    let sum = || spec("t", Aggregation::Sum, Some("$.v"), &[]);
    let live = lab.meter("live", sum()).await;

    let texts = samples(&mut runner(), 4_000, &number_text());
    let data = texts.iter().enumerate().map(|(n, text)| {
        let mut leaves = Leaves::new();
        let literal = n % 2 == 0 && is_literal(text);
        leaves.push("$.v", if literal { Scalar::Literal(text) } else { Scalar::Text(text) });
        leaves
    });
    let ids = store(&lab, data.collect()).await;
    let backfilled = lab.meter("backfilled", sum()).await;
    let (live, backfilled) = (rows(&lab, &live, 0).await, rows(&lab, &backfilled, 0).await);
    assert_eq!(live.len(), texts.len());

    let (mut accepted, mut wrong) = (0, Vec::new());
    for (id, text) in ids.iter().zip(&texts) {
        let ours = Decimal::parse(text).ok().map(|d| d.to_string());
        accepted += usize::from(ours.is_some());
        if live[id].0 != ours || backfilled[id].0 != ours {
            wrong.push(format!(
                "{text:?} is {ours:?} to the gateway, {:?} in the live view, {:?} in the backfill",
                live[id].0, backfilled[id].0
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), texts.len(), wrong.join("\n"));
    assert!((1_000..3_500).contains(&accepted), "{accepted} of {}: the samples test one side only", texts.len());
}

/// Names of members, nasty ones too.
const NAMES: &[&str] = &[
    "a",
    "b",
    "a'b",
    "a\\b",
    "x y",
    "$['x y']",
    "a.b",
    "0",
    "`",
    "\"",
    "%",
    "?",
    "{x:String}",
    "ä😀",
    "--",
    "/*",
    "\\'",
    "']",
    "a\\",
    "[0]",
];

fn path_text(steps: &[String]) -> String {
    steps.iter().fold("$".to_owned(), |path, step| path + step)
}

fn step() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(NAMES);
    prop_oneof![
        3 => proptest::sample::select(vec![".a", ".b"]).prop_map(str::to_owned),
        4 => name.prop_map(|name| format!("['{}']", name.replace('\\', "\\\\").replace('\'', "\\'"))),
        1 => (0..3).prop_map(|n| format!("[{n}]")),
    ]
}

/// JSON as text, which can say what a parsed document can't: names twice, escapes, numbers with more digits than any type has.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// The same with every character escaped, those beyond 16 bits by two escapes.
fn escaped(text: &str) -> String {
    text.encode_utf16().fold("\"".to_owned(), |all, unit| format!("{all}\\u{unit:04x}")) + "\""
}

fn scalar() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        4 => "[ab'\"\\\\`\\x00\\n\\t{}%?é😀-]{0,6}",
        1 => proptest::sample::select(vec!["\\N", "NULL", "\"", "\"\"", "{}", "[]", "\0", "\\x00", "$.a", "'); DROP TABLE events; --"]).prop_map(str::to_owned),
        1 => (9_000_usize..10_000).prop_map(|n| "é'\\\0😀".repeat(n / 9)),
    ];
    let number = number_text().prop_filter("a number of JSON", |text| is_literal(text));
    prop_oneof![
        4 => text.clone().prop_map(|text| quoted(&text)),
        2 => text.prop_map(|text| escaped(&text)),
        2 => number,
        1 => proptest::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned),
    ]
}

fn object(names: &'static [&'static str], value: BoxedStrategy<String>) -> impl Strategy<Value = String> {
    let name = move || proptest::sample::select(names);
    let name = prop_oneof![4 => name().prop_map(quoted), 1 => name().prop_map(escaped)];
    // Some names come twice: the last one counts.
    proptest::collection::vec((name, value), 0..8).prop_map(|members| {
        let members: Vec<String> = members.into_iter().map(|(name, value)| format!("{name}:{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

fn array(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    proptest::collection::vec(value, 0..5).prop_map(|all| format!("[{}]", all.join(",")))
}

/// Paths into arrays of arrays and objects.
const INDEXED: &[&str] = &["$.a[0]", "$.a[1]", "$.b[1].a", r"$['a\'b'][0][1]", "$.b[2][0]"];

/// An object in which such paths find something.
fn indexed() -> impl Strategy<Value = String> {
    const NAMED: &[&str] = &["a", "b", "a'b"];
    let element = prop_oneof![scalar(), array(scalar()), object(NAMED, scalar().boxed())];
    object(NAMED, array(element).boxed())
}

/// Names on the way down to the deepest value that an event may have.
const DEEP: usize = limits::DATA_DEPTH - 1;

fn document() -> impl Strategy<Value = String> {
    let value = scalar().prop_recursive(3, 24, 4, move |inner| prop_oneof![array(inner.clone()), object(NAMES, inner.boxed())]);
    let deep = scalar().prop_map(|value| format!("{}{value}{}", "{\"b\":".repeat(DEEP), "}".repeat(DEEP)));
    prop_oneof![8 => object(NAMES, value.boxed()), 1 => deep, 4 => indexed()]
}

#[tokio::test]
async fn a_group_column_holds_exactly_what_the_path_finds() {
    /// As many as are columns of two Meters.
    const PATHS: usize = 2 * limits::GROUP_BYS;
    let (lab, mut runner) = (Lab::new(), runner());
    let mut paths: Vec<String> =
        NAMES.iter().take(8).map(|name| path_text(&[format!("['{}']", name.replace('\\', "\\\\").replace('\'', "\\'"))])).collect();
    paths.push(path_text(&vec![".b".to_owned(); DEEP]));
    paths.extend(INDEXED.iter().map(|path| (*path).to_owned()));
    let fixed = paths.len();
    paths.extend(samples(&mut runner, PATHS - fixed, &proptest::collection::vec(step(), 1..4)).iter().map(|steps| path_text(steps)));
    let paths: Vec<&[String]> = paths.chunks(limits::GROUP_BYS).collect();
    let mut live = Vec::new();
    for (number, paths) in paths.iter().enumerate() {
        live.push(lab.meter(&format!("live-{number}"), grouped(paths)).await);
    }

    let documents = samples(&mut runner, 1_800, &document());
    let data: Vec<Leaves> = documents.iter().map(|json| Leaves::from_json(json).unwrap()).collect();
    let ids = store(&lab, data.clone()).await;
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, (paths, live)) in paths.iter().zip(&live).enumerate() {
        let backfilled = lab.meter(&format!("backfilled-{number}"), grouped(paths)).await;
        let (live, backfilled) = (rows(&lab, live, paths.len()).await, rows(&lab, &backfilled, paths.len()).await);
        let parsed: Vec<JsonPath> = paths.iter().map(|path| JsonPath::parse(path).unwrap()).collect();
        for ((id, leaves), json) in ids.iter().zip(&data).zip(&documents) {
            let text = |path: &JsonPath| leaves.get(path).map(|scalar| scalar.text().to_owned());
            let groups: Vec<String> = parsed.iter().map(|path| text(path).unwrap_or_default()).collect();
            for (column, _) in groups.iter().enumerate().filter(|(_, group)| !group.is_empty()) {
                *found.entry(number * limits::GROUP_BYS + column).or_default() += 1;
            }
            let expected = (text(&parsed[2]), groups);
            same(&live[id], &expected, paths, json);
            same(&backfilled[id], &expected, paths, json);
        }
    }
    assert!((0..fixed).all(|n| found.get(&n).is_some_and(|count| *count > 10)), "paths that find too little: {found:?}");
}

/// A Meter's spec with a column for each path, and one of them for its value.
fn grouped(paths: &[String]) -> MeterSpec {
    let names: Vec<String> = (0..paths.len()).map(|n| format!("g{n:02}")).collect();
    let groups: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(paths.iter().map(String::as_str)).collect();
    spec("t", Aggregation::UniqueCount, Some(&paths[2]), &groups)
}

fn same<T: PartialEq + Debug>(stored: &T, expected: &T, paths: &[String], json: &str) {
    assert_eq!(stored, expected, "{paths:?} in {json}");
}
