//! What a gateway knows of Meters and Customers: a snapshot that watches keep current, read without waiting.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use kube::ResourceExt;

use crate::api::{Customer, Meter};
use crate::meter::Definition;

/// A Meter as queries and validation need it.
#[derive(Clone, Debug)]
pub struct KnownMeter {
    /// Kubernetes namespace.
    pub namespace: String,
    /// `metadata.name`, the API's `meterId`.
    pub meter_id: String,
    /// What new events are judged by: the spec, or while that is invalid what answers; None when there is neither.
    pub definition: Option<Definition>,
    /// Table and definition that answer queries; None until the first table is complete.
    pub active: Option<(String, Definition)>,
}

/// Meters and Customers by what they are looked up by. Cheap to clone, shared by all requests.
#[derive(Clone, Default)]
pub struct Catalog(Arc<RwLock<Known>>);

#[derive(Default)]
struct Known {
    meters: HashMap<(String, String), Arc<KnownMeter>>,
    by_type: HashMap<(String, String), Vec<Arc<KnownMeter>>>,
    customers: HashMap<(String, String), BTreeSet<String>>,
    /// How many Customers claim a (namespace, subject).
    claims: HashMap<(String, String), usize>,
    synced: bool,
}

impl Known {
    fn put(&mut self, meter: Arc<KnownMeter>) {
        let key = (meter.namespace.clone(), meter.meter_id.clone());
        self.take(&key);
        if let Some(definition) = &meter.definition {
            self.by_type.entry((key.0.clone(), definition.event_type.clone())).or_default().push(Arc::clone(&meter));
        }
        self.meters.insert(key, meter);
    }

    fn take(&mut self, key: &(String, String)) {
        if let Some(KnownMeter { namespace, meter_id, definition: Some(definition), .. }) = self.meters.remove(key).as_deref() {
            let of_type = (namespace.clone(), definition.event_type.clone());
            if let Some(meters) = self.by_type.get_mut(&of_type) {
                meters.retain(|meter| meter.meter_id != *meter_id);
                if meters.is_empty() {
                    self.by_type.remove(&of_type);
                }
            }
        }
    }

    fn put_customer(&mut self, key: (String, String), subjects: BTreeSet<String>) {
        self.take_customer(&key);
        for subject in &subjects {
            *self.claims.entry((key.0.clone(), subject.clone())).or_default() += 1;
        }
        self.customers.insert(key, subjects);
    }

    fn take_customer(&mut self, key: &(String, String)) {
        for subject in self.customers.remove(key).unwrap_or_default() {
            let claim = (key.0.clone(), subject);
            match self.claims.get_mut(&claim) {
                Some(claims) if *claims > 1 => *claims -= 1,
                _ => drop(self.claims.remove(&claim)),
            }
        }
    }
}

impl Catalog {
    /// Adds or replaces a Meter.
    pub fn put_meter(&self, meter: &Meter) {
        let namespace = meter.namespace().unwrap_or_default();
        // The table of one that is being deleted is no longer fed, or soon: its finalizer may be done, and another's may not.
        let status = meter.status.as_ref().filter(|_| meter.metadata.deletion_timestamp.is_none());
        let active = status.and_then(|status| status.active.as_ref());
        let active = active.and_then(|a| Some((a.table.clone(), Definition::parse_active(a).ok()?)));
        let known = Arc::new(KnownMeter {
            namespace,
            meter_id: meter.name_any(),
            definition: Definition::parse(&meter.spec).ok().or_else(|| active.as_ref().map(|(_, definition)| definition.clone())),
            active,
        });
        self.write(|all| all.put(known));
    }

    /// Forgets a Meter.
    pub fn remove_meter(&self, namespace: &str, name: &str) {
        self.write(|all| all.take(&(namespace.to_owned(), name.to_owned())));
    }

    /// Adds or replaces a Customer.
    pub fn put_customer(&self, customer: &Customer) {
        let subjects = customer.subjects().iter().map(|s| (*s).to_owned()).collect();
        let key = (customer.namespace().unwrap_or_default(), customer.name_any());
        self.write(|all| all.put_customer(key, subjects));
    }

    /// Forgets a Customer.
    pub fn remove_customer(&self, namespace: &str, name: &str) {
        self.write(|all| all.take_customer(&(namespace.to_owned(), name.to_owned())));
    }

    /// Says that all there is has been read once: the gateway may be ready.
    pub fn set_synced(&self) {
        self.write(|all| all.synced = true);
    }

    /// Whether all there is has been read once.
    pub fn synced(&self) -> bool {
        self.read(|all| all.synced)
    }

    /// One Meter.
    pub fn meter(&self, namespace: &str, meter_id: &str) -> Option<Arc<KnownMeter>> {
        self.read(|all| all.meters.get(&(namespace.to_owned(), meter_id.to_owned())).cloned())
    }

    /// All Meters that count an event type.
    pub fn meters_of_type(&self, namespace: &str, event_type: &str) -> Vec<Arc<KnownMeter>> {
        self.read(|all| all.by_type.get(&(namespace.to_owned(), event_type.to_owned())).cloned().unwrap_or_default())
    }

    /// The subjects of customers, in order, as they are if no two Customers claim one and nothing has changed since: a guess.
    /// None: over `most`.
    pub fn guess_subjects(&self, namespace: &str, customers: &[String], most: usize) -> Option<Vec<String>> {
        self.read(|all| {
            let mut subjects = BTreeSet::new();
            for customer in customers {
                // Its name, which is a subject, too, where nobody claims that.
                let key = (namespace.to_owned(), customer.clone());
                subjects.extend(all.customers.get(&key).into_iter().flatten().cloned());
                if !all.claims.contains_key(&key) {
                    subjects.insert(key.1);
                }
                if subjects.len() > most {
                    return None;
                }
            }
            Some(subjects.into_iter().collect())
        })
    }

    /// Whether some Customer has a subject.
    pub fn has_subject(&self, namespace: &str, subject: &str) -> bool {
        self.read(|all| all.claims.contains_key(&(namespace.to_owned(), subject.to_owned())))
    }

    fn write(&self, change: impl FnOnce(&mut Known)) {
        // A poisoned lock only means that a reader panicked: the maps are whole.
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut all);
    }

    fn read<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Customer {
    /// The subjects that are this customer: those of the spec, or its own name.
    pub fn subjects(&self) -> Vec<&str> {
        match self.spec.subjects.as_slice() {
            [] => self.metadata.name.as_deref().into_iter().collect(),
            subjects => subjects.iter().map(String::as_str).collect(),
        }
    }
}
