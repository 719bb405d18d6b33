//! What may be answered during a storm.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Instant;

use super::faults::Storm;
use super::history::Post;
use super::model::{Key, Meter, Space, Version};
use super::observe;
use super::usage::{Query, is_open, possible};
use super::world::Answer;

/// When something began and when it was answered.
#[derive(Clone, Copy)]
pub struct Span {
    pub began: Instant,
    pub ended: Instant,
}

/// A question and its answer during a storm.
pub struct Asked {
    pub query: Query,
    pub span: Span,
    pub answer: Answer,
}

/// When the storm's cancellation and revert were answered, if they were.
pub struct Spoken {
    pub cancelled: Option<Instant>,
    pub reverted: Option<Instant>,
}

/// How many answers were judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    pub answers: usize,
    /// Answers that were not, for a time that they depend on was open.
    pub open: usize,
    /// Rows of judged answers that were not, for they had too many choices.
    pub rows: usize,
    /// Answers that said "not now" or that an edit had taken what was asked for.
    pub refused: usize,
}

impl AddAssign for Judged {
    fn add_assign(&mut self, other: Self) {
        self.answers += other.answers;
        self.open += other.open;
        self.rows += other.rows;
        self.refused += other.refused;
    }
}

/// What each event of the storm may be stored as.
pub type Versions = BTreeMap<Key, Vec<Version>>;

/// Whether what was answered during the storm can be right; how much of it could be judged.
pub fn judge(
    storm: &Storm,
    before: &Space,
    versions: &Versions,
    posts: &[(bool, Span)],
    spoken: &Spoken,
    asked: Vec<Asked>,
) -> Result<Judged, String> {
    let mut judged = Judged::default();
    let cancelled: BTreeSet<&Key> = storm.cancel.iter().collect();
    let reverted = storm.revert.and_then(|back| before.cancellations.len().checked_sub(back + 1));
    for Asked { query, span, answer } in asked {
        if answer.status != 200 {
            // An edit may take a group away.
            if matches!(answer.status, 429 | 500..) || (storm.edit.is_some() && matches!(answer.status, 400 | 404)) {
                judged.refused += 1;
                continue;
            }
            return Err(format!("{query:?} was answered {answer:?} during a storm"));
        }
        let Some(meter) = answering(storm, before, &query, &answer) else {
            return Err(format!("{query:?} was answered {answer:?}: of which edit?"));
        };
        if query
            .groups
            .iter()
            .chain(query.filters.keys())
            .any(|name| !meter.groups.contains_key(name) && name != "customer" && name != "subject")
        {
            return Err(format!("{query:?} was answered {answer:?}, by a meter without these groups"));
        }
        let mut space = before.clone();
        space.meters.insert(query.meter.clone(), meter);
        if versions.iter().any(|(key, versions)| versions.iter().any(|version| is_open(&space, &query, key, version))) {
            judged.open += 1;
            continue;
        }
        let (mut sure, mut open) = (Vec::new(), Vec::new());
        let is_before = |answered: Option<Instant>| answered.is_some_and(|at| at <= span.began);
        for (key, stored) in space.events.iter().filter(|(_, stored)| stored.counts()) {
            match cancelled.contains(key) {
                false => sure.push((key, stored.settled())),
                true if is_before(spoken.cancelled) => {}
                true => open.push((key, stored.settled())),
            }
        }
        let back = space.events.iter().filter(|(_, stored)| reverted.is_some() && stored.states == [reverted]);
        let back = back.map(|(key, stored)| (key, stored.settled()));
        if is_before(spoken.reverted) {
            sure.extend(back)
        } else {
            open.extend(back)
        }
        let mut told_of = BTreeMap::new();
        for (key, versions) in versions.iter().filter(|(key, _)| !space.events.contains_key(*key)) {
            let told = storm.posts.iter().zip(posts).any(|(post, (told, at))| *told && at.ended <= span.began && has(post, key));
            if told && !cancelled.contains(key) {
                told_of.insert(key, versions.len());
            }
            open.extend(versions.iter().map(|version| (key, version)));
        }
        let rows = observe::rows(&query, &answer.body)?;
        judged.rows += possible(&space, &query, sure, open, &told_of, &rows)
            .map_err(|why| format!("{query:?} during a storm, {:?} after its begin: {why}", span.ended - posts[0].1.began))?;
        judged.answers += 1;
    }
    Ok(judged)
}

fn has(post: &Post, key: &Key) -> bool {
    post.events.iter().any(|event| event.key() == *key)
}

/// The Meter that an answer is of: before or after an edit.
fn answering(storm: &Storm, before: &Space, query: &Query, answer: &Answer) -> Option<Meter> {
    let edited = storm.edit.iter().filter(|(name, _)| *name == query.meter).map(|(_, meter)| meter);
    let unit = answer.json()["unit"].as_str().unwrap_or_default().to_owned();
    before.meters.get(&query.meter).into_iter().chain(edited).find(|meter| meter.unit == unit).cloned()
}
