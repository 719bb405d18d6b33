//! ingestUsageEvent: judge, carry out commands, commit, tell.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Service, invalid};
use crate::api::{Customer, CustomerSpec};
use crate::event::{Item, Refusal, names, subject};
use crate::ingest::{Judge, Judged, Reject, Submission};
use crate::limits;
use crate::metering::{Caller, Error, Ingested, RejectCode, Rejection};
use crate::registry::Registry;
use crate::warehouse::row::Row;

/// Most events that a log line names, and most bytes of a source or id there.
const LOGGED_EVENTS: usize = 10;
const LOGGED_BYTES: usize = 128;
/// Most bytes of a refused event that are kept when it was refused for its size, or would be.
const TOO_LARGE_KEPT: usize = 4_096;

impl<R: Registry> Service<R> {
    pub(super) async fn ingest(&self, caller: &Caller, items: Vec<Item>, atomic: bool) -> Result<Ingested, Error> {
        self.synced()?;
        let arrival_us = Timestamp::now().as_microsecond();
        let mut judge = Judge::new(&self.catalog, &caller.namespace, self.known_customers_only, arrival_us);
        let is_single = items.len() == 1;
        let mut submission = Submission { atomic, rows: Vec::with_capacity(items.len()), ..Submission::default() };
        // Of each row of the submission: its place in the request, and how it came.
        let mut origins = Vec::with_capacity(items.len());
        let (mut others, mut all_good) = (Vec::new(), true);
        for (index, Item { raw, parsed }) in items.into_iter().enumerate() {
            match judge.judge(parsed) {
                Ok(Judged::Row(row)) => {
                    origins.push((index, raw));
                    submission.rows.push(row);
                }
                other => {
                    all_good &= other.is_ok();
                    others.push((index, raw, other));
                }
            }
        }
        if atomic && !all_good {
            submission.rows.clear();
            origins.clear();
        }
        let mut answer = Ingested::default();

        for (index, raw, judged) in others {
            let refusal = match judged {
                Err(refusal) => refusal,
                Ok(_) if atomic && !all_good => continue,
                Ok(_) if atomic && !is_single => {
                    return Err(invalid(
                        "invalid_parameter",
                        "atomic: a batch with commands in it can't be all or nothing; send commands by themselves",
                    ));
                }
                Ok(command) => match self.carry_out(caller, command).await {
                    Ok(row) => {
                        origins.push((index, raw));
                        submission.rows.push(row);
                        continue;
                    }
                    // The whole request comes again; what was done stays done.
                    Err(error @ (Error::Unavailable { .. } | Error::Overloaded { .. } | Error::Internal(_))) => return Err(error),
                    Err(error) if is_single => return Err(error),
                    Err(error) => Refusal { code: RejectCode::InvalidEvent, source: None, id: None, message: error.to_string() },
                },
            };
            if !atomic {
                submission.rejects.push(reject(&caller.namespace, arrival_us, &raw, &refusal));
            }
            answer.rejected.push(rejection(index, refusal));
        }
        let refused = self.committer.commit(submission).await.inspect_err(|why| {
            let ids = told(origins.iter().map(|(_, raw)| names(raw)));
            tracing::warn!(events = ids, of = origins.len(), "events were not confirmed: {why}");
        })?;
        answer.accepted = if atomic && !refused.is_empty() { 0 } else { origins.len() - refused.len() };
        if !refused.is_empty() {
            let mut kept = Submission::default();
            for at in refused {
                let (index, raw) = &origins[at];
                let refusal = taken(names(raw));
                if !atomic {
                    kept.rejects.push(reject(&caller.namespace, arrival_us, raw, &refusal));
                }
                answer.rejected.push(rejection(*index, refusal));
            }
            answer.rejected.sort_by_key(|rejection| rejection.index);
            self.committer.commit(kept).await?;
        }
        if !answer.rejected.is_empty() {
            let ids = answer.rejected.iter().map(|rejection| (rejection.source.clone(), rejection.id.clone()));
            let codes: BTreeSet<_> = answer.rejected.iter().map(|rejection| rejection.code.as_str()).collect();
            // Their messages may quote what was sent.
            tracing::info!(events = told(ids), of = answer.rejected.len(), ?codes, "events were not taken");
        }
        if answer.accepted == 0 && !answer.rejected.is_empty() { Err(Error::AllRejected(answer)) } else { Ok(answer) }
    }

    /// Onboarding makes a Customer, offboarding deletes one. A command that comes again, perhaps after its opposite,
    /// changes nothing: it is stored like an event once it is carried out.
    async fn carry_out(&self, caller: &Caller, command: Judged) -> Result<Row, Error> {
        let (Judged::Row(row) | Judged::Onboard { row, .. } | Judged::Offboard { row, .. }) = &command;
        self.warehouse.ensure_bootstrap().await?;
        if self.warehouse.has_event(row.identity, row.event.attributes.event_type()).await? {
            return Ok(row.clone());
        }
        match command {
            Judged::Row(row) => Ok(row),
            Judged::Onboard { tenant_id, tenant_name, row } => {
                let mut customer = Customer::new(&tenant_id, CustomerSpec { display_name: tenant_name, ..CustomerSpec::default() });
                customer.metadata.namespace = Some(caller.namespace.clone());
                match self.registry.create(caller, customer).await {
                    Err(Error::Conflict(_)) => self.stays(caller, &tenant_id).await.map(|()| row),
                    created => created.map(|_| row),
                }
            }
            Judged::Offboard { tenant_id, row } => match self.registry.delete::<Customer>(caller, &tenant_id).await {
                Err(Error::NotFound(_)) => Ok(row),
                deleted => deleted.map(|()| row),
            },
        }
    }

    /// A Customer that is on its way out is none that was made.
    async fn stays(&self, caller: &Caller, tenant_id: &str) -> Result<(), Error> {
        let customer = self.registry.get::<Customer>(caller, tenant_id).await?;
        match customer.metadata.deletion_timestamp {
            None => Ok(()),
            Some(_) => Err(Error::Unavailable {
                message: format!("customer {tenant_id} is being deleted: onboard it again when it is gone"),
                retry_after: 5,
            }),
        }
    }
}

/// The first of some events as a log names them: `source id, …`, each cut.
fn told(ids: impl Iterator<Item = (Option<String>, Option<String>)>) -> String {
    let cut = |text: Option<String>| {
        let mut text = text.unwrap_or_default();
        text.truncate(text.floor_char_boundary(LOGGED_BYTES));
        text
    };
    ids.take(LOGGED_EVENTS).map(|(source, id)| format!("{} {}", cut(source), cut(id))).collect::<Vec<_>>().join(", ")
}

/// Why an event is refused whose identity another one claimed that is not stored.
pub(super) fn taken((source, id): (Option<String>, Option<String>)) -> Refusal {
    let message = "an event with this source and id came before with another type and is not known to be stored: send that one again, \
                   or this one with an id of its own";
    Refusal { code: RejectCode::InvalidEvent, source, id, message: message.to_owned() }
}

fn rejection(index: usize, Refusal { code, source, id, message }: Refusal) -> Rejection {
    Rejection { index, source, id, code, message }
}

fn reject(namespace: &str, received_us: i64, raw: &Bytes, refusal: &Refusal) -> Reject {
    let is_large = refusal.code == RejectCode::TooLarge || raw.len() > limits::EVENT_BYTES;
    let kept = if is_large { raw.len().min(TOO_LARGE_KEPT) } else { raw.len() };
    let mut subject = subject(raw).unwrap_or_default();
    subject.truncate(subject.floor_char_boundary(limits::ATTRIBUTE_BYTES));
    Reject {
        namespace: namespace.to_owned(),
        received_us,
        reject_id: Uuid::new_v4(),
        source: refusal.source.clone(),
        event_id: refusal.id.clone(),
        // So that purging a customer takes its rejects, too.
        subject,
        code: refusal.code.as_str(),
        message: refusal.message.clone(),
        // A slice would hold the whole body for as long as the reject waits.
        event: Bytes::copy_from_slice(&raw[..kept]),
        is_deleted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_of_what_no_event_could_be_whatever_it_was_refused_for() {
        let long = "x".repeat(limits::EVENT_BYTES);
        for (raw, subject) in [
            (format!(r#"[["{long}"]]"#), 0),
            (format!(r#"{{"x":"{long}","data":{{"tenantId":"acme"}}}}"#), "acme".len()),
            (format!(r#"{{"x":1,"subject":"{long}"}}"#), limits::ATTRIBUTE_BYTES),
        ] {
            let refusal = Refusal { code: RejectCode::InvalidEvent, source: None, id: None, message: String::new() };
            let body = Bytes::from(raw.clone());
            let reject = reject("default", 0, &body, &refusal);
            assert_eq!(reject.event, raw.as_bytes()[..TOO_LARGE_KEPT]);
            assert!(body.is_unique(), "a reject holds no body");
            assert_eq!(reject.subject.len(), subject);
        }
    }
}
