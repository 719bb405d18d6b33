//! The records beside `IMetering`: customers' other half, listings, replay, revert, readiness.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::ingest::taken;
use super::usage::active;
use super::{Service, invalid, page_size};
use crate::api::Customer;
use crate::event::{Form, Item, Leaves, Refusal, parse};
use crate::ingest::{Judge, Judged, Reject, Submission, countable};
use crate::limits;
use crate::meter::Definition;
use crate::metering::{
    Caller, CancellationRecord, CustomerDocument, Error, EventFilter, Ingested, Listing, Page, Records, RejectCode, RejectedEvent,
    Rejection, StoredEvent,
};
use crate::registry::Registry;
use crate::warehouse::retention::{may_go, month_of};
use crate::warehouse::{EventRecord, RejectRecord, Rows};

/// Rejects that a replay has in memory at a time.
const REPLAY: usize = 256;
/// Most rejections that a replay's answer lists; the listing of rejects has them all.
const REPLAY_REJECTIONS: usize = limits::PAGE_MAX as usize;

impl<R: Registry> Records for Service<R> {
    async fn fetch_customer(&self, caller: &Caller, customer_id: &str) -> Result<CustomerDocument, Error> {
        self.registry.get::<Customer>(caller, customer_id).await.map(CustomerDocument::from)
    }

    async fn fetch_all_customers(&self, caller: &Caller, page: Page) -> Result<Listing<CustomerDocument>, Error> {
        let Listing { items, next } = self.registry.list::<Customer>(caller, page).await?;
        Ok(Listing { items: items.into_iter().map(CustomerDocument::from).collect(), next })
    }

    async fn update_customer(&self, caller: &Caller, customer_id: &str, customer: CustomerDocument) -> Result<CustomerDocument, Error> {
        let customer = CustomerDocument { customer_id: customer_id.to_owned(), ..customer };
        self.registry.replace::<Customer>(caller, customer.into_object(&caller.namespace)).await.map(CustomerDocument::from)
    }

    async fn list_events(&self, caller: &Caller, filter: EventFilter, page: Page) -> Result<Listing<StoredEvent>, Error> {
        self.warehouse.ensure_bootstrap().await?;
        let after = page.token.as_deref().map(untoken).transpose()?;
        let meter = filter.uncounted_by.as_ref().map(|meter_id| self.known_meter(&caller.namespace, meter_id)).transpose()?;
        let uncounted_by = meter.as_deref().map(active).transpose()?;
        let records = self.warehouse.events(&caller.namespace, &filter, uncounted_by, after, page_size(&page)).await?;
        listing(records, EventRecord::cursor, |record| self.stored_event(&caller.namespace, record))
    }

    async fn list_rejected(&self, caller: &Caller, page: Page) -> Result<Listing<RejectedEvent>, Error> {
        self.warehouse.ensure_bootstrap().await?;
        let after = page.token.as_deref().map(untoken).transpose()?;
        let records = self.warehouse.rejects(&caller.namespace, after, &[], page_size(&page)).await?;
        listing(records, |record: &RejectRecord| (record.received_us, record.id()), |record| Ok(rejected_event(record)))
    }

    async fn replay_rejected(&self, caller: &Caller, only: Vec<Uuid>) -> Result<Ingested, Error> {
        self.warehouse.ensure_bootstrap().await?;
        self.synced()?;
        let mut answer = Ingested::default();
        let (mut after, mut index) = (None, 0);
        loop {
            let Rows { rows: kept, more } = self.warehouse.rejects(&caller.namespace, after, &only, REPLAY).await?;
            after = kept.last().map(|last| (last.received_us, last.id()));
            let (mut rows, mut replayed, mut done) = (Submission::default(), Vec::new(), Submission::default());
            let mut refuse = |index, source: String, id: String, code, message| {
                if answer.rejected.len() < REPLAY_REJECTIONS {
                    let named = |text: String| Some(text).filter(|text| !text.is_empty());
                    answer.rejected.push(Rejection { index, source: named(source), id: named(id), code, message });
                }
            };
            for record in kept {
                // An event without a time came when it came, not now.
                let mut judge = Judge::new(&self.catalog, &caller.namespace, self.known_customers_only, record.received_us);
                match again(&record, &mut judge) {
                    Ok(row) => {
                        rows.rows.push(row);
                        replayed.push((index, record));
                    }
                    Err((code, message)) => refuse(index, record.source, record.event_id, code, message),
                }
                index += 1;
            }
            // Rejects go only when their events are confirmed.
            let refused = self.committer.commit(rows).await?;
            for (at, (index, record)) in replayed.into_iter().enumerate() {
                if refused.contains(&at) {
                    let Refusal { code, source, id, message } = taken((Some(record.source), Some(record.event_id)));
                    refuse(index, source.unwrap_or_default(), id.unwrap_or_default(), code, message);
                } else {
                    done.rejects.push(taken_back(&caller.namespace, record));
                }
            }
            answer.accepted += done.rejects.len();
            self.committer.commit(done).await?;
            if !more {
                return Ok(answer);
            }
        }
    }

    async fn list_cancellations(&self, caller: &Caller, page: Page) -> Result<Listing<CancellationRecord>, Error> {
        self.warehouse.ensure_bootstrap().await?;
        let before = page.token.as_deref().map(untoken).transpose()?;
        let records = self.warehouse.cancellations(&caller.namespace, before, page_size(&page)).await?;
        listing(records, |record: &CancellationRecord| record.cancellation_id, Ok)
    }

    async fn revert_cancellation(&self, caller: &Caller, id: Uuid) -> Result<CancellationRecord, Error> {
        self.revert(caller, id).await
    }

    async fn ready(&self) -> Result<(), String> {
        if !self.catalog.synced() {
            return Err("meters and customers have not been read yet".to_owned());
        }
        self.warehouse.ping().await.map_err(|_| "ClickHouse does not answer".to_owned())
    }

    fn default_namespace(&self) -> &str {
        &self.default_namespace
    }
}

impl<R: Registry> Service<R> {
    fn stored_event(&self, namespace: &str, record: EventRecord) -> Result<StoredEvent, Error> {
        let cancellation = Uuid::parse_str(&record.cancellation_id).ok().filter(|id| !id.is_nil());
        let leaves = Leaves::from_stored(&record.keys, &record.vals);
        let in_time =
            |time: Result<Timestamp, jiff::Error>| time.map_err(|why| Error::Internal(format!("a stored time is outside time: {why}")));
        let time = in_time(Timestamp::from_millisecond(record.time_ms))?;
        let counts = |definition: &Definition| {
            let gone = definition.retention_days.map(|days| may_go(Timestamp::now(), days));
            gone.is_none_or(|gone| month_of(time) > gone) && countable(definition, &leaves).is_ok()
        };
        let meters = match cancellation {
            Some(_) => Vec::new(),
            None => {
                let of_type = self.catalog.meters_of_type(namespace, &record.event_type);
                let counting = of_type.iter().filter(|meter| meter.definition.as_ref().is_some_and(counts));
                counting.map(|meter| meter.meter_id.clone()).collect()
            }
        };
        let data = leaves.to_json();
        Ok(StoredEvent {
            time,
            received: in_time(Timestamp::from_microsecond(record.received_us))?,
            id: record.event_id,
            source: record.source,
            event_type: record.event_type,
            subject: record.subject,
            data: RawValue::from_string(data).map_err(|why| Error::Internal(format!("stored data is no JSON: {why}")))?,
            meters,
            cancellation_id: cancellation,
        })
    }
}

/// Judges a kept reject again.
fn again(record: &RejectRecord, judge: &mut Judge<'_>) -> Result<crate::warehouse::row::Row, (RejectCode, String)> {
    // A list would be read as several events, and taken back as one.
    if !record.event.trim_ascii_start().starts_with(b"{") {
        return Err((RejectCode::InvalidEvent, "it is no JSON object: it can't become an event".to_owned()));
    }
    let item: Option<Item> = parse(Form::Json, Bytes::from(record.event.clone())).ok().and_then(|items| items.into_iter().next());
    let item = item.ok_or_else(|| (RejectCode::InvalidEvent, "it is no JSON: it can't become an event".to_owned()))?;
    match judge.judge(item.parsed) {
        Ok(Judged::Row(row)) => Ok(row),
        Ok(_) => Err((RejectCode::InvalidEvent, "it is a command: send it again instead".to_owned())),
        Err(refusal) => Err((refusal.code, refusal.message)),
    }
}

fn taken_back(namespace: &str, record: RejectRecord) -> Reject {
    Reject {
        namespace: namespace.to_owned(),
        received_us: record.received_us,
        reject_id: record.id(),
        source: None,
        event_id: None,
        subject: String::new(),
        code: "",
        message: String::new(),
        event: Bytes::new(),
        is_deleted: true,
    }
}

fn rejected_event(record: RejectRecord) -> RejectedEvent {
    let named = |text: String| Some(text).filter(|text| !text.is_empty());
    RejectedEvent {
        reject_id: record.id(),
        received: record.received(),
        source: named(record.source),
        id: named(record.event_id),
        code: record.code,
        message: record.message,
        event: String::from_utf8_lossy(&record.event).into_owned(),
    }
}

/// A page of records as the API shows it.
fn listing<T, U, C: Serialize>(
    Rows { rows, more }: Rows<T>,
    cursor: impl Fn(&T) -> C,
    show: impl Fn(T) -> Result<U, Error>,
) -> Result<Listing<U>, Error> {
    let next = rows.last().filter(|_| more).map(|last| token(&cursor(last))).transpose()?;
    Ok(Listing { items: rows.into_iter().map(show).collect::<Result<_, _>>()?, next })
}

fn token(cursor: &impl Serialize) -> Result<String, Error> {
    serde_json::to_vec(cursor).map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(|why| Error::Internal(why.to_string()))
}

fn untoken<T: DeserializeOwned>(token: &str) -> Result<T, Error> {
    let json = URL_SAFE_NO_PAD.decode(token).ok();
    json.and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| invalid("invalid_parameter", "continue: this is not what the page before gave"))
}
