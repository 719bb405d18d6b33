//! Small histories: those that went wrong once, and edits whose operator ends between any two statements.

use std::collections::BTreeMap;

use super::calendar::ms;
use super::faults::{Fault, LONG_STALL_MS, Storm, Table, What};
use super::history::{Coding, Form, History, Part, Post, Step, Target};
use super::json::{Json, members};
use super::model::{Event, Meter};
use super::proxy::{After, Direction};

const KIND: &str = "storage";

fn event(id: &str, value: u32) -> Event {
    let data = Json::Map(vec![("v".to_owned(), Json::literal(value))]);
    let (subject, time) = (Some("acme".to_owned()), Some("2026-03-01T00:00:00Z".to_owned()));
    Event { source: "gw".to_owned(), id: id.to_owned(), kind: KIND.to_owned(), subject, time, data }
}

fn post(events: &[Event]) -> Post {
    Post { space: 0, gateway: 0, form: Form::Array, coding: Coding::Plain, atomic: false, events: events.to_vec() }
}

const METER: &str = "tokens";

fn definition(edit: u64) -> Meter {
    // Another group is another table: one that was there before would be taken up again.
    let group = (format!("g{edit}"), members(&["g"]));
    Meter {
        kind: KIND.to_owned(),
        aggregation: "Sum",
        value: Some(members(&["v"])),
        groups: BTreeMap::from([group]),
        unit: format!("u{edit}"),
        deletion_policy: "Delete",
    }
}

fn meter() -> Step {
    let meter = Meter { groups: BTreeMap::new(), ..definition(1) };
    Step::PutMeter { space: 0, name: METER.to_owned(), meter, http: true, during: None }
}

fn customer(subjects: &[&str]) -> Step {
    customer_named("one", subjects, false)
}

fn customer_named(name: &str, subjects: &[&str], purge: bool) -> Step {
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    Step::PutCustomer { space: 0, name: name.to_owned(), subjects, purge, http: true }
}

/// Two Customers exchange their subjects, one is purged, is sent its events again and comes back; bills of what is at the ends of months.
fn moved_and_purged() -> Vec<Step> {
    let moved = |subject: &str, to: &str, release_first| {
        let (subject, to) = (subject.to_owned(), to.to_owned());
        Step::MoveSubject { space: 0, subject, to, release_first, http: release_first }
    };
    let times = ["2026-01-31T23:59:59.999Z", "2026-02-01T00:00:00Z", "2026-02-28T23:59:59.999Z", "2026-03-01T00:00:00Z"];
    let sent = |subject: &str| {
        let event = |(number, time): (u32, &&str)| {
            let time = Some((*time).to_owned());
            Event { subject: Some(subject.to_owned()), time, ..event(&format!("{subject}-{number}"), 10_u32.pow(number)) }
        };
        Step::Post(post(&(0..).zip(&times).map(event).collect::<Vec<_>>()))
    };
    let february = Target::Filter {
        meter: METER.to_owned(),
        customer: Some("two".to_owned()),
        subject: None,
        from: Some(ms("2026-02-01T00:00:00Z")),
        to: Some(ms("2026-03-01T00:00:00Z")),
        groups: BTreeMap::new(),
    };
    vec![
        meter(),
        customer_named("one", &["acme"], true),
        customer_named("two", &["globex"], false),
        sent("acme"),
        sent("globex"),
        moved("acme", "two", true),
        moved("globex", "one", false),
        Step::DropCustomer { space: 0, name: "one".to_owned(), http: true },
        sent("globex"),
        sent("acme"),
        customer_named("one", &["globex"], true),
        Step::Cancel { space: 0, gateway: 0, target: february, dry_run: false, reason: None },
        moved("acme", "one", true),
        Step::Revert { space: 0, gateway: 1, back: 0 },
    ]
}

/// Nothing passes to ClickHouse from a gateway's request of a number on, for longer than it goes on with an INSERT in place.
fn stalled(request: u64, posts: Vec<Post>) -> Step {
    let way = Fault::Way { of: Part::Gateway(0), direction: Direction::Requests, after: After::Messages(request), what: What::Stall };
    Step::Storm(Storm { faults: vec![way], stall_ms: LONG_STALL_MS, ..full("events", posts) })
}

/// A storm in which one table takes nothing.
fn full(table: &'static str, posts: Vec<Post>) -> Storm {
    let (again, faults) = (posts.clone(), vec![Fault::Full { table: Table::Named(table) }]);
    Storm {
        space: 0,
        posts,
        again,
        cancel: Vec::new(),
        undo: false,
        revert: None,
        edit: None,
        beside: None,
        clock: None,
        faults,
        stagger_ms: 0,
        patience_ms: 10_000,
        stall_ms: 0,
        mends: false,
    }
}

/// Edits of a Meter, in each of which the operator is killed before its statement of a number, from the first on.
pub fn killed(statements: u64) -> History {
    let months = ["2026-01", "2026-02", "2026-03"].map(|month| {
        let time = Some(format!("{month}-01T00:00:00Z"));
        Event { time, ..event(month, 1) }
    });
    let mut steps = vec![meter(), Step::Post(post(&months))];
    for number in 0..statements {
        // Some before the edit is done, some between its statements, some after the operator was killed.
        let posts = (0..8).map(|post_number| post(&[event(&format!("e{number}-{post_number}"), 1)])).collect();
        let (direction, what) = (Direction::Requests, What::Kill(Part::Operator));
        let faults = vec![Fault::Way { of: Part::Operator, direction, after: After::Messages(number), what }];
        let edit = Some((METER.to_owned(), definition(number)));
        steps.push(Step::Storm(Storm { edit, faults, stagger_ms: 40, ..full("rejects", posts) }));
    }
    History { seed: 0, steps: steps.into_iter().enumerate().collect() }
}

/// Of each its name and its steps.
pub fn all() -> Vec<(&'static str, History)> {
    let stored = Step::Post(post(&[event("e", 1)]));
    let half = |table| Storm { cancel: vec![event("e", 1).key()], ..full(table, Vec::new()) };
    let by = |gateway, value| Post { gateway, ..post(&[event("e", value)]) };
    let histories = vec![
        (
            "of three sendings that came after each other, none whole, one counts in all tables",
            vec![meter(), Step::Storm(Storm { again: vec![by(0, 1), by(1, 3)], ..full("events", vec![by(0, 1), by(1, 2)]) })],
        ),
        ("a cancellation that did not reach a meter is done again", vec![meter(), stored.clone(), Step::Storm(half("meter_"))]),
        ("a cancellation that did not reach the events is done again", vec![meter(), stored.clone(), Step::Storm(half("events"))]),
        (
            "a cancellation that did not reach the events is reverted",
            vec![meter(), stored.clone(), Step::Storm(Storm { undo: true, ..half("events") })],
        ),
        (
            "a cancellation that did not reach a meter is reverted",
            vec![meter(), stored.clone(), Step::Storm(Storm { undo: true, ..half("meter_") })],
        ),
        (
            "a revert that did not reach a meter is done again",
            vec![
                meter(),
                stored.clone(),
                Step::Storm(half("rejects")),
                Step::Storm(Storm { revert: Some(0), ..full("meter_", Vec::new()) }),
            ],
        ),
        (
            "what was stored by a second try stays as it is, also when a clock is behind",
            vec![
                meter(),
                Step::Storm(full("events", vec![post(&[event("e", 1)])])),
                // That it moves at all can be seen of a clock that is ahead.
                Step::Clock { part: Part::Gateway(0), offset: 1_500 },
                Step::Clock { part: Part::Gateway(0), offset: -1_500 },
                Step::Post(post(&[event("e", 2)])),
            ],
        ),
        (
            "a customer lets a subject go, also by an operator whose clock is behind",
            vec![
                meter(),
                Step::Post(post(&[event("e", 1)])),
                customer(&["acme"]),
                Step::Clock { part: Part::Operator, offset: 1_500 },
                Step::Clock { part: Part::Operator, offset: -1_500 },
                customer(&["other"]),
            ],
        ),
        (
            "a customer lets a subject go, also where ClickHouse's clock is set back",
            vec![
                meter(),
                Step::Post(post(&[event("e", 1)])),
                Step::Clock { part: Part::ClickHouse, offset: 1_500 },
                customer(&["acme"]),
                Step::Clock { part: Part::ClickHouse, offset: -1_500 },
                customer(&["other"]),
            ],
        ),
        ("subjects move between customers, one of which is purged and comes back", moved_and_purged()),
        (
            "of sendings by two gateways, one of which hangs, one counts",
            vec![
                meter(),
                stalled(1, vec![by(0, 1), by(1, 2)]),
                stalled(2, vec![post(&[event("f", 1)]), Post { gateway: 1, ..post(&[event("f", 2)]) }]),
            ],
        ),
    ];
    histories.into_iter().map(|(name, steps)| (name, History { seed: 0, steps: steps.into_iter().enumerate().collect() })).collect()
}
