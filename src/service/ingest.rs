//! ingestUsageEvent: judge, carry out commands, commit, tell.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::Service;
use crate::api::{Customer, CustomerSpec};
use crate::event::{Item, Refusal};
use crate::ingest::{Judge, Judged, Reject, Submission};
use crate::metering::{Caller, Error, Ingested, RejectCode, Rejection};
use crate::registry::Registry;

/// Most bytes of a refused event that are kept when it was refused for its size.
const TOO_LARGE_KEPT: usize = 4_096;

impl<R: Registry> Service<R> {
    pub(super) async fn ingest(&self, caller: &Caller, items: Vec<Item>, atomic: bool) -> Result<Ingested, Error> {
        let arrival_us = Timestamp::now().as_microsecond();
        let mut judge = Judge::new(&self.catalog, &caller.namespace, self.known_customers_only, arrival_us);
        let judged: Vec<_> = items.into_iter().map(|Item { raw, parsed }| (raw, judge.judge(parsed))).collect();
        let (all_good, is_single) = (judged.iter().all(|(_, judged)| judged.is_ok()), judged.len() == 1);
        let mut submission = Submission::default();
        let mut answer = Ingested::default();

        for (index, (raw, judged)) in judged.into_iter().enumerate() {
            let refusal = match judged {
                Err(refusal) => refusal,
                Ok(_) if atomic && !all_good => continue,
                Ok(Judged::Row(row)) => {
                    submission.rows.push(row);
                    answer.accepted += 1;
                    continue;
                }
                Ok(command) => match self.carry_out(caller, command).await {
                    Ok(()) => {
                        answer.accepted += 1;
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
            let Refusal { code, source, id, message } = refusal;
            answer.rejected.push(Rejection { index, source, id, code, message });
        }
        self.committer.commit(submission).await?;
        self.metrics.events_accepted.inc_by(answer.accepted as u64);
        answer.rejected.iter().for_each(|rejection| self.metrics.event_rejected(rejection.code));
        if answer.accepted == 0 && !answer.rejected.is_empty() { Err(Error::AllRejected(answer)) } else { Ok(answer) }
    }

    /// Onboarding makes a Customer, offboarding deletes one; doing it again is fine.
    async fn carry_out(&self, caller: &Caller, command: Judged) -> Result<(), Error> {
        let done = match command {
            Judged::Row(_) => Ok(()),
            Judged::Onboard { tenant_id, tenant_name } => {
                let mut customer = Customer::new(&tenant_id, CustomerSpec { display_name: tenant_name, ..CustomerSpec::default() });
                customer.metadata.namespace = Some(caller.namespace.clone());
                self.registry.create(caller, customer).await.map(drop)
            }
            Judged::Offboard { tenant_id } => self.registry.delete::<Customer>(caller, &tenant_id).await,
        };
        match done {
            Err(Error::Conflict(_) | Error::NotFound(_)) => Ok(()),
            other => other,
        }
    }
}

fn reject(namespace: &str, received_us: i64, raw: &Bytes, refusal: &Refusal) -> Reject {
    let kept = if refusal.code == RejectCode::TooLarge { raw.len().min(TOO_LARGE_KEPT) } else { raw.len() };
    Reject {
        namespace: namespace.to_owned(),
        received_us,
        reject_id: Uuid::new_v4(),
        source: refusal.source.clone(),
        event_id: refusal.id.clone(),
        code: refusal.code.as_str(),
        message: refusal.message.clone(),
        event: raw.slice(..kept),
        is_deleted: false,
    }
}
