//! What steps brought about, as the model has it: a step that nothing comes of tests little.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Step, Target};
use super::model::Space;

/// How many steps had an effect of a kind.
pub type Effects = BTreeMap<&'static str, usize>;

/// Months of Meters' tables whose sums the operator had balanced at the end.
pub const BALANCED: &str = "balanced month";

/// Kinds that the fixed histories must have.
pub const IMPORTANT: &[&str] = &[BALANCED, "move", "drop", "purge", "cancellation", "cancellation by filter", "revert", "replay", "edit"];

/// The kinds of effects that a step had.
pub fn of(step: &Step, before: &[Space], after: &[Space]) -> BTreeSet<&'static str> {
    let spaces = before.iter().zip(after).enumerate();
    spaces.flat_map(|(space, (before, after))| in_space(what(step, space), before, after)).collect()
}

/// The step that a namespace saw.
fn what(step: &Step, space: usize) -> &Step {
    match step {
        Step::Storm(storm) if storm.space != space => storm.beside.as_deref().unwrap_or(step),
        _ => step,
    }
}

fn in_space(step: &Step, before: &Space, after: &Space) -> Vec<&'static str> {
    let by_filter = matches!(step, Step::Cancel { target: Target::Filter { .. }, .. });
    let cancel = if by_filter { "cancellation by filter" } else { "cancellation" };
    let kinds = [
        ("move", has_moved(before, after)),
        ("drop", before.customers.keys().any(|name| !after.customers.contains_key(name))),
        ("purge", before.events.keys().any(|key| !after.events.contains_key(key))),
        (cancel, has_turned(before, after, |before, after| before.is_none() && after.is_some())),
        ("revert", has_turned(before, after, |before, after| before.is_some() && after.is_none())),
        ("replay", matches!(step, Step::Replay { .. }) && after.rejects.len() < before.rejects.len()),
        ("edit", before.meters.iter().any(|(name, meter)| after.meters.get(name).is_some_and(|edited| edited != meter))),
    ];
    kinds.into_iter().filter(|(_, had)| *had).map(|(kind, _)| kind).collect()
}

/// Whether a subject that has events went from one Customer to another.
fn has_moved(before: &Space, after: &Space) -> bool {
    let subjects: BTreeSet<&str> =
        before.events.values().flat_map(|stored| &stored.versions).map(|version| version.subject.as_str()).collect();
    subjects.into_iter().any(|subject| {
        let (from, to) = (before.owner(subject), after.owner(subject));
        from != to && before.customers.contains_key(&from) && after.customers.contains_key(&to)
    })
}

/// Whether an event's cancellation turned so.
fn has_turned(before: &Space, after: &Space, so: impl Fn(Option<usize>, Option<usize>) -> bool) -> bool {
    before.events.iter().any(|(key, stored)| {
        let now = after.events.get(key).map(|stored| stored.states.as_slice());
        matches!((stored.states.as_slice(), now), ([was], Some([is])) if so(*was, *is))
    })
}

/// `edit 2, move 1`.
pub fn words(effects: &Effects) -> String {
    let word = |(kind, count): (&&str, &usize)| format!("{kind} {count}");
    if effects.is_empty() { "no effects".to_owned() } else { effects.iter().map(word).collect::<Vec<_>>().join(", ") }
}
