//! Remembers what the API server said, for a bounded time and number of callers.
//!
//! Of a token only a keyed hash is kept, with a key that lives as long as the process: what is in memory opens nothing.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::future::Cache;
use ring::{hmac, rand};

use super::Error;
use super::review::{Reviewer, Unavailable, User};
use super::right::Right;
use crate::limits;

type TokenHash = [u8; 32];
type Known = Result<Arc<User>, String>;

/// How long an answer is believed.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A yes: no right that was taken away is used for longer.
    pub yes: Duration,
    /// A no: no right that was given is waited for longer.
    pub no: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { yes: limits::REVIEW_YES, no: limits::REVIEW_NO }
    }
}

/// A reviewer and what it said. Calls that ask the same at the same time share one review.
pub struct Cached {
    reviewer: Box<dyn Reviewer>,
    key: hmac::Key,
    users: Cache<TokenHash, Known>,
    rights: Cache<(TokenHash, Right), bool>,
}

impl Cached {
    /// Remembers nothing yet.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(reviewer: impl Reviewer, times: Times) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new());
        Ok(Self {
            reviewer: Box::new(reviewer),
            key: key.map_err(|_| "the system gives no random numbers".to_owned())?,
            users: cache(limits::KNOWN_TOKENS, times, Known::is_ok),
            rights: cache(limits::KNOWN_RIGHTS, times, |may| *may),
        })
    }

    /// Whose token it is, or why nobody's.
    pub(super) async fn user(&self, token: &str) -> Result<Known, Error> {
        self.users.try_get_with(self.hash(token), self.reviewer.user(token)).await.map_err(unavailable)
    }

    /// Whether the user with this token has a right.
    pub(super) async fn may(&self, token: &str, user: &User, right: Right) -> Result<bool, Error> {
        let asked = self.reviewer.may(user, &right);
        self.rights.try_get_with((self.hash(token), right.clone()), asked).await.map_err(unavailable)
    }

    fn hash(&self, token: &str) -> TokenHash {
        let mut hash = TokenHash::default();
        hash.copy_from_slice(hmac::sign(&self.key, token.as_bytes()).as_ref());
        hash
    }
}

#[allow(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn unavailable(why: Arc<Unavailable>) -> Error {
    tracing::warn!(%why, "the Kubernetes API server can't be asked for a caller's rights");
    Error::Unavailable
}

fn cache<K, V>(size: u64, times: Times, is_yes: fn(&V) -> bool) -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(size).expire_after(ByAnswer { times, is_yes }).build()
}

struct ByAnswer<V> {
    times: Times,
    is_yes: fn(&V) -> bool,
}

impl<K, V> Expiry<K, V> for ByAnswer<V> {
    fn expire_after_create(&self, _: &K, answer: &V, _: Instant) -> Option<Duration> {
        Some(if (self.is_yes)(answer) { self.times.yes } else { self.times.no })
    }
}
