//! When each object's turn is. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// First pause after an error; doubled each time.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Longest pause after an error.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// Objects worked on at a time.
const AT_ONCE: usize = 4;

/// Objects by uid.
#[derive(Default)]
pub(super) struct Plan(HashMap<String, Slot>);

struct Slot {
    version: Option<i64>,
    due: Option<Instant>,
    failures: u32,
    running: bool,
}

impl Plan {
    /// Takes over what there is: (uid, version). What is new or has another version is due now; what is gone is dropped.
    pub(super) fn observe(&mut self, now: Instant, all: &HashMap<String, Option<i64>>) {
        self.0.retain(|uid, slot| all.contains_key(uid) || slot.running);
        for (uid, version) in all {
            let slot = self.0.entry(uid.clone()).or_insert(Slot { version: *version, due: Some(now), failures: 0, running: false });
            if slot.version != *version {
                (slot.version, slot.due, slot.failures) = (*version, Some(now), 0);
            }
        }
    }

    /// Makes an object due now: something that it depends on changed.
    pub(super) fn nudge(&mut self, now: Instant, uid: &str) {
        if let Some(slot) = self.0.get_mut(uid) {
            slot.due = Some(now);
        }
    }

    /// Objects to work on now; each is then running until [`Self::done`]. The longest due come first.
    pub(super) fn start(&mut self, now: Instant) -> Vec<String> {
        let running = self.0.values().filter(|slot| slot.running).count();
        let mut due: Vec<_> = self.0.iter_mut().filter(|(_, slot)| !slot.running && slot.due.is_some_and(|due| due <= now)).collect();
        due.sort_unstable_by(|(a, a_slot), (b, b_slot)| (a_slot.due, a).cmp(&(b_slot.due, b)));
        let start = due.into_iter().take(AT_ONCE.saturating_sub(running));
        start
            .map(|(uid, slot)| {
                (slot.due, slot.running) = (None, true);
                uid.clone()
            })
            .collect()
    }

    /// When [`Self::start`] has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        let running = self.0.values().filter(|slot| slot.running).count();
        self.0.values().filter(|slot| !slot.running && running < AT_ONCE).filter_map(|slot| slot.due).min()
    }

    /// Work on an object ended well; it comes again after `requeue`, or sooner if it changed meanwhile.
    pub(super) fn done(&mut self, now: Instant, uid: &str, requeue: Option<Duration>) {
        if let Some(slot) = self.0.get_mut(uid) {
            (slot.running, slot.failures) = (false, 0);
            slot.due = slot.due.or(requeue.map(|pause| now + pause));
        }
    }

    /// Work on an object failed; it comes again after a pause of its own. Returns how often it has failed in a row.
    pub(super) fn failed(&mut self, now: Instant, uid: &str) -> u32 {
        let Some(slot) = self.0.get_mut(uid) else { return 0 };
        let pause = BACK_OFF.saturating_mul(2_u32.saturating_pow(slot.failures)).min(BACK_OFF_MAX);
        slot.running = false;
        slot.failures = slot.failures.saturating_add(1);
        slot.due = slot.due.or(Some(now + pause));
        slot.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(of: &[(&str, i64)]) -> HashMap<String, Option<i64>> {
        of.iter().map(|(uid, version)| ((*uid).to_owned(), Some(*version))).collect()
    }

    #[test]
    fn an_object_is_worked_on_once_per_version() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.observe(now, &all(&[("a", 1)]));
        assert_eq!(plan.start(now), ["a"]);
        assert!(plan.start(now).is_empty(), "never twice at a time");
        plan.done(now, "a", None);
        plan.observe(now, &all(&[("a", 1)]));
        assert!(plan.start(now).is_empty() && plan.next().is_none());
        plan.observe(now, &all(&[("a", 2)]));
        assert_eq!(plan.start(now), ["a"]);
    }

    #[test]
    fn a_change_during_work_is_not_lost() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.observe(now, &all(&[("a", 1)]));
        plan.start(now);
        plan.observe(now, &all(&[("a", 2)]));
        assert!(plan.start(now).is_empty() && plan.next().is_none());
        plan.done(now, "a", Some(Duration::from_secs(9)));
        assert_eq!(plan.start(now), ["a"]);
    }

    #[test]
    fn errors_back_off_per_object_and_a_change_ends_that() {
        let (mut plan, mut now) = (Plan::default(), Instant::now());
        plan.observe(now, &all(&[("a", 1), ("b", 1)]));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            plan.start(now);
            plan.done(now, "b", None);
            plan.failed(now, "a");
            assert_eq!(plan.next(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        plan.start(now);
        plan.failed(now, "a");
        plan.observe(now, &all(&[("a", 2), ("b", 1)]));
        assert_eq!(plan.start(now), ["a"]);
    }

    #[test]
    fn only_some_run_at_once() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.observe(now, &all(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]));
        assert_eq!(plan.start(now), ["a", "b", "c", "d"]);
        assert!(plan.start(now).is_empty() && plan.next().is_none());
        plan.done(now, "c", None);
        assert_eq!(plan.start(now), ["e"]);
    }
}
