//! What a question for usage should be answered.

use std::collections::{BTreeMap, BTreeSet};

use super::calendar::{Window, window};
use super::model::{Key, Meter, Space, Version};
use super::number::Number;

/// A question.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub meter: String,
    pub from: Option<i64>,
    pub to: Option<i64>,
    pub size: Option<&'static str>,
    pub zone: Option<&'static str>,
    pub customers: BTreeSet<String>,
    pub subjects: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    pub filters: BTreeMap<String, BTreeSet<String>>,
    pub csv: bool,
}

/// One row of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub window: (Option<i64>, Option<i64>),
    pub customer: Option<String>,
    pub subject: Option<String>,
    pub groups: BTreeMap<String, String>,
    pub value: String,
}

/// In the order of an answer.
pub type RowKey = (Option<Window>, Option<String>, Option<String>, Vec<String>);

/// What an event gives to a row.
#[derive(Clone, Debug)]
pub struct Counted {
    number: Option<Number>,
    text: String,
    order: (i64, String, String),
}

/// The events that a question is about, by row.
pub fn counted<'a>(
    space: &Space,
    query: &Query,
    events: impl IntoIterator<Item = (&'a Key, &'a Version)>,
) -> BTreeMap<RowKey, Vec<Counted>> {
    let meter = &space.meters[&query.meter];
    let mut rows: BTreeMap<RowKey, Vec<Counted>> = BTreeMap::new();
    for (key, version) in events {
        if let Some((row, counted)) = counts(space, meter, query, key, version) {
            rows.entry(row).or_default().push(counted);
        }
    }
    rows
}

fn counts(space: &Space, meter: &Meter, query: &Query, key: &Key, version: &Version) -> Option<(RowKey, Counted)> {
    let time = version.time.0;
    let within = version.kind == meter.kind && query.from.is_none_or(|from| time >= from) && query.to.is_none_or(|to| time < to);
    let owner = space.owner(&version.subject);
    let of_subject = query.subjects.is_empty() || query.subjects.contains(&version.subject);
    let of_customer = query.customers.is_empty() || query.customers.contains(&owner);
    let group = |name: &String| version.leaves.get(&meter.groups[name]).map(|scalar| scalar.scalar_text()).unwrap_or_default();
    let filtered = query.filters.iter().all(|(name, values)| values.contains(&group(name)));
    if !(within && of_subject && of_customer && filtered) {
        return None;
    }
    let text = match &meter.value {
        None => String::new(),
        Some(path) => version.leaves.get(path)?.scalar_text(),
    };
    let number = match meter.aggregation {
        "Count" | "UniqueCount" => None,
        _ => Some(Number::read(&text).ok()?),
    };
    let row = (
        query.size.map(|size| window(time, size, query.zone.unwrap_or("UTC"))),
        query.groups.contains("customer").then_some(owner),
        query.groups.contains("subject").then(|| version.subject.clone()),
        declared(query).map(group).collect(),
    );
    Some((row, Counted { number, text, order: (time, key.0.clone(), key.1.clone()) }))
}

fn declared(query: &Query) -> impl Iterator<Item = &String> {
    query.groups.iter().filter(|name| *name != "customer" && *name != "subject")
}

/// The number of a row; there is none without events.
pub fn fold(aggregation: &str, events: &[&Counted]) -> Option<String> {
    let numbers = || events.iter().filter_map(|event| event.number.as_ref());
    if events.is_empty() {
        return None;
    }
    Some(match aggregation {
        "Count" => events.len().to_string(),
        "UniqueCount" => events.iter().map(|event| &event.text).collect::<BTreeSet<_>>().len().to_string(),
        "Sum" => Number::sum(numbers()).to_string(),
        "Min" => numbers().min()?.to_string(),
        "Max" => numbers().max()?.to_string(),
        "Average" => Number::sum(numbers()).over(events.len()).to_string(),
        "Latest" => events.iter().max_by_key(|event| &event.order)?.number.as_ref()?.to_string(),
        other => panic!("no aggregation {other}"),
    })
}

/// A row as it is answered: its window is cut to what was asked.
pub fn row(query: &Query, key: &RowKey, value: String) -> Row {
    let (window, customer, subject, groups) = key;
    let window = match window {
        None => (query.from, query.to),
        Some((start, end)) => (Some(query.from.map_or(*start, |from| from.max(*start))), Some(query.to.map_or(*end, |to| to.min(*end)))),
    };
    let groups = declared(query).cloned().zip(groups.iter().cloned()).collect();
    Row { window, customer: customer.clone(), subject: subject.clone(), groups, value }
}

/// The whole answer.
pub fn answer(space: &Space, query: &Query) -> Vec<Row> {
    let aggregation = space.meters[&query.meter].aggregation;
    let counting = space.events.iter().filter(|(_, stored)| stored.counts()).map(|(key, stored)| (key, stored.settled()));
    let rows = counted(space, query, counting);
    rows.iter().filter_map(|(key, events)| Some(row(query, key, fold(aggregation, &events.iter().collect::<Vec<_>>())?))).collect()
}

/// The events that a cancellation by filter hits.
pub fn hit(space: &Space, query: &Query) -> BTreeSet<Key> {
    let meter = &space.meters[&query.meter];
    let counting = space.events.iter().filter(|(_, stored)| stored.counts());
    counting.filter(|(key, stored)| counts(space, meter, query, key, stored.settled()).is_some()).map(|(key, _)| key.clone()).collect()
}

/// Whether the answer depends on a time that is open: when it is the earliest one the event is in another row than when it is the latest
/// one. Between the two it is in the same row as then, for windows and bounds have no gaps; but which event is the latest one may differ.
pub fn is_open(space: &Space, query: &Query, key: &Key, version: &Version) -> bool {
    let (from, to) = version.time;
    let meter = &space.meters[&query.meter];
    let at = |time: i64| counts(space, meter, query, key, &Version { time: (time, time), ..version.clone() }).map(|(row, _)| row);
    from != to && (at(from) != at(to) || (meter.aggregation == "Latest" && at(from).is_some()))
}

/// The most choices of a row that are tried.
const CHOICES: usize = 4_096;

/// Whether an answer can be right while it is open as which of its versions each of `pending` counts, and whether it does. Those that
/// are `told` do; of how many versions, it says. Says what is wrong, or how many rows were not judged.
pub fn possible<'a>(
    space: &'a Space,
    query: &Query,
    sure: impl IntoIterator<Item = (&'a Key, &'a Version)>,
    pending: impl IntoIterator<Item = (&'a Key, &'a Version)>,
    told: &BTreeMap<&Key, usize>,
    answered: &[Row],
) -> Result<usize, String> {
    let mut left = 0;
    let aggregation = space.meters[&query.meter].aggregation;
    let (sure, pending) = (counted(space, query, sure), counted(space, query, pending));
    let keys: BTreeSet<&RowKey> = sure.keys().chain(pending.keys()).collect();
    let shape = |row: &Row| Row { value: String::new(), ..row.clone() };
    let known: Vec<Row> = keys.iter().map(|key| row(query, key, String::new())).collect();
    if let Some(row) = answered.iter().find(|row| !known.contains(&shape(row))) {
        return Err(format!("{row:?} is of no event that was ever sent"));
    }
    for (key, known) in keys.into_iter().zip(known) {
        let value = answered.iter().find(|row| shape(row) == known).map(|row| row.value.clone());
        let mut open: BTreeMap<Key, Vec<Option<&Counted>>> = BTreeMap::new();
        for event in pending.get(key).into_iter().flatten() {
            open.entry((event.order.1.clone(), event.order.2.clone())).or_default().push(Some(event));
        }
        for (key, versions) in &mut open {
            // In this row or in another one.
            if told.get(key) != Some(&versions.len()) {
                versions.push(None);
            }
        }
        let open: Vec<_> = open.into_values().collect();
        let choices = open.iter().map(Vec::len).try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
        if choices > CHOICES {
            left += 1;
            continue;
        }
        let sure: Vec<&Counted> = sure.get(key).into_iter().flatten().collect();
        let right = |choice| fold(aggregation, &chosen(&sure, &open, choice)) == value;
        if !(0..choices).any(right) {
            return Err(format!("{known:?} is answered {value:?}: of no choice among {} sure and {} open events", sure.len(), open.len()));
        }
    }
    Ok(left)
}

/// The sure events and one choice of each open one: which, the number says.
fn chosen<'a>(sure: &[&'a Counted], open: &[Vec<Option<&'a Counted>>], mut choice: usize) -> Vec<&'a Counted> {
    let mut all = sure.to_vec();
    for versions in open {
        all.extend(versions[choice % versions.len()]);
        choice /= versions.len();
    }
    all
}

#[test]
fn an_answer_is_open_where_a_time_may_be_on_either_side() {
    let meter = Meter {
        kind: "k".to_owned(),
        aggregation: "Count",
        value: None,
        groups: BTreeMap::new(),
        unit: String::new(),
        deletion_policy: "Delete",
    };
    let space = Space { meters: BTreeMap::from([("m".to_owned(), meter)]), ..Space::default() };
    let version = Version { kind: "k".to_owned(), subject: "s".to_owned(), time: (59_000, 61_000), leaves: BTreeMap::new() };
    let all = Query { meter: "m".to_owned(), ..Query::default() };
    let open = |query: Query| is_open(&space, &query, &Key::default(), &version);
    assert!(!open(all.clone()));
    assert!(open(Query { size: Some("MINUTE"), ..all.clone() }));
    assert!(!open(Query { size: Some("HOUR"), ..all.clone() }));
    assert!(open(Query { to: Some(61_000), ..all.clone() }));
    assert!(!open(Query { from: Some(59_000), to: Some(61_001), ..all.clone() }));
    assert!(!open(Query { subjects: BTreeSet::from(["other".to_owned()]), size: Some("MINUTE"), ..all }));
}
