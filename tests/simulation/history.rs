//! What happens in a simulated life: steps, each of which can stand without the others, so that a failing history can be
//! made smaller by leaving some out.

use std::collections::BTreeMap;

use super::faults::Storm;
use super::json::Json;
use super::model::{Event, Key, Meter};

/// Namespaces of a history.
pub const SPACES: usize = 2;
/// Gateways.
pub const GATEWAYS: usize = 2;

/// A history and where it comes from.
#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    /// With their numbers, which stay when others are left out.
    pub steps: Vec<(usize, Step)>,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Array,
    Batch,
    Ndjson,
    /// One event each.
    Structured,
    Binary,
    Bridge,
}

/// `Content-Encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Clone, Debug)]
pub struct Post {
    pub space: usize,
    pub gateway: usize,
    pub form: Form,
    pub coding: Coding,
    pub atomic: bool,
    pub events: Vec<Event>,
}

/// What a cancellation is about.
#[derive(Clone, Debug)]
pub enum Target {
    Events(Vec<Key>),
    Filter {
        meter: String,
        customer: Option<String>,
        subject: Option<String>,
        from: Option<i64>,
        to: Option<i64>,
        groups: BTreeMap<String, String>,
    },
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Gateway(usize),
    Operator,
    ClickHouse,
}

#[derive(Clone, Debug)]
pub enum Step {
    Post(Post),
    /// An `ingestUsage` event.
    Usage {
        space: usize,
        gateway: usize,
        id: String,
        tenant: String,
        meter: String,
        value: Json,
        dimensions: Vec<(String, Json)>,
        time: Option<String>,
    },
    /// An onboarding (or offboarding) event.
    Command {
        space: usize,
        gateway: usize,
        id: String,
        onboard: bool,
        tenant: String,
    },
    Cancel {
        space: usize,
        gateway: usize,
        target: Target,
        dry_run: bool,
        reason: Option<String>,
    },
    /// Of the newest but so many.
    Revert {
        space: usize,
        gateway: usize,
        back: usize,
    },
    /// All, or one.
    Replay {
        space: usize,
        gateway: usize,
        one: Option<usize>,
    },
    /// Makes or edits a Meter, by HTTP or in the Kubernetes API, while a post comes in.
    PutMeter {
        space: usize,
        name: String,
        meter: Meter,
        http: bool,
        during: Option<Post>,
    },
    DropMeter {
        space: usize,
        name: String,
        http: bool,
    },
    PutCustomer {
        space: usize,
        name: String,
        subjects: Vec<String>,
        purge: bool,
        http: bool,
    },
    DropCustomer {
        space: usize,
        name: String,
        http: bool,
    },
    /// A Customer takes a subject over from all others, which let it go before or after.
    MoveSubject {
        space: usize,
        subject: String,
        to: String,
        release_first: bool,
        http: bool,
    },
    /// Ends a process, kindly or not, and starts it again.
    Restart {
        part: Part,
        kill: bool,
    },
    /// Lets the clock of a part be wrong by so many seconds from now on, while it runs.
    Clock {
        part: Part,
        offset: i64,
    },
    /// Work while something fails.
    Storm(Storm),
}
