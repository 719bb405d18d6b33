//! What Kubemeter ought to know: a plain list of events, and what the documented rules say about it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::json::{Json, Path, Segment};
use super::number::{NoNumber, Number};

/// (source, id).
pub type Key = (String, String);

/// From and to, ms since 1970, both inclusive: an event without a time gets one between.
pub type Span = (i64, i64);

/// An event as a sender has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub source: String,
    pub id: String,
    pub kind: String,
    pub subject: Option<String>,
    pub time: Option<String>,
    pub data: Json,
}

impl Event {
    pub fn key(&self) -> Key {
        (self.source.clone(), self.id.clone())
    }
}

/// What one sending of an event would be stored as.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub kind: String,
    pub subject: String,
    pub time: Span,
    pub leaves: BTreeMap<Path, Json>,
}

/// A stored event. Of several sendings that came at once any one is stored; a listing tells which.
#[derive(Clone, Debug)]
pub struct Stored {
    pub versions: Vec<Version>,
    /// Which of [`Space::cancellations`] it was cancelled by; several as long as that is open.
    pub states: Vec<Option<usize>>,
}

impl Stored {
    /// The version, once it is known.
    pub fn settled(&self) -> &Version {
        match self.versions.as_slice() {
            [version] if version.time.0 == version.time.1 => version,
            open => panic!("a question before the listing that settles {open:?}"),
        }
    }

    pub fn counts(&self) -> bool {
        self.states == [None]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Meter {
    pub kind: String,
    pub aggregation: &'static str,
    pub value: Option<Path>,
    pub groups: BTreeMap<String, Path>,
    /// Another one for each edit: it tells which edit answers.
    pub unit: String,
    pub deletion_policy: &'static str,
}

#[derive(Clone, Debug)]
pub struct Customer {
    pub subjects: Vec<String>,
    pub purge: bool,
    /// RFC 3339, of the API server.
    pub created: String,
}

#[derive(Clone, Debug)]
pub struct Reject {
    pub event: Event,
    /// Any of these.
    pub codes: BTreeSet<&'static str>,
    pub arrival: Span,
    /// What a listing calls it, once seen.
    pub id: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Cancellation {
    pub id: String,
    pub reason: Option<String>,
    pub cancelled: usize,
    pub reverted: bool,
}

/// A namespace.
#[derive(Clone, Debug, Default)]
pub struct Space {
    pub meters: BTreeMap<String, Meter>,
    pub customers: BTreeMap<String, Customer>,
    pub events: BTreeMap<Key, Stored>,
    pub rejects: Vec<Reject>,
    /// Oldest first.
    pub cancellations: Vec<Cancellation>,
    /// Rejects that may have been kept: of tries that were not answered.
    pub perhaps: Vec<Reject>,
    /// May be stored or not until the next listing says.
    pub optional: BTreeSet<Key>,
}

/// What becomes of posted events.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub accepted: usize,
    /// By index.
    pub rejected: BTreeMap<usize, BTreeSet<&'static str>>,
}

impl Space {
    /// What an event would be stored as, or why not.
    pub fn judge(&self, event: &Event, arrival: Span) -> Result<Version, BTreeSet<&'static str>> {
        let time = event.time.as_deref().map(time_ms).transpose()?;
        let subject = event.subject.clone().ok_or_else(|| BTreeSet::from(["missing_attribute"]))?;
        let leaves = event.data.leaves();
        let wrong: BTreeSet<_> =
            self.meters.values().filter(|meter| meter.kind == event.kind).filter_map(|meter| cannot_count(meter, &leaves)).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Version { kind: event.kind.clone(), subject, time: time.map_or(arrival, |ms| (ms, ms)), leaves })
    }

    /// Takes a post that was answered.
    pub fn post(&mut self, events: &[Event], atomic: bool, arrival: Span) -> Outcome {
        let mut judged: Vec<_> = events.iter().map(|event| self.judge(event, arrival)).collect();
        // Of two events with one identity and different types the second is no repeat of what is stored.
        let mut kinds = BTreeMap::new();
        for (event, judged) in events.iter().zip(&mut judged).filter(|(event, _)| !self.events.contains_key(&event.key())) {
            if judged.is_ok() && kinds.entry(event.key()).or_insert(&event.kind) != &&event.kind {
                *judged = Err(BTreeSet::from(["invalid_event"]));
            }
        }
        let refuse_all = atomic && judged.iter().any(Result::is_err);
        let mut outcome = Outcome::default();
        for (index, (event, judged)) in events.iter().zip(judged).enumerate() {
            match judged {
                Ok(_) if refuse_all => {}
                Ok(version) => {
                    outcome.accepted += 1;
                    self.store(event.key(), vec![version]);
                }
                Err(codes) => {
                    if !atomic {
                        self.rejects.push(Reject { event: event.clone(), codes: codes.clone(), arrival, id: None });
                    }
                    outcome.rejected.insert(index, codes);
                }
            }
        }
        outcome
    }

    /// Stores an event, as one of these; one that is stored stays as it is.
    pub fn store(&mut self, key: Key, versions: Vec<Version>) {
        self.events.entry(key).or_insert(Stored { versions, states: vec![None] });
    }

    /// Tries rejects again: what passes is stored and leaves. Those of one request have no order among them.
    pub fn replay(&mut self, only: Option<&BTreeSet<String>>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut passed: BTreeMap<Key, Vec<(Span, Version)>> = BTreeMap::new();
        let rejects = std::mem::take(&mut self.rejects);
        for reject in rejects {
            let chosen = only.is_none_or(|only| reject.id.as_ref().is_some_and(|id| only.contains(id)));
            match self.judge(&reject.event, reject.arrival) {
                Ok(version) if chosen => {
                    outcome.accepted += 1;
                    passed.entry(reject.event.key()).or_default().push((reject.arrival, version));
                }
                Ok(_) => self.rejects.push(reject),
                Err(codes) => {
                    if chosen {
                        outcome.rejected.insert(outcome.rejected.len(), codes);
                    }
                    self.rejects.push(reject);
                }
            }
        }
        for (key, versions) in passed {
            let first = versions.iter().map(|(arrival, _)| arrival.1).min().unwrap_or_default();
            let versions = versions.into_iter().filter(|(arrival, _)| arrival.0 <= first).map(|(_, version)| version).collect();
            self.store(key, versions);
        }
        outcome
    }

    /// Whose a subject is: of several customers that claim it, the oldest's.
    pub fn owner(&self, subject: &str) -> String {
        let claims = self.customers.iter().filter(|(name, customer)| claims(name, customer, subject));
        claims
            .min_by_key(|(name, customer)| (customer.created.as_str(), name.as_str()))
            .map_or_else(|| subject.to_owned(), |(name, _)| name.clone())
    }

    pub fn revert(&mut self, index: usize) {
        self.cancellations[index].reverted = true;
        for stored in self.events.values_mut().filter(|stored| stored.states == [Some(index)]) {
            stored.states = vec![None];
        }
    }

    /// Forgets a customer, and its events when it was to be purged.
    pub fn drop_customer(&mut self, name: &str) {
        if self.customers.get(name).is_some_and(|customer| customer.purge) {
            let gone: BTreeSet<Key> = self
                .events
                .iter()
                .filter(|(_, stored)| self.owner(&stored.settled().subject) == name)
                .map(|(key, _)| key.clone())
                .collect();
            self.events.retain(|key, _| !gone.contains(key));
            let rejects = std::mem::take(&mut self.rejects);
            self.rejects = rejects
                .into_iter()
                .filter(|reject| reject.event.subject.as_deref().is_none_or(|subject| self.owner(subject) != name))
                .collect();
        }
        self.customers.remove(name);
    }
}

fn claims(name: &str, customer: &Customer, subject: &str) -> bool {
    if customer.subjects.is_empty() { name == subject } else { customer.subjects.iter().any(|claimed| claimed == subject) }
}

/// Why a meter can't count an event.
pub fn cannot_count(meter: &Meter, leaves: &BTreeMap<Path, Json>) -> Option<&'static str> {
    let Some(scalar) = leaves.get(meter.value.as_ref()?) else { return Some("missing_value") };
    if meter.aggregation == "UniqueCount" {
        return None;
    }
    match Number::read(&scalar.scalar_text()) {
        Ok(_) => None,
        Err(NoNumber::Inexact) => Some("inexact_number"),
        Err(NoNumber::NotDecimal) => Some("invalid_value"),
    }
}

/// Milliseconds of an event's time, finer parts cut off.
fn time_ms(text: &str) -> Result<i64, BTreeSet<&'static str>> {
    let time: Timestamp = text.parse().map_err(|_| BTreeSet::from(["invalid_event"]))?;
    let year = jiff::tz::Offset::UTC.to_datetime(time).year();
    if (2000..2100).contains(&year) { Ok(time.as_millisecond()) } else { Err(BTreeSet::from(["time_out_of_range"])) }
}

/// The data of an `ingestUsage` command as its meter reads it.
pub fn command_data(meter: &Meter, value: &Json, dimensions: &[(String, Json)]) -> Json {
    let mut placed: Vec<(Path, Json)> = meter.value.iter().map(|path| (path.clone(), value.clone())).collect();
    for (name, dimension) in dimensions {
        let path = meter.groups.get(name).cloned().unwrap_or_else(|| vec![Segment::Member(name.clone())]);
        if !placed.iter().any(|(taken, _)| *taken == path) {
            placed.push((path, dimension.clone()));
        }
    }
    let mut data = Json::Map(Vec::new());
    placed.into_iter().for_each(|(path, value)| put(&mut data, &path, value));
    data
}

fn put(data: &mut Json, path: &[Segment], value: Json) {
    let (Json::Map(members), [Segment::Member(name), rest @ ..]) = (data, path) else { panic!("commands are for paths of members") };
    let index = members.iter().position(|(member, _)| member == name).unwrap_or_else(|| {
        members.push((name.clone(), Json::Map(Vec::new())));
        members.len() - 1
    });
    if rest.is_empty() { members[index].1 = value } else { put(&mut members[index].1, rest, value) }
}
