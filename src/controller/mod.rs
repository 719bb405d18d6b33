//! The controllers: watch Meters and Customers, have [`Work`] done for each change, write what came of it.
//!
//! ```text
//! API server ─► watch ─► store          every change, also status
//!                   └──► changed? ─► queue ─► object::reconcile ─► Work (ClickHouse)
//!                                     ▲            ├─► status, Events    when something changed
//!                                     └── back-off ┴─► finalizer
//! ```

use std::fmt::Debug;
use std::future::{self, Future};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::core::object::HasStatus;
use kube::runtime::controller::{Action, Error as ControllerError};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Config, Controller, PredicateConfig, WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::catalog_watch::heard;
use crate::reconcile::{self, Outcome};
use crate::registry::Kind;
use crate::telemetry::Metrics;

mod backoff;
mod claims;
mod customer;
pub mod leader;
mod meter;
mod object;
mod status;

pub use backoff::Backoff;

use backoff::Failures;
use claims::Claims;

/// Name by which our writes are known to the API server and on Events.
pub const FIELD_MANAGER: &str = "kubemeter";

/// Objects that are read at a time at the start: a page is in memory as text, as JSON and as objects at once.
const LIST_PAGE: u32 = 25;

/// A kind that a controller looks after.
pub trait Managed: Kind + HasStatus<Status: Serialize + Clone + Default + PartialEq + Debug + Send + Sync> {
    /// What only one object of a namespace can have. Those that claim the same are reconciled together.
    fn claims(&self) -> Vec<&str>;
    /// The conditions in a status.
    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition>;
    /// How many stored events it finds nothing to count in.
    fn uncounted(&self) -> i64 {
        0
    }
}

/// What is done for an object: all of ClickHouse, nothing of Kubernetes.
pub trait Work<K: Managed>: Clone + Send + Sync + 'static {
    /// Makes ClickHouse as the object says. `rivals` are the namespace's other objects that claim something it claims.
    fn apply(&self, object: &K, rivals: &[K]) -> impl Future<Output = Result<Outcome<K::Status>, reconcile::Error>> + Send;
    /// Undoes it. Idempotent.
    fn forget(&self, object: &K, rivals: &[K]) -> impl Future<Output = Result<(), reconcile::Error>> + Send;
    /// The status of an object for which that failed. Pure.
    fn failed(object: &K, error: &reconcile::Error) -> K::Status;
}

/// Bounds of a controller.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects reconciled at the same time.
    pub concurrency: u16,
    /// Longest time for one object's work in ClickHouse.
    pub deadline: Duration,
    /// Longest time for the cleaning of a deleted object: a purge rewrites parts of large tables.
    pub cleanup_deadline: Duration,
    /// Waits after failures.
    pub backoff: Backoff,
    /// How often a deleted object's cleaning is tried before the object goes without it.
    pub cleanup_tries: u32,
}

impl Default for Options {
    fn default() -> Self {
        // Ten tries with this back-off take 9 to 14 minutes: longer than a restart of ClickHouse, shorter than a
        // namespace's deletion should hang.
        Self {
            concurrency: 8,
            deadline: Duration::from_secs(60),
            cleanup_deadline: Duration::from_secs(3_600),
            backoff: Backoff::default(),
            cleanup_tries: 10,
        }
    }
}

/// What all reconciles of a controller share.
struct Context<K: Managed, W> {
    client: Client,
    work: W,
    options: Options,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    failures: Failures,
    claims: Mutex<Claims>,
    store: reflector::Store<Guard<K>>,
}

type Guard<K> = DeserializeGuard<K>;

impl<K: Managed, W> Context<K, W> {
    fn claims<T>(&self, with: impl FnOnce(&mut Claims) -> T) -> T {
        // A poisoned lock only means that a thread panicked between two whole changes.
        with(&mut self.claims.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A controller's client, bounds and figures.
#[derive(Clone)]
pub struct Setup {
    /// With the operator's rights.
    pub client: Client,
    /// One namespace; None: all.
    pub namespace: Option<String>,
    /// Bounds.
    pub options: Options,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Who reports Events: the pod's name.
    pub instance: String,
}

/// Runs a controller until `stop`, then ends when the reconciles under way have. `listed` is cancelled when all objects
/// have been read once.
pub async fn run<K: Managed, W: Work<K>>(setup: Setup, work: W, listed: CancellationToken, stop: CancellationToken) {
    let client = heard::<K>(&setup.client, &setup.metrics);
    let api: Api<Guard<K>> = match &setup.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let (store, writer) = reflector::store::<Guard<K>>();
    let counted = store.clone();
    setup.metrics.count_objects(&K::kind(&()), move || status::count(&counted.state()));
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(setup.instance) };
    let context = Arc::new(Context {
        recorder: Recorder::new(setup.client.clone(), reporter),
        client: setup.client,
        work,
        failures: Failures::new(setup.options.backoff),
        options: setup.options,
        metrics: setup.metrics,
        claims: Mutex::default(),
        store: store.clone(),
    });

    // Not bounded by itself, but by what fills it: the rivals of the objects that changed since the Controller, which is
    // polled by the same task, last looked.
    let (rivals, rivals_to_reconcile) = mpsc::unbounded::<ObjectRef<Guard<K>>>();
    let observer = Arc::clone(&context);
    let changes = watcher(api, watcher::Config::default().page_size(LIST_PAGE))
        .default_backoff()
        .modify(slim)
        // Controller would back off once more for errors that it sees.
        .filter_map(|event| future::ready(event.inspect_err(|why| warn_of_watch::<K>(why)).ok().map(Ok)))
        .inspect(move |event| {
            if let Ok(event) = event {
                observer.failures.observe(event);
                for (namespace, name) in observer.claims(|claims| claims.observe(event)) {
                    // The receiver goes when the controller stops: nobody needs it then.
                    let _ = rivals.unbounded_send(ObjectRef::new(&name).within(&namespace));
                }
            }
        })
        .reflect(writer)
        .applied_objects()
        .predicate_filter(what_matters, PredicateConfig::default());

    let bounds = Config::default().concurrency(context.options.concurrency);
    let results = Controller::for_stream(changes, store.clone())
        .with_config(bounds)
        .reconcile_on(rivals_to_reconcile)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(object::reconcile::<K, W>, object::after_error::<K, W>, context)
        .for_each(|result| {
            log_result::<K>(result);
            future::ready(())
        });
    let wait_for_list = async {
        if store.wait_until_ready().await.is_ok() {
            listed.cancel();
        }
    };
    tokio::join!(results, wait_for_list);
}

/// What a reconcile depends on. Status and labels are not in it: our own status writes must not bring us back.
/// The deletion's time and the finalizers must be, or deletion stalls; annotations can ask to skip the cleaning.
fn what_matters<K: Resource>(object: &K) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let meta = object.meta();
    (meta.generation, &meta.finalizers, meta.deletion_timestamp.is_some(), &meta.annotations).hash(&mut hasher);
    Some(hasher.finish())
}

/// Takes out what no reconcile looks at, and which is most of an object.
fn slim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

fn warn_of_watch<K: Managed>(why: &watcher::Error) {
    tracing::warn!(kind = %K::kind(&()), "can't watch, trying again: {}", watch_error(why));
}

/// A watch's error in one line.
pub(crate) fn watch_error(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(why) | watcher::Error::WatchStartFailed(why) | watcher::Error::WatchFailed(why) => {
            crate::cluster::explain(why)
        }
        other => other.to_string(),
    }
}

/// What came of one reconcile.
type Reconciled<K> = Result<(ObjectRef<Guard<K>>, Action), ControllerError<object::Error, watcher::Error>>;

fn log_result<K: Managed>(result: Reconciled<K>) {
    match result {
        Ok((object, _)) => tracing::debug!(kind = %K::kind(&()), %object, "reconciled"),
        // Said where it happened, once.
        Err(ControllerError::ReconcilerFailed(..)) => {}
        // Queued, then deleted.
        Err(ControllerError::ObjectNotFound(_)) => {}
        Err(why) => tracing::warn!(kind = %K::kind(&()), "{why}"),
    }
}

/// (namespace, name): what an object is called, whichever object bears the name.
fn key<K: Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Aggregation, Meter, MeterSpec, MeterStatus};

    #[test]
    fn only_what_a_reconcile_depends_on_brings_it_back() {
        let spec = MeterSpec {
            description: None,
            event_type: "a".into(),
            aggregation: Aggregation::Count,
            value_property: None,
            group_by: Default::default(),
            unit: None,
            retention: None,
            deletion_policy: Default::default(),
        };
        let mut before = Meter::new("m", spec);
        before.metadata.generation = Some(1);
        let changed = |change: fn(&mut Meter)| {
            let mut after = before.clone();
            change(&mut after);
            what_matters(&before) != what_matters(&after)
        };
        assert!(!changed(|m| m.status = Some(MeterStatus::default())));
        assert!(!changed(|m| m.metadata.resource_version = Some("2".into())));
        assert!(!changed(|m| m.labels_mut().extend([("a".into(), "b".into())])));
        assert!(changed(|m| m.metadata.generation = Some(2)));
        assert!(changed(|m| m.finalizers_mut().push("f".into())));
        assert!(changed(|m| m.annotations_mut().extend([("a".into(), "b".into())])));
        assert!(changed(|m| m.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH))));
    }
}
