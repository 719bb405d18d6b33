//! Who claims what only one can have: when one lets go, the others must look again.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use kube::core::DeserializeGuard;
use kube::runtime::watcher;

use super::{Managed, key};

/// (namespace, name), and (namespace, claim).
pub(super) type Key = (String, String);

/// An index of claims, fed by a watch. Pure.
#[derive(Default)]
pub(super) struct Claims {
    objects: HashMap<Key, Claimed>,
    holders: HashMap<Key, BTreeSet<String>>,
    listing: BTreeSet<Key>,
}

#[derive(Default, PartialEq)]
struct Claimed {
    claims: BTreeSet<String>,
    deleting: bool,
}

impl Claims {
    /// Takes note of an event; gives the other objects that claim something that the event's object claims or claimed,
    /// if that changed.
    pub(super) fn observe<K: Managed>(&mut self, event: &watcher::Event<DeserializeGuard<K>>) -> BTreeSet<Key> {
        match event {
            watcher::Event::Init => {
                self.listing.clear();
                BTreeSet::new()
            }
            watcher::Event::InitApply(object) => {
                self.listing.insert(key(object));
                self.put(object)
            }
            watcher::Event::InitDone => {
                let listing = mem::take(&mut self.listing);
                let gone: Vec<Key> = self.objects.keys().filter(|key| !listing.contains(*key)).cloned().collect();
                gone.iter().flat_map(|key| self.set(key, Claimed::default())).collect()
            }
            watcher::Event::Apply(object) => self.put(object),
            watcher::Event::Delete(object) => self.set(&key(object), Claimed::default()),
        }
    }

    /// The other objects that claim something that this one claims.
    pub(super) fn rivals(&self, key: &Key) -> BTreeSet<Key> {
        self.objects.get(key).map(|claimed| self.holders_of(key, &claimed.claims)).unwrap_or_default()
    }

    fn put<K: Managed>(&mut self, object: &DeserializeGuard<K>) -> BTreeSet<Key> {
        // What can't be read claims what it last did.
        let Ok(object) = &object.0 else { return BTreeSet::new() };
        let claims = object.claims().into_iter().map(str::to_owned).collect();
        self.set(&key(object), Claimed { claims, deleting: object.meta().deletion_timestamp.is_some() })
    }

    fn set(&mut self, key: &Key, now: Claimed) -> BTreeSet<Key> {
        let before = self.objects.remove(key).unwrap_or_default();
        let touched = if before == now {
            BTreeSet::new()
        } else {
            let both = before.claims.union(&now.claims).cloned().collect();
            self.holders_of(key, &both)
        };
        for claim in before.claims.difference(&now.claims) {
            let at = (key.0.clone(), claim.clone());
            if let Some(names) = self.holders.get_mut(&at) {
                names.remove(&key.1);
                if names.is_empty() {
                    self.holders.remove(&at);
                }
            }
        }
        for claim in now.claims.difference(&before.claims) {
            self.holders.entry((key.0.clone(), claim.clone())).or_default().insert(key.1.clone());
        }
        if !now.claims.is_empty() {
            self.objects.insert(key.clone(), now);
        }
        touched
    }

    fn holders_of(&self, (namespace, name): &Key, claims: &BTreeSet<String>) -> BTreeSet<Key> {
        let names = claims.iter().filter_map(|claim| self.holders.get(&(namespace.clone(), claim.clone()))).flatten();
        names.filter(|other| *other != name).map(|other| (namespace.clone(), other.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::api::{Customer, CustomerSpec};

    fn customer(name: &str, subjects: &[&str]) -> DeserializeGuard<Customer> {
        let subjects = subjects.iter().map(|s| (*s).to_owned()).collect();
        let mut customer = Customer::new(name, CustomerSpec { subjects, ..CustomerSpec::default() });
        customer.metadata.namespace = Some("shop".into());
        DeserializeGuard(Ok(customer))
    }

    fn names(keys: BTreeSet<Key>) -> Vec<String> {
        keys.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn rivals_look_again_when_a_claim_comes_or_goes_and_only_then() {
        let mut claims = Claims::default();
        let mut see = |event| names(claims.observe(&event));
        assert!(see(Event::Apply(customer("a", &["x", "y"]))).is_empty());
        assert!(see(Event::Apply(customer("c", &["z"]))).is_empty());
        assert_eq!(see(Event::Apply(customer("b", &["y", "z"]))), ["a", "c"]);
        assert!(see(Event::Apply(customer("b", &["y", "z"]))).is_empty(), "its status changed, not its claims");
        assert_eq!(see(Event::Apply(customer("b", &["z"]))), ["a", "c"], "it let go of y");
        assert_eq!(see(Event::Delete(customer("b", &["z"]))), ["c"]);
        assert!(see(Event::Delete(customer("a", &["x", "y"]))).is_empty());
        assert_eq!(see(Event::Apply(customer("z", &[]))), ["c"], "without subjects its own name is one");
        let mut going = customer("z", &[]);
        going.0.as_mut().unwrap().metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(see(Event::Apply(going)), ["c"]);
        assert_eq!(names(claims.rivals(&("shop".into(), "c".into()))), ["z"]);
    }

    #[test]
    fn what_is_gone_after_a_list_lets_go() {
        let mut claims = Claims::default();
        for event in [Event::Init, Event::InitApply(customer("a", &["x"])), Event::InitApply(customer("b", &["x"])), Event::InitDone] {
            claims.observe(&event);
        }
        claims.observe::<Customer>(&Event::Init);
        claims.observe(&Event::InitApply(customer("b", &["x"])));
        assert_eq!(names(claims.observe::<Customer>(&Event::InitDone)), ["b"]);
        claims.observe(&Event::Delete(customer("b", &["x"])));
        assert!(claims.objects.is_empty() && claims.holders.is_empty(), "nothing is left behind");
    }
}
