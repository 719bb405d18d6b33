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
    /// What new events are judged by; None while the spec is invalid.
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
    synced: bool,
}

impl Catalog {
    /// Adds or replaces a Meter.
    pub fn put_meter(&self, meter: &Meter) {
        let namespace = meter.namespace().unwrap_or_default();
        let active = meter.status.as_ref().and_then(|s| s.active.as_ref());
        let known = Arc::new(KnownMeter {
            namespace: namespace.clone(),
            meter_id: meter.name_any(),
            definition: Definition::parse(&meter.spec).ok(),
            active: active.and_then(|a| Some((a.table.clone(), Definition::parse_active(a).ok()?))),
        });
        self.write(|all| {
            all.meters.insert((namespace, known.meter_id.clone()), known);
        });
    }

    /// Forgets a Meter.
    pub fn remove_meter(&self, namespace: &str, name: &str) {
        self.write(|all| drop(all.meters.remove(&(namespace.to_owned(), name.to_owned()))));
    }

    /// Adds or replaces a Customer.
    pub fn put_customer(&self, customer: &Customer) {
        let subjects = customer.subjects().iter().map(|s| (*s).to_owned()).collect();
        let key = (customer.namespace().unwrap_or_default(), customer.name_any());
        self.write(|all| drop(all.customers.insert(key, subjects)));
    }

    /// Forgets a Customer.
    pub fn remove_customer(&self, namespace: &str, name: &str) {
        self.write(|all| drop(all.customers.remove(&(namespace.to_owned(), name.to_owned()))));
    }

    /// Replaces everything: what a watch found when it (re)started.
    pub fn replace_meters(&self, meters: &[Meter]) {
        self.write(|all| all.meters.clear());
        meters.iter().for_each(|meter| self.put_meter(meter));
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

    /// Whether a Customer of that name, or with that subject, is known.
    pub fn has_subject(&self, namespace: &str, subject: &str) -> bool {
        self.read(|all| all.customers.iter().any(|((ns, _), subjects)| ns == namespace && subjects.contains(subject)))
    }

    fn write(&self, change: impl FnOnce(&mut Known)) {
        // A poisoned lock only means that a reader panicked: the maps are whole.
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut all);
        let mut by_type: HashMap<_, Vec<_>> = HashMap::new();
        for meter in all.meters.values() {
            if let Some(definition) = &meter.definition {
                by_type.entry((meter.namespace.clone(), definition.event_type.clone())).or_default().push(Arc::clone(meter));
            }
        }
        all.by_type = by_type;
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
