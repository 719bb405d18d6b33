//! The data path in one process on a real ClickHouse: a database of its own, Meters reconciled until they are ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kubemeter::api::{Aggregation, Customer, CustomerSpec, DeletionPolicy, Meter, MeterSpec};
use kubemeter::catalog::Catalog;
use kubemeter::event::{Form, parse};
use kubemeter::metering::{Caller, Error, Ingested, Metering as _, Usage, UsageQuery};
use kubemeter::reconcile::Reconciler;
use kubemeter::service::Service;
use kubemeter::telemetry::Metrics;
use kubemeter::warehouse::note::TableNote;
use kubemeter::warehouse::{Cluster, Topology, Warehouse, WarehouseOptions};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::nowhere::Nowhere;
use crate::support::{CLUSTER, ClickHouse, eventually};

/// Namespace of everything in a lab.
pub const NAMESPACE: &str = "shop";

pub struct Lab {
    pub options: WarehouseOptions,
    pub warehouse: Warehouse,
    pub reconciler: Reconciler,
    pub catalog: Catalog,
    pub service: Service<Nowhere>,
    /// Of this gateway.
    pub metrics: Arc<Metrics>,
    pub customers: Vec<Customer>,
}

/// A spec with the fields that tests vary.
pub fn spec(event_type: &str, aggregation: Aggregation, value: Option<&str>, groups: &[(&str, &str)]) -> MeterSpec {
    MeterSpec {
        description: None,
        event_type: event_type.to_owned(),
        aggregation,
        value_property: value.map(str::to_owned),
        group_by: groups.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect(),
        unit: None,
        retention: None,
        deletion_policy: DeletionPolicy::Delete,
    }
}

/// A CloudEvent.
pub fn event(id: &str, event_type: &str, subject: &str, time: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "test", "type": event_type, "subject": subject, "time": time, "data": data})
}

/// The table that answers for a Meter.
pub fn active(meter: &Meter) -> String {
    meter.status.as_ref().unwrap().active.as_ref().unwrap().table.clone()
}

/// Everything, as one total.
pub fn total() -> UsageQuery {
    UsageQuery {
        from: None,
        to: None,
        window_size: None,
        time_zone: jiff::tz::TimeZone::get("UTC").unwrap(),
        customers: vec![],
        subjects: vec![],
        group_by: Default::default(),
        filters: BTreeMap::new(),
    }
}

/// A database of its own.
pub fn new_database() -> String {
    format!("lab_{}", Uuid::new_v4().simple())
}

/// How to reach a ClickHouse of the tests.
pub fn options(url: &str, database: &str, topology: Topology) -> WarehouseOptions {
    WarehouseOptions { url: url.to_owned(), database: database.to_owned(), user: "default".to_owned(), password: String::new(), topology }
}

/// Two engines as a cluster without a Keeper.
pub fn shards_of(shards: &[ClickHouse; 2]) -> Topology {
    let nodes = shards.iter().map(|shard| shard.url().to_owned()).collect();
    Topology::Cluster(Cluster::new(CLUSTER.to_owned(), None, nodes).unwrap())
}

impl Lab {
    /// A lab on the tests' ClickHouse, or with `KUBEMETER_TEST_SHARDS` on their two shards.
    pub fn new() -> Self {
        match std::env::var_os("KUBEMETER_TEST_SHARDS") {
            None => Self::on(ClickHouse::shared().url()),
            Some(_) => Self::on_shards(ClickHouse::shared_shards()),
        }
    }

    /// A lab on a cluster of two shards.
    pub fn on_shards(shards: &[ClickHouse; 2]) -> Self {
        Self::with(&options(shards[0].url(), &new_database(), shards_of(shards)))
    }

    /// A lab on a ClickHouse.
    pub fn on(url: &str) -> Self {
        Self::in_database(url, &new_database())
    }

    /// A lab on a database, which another may use too.
    pub fn in_database(url: &str, database: &str) -> Self {
        Self::with(&options(url, database, Topology::Single))
    }

    /// A lab on a ClickHouse of some topology.
    pub fn with(options: &WarehouseOptions) -> Self {
        let warehouse = Warehouse::new(options);
        let catalog = Catalog::default();
        catalog.set_synced();
        let metrics = Arc::new(Metrics::new().unwrap());
        let service = Service::new(Nowhere, catalog.clone(), warehouse.clone(), Arc::clone(&metrics), NAMESPACE.to_owned(), false);
        let reconciler = Reconciler::new(warehouse.clone());
        Self { options: options.clone(), reconciler, warehouse, catalog, service, metrics, customers: vec![] }
    }

    pub fn caller() -> Caller {
        Caller::trusted(NAMESPACE)
    }

    /// Makes a Meter and waits until it answers.
    pub async fn meter(&self, name: &str, spec: MeterSpec) -> Meter {
        let mut meter = Meter::new(name, spec);
        meter.metadata.namespace = Some(NAMESPACE.to_owned());
        meter.metadata.uid = Some(Uuid::new_v4().to_string());
        meter.metadata.generation = Some(1);
        self.settle(meter).await
    }

    /// Reconciles until the Meter's spec answers.
    pub async fn settle(&self, mut meter: Meter) -> Meter {
        eventually("the meter is ready", async || {
            let outcome = self.reconciler.meter(&meter).await.unwrap();
            meter.status = Some(outcome.status);
            self.catalog.put_meter(&meter);
            let ready = meter.status.as_ref().unwrap().conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            ready.then(|| meter.clone())
        })
        .await
    }

    /// Reconciles until its status counts the events.
    pub async fn counted(&self, mut meter: Meter) -> Meter {
        eventually("the events are counted", async || {
            meter = self.settle(meter.clone()).await;
            meter.status.as_ref().unwrap().events.is_some().then(|| meter.clone())
        })
        .await
    }

    /// What is noted of the table that answers for a Meter.
    pub async fn note(&self, meter: &Meter) -> TableNote {
        let notes = self.warehouse.tables_with_prefix(&active(meter)).await.unwrap();
        notes.iter().find(|(name, _)| *name == active(meter)).map(|(_, note)| serde_json::from_str(note).unwrap()).unwrap()
    }

    /// Makes a Customer, younger than those before.
    pub async fn customer(&mut self, name: &str, subjects: &[&str]) -> Customer {
        let subjects = subjects.iter().map(|s| (*s).to_owned()).collect();
        let mut customer = Customer::new(name, CustomerSpec { subjects, ..CustomerSpec::default() });
        customer.metadata.namespace = Some(NAMESPACE.to_owned());
        customer.metadata.uid = Some(Uuid::new_v4().to_string());
        let created = jiff::Timestamp::from_second(1_700_000_000 + i64::try_from(self.customers.len()).unwrap()).unwrap();
        customer.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        self.reconciler.customer(&customer, &self.customers).await.unwrap();
        self.catalog.put_customer(&customer);
        self.customers.push(customer.clone());
        customer
    }

    /// Another gateway on the same ClickHouse.
    pub fn another_gateway(&self) -> Service<Nowhere> {
        let metrics = Arc::new(Metrics::new().unwrap());
        Service::new(Nowhere, self.catalog.clone(), self.warehouse.clone(), metrics, NAMESPACE.to_owned(), false)
    }

    /// Posts events.
    pub async fn post(&self, events: &Value) -> Result<Ingested, Error> {
        Self::post_to(&self.service, events).await
    }

    /// Posts events to a gateway.
    pub async fn post_to(gateway: &Service<Nowhere>, events: &Value) -> Result<Ingested, Error> {
        let items = parse(Form::Json, Bytes::from(events.to_string())).unwrap();
        gateway.ingest_usage_events(&Self::caller(), items, false).await
    }

    pub async fn usage(&self, meter: &str, query: UsageQuery) -> Usage {
        self.service.fetch_usage(&Self::caller(), meter, query).await.unwrap()
    }

    /// The one number of a meter; "0" when there is none.
    pub async fn number(&self, meter: &str) -> String {
        let usage = self.usage(meter, total()).await;
        assert!(usage.data.len() < 2);
        usage.data.first().map_or_else(|| "0".to_owned(), |row| row.value.clone())
    }
}
