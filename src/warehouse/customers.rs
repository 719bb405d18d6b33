//! The subjects of a question's customers, looked up beside the question.
//!
//! In the question's own statement looking them up takes as long as all the rest. So it is asked with a guess, and at the same time they are
//! looked up; if they are others it is asked once more, with these. So no answer goes by a guess.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use super::client::fit_param;
use super::select::owners_of_claimed;
use super::{Error, Warehouse};
use crate::metering::UsageQuery;

/// Most claimed subjects of which a question names those that are its customers'; more are looked up by its own statement.
const MOST: usize = 1_000;

/// Subjects by namespace and customers that were guessed wrongly, as they were when they were looked up last: the next guess. None: too many.
pub(super) type Guesses = Cache<(String, Vec<String>), Option<Arc<[String]>>>;

/// Remembers 4 MiB of names, for an hour each.
pub(super) fn guesses() -> Guesses {
    let bytes = |names: &[String]| names.iter().map(|name| size_of::<String>() + name.len()).sum::<usize>();
    let weigh = move |(namespace, customers): &(String, Vec<String>), subjects: &Option<Arc<[String]>>| {
        // An entry itself takes some 200 bytes.
        u32::try_from(200 + namespace.len() + bytes(customers) + subjects.as_deref().map_or(0, bytes)).unwrap_or(u32::MAX)
    };
    Cache::builder().weigher(weigh).max_capacity(4 * 1_024 * 1_024).time_to_live(Duration::from_hours(1)).build()
}

/// The customers' subjects, in order: of those that one of them claims or is named like, given with who has each, and of their names that
/// nobody claims. [`subjects_of_customers`](super::select::subjects_of_customers) finds the same, which takes ClickHouse longer.
fn owned(customers: &[String], owners: Vec<(String, String)>) -> Vec<String> {
    let mut subjects: BTreeSet<String> = customers.iter().cloned().collect();
    let is_asked_for = subjects.clone();
    for (subject, owner) in owners {
        if is_asked_for.contains(&owner) {
            subjects.insert(subject);
        } else {
            subjects.remove(&subject);
        }
    }
    subjects.into_iter().collect()
}

impl Warehouse {
    /// The subjects that usage counts as a customer's: those mapped to it, and its own name where no other has that.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn subjects_of(&self, namespace: &str, customer: &str) -> Result<Vec<String>, Error> {
        let customers = [customer.to_owned()];
        let owners = self.query(&owners_of_claimed(self.database(), None)).bind("namespace", namespace).bind("customers", &customers[..]);
        Ok(owned(&customers, owners.rows().await?))
    }

    /// The same of several customers. None: they are too many to be named in a question.
    async fn few_subjects_of(&self, namespace: &str, customers: &[String]) -> Result<Option<Arc<[String]>>, Error> {
        let owners = owners_of_claimed(self.database(), Some(MOST + 1));
        let owners: Vec<_> = self.query(&owners).bind("namespace", namespace).bind("customers", customers).rows().await?;
        if owners.len() > MOST {
            return Ok(None);
        }
        let subjects = owned(customers, owners);
        Ok(fit_param(&subjects).then(|| subjects.into()))
    }

    /// Asks a question with the subjects of its customers, which `guess` gives in order, perhaps, if they are so many at most. None: its
    /// statement is to look them up, or it asks for no customers.
    ///
    /// # Errors
    /// Those of the question; see [`Error`].
    pub async fn with_subjects<T, F: Future<Output = Result<T, Error>>>(
        &self,
        namespace: &str,
        query: &UsageQuery,
        guess: impl FnOnce(usize) -> Option<Vec<String>>,
        ask: impl Fn(Option<Arc<[String]>>) -> F,
    ) -> Result<T, Error> {
        // Grouped by customer, subjects are mapped by the statement: then that is to choose them, too.
        if query.customers.is_empty() || query.group_by.contains("customer") {
            return ask(None).await;
        }
        let key = (namespace.to_owned(), query.customers.clone());
        let first_guess = || guess(MOST).filter(|subjects| fit_param(subjects)).map(Arc::from);
        let guessed = self.guesses.get(&key).await.unwrap_or_else(first_guess);
        if guessed.is_none() {
            return ask(None).await;
        }
        let (answer, found) = tokio::join!(ask(guessed.clone()), self.few_subjects_of(namespace, &query.customers));
        let found = found?;
        if found == guessed {
            return answer;
        }
        self.guesses.insert(key, found.clone()).await;
        ask(found).await
    }
}
