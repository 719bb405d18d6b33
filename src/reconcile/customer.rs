//! Customers: whose subjects are whose, and purging.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use uuid::Uuid;

use super::{Error, Outcome, Reconciler, transition};
use crate::api::{ConditionType, Conditions, Customer, CustomerDeletionPolicy, CustomerStatus, Reason};
use crate::limits;
use crate::meter::text;

/// Deadline of a purge's mutations.
const PURGE: Duration = Duration::from_secs(3_600);

impl Reconciler {
    /// Makes the Customer's subjects known to queries. `others` are the namespace's other Customers: of two that claim
    /// a subject the older has it, and the younger's status says so.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn customer(&self, customer: &Customer, others: &[Customer]) -> Result<Outcome<CustomerStatus>, Error> {
        let before = customer.status.clone().unwrap_or_default().conditions;
        let conditions = Conditions::after(&before, customer.metadata.generation, Timestamp::now());
        let (conditions, reason) = if let Err(why) = check(customer) {
            let message = format!("Change the spec: {why}");
            let stalled = conditions.with(ConditionType::Ready, false, Reason::InvalidSpec, &message).with(
                ConditionType::Stalled,
                true,
                Reason::InvalidSpec,
                &message,
            );
            (stalled, Reason::InvalidSpec)
        } else {
            self.warehouse.ensure_bootstrap().await?;
            self.claim(customer, &customer.subjects()).await?;
            let lost = lost_subjects(customer, others);
            if let Some((subject, owner)) = lost.first_key_value() {
                let message = format!(
                    "{} of its subjects belong to an older Customer: {subject:?} to {owner}. Usage of those is not counted here. Remove the subject from one of the two.",
                    lost.len()
                );
                let stalled = conditions.with(ConditionType::Ready, false, Reason::SubjectConflict, &message).with(
                    ConditionType::Stalled,
                    true,
                    Reason::SubjectConflict,
                    &message,
                );
                (stalled, Reason::SubjectConflict)
            } else {
                let subjects = customer.subjects();
                let message = match subjects.as_slice() {
                    [subject] => format!("Events of subject {subject} are this customer's."),
                    _ => format!("Events of {} subjects are this customer's.", subjects.len()),
                };
                (conditions.with(ConditionType::Ready, true, Reason::Mapped, &message), Reason::Mapped)
            }
        };
        let conditions = conditions.build();
        let notices = transition(&before, &conditions, reason);
        Ok(Outcome { status: CustomerStatus { observed_generation: customer.metadata.generation, conditions }, notices, requeue: None })
    }

    /// Makes the Customer's subjects unknown, and purges its events when the deletion policy says so: those that usage
    /// counts as this customer's. Idempotent.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn forget_customer(&self, customer: &Customer) -> Result<(), Error> {
        self.warehouse.ensure_bootstrap().await?;
        if customer.spec.deletion_policy == CustomerDeletionPolicy::Purge {
            self.claim(customer, &customer.subjects()).await?;
            let namespace = customer.namespace().unwrap_or_default();
            let subjects = self.warehouse.subjects_of(&namespace, &customer.name_any()).await?;
            self.warehouse.purge(&namespace, &subjects.iter().map(String::as_str).collect::<Vec<_>>(), PURGE).await?;
        }
        self.claim(customer, &[]).await
    }

    /// Writes the claims that are missing and takes back those that are no more.
    async fn claim(&self, customer: &Customer, subjects: &[&str]) -> Result<(), Error> {
        let namespace = customer.namespace().unwrap_or_default();
        let uid = customer.uid().and_then(|uid| Uuid::parse_str(&uid).ok()).unwrap_or_default();
        let claimed: BTreeSet<String> = self.warehouse.claims(&namespace, uid).await?.into_iter().collect();
        let wanted: BTreeSet<String> = subjects.iter().map(|s| (*s).to_owned()).collect();
        for (subjects, is_deleted) in [(wanted.difference(&claimed), false), (claimed.difference(&wanted), true)] {
            let subjects: Vec<String> = subjects.cloned().collect();
            if !subjects.is_empty() {
                self.warehouse.write_claims(&namespace, &customer.name_any(), uid, created_ms(customer), &subjects, is_deleted).await?;
            }
        }
        Ok(())
    }
}

fn check(customer: &Customer) -> Result<(), String> {
    let subjects = &customer.spec.subjects;
    if subjects.len() > limits::SUBJECTS {
        return Err(format!("spec.subjects has {} entries; at most {} are allowed", subjects.len(), limits::SUBJECTS));
    }
    subjects
        .iter()
        .enumerate()
        .try_for_each(|(index, subject)| text(subject, 1, limits::ATTRIBUTE_BYTES).map_err(|why| format!("spec.subjects[{index}] {why}")))
}

fn created_ms(customer: &Customer) -> i64 {
    customer.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond())
}

/// Subjects of the Customer that an older one has, with its name. The same order decides in queries.
fn lost_subjects(customer: &Customer, others: &[Customer]) -> BTreeMap<String, String> {
    let age = |c: &Customer| (created_ms(c), c.name_any());
    let mut older: Vec<_> = others
        .iter()
        .filter(|other| other.uid() != customer.uid() && other.namespace() == customer.namespace() && age(other) < age(customer))
        .collect();
    older.sort_by_key(|other| std::cmp::Reverse(age(other)));
    let mine: BTreeSet<_> = customer.subjects().into_iter().collect();
    let claims = older.iter().flat_map(|other| other.subjects().into_iter().map(|subject| (subject, other.name_any())));
    claims.filter(|(subject, _)| mine.contains(subject)).map(|(subject, owner)| (subject.to_owned(), owner)).collect()
}
