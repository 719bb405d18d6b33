//! Leader election on a real API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams};
use kubemeter::controller::leader::{Error, LEASE, Params, Standing, lead};
use tokio_util::sync::CancellationToken;

use crate::cluster::admin;
use crate::support::{ControlPlane, eventually};

/// A replica: how it stands, how it is told to stop, what became of it.
struct Replica {
    standing: Standing,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<Result<(), Error>>,
}

async fn replica(on: &tokio::runtime::Handle, namespace: &str, identity: &str, working: &Arc<AtomicUsize>) -> Replica {
    let params = Params::new(namespace.to_owned(), identity.to_owned());
    let (standing, stop, working, config) = (Standing::default(), CancellationToken::new(), Arc::clone(working), admin().await);
    let (seen, told) = (standing.clone(), stop.clone());
    let ended = on.spawn(async move {
        let work = || async {
            assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0, "two work at a time");
            told.cancelled().await;
            working.fetch_sub(1, Ordering::SeqCst);
        };
        lead(config, params, seen, told.clone(), work).await
    });
    Replica { standing, stop, ended }
}

async fn holder(leases: &Api<Lease>) -> Option<String> {
    leases.get_opt(LEASE).await.unwrap()?.spec?.holder_identity
}

#[tokio::test]
async fn one_leads_and_its_death_or_its_end_hands_over() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace().await;
    let leases: Api<Lease> = Api::namespaced(plane.client().await, &namespace);
    let working = Arc::new(AtomicUsize::new(0));
    let mortal = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let here = tokio::runtime::Handle::current();

    let a = replica(mortal.handle(), &namespace, "a", &working).await;
    eventually("a leads", async || a.standing.leading().then_some(())).await;
    let b = replica(&here, &namespace, "b", &working).await;
    assert_eq!(holder(&leases).await.as_deref(), Some("a"));
    assert!(a.standing.healthy() && !b.standing.leading());

    // Like a kill -9: the lease is not released.
    mortal.shutdown_background();
    working.store(0, Ordering::SeqCst);
    assert_eq!(holder(&leases).await.as_deref(), Some("a"));
    let died = std::time::Instant::now();
    eventually("b leads after a's death", async || b.standing.leading().then_some(())).await;
    assert!(died.elapsed() < Duration::from_secs(15), "it took {:?}", died.elapsed());
    assert_eq!(holder(&leases).await.as_deref(), Some("b"));

    let c = replica(&here, &namespace, "c", &working).await;
    b.stop.cancel();
    b.ended.await.unwrap().unwrap();
    assert_ne!(holder(&leases).await.as_deref(), Some("b"), "released at its end");
    eventually("c leads after b's end", async || c.standing.leading().then_some(())).await;
    c.stop.cancel();
    c.ended.await.unwrap().unwrap();
    assert_eq!(working.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_leader_whose_lease_is_taken_away_stops_working_and_fails() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace().await;
    let leases: Api<Lease> = Api::namespaced(plane.client().await, &namespace);
    let working = Arc::new(AtomicUsize::new(0));
    let a = replica(&tokio::runtime::Handle::current(), &namespace, "a", &working).await;
    eventually("a leads", async || a.standing.leading().then_some(())).await;
    leases.delete(LEASE, &DeleteParams::default()).await.unwrap();
    let lost = a.ended.await.unwrap();
    assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
    assert!(!a.standing.leading());
}
