//! How long to wait after failures, object by object: kube's error policy has no memory of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::Resource;
use kube::runtime::watcher;

use super::key;

/// Bounds of an exponential back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub min: Duration,
    /// Never more than this.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_secs(1), max: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// The wait after so many failures in a row, between half of the exponential wait and the whole, by `noise` in 0..=1,
    /// so that objects that failed together don't come back together.
    pub fn delay(self, failures: u32, noise: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let whole = self.min.saturating_mul(1 << doublings).min(self.max);
        whole.mul_f64(0.5 + 0.5 * noise.clamp(0.0, 1.0)).max(self.min)
    }
}

/// Failures in a row of every object that has any. Holds no more entries than there are objects.
pub(super) struct Failures {
    backoff: Backoff,
    counts: Mutex<HashMap<(String, String), Count>>,
}

#[derive(Default)]
struct Count {
    /// Another object of the same name starts anew.
    uid: Option<String>,
    reconcile: u32,
    cleanup: u32,
}

impl Failures {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { backoff, counts: Mutex::default() }
    }

    /// Counts a failure; gives the wait until the next try.
    pub(super) fn failed<K: Resource>(&self, object: &K) -> Duration {
        // Seeded at random by the standard library: all the randomness that jitter needs.
        let noise = f64::from(u16::try_from(RandomState::new().hash_one(0) & 0xffff).unwrap_or(0)) / f64::from(u16::MAX);
        let failures = self.count(object, |count| {
            count.reconcile = count.reconcile.saturating_add(1);
            count.reconcile
        });
        self.backoff.delay(failures, noise)
    }

    /// Counts a failed cleaning; gives how many there were.
    pub(super) fn cleanup_failed<K: Resource>(&self, object: &K) -> u32 {
        self.count(object, |count| {
            count.cleanup = count.cleanup.saturating_add(1);
            count.cleanup
        })
    }

    /// Forgets an object's failures: it works, or it is gone.
    pub(super) fn forget<K: Resource>(&self, object: &K) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(object));
    }

    /// Forgets what is deleted.
    pub(super) fn observe<K: Resource>(&self, event: &watcher::Event<K>) {
        if let watcher::Event::Delete(object) = event {
            self.forget(object);
        }
    }

    fn count<K: Resource, T>(&self, object: &K, change: impl FnOnce(&mut Count) -> T) -> T {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key(object)).or_default();
        if count.uid != object.meta().uid {
            *count = Count { uid: object.meta().uid.clone(), ..Count::default() };
        }
        change(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Customer, CustomerSpec};

    #[test]
    fn waits_double_up_to_the_bound_and_spread() {
        let backoff = Backoff::default();
        let seconds = |failures, noise| backoff.delay(failures, noise).as_secs_f64();
        assert_eq!([1, 2, 3, 4, 9, 10, u32::MAX].map(|n| seconds(n, 1.0)), [1.0, 2.0, 4.0, 8.0, 256.0, 300.0, 300.0]);
        assert_eq!([0, 1, 2, 3, 10].map(|n| seconds(n, 0.0)), [1.0, 1.0, 1.0, 2.0, 150.0]);
        assert_eq!(seconds(3, 7.0), 4.0);
    }

    #[test]
    fn each_object_has_its_own_count_until_it_works_goes_or_is_another() {
        let failures = Failures::new(Backoff { min: Duration::from_secs(1), max: Duration::from_secs(1024) });
        let customer = |name: &str, uid: &str| {
            let mut customer = Customer::new(name, CustomerSpec::default());
            customer.metadata.uid = Some(uid.into());
            customer
        };
        let (a, b) = (customer("a", "1"), customer("b", "2"));
        for _ in 0..5 {
            failures.failed(&a);
        }
        assert!(failures.failed(&a) >= Duration::from_secs(16));
        assert!(failures.failed(&b) <= Duration::from_secs(1));
        assert_eq!((failures.cleanup_failed(&a), failures.cleanup_failed(&a)), (1, 2));
        assert_eq!(failures.cleanup_failed(&customer("a", "3")), 1, "a new object of the same name");
        for _ in 0..5 {
            failures.failed(&a);
        }
        failures.observe(&watcher::Event::Delete(a.clone()));
        failures.forget(&b);
        assert!(failures.counts.lock().unwrap().is_empty());
    }
}
