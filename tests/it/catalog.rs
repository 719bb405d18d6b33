//! A gateway's catalog follows a real API server.

use std::sync::Arc;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kubemeter::api::{Customer, CustomerSpec, Meter};
use kubemeter::catalog::Catalog;
use kubemeter::catalog_watch::watch_catalog;
use kubemeter::telemetry::Metrics;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::install_crds;
use crate::support::{ControlPlane, eventually};

#[tokio::test]
async fn it_knows_what_there_is_and_what_changes() {
    let plane = ControlPlane::shared();
    let client = plane.client().await;
    install_crds(&client).await;
    let namespace = plane.namespace().await;
    let meters: Api<Meter> = Api::namespaced(client.clone(), &namespace);
    let customers: Api<Customer> = Api::namespaced(client.clone(), &namespace);
    let spec = json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": "m"}, "spec": {"eventType": "a", "aggregation": "Count"}});
    meters.create(&PostParams::default(), &serde_json::from_value(spec).unwrap()).await.unwrap();
    let subjects = CustomerSpec { subjects: vec!["acme-eu".into()], ..CustomerSpec::default() };
    customers.create(&PostParams::default(), &Customer::new("acme", subjects)).await.unwrap();

    let metrics = Arc::new(Metrics::new().unwrap());
    let (catalog, stop) = (Catalog::default(), CancellationToken::new());
    let watching = tokio::spawn(watch_catalog(client, Some(namespace.clone()), catalog.clone(), Arc::clone(&metrics), stop.clone()));
    eventually("both lists", async || catalog.synced().then_some(())).await;
    assert_eq!(catalog.meters_of_type(&namespace, "a").len(), 1);
    assert!(catalog.has_subject(&namespace, "acme-eu"));

    let edit = Patch::Merge(json!({"spec": {"eventType": "b"}}));
    meters.patch("m", &PatchParams::default(), &edit).await.unwrap();
    eventually("the edit", async || (catalog.meters_of_type(&namespace, "b").len() == 1).then_some(())).await;
    assert!(catalog.meters_of_type(&namespace, "a").is_empty());
    meters.delete("m", &DeleteParams::default()).await.unwrap();
    customers.delete("acme", &DeleteParams::default()).await.unwrap();
    eventually("both go", async || (catalog.meter(&namespace, "m").is_none() && !catalog.has_subject(&namespace, "acme-eu")).then_some(()))
        .await;
    stop.cancel();
    watching.await.unwrap();
}
