//! Who calls the gateway, and what they may do: Kubernetes tokens and RBAC rules decide, or a file of API keys.
//!
//! ```text
//! Authorization: Bearer … ─► cached ─► review    TokenReview: who is it?  SubjectAccessReview: may they?
//! X-Api-Key: …            ─► keys                a file of hashes: who is it, where, and what may they?
//! ```
//! For `/meters` and `/customers` only who it is is asked here, so that no stranger's body is read: what they may, the API
//! server decides, which gets the caller's own token.

mod cached;
mod claims;
mod keys;
mod review;
mod right;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

pub use cached::{Cached, Times};
pub use keys::{ApiKey, Keys, KeysError};
pub use review::{KubeReviewer, Reviewer, Unavailable, User};
pub use right::{Action, Right};

use crate::limits;
use crate::metering::ActsAs;

/// Header of an API key.
pub const API_KEY_HEADER: &str = "x-api-key";

/// Why a call is not let in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// 401: nobody knows the caller.
    #[error("{message}")]
    Unauthenticated {
        /// Stable code.
        code: &'static str,
        /// What to send instead.
        message: String,
    },
    /// 403: the caller is known and may not.
    #[error("{0}")]
    Forbidden(String),
    /// 503: who can tell does not answer.
    #[error("the Kubernetes API server can't be asked for the caller's rights at this moment")]
    Unavailable,
}

/// The door of the gateway. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Option<Arc<Gate>>);

struct Gate {
    reviews: Cached,
    keys: Option<Arc<Keys>>,
    audience: String,
    role_prefix: String,
}

/// Who calls.
#[derive(Debug)]
pub enum Identity {
    /// Whoever it is: authentication is off. With the token that was sent, for the API server to judge.
    Unasked(Option<String>),
    /// Somebody whom the API server knows by a token.
    User(Arc<User>, String),
    /// The holder of an API key.
    Key(Arc<ApiKey>),
}

impl Auth {
    /// Lets everybody in. For `dev`, and for who says so explicitly.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Asks for every call. `role_prefix` is how the names of the roles begin that refusals tell of.
    pub fn on(reviews: Cached, keys: Option<Arc<Keys>>, audience: String, role_prefix: String) -> Self {
        Self(Some(Arc::new(Gate { reviews, keys, audience, role_prefix })))
    }

    /// Finds out who calls.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], [`Error::Unavailable`].
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Error> {
        let token = bearer(headers)?;
        let Some(gate) = &self.0 else { return Ok(Identity::Unasked(token)) };
        match (token, headers.get(API_KEY_HEADER)) {
            (Some(_), Some(_)) => Err(unauthenticated("send either Authorization or X-Api-Key, not both")),
            (None, Some(key)) => {
                let known = gate.keys.as_ref().and_then(|keys| keys.find(key.as_bytes()));
                known.map(Identity::Key).ok_or_else(|| unauthenticated("X-Api-Key: nobody has this key"))
            }
            (None, None) => Err(gate.unauthenticated("no credentials: ")),
            (Some(token), None) => match gate.reviews.user(&token).await? {
                Ok(user) => Ok(Identity::User(user, token)),
                Err(why) => Err(gate.unauthenticated(&format!("the Kubernetes API server does not take this token ({why}): "))),
            },
        }
    }

    /// Checks that a caller may do something in a namespace.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::Unavailable`].
    pub async fn allow(&self, identity: &Identity, namespace: &str, action: Action<'_>) -> Result<(), Error> {
        let (Some(gate), Some(right)) = (&self.0, action.right(namespace)) else { return Ok(()) };
        match identity {
            Identity::Key(key) => key.allow(namespace, action).map_err(Error::Forbidden),
            Identity::User(user, token) => match gate.reviews.may(token, user, right.clone()).await? {
                true => Ok(()),
                false => Err(Error::Forbidden(right.refusal(&user.name, &gate.role_prefix))),
            },
            // Nobody is let through because a case was forgotten.
            Identity::Unasked(_) => Err(gate.unauthenticated("no credentials: ")),
        }
    }
}

impl Gate {
    fn unauthenticated(&self, why: &str) -> Error {
        unauthenticated(&format!(
            "{why}send Authorization: Bearer TOKEN, as `kubectl create token SERVICE_ACCOUNT --namespace NAMESPACE --audience {}` makes \
             (for /meters and /customers without --audience){}",
            self.audience,
            if self.keys.is_some() { ", or X-Api-Key: KEY" } else { "" }
        ))
    }
}

impl Identity {
    /// The namespace of the caller's own, where it has one.
    pub fn namespace(&self) -> Option<String> {
        match self {
            // Unverified: this is only where an unnamed namespace defaults to. What may be done there is for the API
            // server to say, which gets the very same token.
            Self::Unasked(token) => claims::of(token.as_deref()?).namespace(),
            Self::User(user, _) => user.namespace().map(str::to_owned),
            Self::Key(key) => Some(key.namespace.clone()),
        }
    }

    /// Who the caller is, for records. Kubernetes' names have no bound of their own: a longer one is cut.
    pub fn name(&self) -> Option<String> {
        let mut name = match self {
            Self::Unasked(_) => return None,
            Self::User(user, _) => user.name.clone(),
            Self::Key(key) => format!("apikey:{}", key.name),
        };
        name.truncate(name.floor_char_boundary(limits::CALLER_BYTES));
        Some(name)
    }

    /// Who the caller is to the Kubernetes API.
    pub fn acts_as(self) -> ActsAs {
        match self {
            Self::Unasked(None) => ActsAs::Gateway,
            Self::Unasked(Some(token)) | Self::User(_, token) => ActsAs::Token(token),
            Self::Key(_) => ActsAs::Nobody,
        }
    }
}

fn unauthenticated(message: &str) -> Error {
    Error::Unauthenticated { code: "unauthorized", message: message.to_owned() }
}

/// The bearer token, if there is an `Authorization` at all.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        let token = token.trim();
        // RFC 6750's b64token.
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        let bounded = (1..=limits::TOKEN_BYTES).contains(&token.len());
        (scheme.eq_ignore_ascii_case("bearer") && bounded && token.bytes().all(good)).then(|| token.to_owned())
    });
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(Error::Unauthenticated {
            code: "invalid_token",
            message: "Authorization: write Bearer and a service account's token".to_owned(),
        }),
    }
}
