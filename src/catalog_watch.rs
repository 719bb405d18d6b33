//! Keeps a gateway's [`Catalog`] current by watching the API server; while that is away, the catalog stays as it was.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::mem;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::api::{Customer, Meter};
use crate::catalog::Catalog;
use crate::cluster;
use crate::registry::Kind;
use crate::telemetry::Metrics;

/// Follows Meters and Customers, of one namespace or of all, until `stop`. Reconnects for ever; sets the catalog synced
/// after both kinds were listed once.
pub async fn watch_catalog(client: Client, namespace: Option<String>, catalog: Catalog, metrics: Arc<Metrics>, stop: CancellationToken) {
    let (meters_listed, meters) = oneshot::channel();
    let (customers_listed, customers) = oneshot::channel();
    let listed = async {
        if let (Ok(()), Ok(())) = tokio::join!(meters, customers) {
            catalog.set_synced();
        }
    };
    let follow_all = async {
        tokio::join!(
            follow(events::<Meter>(&client, namespace.as_deref(), &metrics), &catalog, meters_listed),
            follow(events::<Customer>(&client, namespace.as_deref(), &metrics), &catalog, customers_listed),
            listed,
        )
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = follow_all => {}
    }
}

/// A kind that the catalog keeps.
trait Catalogued: Kind {
    fn put(&self, catalog: &Catalog);
    fn remove(catalog: &Catalog, namespace: &str, name: &str);
}

impl Catalogued for Meter {
    fn put(&self, catalog: &Catalog) {
        catalog.put_meter(self);
    }
    fn remove(catalog: &Catalog, namespace: &str, name: &str) {
        catalog.remove_meter(namespace, name);
    }
}

impl Catalogued for Customer {
    fn put(&self, catalog: &Catalog) {
        catalog.put_customer(self);
    }
    fn remove(catalog: &Catalog, namespace: &str, name: &str) {
        catalog.remove_customer(namespace, name);
    }
}

type Watched<K> = Result<watcher::Event<DeserializeGuard<K>>, watcher::Error>;

fn events<K: Catalogued>(client: &Client, namespace: Option<&str>, metrics: &Arc<Metrics>) -> impl Stream<Item = Watched<K>> + use<K> {
    let client = heard::<K>(client, metrics);
    let api: Api<DeserializeGuard<K>> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    watcher(api, watcher::Config::default()).default_backoff()
}

/// A client whose answers are noted as news of a kind.
pub(crate) fn heard<K: Kind>(client: &Client, metrics: &Arc<Metrics>) -> Client {
    let metrics = Arc::clone(metrics);
    metrics.heard(&K::kind(&()));
    cluster::listening(client, move || metrics.heard(&K::kind(&())))
}

async fn follow<K: Catalogued>(events: impl Stream<Item = Watched<K>>, catalog: &Catalog, listed: oneshot::Sender<()>) {
    let mut events = std::pin::pin!(events);
    let mut listed = Some(listed);
    let mut names = Names::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let done = matches!(event, watcher::Event::InitDone);
                apply(event, catalog, &mut names);
                if let Some(listed) = listed.take_if(|_| done) {
                    // Nobody waits any more when the process stops.
                    let _ = listed.send(());
                }
            }
            Err(why) => {
                tracing::warn!(kind = %K::kind(&()), "can't watch, serving what is known and trying again: {}", crate::controller::watch_error(&why));
            }
        }
    }
}

type Key = (String, String);

/// Which objects there are. A list replaces the last one object by object, so that no request in between finds the
/// catalog empty.
#[derive(Default, Debug, PartialEq)]
struct Names {
    known: BTreeSet<Key>,
    listing: BTreeSet<Key>,
}

impl Names {
    /// Ends a listing; gives what was known and is no more.
    fn listed(&mut self) -> Vec<Key> {
        let listing = mem::take(&mut self.listing);
        let gone = self.known.difference(&listing).cloned().collect();
        self.known = listing;
        gone
    }
}

fn apply<K: Catalogued>(event: watcher::Event<DeserializeGuard<K>>, catalog: &Catalog, names: &mut Names) {
    let key = |object: &DeserializeGuard<K>| (object.namespace().unwrap_or_default(), object.name_any());
    let put = |object: DeserializeGuard<K>| match object.0 {
        Ok(object) => object.put(catalog),
        Err(why) => {
            let (namespace, name) = (why.metadata.namespace.unwrap_or_default(), why.metadata.name.unwrap_or_default());
            tracing::warn!(kind = %K::kind(&()), namespace, name, "can't be read, keeping what is known of it: {}", why.error);
        }
    };
    match event {
        watcher::Event::Init => names.listing.clear(),
        watcher::Event::InitApply(object) => {
            names.listing.insert(key(&object));
            put(object);
        }
        watcher::Event::InitDone => names.listed().iter().for_each(|(namespace, name)| K::remove(catalog, namespace, name)),
        watcher::Event::Apply(object) => {
            names.known.insert(key(&object));
            put(object);
        }
        watcher::Event::Delete(object) => {
            let (namespace, name) = key(&object);
            K::remove(catalog, &namespace, &name);
            names.known.remove(&(namespace, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;
    use serde_json::json;

    use super::*;

    fn meter(name: &str, spec: &serde_json::Value) -> DeserializeGuard<Meter> {
        let metadata = ObjectMeta { name: Some(name.into()), namespace: Some("shop".into()), ..Default::default() };
        serde_json::from_value(json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_list_replaces_what_was_known_and_an_unreadable_object_stays_as_it_was() {
        let (catalog, mut names) = (Catalog::default(), Names::default());
        let good = json!({"eventType": "a", "aggregation": "Count"});
        let unreadable = json!({"eventType": "b", "aggregation": "Median"});
        let known = |name: &str| catalog.meter("shop", name).and_then(|m| m.definition.as_ref().map(|d| d.event_type.clone()));

        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(meter("stays", &good)),
            watcher::Event::InitApply(meter("goes", &good)),
            watcher::Event::InitDone,
            watcher::Event::Apply(meter("comes", &good)),
            watcher::Event::Init,
            watcher::Event::InitApply(meter("stays", &unreadable)),
            watcher::Event::InitApply(meter("comes", &good)),
        ] {
            apply(event, &catalog, &mut names);
        }
        assert_eq!(known("goes"), Some("a".into()), "an unfinished list removes nothing");
        apply::<Meter>(watcher::Event::InitDone, &catalog, &mut names);
        assert_eq!((known("stays"), known("goes"), known("comes")), (Some("a".into()), None, Some("a".into())));
        apply(watcher::Event::Delete(meter("stays", &unreadable)), &catalog, &mut names);
        assert_eq!(known("stays"), None);
    }
}
