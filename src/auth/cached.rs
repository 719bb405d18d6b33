//! Remembers what the API server said, for a bounded time and number of callers.
//!
//! While it can't be reached, a yes is believed for longer than while it can: usage must not be lost because a control
//! plane is upgraded. Whoever had none before has none.
//!
//! Of a token only a keyed hash is kept, with a key that lives as long as the process: what is in memory opens nothing.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use moka::Expiry;
use moka::future::Cache;
use ring::{hmac, rand};

use super::review::{Reviewer, Unavailable, User};
use super::right::Right;
use super::{Error, claims};
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
    /// A yes while the API server can't be reached, from when it was last said. Zero: no longer than otherwise.
    pub stale: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { yes: limits::REVIEW_YES, no: limits::REVIEW_NO, stale: limits::REVIEW_STALE }
    }
}

/// A reviewer and what it said. Calls that ask the same at the same time share one review.
pub struct Cached {
    reviewer: Box<dyn Reviewer>,
    key: hmac::Key,
    times: Times,
    users: Cache<TokenHash, Known>,
    rights: Cache<(TokenHash, Right), bool>,
    /// Every yes that was not followed by a no.
    last_users: Cache<TokenHash, Arc<User>>,
    last_rights: Cache<(TokenHash, Right), ()>,
    /// The API server can't be reached, and is asked about known callers again after this.
    away: Mutex<Option<Instant>>,
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
            times,
            users: cache(limits::KNOWN_TOKENS, times, Known::is_ok),
            rights: cache(limits::KNOWN_RIGHTS, times, |may| *may),
            last_users: Cache::builder().max_capacity(limits::KNOWN_TOKENS).time_to_live(times.stale).build(),
            last_rights: Cache::builder().max_capacity(limits::KNOWN_RIGHTS).time_to_live(times.stale).build(),
            away: Mutex::default(),
        })
    }

    /// Whose token it is, or why nobody's.
    pub(super) async fn user(&self, token: &str) -> Result<Known, Error> {
        let hash = self.hash(token);
        let last = async || {
            let is_over = claims::of(token).is_over(Timestamp::now().as_second());
            self.last_users.get(&hash).await.filter(|_| !is_over).map(Ok)
        };
        if self.users.get(&hash).await.is_none()
            && self.is_away()
            && let Some(known) = last().await
        {
            return Ok(known);
        }
        let asked = async {
            let answer = self.heard(self.reviewer.user(token).await)?;
            match &answer {
                Ok(user) => self.last_users.insert(hash, Arc::clone(user)).await,
                Err(_) => self.last_users.invalidate(&hash).await,
            }
            Ok(answer)
        };
        match self.users.try_get_with(hash, asked).await {
            Ok(answer) => Ok(answer),
            Err(why) => self.else_last(&why, last).await,
        }
    }

    /// Whether the user with this token has a right.
    pub(super) async fn may(&self, token: &str, user: &User, right: Right) -> Result<bool, Error> {
        let key = (self.hash(token), right.clone());
        let last = async || self.last_rights.get(&key).await.map(|()| true);
        if self.rights.get(&key).await.is_none()
            && self.is_away()
            && let Some(known) = last().await
        {
            return Ok(known);
        }
        let asked = async {
            let answer = self.heard(self.reviewer.may(user, &right).await)?;
            match answer {
                true => self.last_rights.insert(key.clone(), ()).await,
                false => self.last_rights.invalidate(&key).await,
            }
            Ok(answer)
        };
        match self.rights.try_get_with(key.clone(), asked).await {
            Ok(answer) => Ok(answer),
            Err(why) => self.else_last(&why, last).await,
        }
    }

    /// The last yes, when the API server can't be reached.
    async fn else_last<T>(&self, why: &Unavailable, last: impl AsyncFnOnce() -> Option<T>) -> Result<T, Error> {
        match why {
            Unavailable::Away(_) => last().await.ok_or(Error::Unavailable),
            Unavailable::Refused(why) => {
                tracing::warn!(%why, "the Kubernetes API server can't be asked for a caller's rights");
                Err(Error::Unavailable)
            }
        }
    }

    /// Whether the API server is away, so that known callers need not wait for it. Of all that ask at the moment when it
    /// is worth a try again, one hears no.
    fn is_away(&self) -> bool {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &mut *away {
            None => false,
            Some(until) if *until <= now => {
                *until = now + self.times.no;
                false
            }
            Some(_) => true,
        }
    }

    /// Notes whether the API server is away; tells of changes.
    fn heard<T>(&self, answer: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Err(Unavailable::Away(why)) => {
                if away.replace(Instant::now() + self.times.no).is_none() {
                    let seconds = self.times.stale.as_secs();
                    tracing::warn!(%why, "the Kubernetes API server can't be reached: who was let in in the last {seconds} s goes on");
                }
            }
            _ => {
                if away.take().is_some() {
                    tracing::info!("the Kubernetes API server can be reached again");
                }
            }
        }
        answer
    }

    fn hash(&self, token: &str) -> TokenHash {
        let mut hash = TokenHash::default();
        hash.copy_from_slice(hmac::sign(&self.key, token.as_bytes()).as_ref());
        hash
    }
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
