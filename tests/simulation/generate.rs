//! Histories from a seed.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::bounds::bounds;
use super::calendar::ms;
use super::faults;
use super::history::{Coding, Form, GATEWAYS, History, Part, Post, SPACES, Step, Target};
use super::json::{Json, Path, Segment, members};
use super::model::{Event, Key, Meter};

pub const KINDS: &[&str] = &["llm.completion", "api.request", "storage"];
pub const SUBJECTS: &[&str] = &["acme", "acme-prod", "acme-eu", "globex", "globex-1", "hooli", "ünï 'co\\de", "initech"];
const CUSTOMERS: &[&str] = &["acme", "globex", "initech"];
const METERS: &[&str] = &["tokens", "calls", "peak"];
const AGGREGATIONS: &[&str] = &["Count", "Sum", "Min", "Max", "Average", "UniqueCount", "Latest"];
/// Makes histories; remembers what it made, so that steps have something to do with each other.
pub struct Generator {
    pub rng: Rng,
    pub spaces: Vec<Memory>,
    /// The namespace of all steps that are made now.
    only: Option<usize>,
    edits: usize,
    pub ids: usize,
    /// What comes next, whatever else might.
    next: Option<Step>,
}

/// What was made in a namespace.
#[derive(Default)]
pub struct Memory {
    pub events: Vec<Event>,
    meters: BTreeMap<String, Meter>,
    customers: BTreeMap<String, Customer>,
}

/// A Customer that was made.
struct Customer {
    /// Where there are none it claims its own name.
    subjects: Vec<String>,
    purge: bool,
}

impl History {
    /// The history of a seed.
    pub fn generate(seed: u64, length: usize) -> Self {
        let mut generator = Generator { rng: Rng::with_seed(seed), spaces: Vec::new(), only: None, edits: 0, ids: 0, next: None };
        generator.spaces.resize_with(SPACES, Memory::default);
        let steps = (0..length).map(|number| match number {
            0..3 => generator.put_meter(),
            3 | 4 => generator.put_customer(),
            _ => generator.step(),
        });
        Self { seed, steps: steps.enumerate().collect() }
    }
}

impl Generator {
    fn step(&mut self) -> Step {
        if let Some(next) = self.next.take() {
            return next;
        }
        match self.rng.u32(0..100) {
            0..18 => Step::Post(self.post()),
            18..20 => self.usage_command(),
            20..23 => self.command(),
            23..32 => self.cancel_and_revert(),
            32..36 => Step::Revert { space: self.space(), gateway: self.gateway(), back: self.rng.usize(0..3) },
            36..39 => Step::Replay { space: self.space(), gateway: self.gateway(), one: self.rng.bool().then(|| self.rng.usize(0..3)) },
            39..47 => self.and_replay(Self::put_meter),
            47..49 => self.and_replay(Self::drop_meter),
            49..53 => self.put_customer(),
            53..63 => self.move_subject(),
            63..68 => self.drop_customer(),
            68..70 => Step::Restart { part: self.part(), kill: self.rng.bool() },
            70..73 => {
                let (part, offset) = self.clock();
                Step::Clock { part, offset }
            }
            _ => Step::Storm(faults::generate(self)),
        }
    }

    /// A step for a namespace beside a storm in the other.
    pub fn beside(&mut self, space: usize) -> Step {
        self.only = Some(space);
        let step = match self.rng.u32(0..11) {
            0 => Step::Post(self.post()),
            1 => self.usage_command(),
            2 => self.command(),
            3 | 4 => self.cancel(),
            5 => Step::Replay { space, gateway: self.gateway(), one: None },
            6 => self.put_meter(),
            7 => self.drop_meter(),
            8 => self.put_customer(),
            9 => self.move_subject(),
            _ => self.drop_customer(),
        };
        self.only = None;
        step
    }

    fn drop_meter(&mut self) -> Step {
        let (space, name) = (self.space(), self.pick(METERS));
        self.spaces[space].meters.remove(&name);
        Step::DropMeter { space, name, http: self.rng.bool() }
    }

    pub fn space(&mut self) -> usize {
        let any = self.rng.usize(0..SPACES);
        self.only.unwrap_or(any)
    }

    pub fn gateway(&mut self) -> usize {
        self.rng.usize(0..GATEWAYS)
    }

    /// A part, and by how many seconds its clock is to be wrong.
    pub fn clock(&mut self) -> (Part, i64) {
        let gateway = Part::Gateway(self.gateway());
        (*self.one_of(&[gateway, Part::ClickHouse, Part::Operator]), *self.one_of(&[-1_500, -2, 3, 1_500, 0]))
    }

    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.rng.usize(0..all.len())]
    }

    pub fn pick(&mut self, names: &[&str]) -> String {
        (*self.one_of(names)).to_owned()
    }

    fn part(&mut self) -> Part {
        match self.rng.u32(0..4) {
            0 => Part::Operator,
            1 => Part::ClickHouse,
            _ => Part::Gateway(self.gateway()),
        }
    }

    fn post(&mut self) -> Post {
        let space = self.space();
        let form = *self.one_of(&[Form::Array, Form::Array, Form::Batch, Form::Ndjson, Form::Structured, Form::Binary, Form::Bridge]);
        let coding = *self.one_of(&[Coding::Plain, Coding::Plain, Coding::Gzip, Coding::Zstd]);
        let one = matches!(form, Form::Structured | Form::Binary);
        let count = if one { 1 } else { self.rng.usize(1..12) };
        let faulty = *self.one_of(&[10, 10, 40]);
        let events: Vec<Event> = (0..count).map(|_| self.event(space, faulty)).collect();
        let atomic = self.rng.u32(0..8) == 0 && !has_two_types(&events);
        Post { space, gateway: self.gateway(), form, coding, atomic, events }
    }

    /// A post that no meter of the history refuses.
    pub fn good_post(&mut self, space: usize, most: usize) -> Post {
        let count = self.rng.usize(1..=most);
        let events = (0..count).map(|_| self.event(space, 0)).collect();
        Post { space, gateway: self.gateway(), form: Form::Array, coding: Coding::Plain, atomic: false, events }
    }

    fn meter(&mut self) -> Meter {
        self.edits += 1;
        let aggregation = *self.one_of(AGGREGATIONS);
        let places: [Path; 4] =
            [members(&["v"]), members(&["w"]), members(&["meta", "k"]), vec![Segment::Member("list".to_owned()), Segment::Index(0)]];
        let value = (aggregation != "Count").then(|| self.one_of(&places).clone());
        let all = [("model", members(&["model"])), ("region", members(&["region"])), ("xy", members(&["meta", "x y"]))];
        let groups = all.into_iter().filter(|_| self.rng.bool()).map(|(name, path)| (name.to_owned(), path)).collect();
        let deletion_policy = if self.rng.bool() { "Delete" } else { "Retain" };
        Meter { kind: self.pick(KINDS), aggregation, value, groups, unit: format!("u{}", self.edits), deletion_policy }
    }

    fn put_meter(&mut self) -> Step {
        let space = self.space();
        let (name, meter) = self.edited(space);
        let during = self.rng.bool().then(|| self.good_post(space, 8));
        Step::PutMeter { space, name, meter, http: self.rng.bool(), during }
    }

    /// A change of a Meter, by which it may take what it refused before, which is tried then.
    fn and_replay(&mut self, change: fn(&mut Self) -> Step) -> Step {
        let step = change(self);
        if let Step::PutMeter { space, .. } | Step::DropMeter { space, .. } = step
            && self.rng.u32(0..3) == 0
        {
            self.next = Some(Step::Replay { space, gateway: self.gateway(), one: None });
        }
        step
    }

    /// A Meter, new or edited.
    pub fn edited(&mut self, space: usize) -> (String, Meter) {
        let name = self.pick(METERS);
        let known = self.spaces[space].meters.get(&name).cloned();
        let new = self.meter();
        // An edit of one thing, or of everything.
        let meter = match (known, self.rng.u32(0..4)) {
            (Some(known), 0) => Meter { unit: new.unit, ..known },
            (Some(known), 1) => Meter { unit: new.unit, groups: new.groups, ..known },
            (Some(known), 2) => Meter { kind: known.kind, ..new },
            _ => new,
        };
        self.spaces[space].meters.insert(name.clone(), meter.clone());
        (name, meter)
    }

    fn put_customer(&mut self) -> Step {
        let subjects: Vec<String> = SUBJECTS.iter().filter(|_| self.rng.u32(0..3) == 0).map(|s| (*s).to_owned()).collect();
        let (space, name, purge) = (self.space(), self.pick(CUSTOMERS), self.rng.u32(0..3) != 0);
        self.spaces[space].customers.insert(name.clone(), Customer { subjects: subjects.clone(), purge });
        Step::PutCustomer { space, name, subjects, purge, http: self.rng.bool() }
    }

    /// A namespace that has a Customer, if one has.
    fn space_of_customers(&mut self) -> usize {
        let space = self.space();
        let other = (space + 1) % SPACES;
        let moves = self.only.is_none() && self.spaces[space].customers.is_empty() && !self.spaces[other].customers.is_empty();
        if moves { other } else { space }
    }

    /// Moves a subject from one Customer to another, which may be new.
    fn move_subject(&mut self) -> Step {
        let space = self.space_of_customers();
        let memory = &self.spaces[space];
        let mut claimed: Vec<(String, String)> = Vec::new();
        for (name, customer) in &memory.customers {
            claimed.extend(customer.subjects.iter().map(|subject| (name.clone(), subject.clone())));
        }
        if claimed.is_empty() {
            return self.put_customer();
        }
        // Rather one that has events.
        let has_events = |(_, subject): &&(String, String)| memory.events.iter().any(|event| event.subject.as_ref() == Some(subject));
        let claimed = match claimed.iter().filter(has_events).cloned().collect::<Vec<_>>() {
            none if none.is_empty() => claimed,
            some => some,
        };
        let (from, subject) = self.one_of(&claimed).clone();
        let (known, new): (Vec<&str>, Vec<&str>) =
            CUSTOMERS.iter().filter(|name| **name != from).partition(|name| self.spaces[space].customers.contains_key(**name));
        let to = if new.is_empty() || (!known.is_empty() && self.rng.u32(0..4) != 0) { self.pick(&known) } else { self.pick(&new) };
        let customers = &mut self.spaces[space].customers;
        customers.values_mut().for_each(|customer| customer.subjects.retain(|claimed| *claimed != subject));
        let taker = customers.entry(to.clone()).or_insert(Customer { subjects: Vec::new(), purge: false });
        taker.subjects.push(subject.clone());
        Step::MoveSubject { space, subject, to, release_first: self.rng.bool(), http: self.rng.bool() }
    }

    /// Drops a Customer, mostly one that exists, and rather one whose events are purged.
    fn drop_customer(&mut self) -> Step {
        let space = self.space_of_customers();
        let customers = &self.spaces[space].customers;
        let known: Vec<String> = customers.keys().cloned().collect();
        let purged: Vec<String> = customers.iter().filter(|(_, customer)| customer.purge).map(|(name, _)| name.clone()).collect();
        let name = match self.rng.u32(0..8) {
            0 => self.pick(CUSTOMERS),
            1..5 if !purged.is_empty() => self.one_of(&purged).clone(),
            _ if !known.is_empty() => self.one_of(&known).clone(),
            _ => self.pick(CUSTOMERS),
        };
        self.spaces[space].customers.remove(&name);
        Step::DropCustomer { space, name, http: self.rng.bool() }
    }

    fn usage_command(&mut self) -> Step {
        self.ids += 1;
        let (tenant, meter, value) = (self.pick(SUBJECTS), self.pick(METERS), self.value());
        let dimensions = [("model", self.label()), ("region", self.label()), ("colour", Json::text("red"))];
        let dimensions = dimensions.into_iter().filter(|_| self.rng.bool()).map(|(name, value)| (name.to_owned(), value)).collect();
        Step::Usage {
            space: self.space(),
            gateway: self.gateway(),
            id: format!("u-{}", self.ids),
            tenant,
            meter,
            value,
            dimensions,
            time: self.time(),
        }
    }

    fn command(&mut self) -> Step {
        let (space, onboard, tenant) = (self.space(), self.rng.u32(0..3) != 0, self.pick(CUSTOMERS));
        let customers = &mut self.spaces[space].customers;
        // As if it were no repeat.
        if onboard {
            customers.entry(tenant.clone()).or_insert(Customer { subjects: Vec::new(), purge: false });
        } else {
            customers.remove(&tenant);
        }
        Step::Command { space, gateway: self.gateway(), id: format!("c-{}", self.rng.u32(0..8)), onboard, tenant }
    }

    fn cancel(&mut self) -> Step {
        let space = self.space();
        let reason = self.rng.bool().then(|| "double import, 'really'".to_owned());
        Step::Cancel { space, gateway: self.gateway(), target: self.target(space), dry_run: self.rng.u32(0..4) == 0, reason }
    }

    /// A cancellation that may be reverted at once.
    fn cancel_and_revert(&mut self) -> Step {
        let step = self.cancel();
        if let Step::Cancel { space, .. } = step
            && self.rng.u32(0..3) == 0
        {
            self.next = Some(Step::Revert { space, gateway: self.gateway(), back: 0 });
        }
        step
    }

    /// Keys of events that were made before.
    pub fn known_keys(&mut self, space: usize, most: usize) -> Vec<Key> {
        let known = &self.spaces[space].events;
        if known.is_empty() {
            return Vec::new();
        }
        (0..self.rng.usize(1..=most)).map(|_| known[self.rng.usize(0..known.len())].key()).collect()
    }

    fn target(&mut self, space: usize) -> Target {
        let mut keys = self.known_keys(space, 5);
        if self.rng.bool() && !keys.is_empty() {
            if self.rng.u32(0..4) == 0 {
                keys.push(("gw".to_owned(), "never sent".to_owned()));
            }
            return Target::Events(keys);
        }
        let known: Vec<String> = self.spaces[space].meters.keys().cloned().collect();
        let meter = if known.is_empty() || self.rng.u32(0..6) == 0 { self.pick(METERS) } else { self.one_of(&known).clone() };
        let memory = &self.spaces[space];
        let groups: BTreeSet<String> = memory.meters.get(&meter).map(|m| m.groups.keys().cloned().collect()).unwrap_or_default();
        // Mostly one that hits something.
        let counted = |event: &&Event| memory.meters.get(&meter).is_some_and(|meter| meter.kind == event.kind);
        let hit = self.rng.choice(memory.events.iter().filter(counted).collect::<Vec<_>>());
        let hit_subject = hit.and_then(|event| event.subject.clone());
        let owner = hit_subject.as_ref().and_then(|subject| memory.owner(subject));
        let times: Vec<i64> = hit.and_then(|event| event.time.as_deref()).map(ms).into_iter().collect();
        let (from, to) = bounds(&mut self.rng, &times);
        let mut filter = (None, None, None, BTreeMap::new());
        match self.rng.u32(0..4) {
            0 => filter.0 = Some(owner.unwrap_or_else(|| self.pick(CUSTOMERS))),
            1 => filter.1 = Some(hit_subject.unwrap_or_else(|| self.pick(SUBJECTS))),
            2 => filter.2 = Some(to),
            _ => filter.3 = groups.into_iter().take(1).map(|name| (name, "large".to_owned())).collect(),
        }
        let from = (self.rng.bool() || filter.3.is_empty()).then_some(from);
        Target::Filter { meter, customer: filter.0, subject: filter.1, from, to: filter.2, groups: filter.3 }
    }
}

impl Memory {
    /// A Customer that claims a subject.
    fn owner(&self, subject: &str) -> Option<String> {
        let claims = |customer: &&Customer| customer.subjects.iter().any(|claimed| claimed == subject);
        self.customers.iter().find(|(_, customer)| claims(customer)).map(|(name, _)| name.clone())
    }
}

/// Whether events of one identity have different types. What becomes of such a post as a whole is not specified.
fn has_two_types(events: &[Event]) -> bool {
    events.iter().any(|event| events.iter().any(|other| other.key() == event.key() && other.kind != event.kind))
}
