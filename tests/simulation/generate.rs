//! Histories from a seed.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

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
}

/// What was made in a namespace.
#[derive(Default)]
pub struct Memory {
    pub events: Vec<Event>,
    meters: BTreeMap<String, Meter>,
}

impl History {
    /// The history of a seed.
    pub fn generate(seed: u64, length: usize) -> Self {
        let mut generator = Generator { rng: Rng::with_seed(seed), spaces: Vec::new(), only: None, edits: 0, ids: 0 };
        generator.spaces.resize_with(SPACES, Memory::default);
        let steps = (0..length).map(|number| if number < 3 { generator.put_meter() } else { generator.step() });
        Self { seed, steps: steps.enumerate().collect() }
    }
}

impl Generator {
    fn step(&mut self) -> Step {
        match self.rng.u32(0..100) {
            0..27 => Step::Post(self.post()),
            27..30 => self.usage_command(),
            30..33 => self.command(),
            33..41 => self.cancel(),
            41..45 => Step::Revert { space: self.space(), gateway: self.gateway(), back: self.rng.usize(0..3) },
            45..48 => Step::Replay { space: self.space(), gateway: self.gateway(), one: self.rng.bool().then(|| self.rng.usize(0..3)) },
            48..57 => self.put_meter(),
            57..60 => self.drop_meter(),
            60..66 => self.put_customer(),
            66..69 => Step::DropCustomer { space: self.space(), name: self.pick(CUSTOMERS), http: self.rng.bool() },
            69..72 => Step::Restart { part: self.part(), kill: self.rng.bool() },
            72..75 => {
                let (part, offset) = self.clock();
                Step::Clock { part, offset }
            }
            _ => Step::Storm(faults::generate(self)),
        }
    }

    /// A step for a namespace beside a storm in the other.
    pub fn beside(&mut self, space: usize) -> Step {
        self.only = Some(space);
        let step = match self.rng.u32(0..10) {
            0 => Step::Post(self.post()),
            1 => self.usage_command(),
            2 => self.command(),
            3 | 4 => self.cancel(),
            5 => Step::Replay { space, gateway: self.gateway(), one: None },
            6 => self.put_meter(),
            7 => self.drop_meter(),
            8 => self.put_customer(),
            _ => Step::DropCustomer { space, name: self.pick(CUSTOMERS), http: self.rng.bool() },
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
        let events: Vec<Event> = (0..count).map(|_| self.event(space, 10)).collect();
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
        Step::PutCustomer { space: self.space(), name: self.pick(CUSTOMERS), subjects, purge: self.rng.bool(), http: self.rng.bool() }
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
        let (onboard, tenant) = (self.rng.u32(0..3) != 0, self.pick(CUSTOMERS));
        Step::Command { space: self.space(), gateway: self.gateway(), id: format!("c-{}", self.rng.u32(0..8)), onboard, tenant }
    }

    fn cancel(&mut self) -> Step {
        let space = self.space();
        let reason = self.rng.bool().then(|| "double import, 'really'".to_owned());
        Step::Cancel { space, gateway: self.gateway(), target: self.target(space), dry_run: self.rng.u32(0..4) == 0, reason }
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
        let meter = self.pick(METERS);
        let groups: BTreeSet<String> =
            self.spaces[space].meters.get(&meter).map(|m| m.groups.keys().cloned().collect()).unwrap_or_default();
        let from = 1_772_323_200_000 + self.rng.i64(0..20 * 86_400_000);
        let mut filter = (None, None, None, BTreeMap::new());
        match self.rng.u32(0..4) {
            0 => filter.0 = Some(self.pick(CUSTOMERS)),
            1 => filter.1 = Some(self.pick(SUBJECTS)),
            2 => filter.2 = Some(from + 10 * 86_400_000),
            _ => filter.3 = groups.into_iter().take(1).map(|name| (name, "large".to_owned())).collect(),
        }
        let from = (self.rng.bool() || filter.3.is_empty()).then_some(from);
        Target::Filter { meter, customer: filter.0, subject: filter.1, from, to: filter.2, groups: filter.3 }
    }
}

/// Whether events of one identity have different types. What becomes of such a post as a whole is not specified.
fn has_two_types(events: &[Event]) -> bool {
    events.iter().any(|event| events.iter().any(|other| other.key() == event.key() && other.kind != event.kind))
}
