//! Asks the Kubernetes API server who somebody is and what they may do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::core::Request;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::claims;
use super::right::Right;
use crate::api::GROUP;
use crate::{cluster, limits};

/// Longest wait for one review's turn, and then for its answer. Each by itself: who floods the gateway makes others wait
/// for a turn, and must not thereby make the API server look as if it were away.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Answers of what stands before an API server that is away.
const AWAY: [u16; 3] = [502, 503, 504];
/// Longest reason of a refused token that is told, in bytes.
const REASON_BYTES: usize = 200;

/// Somebody whom the API server knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Such as `system:serviceaccount:shop:checkout`.
    pub name: String,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

impl User {
    /// The namespace of a service account.
    pub fn namespace(&self) -> Option<&str> {
        claims::service_account(&self.name).map(|(namespace, _)| namespace)
    }

    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// The API server can't be asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unavailable {
    /// It can't be reached.
    #[error("{0}")]
    Away(String),
    /// It, or this gateway, refuses to say at this moment.
    #[error("{0}")]
    Refused(String),
}

/// Who can tell.
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token it is, or why nobody's.
    fn user<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Result<Arc<User>, String>, Unavailable>>;
    /// Whether somebody has a right.
    fn may<'a>(&'a self, user: &'a User, right: &'a Right) -> BoxFuture<'a, Result<bool, Unavailable>>;
}

/// The Kubernetes API server, by TokenReview and SubjectAccessReview.
pub struct KubeReviewer {
    client: Client,
    audience: String,
    /// Strangers must not make the gateway flood the API server.
    turns: Semaphore,
}

impl KubeReviewer {
    /// With the gateway's own client.
    pub fn new(client: Client, audience: String) -> Self {
        Self { client, audience, turns: Semaphore::new(limits::REVIEWS) }
    }

    /// Not kube's own `create`: it logs an answer that it can't read, and a TokenReview's has the token in it.
    async fn create<T>(&self, review: &T) -> Result<T, Unavailable>
    where
        T: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let refused = |why: String| Unavailable::Refused(why);
        let turn = tokio::time::timeout(TIMEOUT, self.turns.acquire()).await;
        let _turn = turn
            .map_err(|_| refused(format!("too many reviews at a time: no turn within {} s", TIMEOUT.as_secs())))?
            .map_err(|why| refused(why.to_string()))?;
        let body = serde_json::to_vec(review).map_err(|why| refused(why.to_string()))?;
        let request = Request::new(T::url_path(&(), None)).create(&PostParams::default(), body);
        let request = request.map_err(|why| refused(why.to_string()))?;
        let late = |_| Unavailable::Away(format!("no answer within {} s", TIMEOUT.as_secs()));
        let text = tokio::time::timeout(TIMEOUT, self.client.request_text(request)).await.map_err(late)?;
        let text = text.map_err(|why| match &why {
            kube::Error::Api(status) if !AWAY.contains(&status.code) => refused(cluster::explain(&why)),
            kube::Error::Api(_) | kube::Error::HyperError(_) | kube::Error::Service(_) => Unavailable::Away(cluster::explain(&why)),
            _ => refused(cluster::explain(&why)),
        })?;
        serde_json::from_str(&text).map_err(|_| refused(format!("the answer is no {}", T::kind(&()))))
    }

    /// A token for our audience, or for the API server's own: that one can do all that its holder may there, so taking
    /// it gives nobody more. Which of the two is asked for is as the token itself says; the answer decides.
    async fn token_review(&self, token: &str) -> Result<Result<Arc<User>, String>, Unavailable> {
        let ours = claims::of(token).is_for(&self.audience);
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: ours.then(|| vec![self.audience.clone()]) };
        let status = self.create(&TokenReview { spec, ..TokenReview::default() }).await?.status.unwrap_or_default();
        // An API server that does not know of audiences leaves them out.
        let is_for_us = !ours || status.audiences.iter().flatten().any(|audience| *audience == self.audience);
        match status.user {
            Some(user) if status.authenticated == Some(true) && is_for_us => {
                let Some(name) = user.username.filter(|name| !name.is_empty()) else { return Ok(Err("it has no user".to_owned())) };
                Ok(Ok(Arc::new(User { name, uid: user.uid, groups: user.groups, extra: user.extra })))
            }
            _ => Ok(Err(reason(status.error))),
        }
    }
}

fn reason(error: Option<String>) -> String {
    let mut why = error.filter(|why| !why.is_empty()).unwrap_or_else(|| "it is not valid".to_owned());
    why.truncate(why.floor_char_boundary(REASON_BYTES));
    why
}

impl Reviewer for KubeReviewer {
    fn user<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Result<Arc<User>, String>, Unavailable>> {
        self.token_review(token).boxed()
    }

    fn may<'a>(&'a self, user: &'a User, right: &'a Right) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let resource_attributes = ResourceAttributes {
            group: Some(GROUP.to_owned()),
            resource: Some(right.resource.to_owned()),
            subresource: right.subresource.map(str::to_owned),
            verb: Some(right.verb.to_owned()),
            name: right.name.clone(),
            namespace: Some(right.namespace.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(resource_attributes),
            ..SubjectAccessReviewSpec::default()
        };
        async move {
            let review = self.create(&SubjectAccessReview { spec, ..SubjectAccessReview::default() }).await?;
            Ok(review.status.is_some_and(|status| status.allowed))
        }
        .boxed()
    }
}
