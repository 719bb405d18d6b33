//! One reconcile of one object: work within its deadline, status and Events when they changed, the finalizer.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::{Context, FIELD_MANAGER, Guard, Managed, Work, key, status};
use crate::api::{FINALIZER, Reason, SKIP_CLEANUP};
use crate::cluster::explain;
use crate::reconcile;

/// Longest wait for one answer of the API server.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// What the calls to the API server in a reconcile may take beside the work in ClickHouse: there are at most three, and
/// Events.
const API_ALLOWANCE: Duration = Duration::from_secs(40);

/// Why a reconcile is to be tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The work in ClickHouse failed; the object's status says so.
    #[error(transparent)]
    Work(#[from] reconcile::Error),
    /// The API server refused a write, or did not answer.
    #[error("Kubernetes API: {0}")]
    Api(String),
    /// Everything together took too long.
    #[error("not done within {} s", .0.as_secs())]
    Deadline(Duration),
}

impl Error {
    /// Category, for metrics.
    const fn category(&self) -> &'static str {
        match self {
            Self::Work(why) => why.reason().as_str(),
            Self::Api(_) => "KubernetesApi",
            Self::Deadline(_) => "Deadline",
        }
    }
}

/// Reconciles what the store has of an object.
pub(super) async fn reconcile<K: Managed, W: Work<K>>(object: Arc<Guard<K>>, context: Arc<Context<K, W>>) -> Result<Action, Error> {
    let start = Instant::now();
    let result = match &object.0 {
        Ok(readable) => context.reconcile(Arc::new(readable.clone())).await,
        Err(why) => {
            context.unreadable(&*object, &why.error).await;
            Ok(Action::await_change())
        }
    };
    if result.is_ok() {
        context.failures.forget(&*object);
    }
    let category = result.as_ref().err().map_or("ok", Error::category);
    context.metrics.reconciled(&K::kind(&()), category, start.elapsed());
    result
}

/// When to try again.
pub(super) fn after_error<K: Managed, W: Work<K>>(object: Arc<Guard<K>>, error: &Error, context: Arc<Context<K, W>>) -> Action {
    let wait = context.failures.failed(&*object);
    if !matches!(error, Error::Work(_)) {
        let (namespace, name) = key(&*object);
        tracing::warn!(kind = %K::kind(&()), namespace, name, "trying again in {:.1} s: {error}", wait.as_secs_f64());
    }
    Action::requeue(wait)
}

impl<K: Managed, W: Work<K>> Context<K, W> {
    async fn reconcile(&self, object: Arc<K>) -> Result<Action, Error> {
        let api = self.api(&*object);
        let deleting = object.meta().deletion_timestamp.is_some();
        let whole = API_ALLOWANCE + if deleting { self.options.cleanup_deadline } else { self.options.deadline };
        let work = finalizer(&api, FINALIZER, object, |event| async {
            match event {
                finalizer::Event::Apply(object) => self.apply(&object).await,
                finalizer::Event::Cleanup(object) => self.cleanup(&object).await.map(|()| Action::await_change()),
            }
        });
        match tokio::time::timeout(whole, work).await {
            Err(_) => Err(Error::Deadline(whole)),
            Ok(Ok(action)) => Ok(action),
            Ok(Err(finalizer::Error::ApplyFailed(why) | finalizer::Error::CleanupFailed(why))) => Err(why),
            // Somebody else let it go first.
            Ok(Err(finalizer::Error::AddFinalizer(why) | finalizer::Error::RemoveFinalizer(why))) if is_gone(&why) => {
                Ok(Action::await_change())
            }
            Ok(Err(finalizer::Error::AddFinalizer(why) | finalizer::Error::RemoveFinalizer(why))) => {
                Err(Error::Api(format!("finalizer {FINALIZER}: {}", explain(&why))))
            }
            Ok(Err(why)) => Err(Error::Api(why.to_string())),
        }
    }

    async fn apply(&self, object: &K) -> Result<Action, Error> {
        match in_time(self.options.deadline, self.work.apply(object, &self.rivals(object))).await {
            Ok(outcome) => {
                if self.write(object, &outcome.status).await? {
                    for notice in &outcome.notices {
                        self.tell(object, notice.warning, notice.reason.as_str(), &notice.message).await;
                    }
                }
                Ok(outcome.requeue.map_or_else(Action::await_change, Action::requeue))
            }
            Err(why) => {
                self.write_failure(object, &why).await?;
                Err(Error::Work(why))
            }
        }
    }

    async fn cleanup(&self, object: &K) -> Result<(), Error> {
        if object.annotations().get(SKIP_CLEANUP).is_some_and(|value| value == "true") {
            return self.skip_cleanup(object, &format!("annotation {SKIP_CLEANUP} asks for it")).await;
        }
        let Err(why) = in_time(self.options.cleanup_deadline, self.work.forget(object, &self.rivals(object))).await else { return Ok(()) };
        let tries = self.failures.cleanup_failed(object);
        if tries >= self.options.cleanup_tries {
            return self.skip_cleanup(object, &format!("it failed {tries} times, at last: {why}")).await;
        }
        self.write_failure(object, &why).await?;
        Err(Error::Work(why))
    }

    /// Lets an object go though ClickHouse still has its tables, and says so.
    async fn skip_cleanup(&self, object: &K, why: &str) -> Result<(), Error> {
        let message = format!(
            "{} {} goes without cleaning ClickHouse, where its tables or mappings may be left: {why}",
            K::kind(&()),
            object.name_any()
        );
        let next = status::not_ready(object, Reason::CleanupSkipped, &message, Timestamp::now());
        self.write(object, &next).await?;
        tracing::warn!("{message}");
        self.tell(object, true, Reason::CleanupSkipped.as_str(), &message).await;
        Ok(())
    }

    async fn write_failure(&self, object: &K, why: &reconcile::Error) -> Result<(), Error> {
        let next = W::failed(object, why);
        let news = status::transition::<K>(object.status(), &next);
        self.write(object, &next).await?;
        if let Some(news) = news {
            let (namespace, name) = key(object);
            tracing::warn!(kind = %K::kind(&()), namespace, name, reason = news.reason, "{why}");
            self.tell(object, true, &news.reason, &news.message).await;
        }
        Ok(())
    }

    /// Writes a status when more than times changed; says whether it did.
    async fn write(&self, object: &K, next: &K::Status) -> Result<bool, Error> {
        if !status::changed::<K>(object.status(), next) {
            return Ok(false);
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(status::patch(object, next));
        let api = self.api(object);
        let name = object.name_any();
        match tokio::time::timeout(API_TIMEOUT, api.patch_status(&name, &params, &patch)).await {
            Ok(Ok(_)) => Ok(true),
            // Deleted in the meantime, or another object by now: nobody misses this status.
            Ok(Err(why)) if is_gone(&why) => Ok(false),
            Ok(Err(why)) => Err(Error::Api(format!("writing the status: {}", explain(&why)))),
            Err(_) => Err(Error::Api(format!("writing the status: no answer within {} s", API_TIMEOUT.as_secs()))),
        }
    }

    /// Publishes an Event. One that can't be published is only logged.
    async fn tell(&self, object: &impl Resource<DynamicType = ()>, warning: bool, reason: &str, note: &str) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let why = match tokio::time::timeout(API_TIMEOUT, self.recorder.publish(&event, &object.object_ref(&()))).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => explain(&why),
            Err(_) => format!("no answer within {} s", API_TIMEOUT.as_secs()),
        };
        let (namespace, name) = key(object);
        tracing::info!(kind = %K::kind(&()), namespace, name, reason, "an Event could not be published: {why}");
    }

    /// An object that this version can't read: written by a newer one. It keeps what it has.
    async fn unreadable(&self, object: &Guard<K>, why: &str) {
        let (namespace, name) = key(object);
        let message = format!("this operator can't read the object, so it stays as it is: {why}. Update the operator or the object");
        tracing::warn!(kind = %K::kind(&()), namespace, name, "{message}");
        self.tell(object, true, Reason::InvalidSpec.as_str(), &message).await;
    }

    fn rivals(&self, object: &K) -> Vec<K> {
        let keys = self.claims(|claims| claims.rivals(&key(object)));
        let found = keys.iter().filter_map(|(namespace, name)| self.store.get(&ObjectRef::new(name).within(namespace)));
        found.filter_map(|guard| guard.0.as_ref().ok().cloned()).collect()
    }

    fn api(&self, object: &K) -> Api<K> {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }
}

async fn in_time<T>(deadline: Duration, work: impl Future<Output = Result<T, reconcile::Error>>) -> Result<T, reconcile::Error> {
    let late = |_| Err(reconcile::Error::Unavailable(format!("not done within {} s", deadline.as_secs())));
    tokio::time::timeout(deadline, work).await.unwrap_or_else(late)
}

/// Whether an object is not there any more, or another by the same name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || (status.code == 409 && status.message.to_ascii_lowercase().contains("uid")))
}
