//! Kubemeter behind the HTTP layer: [`Metering`] and [`Records`] over a registry, a catalog and ClickHouse.

mod cancel;
mod documents;
mod ingest;
mod records;
mod usage;

use std::fmt::Display;
use std::sync::Arc;

use crate::api::{Customer, Meter};
use crate::catalog::Catalog;
use crate::event::Item;
use crate::ingest::{CommitError, Committer};
use crate::limits;
use crate::metering::{
    Caller, CancelRequest, Cancelled, CustomerDocument, Error, Ingested, Listing, MeterDocument, Metering, Page, Usage, UsageQuery,
};
use crate::registry::Registry;
use crate::telemetry::Metrics;
use crate::warehouse::{self, Warehouse};

/// The service of one gateway.
pub struct Service<R> {
    registry: R,
    catalog: Catalog,
    warehouse: Warehouse,
    committer: Committer,
    default_namespace: String,
    known_customers_only: bool,
}

impl<R: Registry> Service<R> {
    /// Puts the parts together and starts committing.
    pub fn new(
        registry: R,
        catalog: Catalog,
        warehouse: Warehouse,
        metrics: Arc<Metrics>,
        default_namespace: String,
        known_customers_only: bool,
    ) -> Self {
        let committer = Committer::start(warehouse.clone(), metrics);
        Self { registry, catalog, warehouse, committer, default_namespace, known_customers_only }
    }
}

impl<R: Registry> Metering for Service<R> {
    async fn create_meter(&self, caller: &Caller, meter: MeterDocument) -> Result<MeterDocument, Error> {
        self.registry.create::<Meter>(caller, meter.into_object(&caller.namespace)).await.map(MeterDocument::from)
    }

    async fn fetch_meter(&self, caller: &Caller, meter_id: &str) -> Result<MeterDocument, Error> {
        self.registry.get::<Meter>(caller, meter_id).await.map(MeterDocument::from)
    }

    async fn fetch_all_meters(&self, caller: &Caller, page: Page) -> Result<Listing<MeterDocument>, Error> {
        let Listing { items, next } = self.registry.list::<Meter>(caller, page).await?;
        Ok(Listing { items: items.into_iter().map(MeterDocument::from).collect(), next })
    }

    async fn update_meter(&self, caller: &Caller, meter_id: &str, meter: MeterDocument) -> Result<MeterDocument, Error> {
        let meter = MeterDocument { meter_id: meter_id.to_owned(), ..meter };
        self.registry.replace::<Meter>(caller, meter.into_object(&caller.namespace)).await.map(MeterDocument::from)
    }

    async fn delete_meter(&self, caller: &Caller, meter_id: &str) -> Result<(), Error> {
        self.registry.delete::<Meter>(caller, meter_id).await
    }

    async fn ingest_usage_events(&self, caller: &Caller, items: Vec<Item>, atomic: bool) -> Result<Ingested, Error> {
        self.ingest(caller, items, atomic).await
    }

    async fn fetch_usage(&self, caller: &Caller, meter_id: &str, query: UsageQuery) -> Result<Usage, Error> {
        self.usage(&caller.namespace, meter_id, query).await
    }

    async fn cancel_usage_events(&self, caller: &Caller, cancel: CancelRequest) -> Result<Cancelled, Error> {
        self.cancel(caller, cancel).await
    }

    async fn create_customer(&self, caller: &Caller, customer: CustomerDocument) -> Result<CustomerDocument, Error> {
        self.registry.create::<Customer>(caller, customer.into_object(&caller.namespace)).await.map(CustomerDocument::from)
    }

    async fn delete_customer(&self, caller: &Caller, customer_id: &str) -> Result<(), Error> {
        self.registry.delete::<Customer>(caller, customer_id).await
    }
}

impl From<warehouse::Error> for Error {
    fn from(error: warehouse::Error) -> Self {
        match error {
            // ClickHouse's own words have names of hosts and tables in them: they are for the log.
            warehouse::Error::Unavailable(why) => {
                tracing::warn!(%why, "ClickHouse does not answer");
                Self::Unavailable { message: "ClickHouse does not answer".to_owned(), retry_after: 5 }
            }
            warehouse::Error::UnknownTable(_) => {
                Self::Unavailable { message: "a table is being made or replaced at this moment".to_owned(), retry_after: 2 }
            }
            warehouse::Error::NotWhole(why) => {
                tracing::warn!(%why, "a question is not answered: if this goes on the gateway doesn't hear of Meters (kubemeter_watch_age_seconds), or clocks differ");
                Self::Unavailable { message: "the meter's table is not complete at this moment".to_owned(), retry_after: 5 }
            }
            warehouse::Error::Fenced(why) => {
                tracing::info!(%why, "events are to be sent again, for a purge has begun since they came");
                Self::Unavailable { message: "a purge of a customer's events has begun since these came".to_owned(), retry_after: 1 }
            }
            warehouse::Error::Refused(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full => Self::Overloaded { message: error.to_string(), retry_after: 1 },
            CommitError::Stopping => Self::Unavailable { message: error.to_string(), retry_after: 1 },
            CommitError::Warehouse(error) => error.into(),
        }
    }
}

fn invalid(code: &'static str, message: impl Display) -> Error {
    Error::Invalid { code, message: message.to_string() }
}

impl<R> Service<R> {
    /// What is not known yet can neither judge an event nor answer for a meter.
    fn synced(&self) -> Result<(), Error> {
        let waiting = || Error::Unavailable { message: "meters and customers have not been read yet".to_owned(), retry_after: 2 };
        if self.catalog.synced() { Ok(()) } else { Err(waiting()) }
    }
}

/// A page's size, one more of which is asked for, to know whether another page follows.
fn page_size(page: &Page) -> usize {
    page.limit.unwrap_or(limits::PAGE_DEFAULT).clamp(1, limits::PAGE_MAX) as usize
}
