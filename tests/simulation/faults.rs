//! What goes wrong, and when: by bytes or messages that have passed on the way to ClickHouse.

use super::generate::Generator;
use super::history::{GATEWAYS, Part, Post, SPACES, Step};
use super::model::{Event, Key, Meter};
use super::proxy::{After, Direction};

/// Posts, and perhaps a cancellation and an edit of a Meter, all at once and while things fail. Whatever is not answered
/// is sent again when all works again.
#[derive(Clone, Debug)]
pub struct Storm {
    pub space: usize,
    pub posts: Vec<Post>,
    /// What senders send instead when a post was not answered: the same, or with other times, subjects and values.
    pub again: Vec<Post>,
    /// Reverts a cancellation, of the newest but so many.
    pub revert: Option<usize>,
    pub cancel: Vec<Key>,
    /// Whether the cancellation is reverted, if there is one, when it was not answered, instead of sent again.
    pub undo: bool,
    pub edit: Option<(String, Meter)>,
    /// What happens in the other namespace meanwhile. It is tried until it is done.
    pub beside: Option<Box<Step>>,
    /// Whose clock jumps, and by how many seconds it is wrong then.
    pub clock: Option<(Part, i64)>,
    pub faults: Vec<Fault>,
    /// Posts begin so long after each other, ms.
    pub stagger_ms: u64,
    /// How long a sender waits before it takes its request for lost, ms.
    pub patience_ms: u64,
    /// How long a stall lasts, ms.
    pub stall_ms: u64,
    /// Whether what is down is started and disks are freed when stalls end, while posts still wait for their answers.
    pub mends: bool,
}

#[derive(Clone, Debug)]
pub enum Fault {
    /// On the way of a gateway or the operator to ClickHouse.
    Way { of: Part, direction: Direction, after: After, what: What },
    /// The disk is full for one of the tables.
    Full { table: Table },
}

#[derive(Clone, Copy, Debug)]
pub enum Table {
    /// In the order of names, counted again from the first after the last.
    Number(usize),
    /// The first one whose name begins so.
    Named(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Cut,
    Stall,
    Kill(Part),
}

/// Longer than a gateway goes on with an INSERT in place, ms.
pub const LONG_STALL_MS: u64 = 5_000;

/// A storm.
pub fn generate(from: &mut Generator) -> Storm {
    let space = from.space();
    let mut posts: Vec<Post> = Vec::new();
    for _ in 0..from.rng.usize(2..6) {
        let mut post = from.good_post(space, 6);
        // Gateways race with the same events, the same or changed.
        if let Some(other) = posts.last().filter(|_| from.rng.bool()).cloned() {
            post.events = other.events;
            post.gateway = (other.gateway + 1) % GATEWAYS;
            if from.rng.bool() {
                post.events = post.events.into_iter().map(|event| from.changed(event)).collect();
            }
        }
        posts.push(post);
    }
    let again = posts.iter().map(|post| if from.rng.u32(0..3) == 0 { resent(from, post) } else { post.clone() }).collect();
    let (cancel, revert) = match from.rng.u32(0..6) {
        0 | 1 => (from.known_keys(space, 5), None),
        2 => (Vec::new(), Some(from.rng.usize(0..3))),
        _ => (Vec::new(), None),
    };
    let edit = (from.rng.u32(0..4) == 0).then(|| from.edited(space));
    let faults: Vec<Fault> = (0..from.rng.usize(0..4)).map(|_| fault(from, edit.is_some())).collect();
    let beside = (from.rng.u32(0..3) == 0).then(|| Box::new(from.beside((space + 1) % SPACES)));
    let stalls = faults.iter().any(|fault| matches!(fault, Fault::Way { what: What::Stall, .. }));
    // A gateway goes on with an INSERT in place for 4 s.
    let stall_ms = if stalls && from.rng.u32(0..8) == 0 { LONG_STALL_MS } else { from.rng.u64(50..1_500) };
    // What comes beside has the time of its arrival by one clock.
    let clock = (beside.is_none() && from.rng.u32(0..6) == 0).then(|| from.clock());
    Storm {
        space,
        posts,
        again,
        undo: from.rng.bool(),
        cancel,
        revert,
        edit,
        beside,
        clock,
        faults,
        stagger_ms: *from.one_of(&[0, 0, 0, 30, 150]),
        patience_ms: *from.one_of(&[300, 1_500, 10_000]),
        stall_ms,
        // By a number that there is: another draw would make all histories different ones.
        mends: stall_ms % 2 == 0,
    }
}

/// A post as a forgetful sender sends it again.
fn resent(from: &mut Generator, post: &Post) -> Post {
    let events = post.events.iter().map(|event| Event { kind: event.kind.clone(), ..from.changed(event.clone()) }).collect();
    Post { events, ..post.clone() }
}

fn fault(from: &mut Generator, edit: bool) -> Fault {
    if from.rng.u32(0..3) == 0 {
        let any = Table::Number(from.rng.usize(0..100));
        let table = *from.one_of(&[Table::Named("events"), Table::Named("identities"), Table::Named("meter_"), any]);
        return Fault::Full { table };
    }
    let of = if edit && from.rng.bool() { Part::Operator } else { Part::Gateway(from.gateway()) };
    let what = match from.rng.u32(0..6) {
        0 | 1 => What::Cut,
        2 => What::Stall,
        3 => What::Kill(Part::ClickHouse),
        _ => What::Kill(of),
    };
    let direction = if from.rng.bool() { Direction::Requests } else { Direction::Answers };
    // A round of a gateway has a few kilobytes; an edit has some thirty statements.
    let most = if direction == Direction::Requests { 9_000 } else { 3_000 };
    let after = if of == Part::Operator { After::Messages(from.rng.u64(0..30)) } else { After::Bytes(from.rng.u64(0..most)) };
    Fault::Way { of, direction, after, what }
}
