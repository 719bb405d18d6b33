//! cancelUsageEvents and its revert.
//!
//! # Tombstones
//! A cancellation is a row with the key of its event, a greater version and the cancellation's id, written to `events` and from
//! there through the landing table, so that every meter agrees with it. What it hits is first written down
//! (`cancelled_events`), then its record, and only then rows ([`Recorded`](crate::warehouse::Recorded)); both it and its revert go by that list,
//! so either may be cut off and done again. A cancellation that comes again is a new one, which first spreads those that it finds, and one by a filter
//! all that were begun and not finished, for the Meter that it asks may know of one already.

use jiff::Timestamp;
use uuid::Uuid;

use super::usage::{active, check_names};
use super::{Service, invalid};
use crate::event::identity;
use crate::metering::{Caller, CancelRequest, CancelTarget, CancellationRecord, Cancelled, Error, EventRef};
use crate::registry::Registry;
use crate::warehouse::Asked;
use crate::warehouse::select::{self, Source};

impl<R: Registry> Service<R> {
    pub(super) async fn cancel(&self, caller: &Caller, request: CancelRequest) -> Result<Cancelled, Error> {
        let namespace = caller.namespace.as_str();
        self.warehouse.ensure_bootstrap().await?;
        if !request.dry_run {
            self.warehouse.await_turns().await?;
        }
        let id = Uuid::now_v7();
        let (targets, not_found, asked) = match &request.target {
            CancelTarget::Events(events) => {
                let (targets, not_found) = self.by_identity(namespace, events).await?;
                (targets, not_found, None)
            }
            CancelTarget::Filter { meter_id, query } => {
                let meter = self.known_meter(namespace, meter_id)?;
                let (table, definition) = active(&meter)?;
                check_names(definition, query)?;
                let reading = self.warehouse.reading_of_rows(table, definition, query).await?;
                let asked = Asked::of(table, definition, query.from);
                let let_go = self.warehouse.whole(&asked).await?;
                let database = self.warehouse.database();
                let source = Source { database, namespace, table, definition, reading: &reading, let_go, subjects: None };
                let keys = select::counted_keys(&source, query);
                let target = select::cancel_by_keys(self.warehouse.database(), namespace, &definition.event_type, keys);
                (vec![target], Vec::new(), Some((asked, let_go)))
            }
        };
        if request.dry_run {
            let cancelled = self.warehouse.count_to_cancel(targets).await?;
            if let Some((asked, let_go)) = &asked {
                self.warehouse.still_whole(asked, *let_go).await?;
            }
            return Ok(Cancelled { cancellation_id: None, cancelled, not_found, dry_run: true });
        }
        let (warehouse, namespace, cancelled_by) = (self.warehouse.clone(), namespace.to_owned(), caller.name.clone());
        let cancelled = to_the_end(async move {
            // Those may have been cut off when `events` had heard of them and a meter had not, or of a revert neither. What a filter hits
            // is read of one meter, which may know of one that another does not.
            let mut cut_off = warehouse.cancellations_of(targets.clone()).await?;
            if asked.is_some() {
                cut_off.extend(warehouse.unfinished(&namespace).await?);
            }
            for before in cut_off {
                match warehouse.cancellation(&namespace, before).await? {
                    Some(reverted) if reverted.record().reverted_at.is_some() => warehouse.turn(&reverted).await?,
                    _ => warehouse.spread(&namespace, before).await?,
                }
            }
            let noted = warehouse.note_to_cancel(targets, &namespace, id).await?;
            // What a filter hits is all that the Meter counts, or nothing.
            if let Some((asked, let_go)) = &asked {
                warehouse.still_whole(asked, *let_go).await?;
            }
            let (created_at, reason) = (Timestamp::now(), request.reason);
            let record = CancellationRecord {
                cancellation_id: id,
                reason,
                created_at,
                cancelled: noted,
                reverted_at: None,
                cancelled_by,
                reverted_by: None,
            };
            let recorded = warehouse.begin_cancellation(&namespace, record).await?;
            warehouse.turn(&recorded).await?;
            // Another that runs at the same time may have hit some, which are not this one's to revert.
            warehouse.await_turns().await?;
            let cancelled = warehouse.count_cancelled(&namespace, id).await?;
            Ok(warehouse.finish_cancellation(recorded, cancelled).await?.cancelled)
        })
        .await?;
        Ok(Cancelled { cancellation_id: Some(id), cancelled, not_found, dry_run: false })
    }

    pub(super) async fn revert(&self, caller: &Caller, id: Uuid) -> Result<CancellationRecord, Error> {
        let namespace = caller.namespace.as_str();
        self.warehouse.ensure_bootstrap().await?;
        let record = self.warehouse.cancellation(namespace, id).await?.map(CancellationRecord::from);
        let record = record.ok_or_else(|| Error::NotFound(format!("there is no cancellation {id} in namespace {namespace}")))?;
        // Twice is once: the first time and name stay.
        let record = match record.reverted_at {
            Some(_) => record,
            None => CancellationRecord { reverted_at: Some(Timestamp::now()), reverted_by: caller.name.clone(), ..record },
        };
        let (warehouse, namespace) = (self.warehouse.clone(), namespace.to_owned());
        to_the_end(async move {
            // Its record first: a cancellation that has not come to hit its events yet hits none from then on.
            let recorded = warehouse.begin_cancellation(&namespace, record).await?;
            warehouse.turn(&recorded).await?;
            let cancelled = recorded.record().cancelled;
            Ok(warehouse.finish_cancellation(recorded, cancelled).await?)
        })
        .await
    }

    /// The stored ones among named events, by month, and the others.
    async fn by_identity(&self, namespace: &str, events: &[EventRef]) -> Result<(Vec<select::Statement>, Vec<EventRef>), Error> {
        if events.is_empty() {
            return Err(invalid("invalid_body", "events: name at least one"));
        }
        let ids: Vec<u128> = events.iter().map(|event| identity(namespace, &event.source, &event.id)).collect();
        let mut months = self.warehouse.by_month(&ids).await?;
        let stored = self.warehouse.stored_in(&months).await?;
        let not_found = events.iter().zip(&ids).filter(|(_, id)| !stored.contains_key(id)).map(|(event, _)| event.clone()).collect();
        // What is stored from now on was not found: it is not cancelled either.
        months.retain(|_, ids| {
            ids.retain(|id| stored.contains_key(id));
            !ids.is_empty()
        });
        let of = |(month, ids): (u32, Vec<u128>)| select::cancel_by_ids(self.warehouse.database(), namespace, &ids, month);
        Ok((months.into_iter().map(of).collect(), not_found))
    }
}

/// Carries work to its end though the request that wants it goes away.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or_else(|why| Err(Error::Internal(format!("the work was ended: {why}"))))
}
