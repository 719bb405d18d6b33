//! Meters and Customers in the Kubernetes API, with the caller's own rights.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::AuthInfo;
use kube::core::{DeserializeGuard, Status};
use kube::{Client, Config, ResourceExt};
use serde::de::DeserializeOwned;

use super::{HasSpec, Kind, Registry};
use crate::cluster;
use crate::limits::PAGE_DEFAULT;
use crate::metering::{ActsAs, Caller, Error, Listing, Page};

/// Longest wait for one answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a replace without a resourceVersion is tried when others write at the same time.
const REPLACE_TRIES: usize = 5;
/// What a client is told to wait while the API server is away, in seconds.
const RETRY_AFTER: u32 = 5;

/// Passes calls on to the Kubernetes API: with the caller's bearer token, or with the gateway's own rights for a caller who
/// acts as the gateway.
#[derive(Clone)]
pub struct KubeRegistry {
    own: Client,
    /// Connections without credentials, shared by all callers. Not the gateway's own: the API server takes a client
    /// certificate before a token, and a caller would act with the gateway's rights.
    anonymous: Client,
}

impl KubeRegistry {
    /// Two pools of connections, one for the gateway's own calls and one for callers with tokens.
    ///
    /// # Errors
    /// One line, when credentials or certificates can't be read.
    pub fn new(config: Config) -> Result<Self, String> {
        let mut anonymous = config.clone();
        anonymous.auth_info = AuthInfo::default();
        anonymous.headers.clear();
        Ok(Self { own: cluster::client(config)?, anonymous: cluster::client(anonymous)? })
    }

    fn api<K: Kind, T>(&self, caller: &Caller) -> Result<Api<T>, Error>
    where
        T: kube::Resource<DynamicType = (), Scope = K::Scope> + Clone + DeserializeOwned + Debug,
    {
        let client = match &caller.acts_as {
            ActsAs::Gateway => self.own.clone(),
            ActsAs::Nobody => return Err(nobody()),
            ActsAs::Token(token) => cluster::with_token(&self.anonymous, token).map_err(|_| Error::Invalid {
                code: "invalid_token",
                message: "the bearer token has characters that no token has: send `Authorization: Bearer TOKEN`".to_owned(),
            })?,
        };
        Ok(Api::namespaced(client, &caller.namespace))
    }
}

impl Registry for KubeRegistry {
    async fn create<K: Kind>(&self, caller: &Caller, object: K) -> Result<K, Error> {
        within(self.api::<K, K>(caller)?.create(&PostParams::default(), &object)).await
    }

    async fn get<K: Kind>(&self, caller: &Caller, name: &str) -> Result<K, Error> {
        within(self.api::<K, K>(caller)?.get(name)).await
    }

    async fn list<K: Kind>(&self, caller: &Caller, page: Page) -> Result<Listing<K>, Error> {
        let mut params = ListParams::default().limit(page.limit.unwrap_or(PAGE_DEFAULT));
        params.continue_token = page.token;
        // One object that this version can't read must not hide the others.
        let list = within(self.api::<K, DeserializeGuard<K>>(caller)?.list(&params)).await?;
        let next = list.metadata.continue_.filter(|token| !token.is_empty());
        let items = list.items.into_iter().filter_map(|guard| match guard.0 {
            Ok(object) => Some(object),
            Err(invalid) => {
                let name = invalid.metadata.name.unwrap_or_default();
                tracing::warn!(kind = %K::kind(&()), namespace = caller.namespace, name, "left out of a listing, for it can't be read: {}", invalid.error);
                None
            }
        });
        Ok(Listing { items: items.collect(), next })
    }

    async fn replace<K: Kind + HasSpec>(&self, caller: &Caller, object: K) -> Result<K, Error> {
        let api = self.api::<K, K>(caller)?;
        let name = object.name_any();
        let given = object.resource_version();
        let mut tries = 0;
        loop {
            let mut next = within(api.get(&name)).await?;
            if let Some(given) = &given {
                next.meta_mut().resource_version = Some(given.clone());
            }
            next.set_spec_from(object.clone());
            tries += 1;
            match within(api.replace(&name, &PostParams::default(), &next)).await {
                Err(Error::Conflict(_)) if given.is_none() && tries < REPLACE_TRIES => {}
                answer => return answer,
            }
        }
    }

    async fn delete<K: Kind>(&self, caller: &Caller, name: &str) -> Result<(), Error> {
        within(self.api::<K, K>(caller)?.delete(name, &DeleteParams::default())).await.map(drop)
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(answer) => answer.map_err(refused),
        Err(_) => Err(unavailable(&format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

fn unavailable(why: &str) -> Error {
    Error::Unavailable { message: format!("the Kubernetes API server does not answer: {why}"), retry_after: RETRY_AFTER }
}

/// An API key is for events and usage: Kubernetes knows nobody of its name.
fn nobody() -> Error {
    Error::Upstream {
        status: 403,
        reason: "Forbidden".to_owned(),
        message: "an API key can't read or change Meters and Customers, nor on- or offboard tenants: send a Kubernetes token \
                  instead, as `kubectl create token SERVICE_ACCOUNT` makes"
            .to_owned(),
        causes: Vec::new(),
    }
}

fn refused(error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => answered(*status),
        // The server answered, but not what we can read: no waiting helps.
        kube::Error::SerdeError(why) => Error::Internal(format!("can't read the Kubernetes API server's answer: {why}")),
        // A name that can't stand in a path; kube refuses it before any call.
        kube::Error::BuildRequest(why) => Error::Invalid { code: "invalid_name", message: why.to_string() },
        other => unavailable(&cluster::explain(&other)),
    }
}

/// What a `Status` of the API server is in our terms.
fn answered(status: Status) -> Error {
    match status.code {
        404 => Error::NotFound(status.message),
        409 => Error::Conflict(status.message),
        410 => Error::Upstream {
            status: 410,
            reason: status.reason,
            message: "the continue token has expired: start the listing again without it".to_owned(),
            causes: Vec::new(),
        },
        401 => Error::Upstream {
            status: 401,
            reason: status.reason,
            message: "the Kubernetes API server, which decides about Meters and Customers, does not take this token: send one for its \
                      own audience, as `kubectl create token SERVICE_ACCOUNT` makes"
                .to_owned(),
            causes: Vec::new(),
        },
        code => Error::Upstream {
            status: code,
            reason: status.reason,
            message: status.message,
            causes: status.details.into_iter().flat_map(|d| d.causes).map(|cause| (cause.field, cause.message)).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    #[test]
    fn each_refusal_has_its_meaning() {
        let status = |code, reason: &str| Status::failure("words", reason).with_code(code);
        assert!(matches!(answered(status(404, "NotFound")), Error::NotFound(words) if words == "words"));
        assert!(matches!(answered(status(409, "AlreadyExists")), Error::Conflict(_)));
        assert!(matches!(answered(status(409, "Conflict")), Error::Conflict(_)));
        assert!(matches!(answered(status(410, "Expired")), Error::Upstream { status: 410, .. }));
        assert!(matches!(answered(status(403, "Forbidden")), Error::Upstream { status: 403, reason, .. } if reason == "Forbidden"));
    }

    #[test]
    fn causes_come_through() {
        let causes = vec![StatusCause { reason: "FieldValueInvalid".into(), message: "too long".into(), field: "spec.unit".into() }];
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes,
            retry_after_seconds: 0,
        };
        let Error::Upstream { causes, .. } = answered(Status::failure("words", "Invalid").with_code(422).with_details(details)) else {
            panic!("422 is the API server's own");
        };
        assert_eq!(causes, [("spec.unit".to_owned(), "too long".to_owned())]);
    }
}
