//! One replica works at a time: leader election with a Lease.
//!
//! `kube-lease-manager` takes, renews and releases the lease, but goes on telling a leader that it leads while renewals
//! fail, and never makes a deleted lease anew. So we look at its calls: what was not renewed in time, or is not there, is
//! lost, and the process ends to start over. Clocks may differ by a tenth of the lease's duration.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use kube::client::Body;
use kube::{Client, Config};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster;

/// Name of the lease.
pub const LEASE: &str = "kubemeter-operator";
/// Between tries to read or make the lease at the start.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for the lease's release at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(4);

/// Which lease, who we are, and how long it holds.
#[derive(Clone, Debug)]
pub struct Params {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Ours alone among all replicas; at most 100 bytes.
    pub identity: String,
    /// How long the lease holds after a renewal.
    pub duration: Duration,
    /// How long before its end it is renewed; less than the duration. Both in whole seconds, at least one.
    pub grace: Duration,
}

impl Params {
    /// A dead leader's successor starts within 15 s; a leader may be without API server for 4 s at least.
    pub fn new(namespace: String, identity: String) -> Self {
        Self { namespace, name: LEASE.to_owned(), identity, duration: Duration::from_secs(12), grace: Duration::from_secs(6) }
    }

    /// When a lease renewed at that time is ours no more: before another can take it.
    fn lost_at(&self, renewed: Instant) -> Instant {
        renewed + self.duration - self.duration / 10
    }
}

/// Why leading ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client could be made.
    #[error("{0}")]
    Client(String),
    /// Another replica may lead by now.
    #[error("lost the lease {namespace}/{name}: {why}; ending, so that a restart begins anew")]
    Lost {
        /// Of the lease.
        namespace: String,
        /// Of the lease.
        name: String,
        /// What was seen.
        why: String,
    },
}

/// What the lease's calls to the API server came to, for health checks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Standing(Arc<watch::Sender<Seen>>);

#[derive(Clone, Copy, Default)]
struct Seen {
    /// Start of the last call that wrote the lease.
    renewed: Option<Instant>,
    /// The lease is not there.
    missing: bool,
    /// While leading: when the lease is lost unless renewed.
    lost_at: Option<Instant>,
}

impl Standing {
    /// False when this process believes to lead with a lease that has run out: it is wedged.
    pub fn healthy(&self) -> bool {
        self.0.borrow().lost_at.is_none_or(|lost| Instant::now() <= lost)
    }

    /// Whether this process leads.
    pub fn leading(&self) -> bool {
        self.0.borrow().lost_at.is_some()
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        self.0.send_modify(change);
    }
}

/// Waits for the lease, then does `work` until that ends, which it should soon after `stop`; releases the lease. When the
/// lease is lost, the work is dropped at once.
///
/// # Errors
/// [`Error::Lost`]: the process should end.
pub async fn lead<F: Future<Output = ()>>(
    config: Config,
    params: Params,
    standing: Standing,
    stop: CancellationToken,
    work: impl FnOnce() -> F,
) -> Result<(), Error> {
    let client = observed(config, &params, standing.clone())?;
    let Some(manager) = manager(client, &params, &stop).await else { return Ok(()) };
    let (mut leads, task) = manager.watch().await;
    let lost = |why: &str| Error::Lost { namespace: params.namespace.clone(), name: params.name.clone(), why: why.to_owned() };

    tracing::info!(lease = params.name, namespace = params.namespace, identity = params.identity, "waiting to lead");
    let mut seen = standing.0.subscribe();
    let begin = {
        let missing = async { seen.wait_for(|seen| seen.missing).await.is_ok() };
        tokio::select! {
            () = stop.cancelled() => false,
            _ = missing => return Err(lost("it was deleted")),
            leading = leads.wait_for(|leads| *leads) => leading.map(|leading| *leading).map_err(|_| lost("its manager ended"))?,
        }
    };
    if !begin {
        return released(leads, task).await;
    }

    tracing::info!(identity = params.identity, "leading");
    standing.note(|seen| seen.lost_at = Some(params.lost_at(seen.renewed.unwrap_or_else(Instant::now))));
    let ended = {
        let mut work = pin!(work());
        tokio::select! {
            () = &mut work => None,
            why = loss(&mut leads, &standing) => Some(why),
        }
    };
    standing.note(|seen| seen.lost_at = None);
    match ended {
        None => released(leads, task).await,
        Some(why) => {
            task.abort();
            Err(lost(&why))
        }
    }
}

/// Ends when the lease is not surely ours any more; says why.
async fn loss(leads: &mut watch::Receiver<bool>, standing: &Standing) -> String {
    let mut seen = standing.0.subscribe();
    loop {
        let now = *seen.borrow_and_update();
        if now.missing {
            return "it was deleted".to_owned();
        }
        tokio::select! {
            change = leads.changed() => match change {
                Ok(()) if *leads.borrow_and_update() => {}
                Ok(()) => return "another replica holds it".to_owned(),
                Err(_) => return "its manager ended".to_owned(),
            },
            // The sender is in `standing`.
            _ = seen.changed() => {}
            () = sleep_until(now.lost_at.unwrap_or_else(Instant::now)) => return "it could not be renewed in time".to_owned(),
        }
    }
}

async fn manager(client: Client, params: &Params, stop: &CancellationToken) -> Option<LeaseManager> {
    loop {
        let lease = LeaseParams::new(params.identity.clone(), params.duration.as_secs(), params.grace.as_secs());
        let builder = LeaseManagerBuilder::new(client.clone(), &params.name).with_namespace(&params.namespace).with_parameters(lease);
        match builder.build().await {
            Ok(manager) => return Some(manager),
            Err(why) => tracing::warn!(lease = params.name, namespace = params.namespace, "can't get the lease, trying again: {why}"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(RETRY) => {}
        }
    }
}

/// Ends the manager, which releases a lease that it holds.
async fn released(leads: watch::Receiver<bool>, task: JoinHandle<kube_lease_manager::Result<LeaseManager>>) -> Result<(), Error> {
    drop(leads);
    match timeout(RELEASE_TIMEOUT, task).await {
        Ok(Ok(Ok(_))) => {}
        Ok(Ok(Err(why))) => tracing::warn!("the lease could not be released, it will run out: {why}"),
        Ok(Err(_)) | Err(_) => tracing::warn!("the lease could not be released, it will run out"),
    }
    Ok(())
}

/// A client whose calls take no longer than a renewal may, and are noted.
fn observed(config: Config, params: &Params, standing: Standing) -> Result<Client, Error> {
    let namespace = config.default_namespace.clone();
    let inner = cluster::client(config).map_err(Error::Client)?;
    let params = params.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (inner, standing, params) = (inner.clone(), standing.clone(), params.clone());
        async move {
            let (start, method) = (Instant::now(), request.method().clone());
            let response = timeout(params.grace / 3, inner.send(request)).await.map_err(|_| "the API server does not answer in time")??;
            let status = response.status();
            standing.note(|seen| {
                if status.is_success() {
                    seen.missing = false;
                }
                match method {
                    Method::GET if status.as_u16() == 404 => seen.missing = true,
                    Method::PATCH if status.is_success() => {
                        seen.renewed = Some(start);
                        seen.lost_at = seen.lost_at.map(|_| params.lost_at(start));
                    }
                    _ => {}
                }
            });
            Ok::<_, tower::BoxError>(response)
        }
    });
    Ok(Client::new(service, namespace))
}
