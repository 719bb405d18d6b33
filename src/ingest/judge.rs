//! Judges events by the Meters that count them. Pure but for reading the catalog.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::catalog::{Catalog, KnownMeter};
use crate::event::{Command, Event, Incoming, Leaves, Refusal, Scalar, identity, value};
use crate::meter::Measure;
use crate::metering::RejectCode;
use crate::warehouse::row::Row;
use crate::warehouse::schema::Landing;

/// What an item is, judged.
#[derive(Debug)]
pub enum Judged {
    /// To be stored.
    Row(Row),
    /// To be carried out by the registry.
    Onboard {
        /// The Customer's name.
        tenant_id: String,
        /// Its display name.
        tenant_name: Option<String>,
    },
    /// To be carried out by the registry.
    Offboard {
        /// The Customer's name.
        tenant_id: String,
    },
}

/// Judges the events of one request.
pub struct Judge<'a> {
    catalog: &'a Catalog,
    namespace: &'a str,
    known_customers_only: bool,
    arrival_us: i64,
    meters: HashMap<String, Vec<Arc<KnownMeter>>>,
}

impl<'a> Judge<'a> {
    /// For events that arrived at a time, µs since 1970.
    pub fn new(catalog: &'a Catalog, namespace: &'a str, known_customers_only: bool, arrival_us: i64) -> Self {
        Self { catalog, namespace, known_customers_only, arrival_us, meters: HashMap::new() }
    }

    /// Judges what one item means.
    ///
    /// An event that some Meter of its type can't count is refused as a whole: a bill that is short because a Meter is
    /// wrong is worse than a refusal that says so, and the reject is kept until the Meter is mended.
    ///
    /// # Errors
    /// Why the event can't be taken.
    pub fn judge(&mut self, item: Result<Incoming, Refusal>) -> Result<Judged, Refusal> {
        match item? {
            Incoming::Event(event) => self.event(event).map(Judged::Row),
            Incoming::Command(Command::Onboard { tenant_id, tenant_name }) => Ok(Judged::Onboard { tenant_id, tenant_name }),
            Incoming::Command(Command::Offboard { tenant_id }) => Ok(Judged::Offboard { tenant_id }),
            Incoming::Command(Command::IngestUsage { id, source, tenant_id, meter_id, time_ms, data }) => {
                match self.catalog.meter(self.namespace, &meter_id).and_then(|meter| meter.definition.clone()) {
                    Some(definition) => {
                        let data = by_meter(&definition, &data);
                        self.event(Event { id, source, event_type: definition.event_type, subject: tenant_id, time_ms, data })
                            .map(Judged::Row)
                    }
                    None => Err(Refusal {
                        code: RejectCode::InvalidEvent,
                        source: Some(source),
                        id: Some(id),
                        message: format!(
                            "meterId {meter_id:?}: there is no such meter in namespace {}, or its spec is invalid",
                            self.namespace
                        ),
                    }),
                }
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<Row, Refusal> {
        if let Err((code, message)) = self.check(&event) {
            return Err(Refusal { code, source: Some(event.source), id: Some(event.id), message });
        }
        Ok(Row {
            identity: identity(self.namespace, &event.source, &event.id),
            landing: Landing::of(self.namespace, &event.event_type),
            namespace: self.namespace.to_owned(),
            received_us: self.arrival_us,
            version: Row::arrival_version(self.arrival_us),
            time_ms: event.time_ms.unwrap_or_else(|| self.arrival_us.div_euclid(1_000)),
            cancellation: Uuid::nil(),
            event,
        })
    }

    fn check(&mut self, event: &Event) -> Result<(), (RejectCode, String)> {
        if self.known_customers_only && !self.catalog.has_subject(self.namespace, &event.subject) {
            return Err((
                RejectCode::UnknownCustomer,
                format!("subject {:?} is no Customer's in namespace {}", event.subject, self.namespace),
            ));
        }
        if !self.meters.contains_key(&event.event_type) {
            self.meters.insert(event.event_type.clone(), self.catalog.meters_of_type(self.namespace, &event.event_type));
        }
        for meter in self.meters.get(&event.event_type).into_iter().flatten() {
            let counted = match meter.definition.as_ref().map(|definition| &definition.measure) {
                Some(Measure::Decimal(_, path)) => value(path, event.data.get(path)).map(drop),
                Some(Measure::UniqueCount(path)) if event.data.get(path).is_none() => {
                    Err((RejectCode::MissingValue, format!("{path} is missing")))
                }
                _ => Ok(()),
            };
            counted.map_err(|(code, message)| (code, format!("{message} (meter {})", meter.meter_id)))?;
        }
        Ok(())
    }
}

/// The data of an `ingestUsage` command as the meter reads it: `value` at the value path, dimensions at their groups' paths.
fn by_meter(definition: &crate::meter::Definition, data: &Leaves) -> Leaves {
    let mut placed: Vec<(String, Scalar<'_>)> = Vec::new();
    let mut place = |key: &str, scalar| {
        if !placed.iter().any(|(taken, _)| taken == key) {
            placed.push((key.to_owned(), scalar));
        }
    };
    for (key, scalar) in data.iter() {
        match key.strip_prefix("$.") {
            Some("value") => {
                if let Some(path) = definition.value_path() {
                    place(path.key(), scalar);
                }
            }
            Some("tenantId" | "meterId" | "time") => {}
            name => match name.and_then(|name| definition.group_by.get(name)) {
                Some(path) => place(path.key(), scalar),
                None => place(key, scalar),
            },
        }
    }
    let mut leaves = Leaves::new();
    placed.iter().for_each(|(key, scalar)| leaves.push(key, *scalar));
    leaves
}
