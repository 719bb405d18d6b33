//! Comparing everything that can be seen of a namespace with the model.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::bounds::bounds;
use super::calendar::{SIZES, ZONES, ms, text};
use super::generate::SUBJECTS;
use super::history::GATEWAYS;
use super::json::Json;
use super::model::{Reject, Space, Stored, cannot_count};
use super::usage::{self, Query, Row};
use super::world::{Request, World};

#[derive(Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    data: Box<RawValue>,
    meters: BTreeSet<String>,
    cancellation_id: Option<String>,
}

/// All pages of a listing, from gateways in turn.
async fn all<T: serde::de::DeserializeOwned>(world: &World, rng: &mut Rng, space: usize, path: &str) -> Result<Vec<T>, String> {
    let limit = [3, 40, 1_000, 1_000][rng.usize(0..4)];
    let sign = if path.contains('?') { '&' } else { '?' };
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let page = format!("{path}{sign}limit={}{next}", if items.len() > 60 { 1_000 } else { limit });
        let answer = world.answered(rng.usize(0..GATEWAYS), &Request::get(space, &page)).await;
        let read: Page = serde_json::from_str(&answer.body).map_err(|why| format!("GET {page} answered {answer:?}: {why}"))?;
        for item in &read.items {
            items.push(serde_json::from_str(item.get()).map_err(|why| format!("GET {page} has {item}: {why}"))?);
        }
        match read.next {
            None => return Ok(items),
            Some(token) => next = format!("&continue={token}"),
        }
    }
}

/// Compares a namespace's events with the model, which learns what it left open.
pub async fn events(world: &World, rng: &mut Rng, space: usize, model: &mut Space) -> Result<(), String> {
    let listed: Vec<Listed> = all(world, rng, space, "/events").await?;
    let sorted = listed.is_sorted_by_key(|e| (e.kind.clone(), e.subject.clone(), ms(&e.time)));
    if !sorted {
        return Err("GET /events is not in the order of type, subject, time".to_owned());
    }
    let mut missing: BTreeSet<_> = model.events.keys().cloned().collect();
    for event in listed {
        let key = (event.source.clone(), event.id.clone());
        let Some(stored) = model.events.get_mut(&key) else { return Err(format!("GET /events has {key:?}, which was never taken")) };
        if !missing.remove(&key) {
            return Err(format!("GET /events has {key:?} twice"));
        }
        let (time, leaves) = (ms(&event.time), Json::read(&event.data).leaves());
        let counting = model.meters.iter().filter(|(_, meter)| meter.kind == event.kind && cannot_count(meter, &leaves).is_none());
        let meters: BTreeSet<String> = counting.map(|(name, _)| name.clone()).collect();
        let known = stored.versions.clone();
        let versions = &mut stored.versions;
        versions
            .retain(|v| v.kind == event.kind && v.subject == event.subject && v.time.0 <= time && time <= v.time.1 && v.leaves == leaves);
        versions.truncate(1);
        let Some(version) = versions.first_mut() else {
            let Listed { kind, subject, time, data, .. } = event;
            return Err(format!("GET /events has {key:?} as {kind} {subject} {time} {data}, not as {known:?}"));
        };
        version.time = (time, time);
        let states = stored.states.clone();
        stored.states.retain(|state| state.map(|index| &model.cancellations[index].id) == event.cancellation_id.as_ref());
        if stored.states.is_empty() {
            return Err(format!(
                "GET /events has {key:?} cancelled by {:?}, not by one of {states:?} of {:?}",
                event.cancellation_id, model.cancellations
            ));
        }
        let meters = if stored.counts() { meters } else { BTreeSet::new() };
        if event.meters != meters {
            return Err(format!("GET /events has {key:?} counted by {:?}, not by {meters:?}", event.meters));
        }
    }
    for key in std::mem::take(&mut model.optional) {
        if missing.remove(&key) {
            model.events.remove(&key);
        }
    }
    if !missing.is_empty() {
        return Err(format!("GET /events lacks {missing:?}"));
    }
    Ok(())
}

/// Compares a part of a namespace's events with the model.
pub async fn some_events(world: &World, rng: &mut Rng, space: usize, model: &Space) -> Result<(), String> {
    let subject = SUBJECTS[rng.usize(0..SUBJECTS.len())];
    let (name, by_customer) = if rng.bool() { ("customer", true) } else { ("subject", false) };
    let (from, to) = some_bounds(rng, &times(model));
    let bound = |name: &'static str, ms: Option<i64>| ms.map(|ms| (name, text(ms)));
    let pairs: Vec<_> = [Some((name, subject.to_owned())), bound("from", from), bound("to", to)].into_iter().flatten().collect();
    let path = format!("/events?{}", form(&pairs));
    let listed: Vec<Listed> = all(world, rng, space, &path).await?;
    let listed: BTreeSet<_> = listed.into_iter().map(|event| (event.source, event.id)).collect();
    let is_its = |of: &str| if by_customer { model.owner(of) == subject } else { of == subject };
    let is_within = |time: i64| from.is_none_or(|from| time >= from) && to.is_none_or(|to| time < to);
    let known = model.events.iter().filter(|(_, stored)| is_its(&stored.settled().subject) && is_within(stored.settled().time.0));
    let known: BTreeSet<_> = known.map(|(key, _)| key.clone()).collect();
    if listed == known { Ok(()) } else { Err(format!("GET {path} has {listed:?}, not {known:?}")) }
}

/// Compares what a Meter can't count with the model.
pub async fn uncounted_events(world: &World, rng: &mut Rng, space: usize, model: &Space) -> Result<(), String> {
    let Some((name, meter)) = model.meters.iter().nth(rng.usize(0..model.meters.len().max(1))) else { return Ok(()) };
    let path = format!("/events?uncountedBy={name}");
    let listed: Vec<Listed> = all(world, rng, space, &path).await?;
    let listed: Vec<_> = listed.into_iter().map(|event| (event.source, event.id)).collect();
    let is_its = |stored: &Stored| {
        let event = stored.settled();
        stored.counts() && event.kind == meter.kind && cannot_count(meter, &event.leaves).is_some()
    };
    let mut known: Vec<_> = model.events.iter().filter(|(_, stored)| is_its(stored)).map(|(key, _)| key.clone()).collect();
    let mut sorted = listed.clone();
    sorted.sort();
    known.sort();
    if sorted == known { Ok(()) } else { Err(format!("GET {path} has {listed:?}, not {known:?}")) }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedCancellation {
    cancellation_id: String,
    reason: Option<String>,
    cancelled: usize,
    reverted_at: Option<String>,
}

/// Ids of a namespace's cancellations, newest first, each compared with the model.
pub async fn cancellations(world: &World, rng: &mut Rng, space: usize, model: &Space) -> Result<Vec<String>, String> {
    let listed: Vec<ListedCancellation> = all(world, rng, space, "/usage/cancellations").await?;
    for listed in &listed {
        let Some(known) = model.cancellations.iter().find(|known| known.id == listed.cancellation_id) else { continue };
        let as_known = (listed.reason.as_ref(), listed.cancelled, listed.reverted_at.is_some());
        if as_known != (known.reason.as_ref(), known.cancelled, known.reverted) {
            return Err(format!("GET /usage/cancellations says {as_known:?} of {known:?}"));
        }
    }
    Ok(listed.into_iter().map(|listed| listed.cancellation_id).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedReject {
    reject_id: String,
    source: Option<String>,
    id: Option<String>,
    code: String,
}

/// Compares a namespace's rejects with the model, which learns their ids.
pub async fn rejects(world: &World, rng: &mut Rng, space: usize, model: &mut Space) -> Result<(), String> {
    let listed: Vec<ListedReject> = all(world, rng, space, "/events/rejected").await?;
    let listed: BTreeMap<String, ListedReject> = listed.into_iter().map(|reject| (reject.reject_id.clone(), reject)).collect();
    let mut open: BTreeSet<String> = listed.keys().cloned().collect();
    for reject in &model.rejects {
        if let Some(id) = &reject.id
            && !open.remove(id)
        {
            return Err(format!("GET /events/rejected lacks {reject:?}"));
        }
    }
    for reject in model.rejects.iter_mut().filter(|reject| reject.id.is_none()) {
        let (source, id) = reject.event.key();
        let found = open.iter().find(|open| {
            let listed = &listed[*open];
            listed.source.as_ref() == Some(&source) && listed.id.as_ref() == Some(&id) && reject.codes.contains(listed.code.as_str())
        });
        let Some(found) = found.cloned() else { return Err(format!("GET /events/rejected lacks {reject:?}")) };
        open.remove(&found);
        reject.id = Some(found);
    }
    for id in open.clone() {
        let listed = &listed[&id];
        let key = (listed.source.clone().unwrap_or_default(), listed.id.clone().unwrap_or_default());
        let kept = model.perhaps.iter().find(|perhaps| perhaps.event.key() == key && perhaps.codes.contains(listed.code.as_str()));
        if let Some(kept) = kept.cloned() {
            open.remove(&id);
            model.rejects.push(Reject { id: Some(id), ..kept });
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("GET /events/rejected has {open:?}, which were never refused")) }
}

/// Asks a question and compares the answer with the model's.
pub async fn usage(world: &World, rng: &mut Rng, space: usize, model: &Space, query: &Query) -> Result<(), String> {
    let request = request(space, query);
    let answer = world.answered(rng.usize(0..GATEWAYS), &request).await;
    let expected = usage::answer(model, query);
    if answer.status != 200 {
        return Err(format!("GET {} answered {answer:?}", request.path));
    }
    let rows = rows(query, &answer.body)?;
    if rows == expected {
        return Ok(());
    }
    let lacking: Vec<_> = expected.iter().filter(|row| !rows.contains(row)).take(3).collect();
    let wrong: Vec<_> = rows.iter().filter(|row| !expected.contains(row)).take(3).collect();
    Err(format!(
        "GET {} with meter {:?} answered {} rows, not {}: lacks {lacking:?}, has {wrong:?}",
        request.path,
        model.meters[&query.meter],
        rows.len(),
        expected.len()
    ))
}

/// When a namespace's events were.
pub fn times(model: &Space) -> Vec<i64> {
    model.events.values().map(|stored| stored.settled().time.0).collect()
}

/// From and to, of which one may be left out.
fn some_bounds(rng: &mut Rng, times: &[i64]) -> (Option<i64>, Option<i64>) {
    let (from, to) = bounds(rng, times);
    match rng.u32(0..4) {
        0 => (Some(from), None),
        1 => (None, Some(to)),
        _ => (Some(from), Some(to)),
    }
}

/// A question of a meter.
pub fn question(rng: &mut Rng, model: &Space, meter: &str) -> Query {
    let known = &model.meters[meter];
    let some = |rng: &mut Rng, all: Vec<&str>| all.into_iter().filter(|_| rng.u32(0..4) == 0).map(str::to_owned).collect::<BTreeSet<_>>();
    let mut query = Query { meter: meter.to_owned(), csv: rng.u32(0..5) == 0, ..Query::default() };
    if rng.u32(0..3) != 0 {
        query.size = Some(SIZES[rng.usize(0..SIZES.len())]);
        query.zone = rng.bool().then(|| ZONES[rng.usize(0..ZONES.len())]);
    }
    if rng.bool() {
        (query.from, query.to) = some_bounds(rng, &times(model));
    }
    query.groups = some(rng, known.groups.keys().map(String::as_str).chain(["customer", "subject", "customer"]).collect());
    if rng.u32(0..4) == 0 {
        query.customers = some(rng, SUBJECTS.to_vec());
    }
    if rng.u32(0..4) == 0 {
        query.subjects = some(rng, SUBJECTS.to_vec());
    }
    for name in known.groups.keys() {
        if rng.u32(0..5) == 0 {
            query
                .filters
                .insert(name.clone(), ["large", "", "1.50", "true"].into_iter().filter(|_| rng.bool()).map(str::to_owned).collect());
        }
    }
    query.filters.retain(|_, values| !values.is_empty());
    query
}

/// A question as HTTP has it.
pub fn request(space: usize, query: &Query) -> Request {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
    query.from.iter().for_each(|from| add("from", &text(*from)));
    query.to.iter().for_each(|to| add("to", &text(*to)));
    query.size.iter().for_each(|size| add("windowSize", size));
    query.zone.iter().for_each(|zone| add("windowTimeZone", zone));
    query.customers.iter().for_each(|customer| add("customer", customer));
    query.subjects.iter().for_each(|subject| add("subject", subject));
    query.groups.iter().for_each(|group| add("groupBy", group));
    query.filters.iter().for_each(|(name, values)| values.iter().for_each(|value| add(&format!("filter[{name}]"), value)));
    let path = format!("/usage/{}?{}", query.meter, form(&pairs));
    let headers = if query.csv { vec![("accept".to_owned(), "text/csv".to_owned())] } else { Vec::new() };
    Request { method: Method::GET, space, path, headers, body: Vec::new() }
}

fn form<N: AsRef<str>, V: AsRef<str>>(pairs: &[(N, V)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[derive(Deserialize)]
struct Usage {
    data: Vec<UsageRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UsageRow {
    window_start: Option<String>,
    window_end: Option<String>,
    customer: Option<String>,
    subject: Option<String>,
    #[serde(default)]
    group_by: BTreeMap<String, String>,
    value: String,
}

/// The rows of an answer.
pub fn rows(query: &Query, body: &str) -> Result<Vec<Row>, String> {
    let time = |text: Option<String>| text.filter(|text| !text.is_empty()).map(|text| ms(&text));
    if !query.csv {
        let usage: Usage = serde_json::from_str(body).map_err(|why| format!("{body} is no usage: {why}"))?;
        let row = |row: UsageRow| Row {
            window: (time(row.window_start), time(row.window_end)),
            customer: row.customer,
            subject: row.subject,
            groups: row.group_by,
            value: row.value,
        };
        return Ok(usage.data.into_iter().map(row).collect());
    }
    let mut table = csv::Reader::from_reader(body.as_bytes());
    let names = table.headers().map_err(|why| why.to_string())?.clone();
    let mut rows = Vec::new();
    for record in table.records() {
        let record = record.map_err(|why| why.to_string())?;
        let mut cells: BTreeMap<String, String> =
            names.iter().zip(&record).map(|(name, cell)| (name.to_owned(), cell.to_owned())).collect();
        let mut take = |name: &str| cells.remove(name);
        let (start, end, customer, subject) = (take("windowStart"), take("windowEnd"), take("customer"), take("subject"));
        let value = take("value").ok_or("CSV without value")?;
        rows.push(Row { window: (time(start), time(end)), customer, subject, groups: cells, value });
    }
    Ok(rows)
}
