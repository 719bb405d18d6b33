//! Judges events by the Meters that count them. Pure but for reading the catalog.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use uuid::Uuid;

use crate::catalog::{Catalog, KnownMeter};
use crate::event::{Attributes, Command, Decimal, Event, Incoming, Leaves, Refusal, Scalar, identity, value};
use crate::meter::{Definition, Measure};
use crate::metering::RejectCode;
use crate::warehouse::row::Row;
use crate::warehouse::schema::Landing;

/// What an item is, judged.
#[derive(Debug)]
pub enum Judged {
    /// To be stored.
    Row(Row),
    /// To be carried out by the registry, unless the row is stored already; then to be stored.
    Onboard {
        /// The Customer's name.
        tenant_id: String,
        /// Its display name.
        tenant_name: Option<String>,
        /// The command as an event: once it is stored, it has been carried out.
        row: Row,
    },
    /// As [`Self::Onboard`].
    Offboard {
        /// The Customer's name.
        tenant_id: String,
        /// The command as an event.
        row: Row,
    },
}

/// Judges the events of one request.
pub struct Judge<'a> {
    catalog: &'a Catalog,
    namespace: &'a str,
    /// The same, for the rows.
    shared_namespace: Arc<str>,
    known_customers_only: bool,
    arrival_us: i64,
    types: HashMap<String, OfType, RandomState>,
}

/// What all events of a type share.
struct OfType {
    landing: Landing,
    meters: Vec<Arc<KnownMeter>>,
}

impl<'a> Judge<'a> {
    /// For events that arrived at a time, µs since 1970.
    pub fn new(catalog: &'a Catalog, namespace: &'a str, known_customers_only: bool, arrival_us: i64) -> Self {
        Self { catalog, namespace, shared_namespace: namespace.into(), known_customers_only, arrival_us, types: HashMap::default() }
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
            Incoming::Command(Command::Onboard { id, source, tenant_id, tenant_name }) => {
                let row = self.row(command_event(&id, &source, "onboardingRequest", &tenant_id, tenant_name.as_deref()));
                Ok(Judged::Onboard { tenant_id, tenant_name, row })
            }
            Incoming::Command(Command::Offboard { id, source, tenant_id }) => {
                let row = self.row(command_event(&id, &source, "offboardingRequest", &tenant_id, None));
                Ok(Judged::Offboard { tenant_id, row })
            }
            Incoming::Command(Command::IngestUsage { id, source, tenant_id, meter_id, time_ms, data }) => {
                match self.catalog.meter(self.namespace, &meter_id).and_then(|meter| meter.definition.clone()) {
                    Some(definition) => {
                        let data = match by_meter(&definition, &data) {
                            Ok(data) => data,
                            Err((code, message)) => return Err(Refusal { code, source: Some(source), id: Some(id), message }),
                        };
                        let attributes = Attributes::new(&id, &source, &definition.event_type, &tenant_id);
                        self.event(Event { attributes, time_ms, data }).map(Judged::Row)
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
            let [source, id] = [event.attributes.source(), event.attributes.id()].map(|text| Some(text.to_owned()));
            return Err(Refusal { code, source, id, message });
        }
        Ok(self.row(event))
    }

    fn row(&mut self, event: Event) -> Row {
        Row {
            identity: identity(self.namespace, event.attributes.source(), event.attributes.id()),
            landing: self.of_type(event.attributes.event_type()).landing,
            namespace: Arc::clone(&self.shared_namespace),
            received_us: self.arrival_us,
            version: Row::arrival_version(self.arrival_us),
            time_ms: event.time_ms.unwrap_or_else(|| self.arrival_us.div_euclid(1_000)),
            cancellation: Uuid::nil(),
            event,
        }
    }

    fn check(&mut self, event: &Event) -> Result<(), (RejectCode, String)> {
        let subject = event.attributes.subject();
        if self.known_customers_only && !self.catalog.has_subject(self.namespace, subject) {
            return Err((RejectCode::UnknownCustomer, format!("subject {subject:?} is no Customer's in namespace {}", self.namespace)));
        }
        for meter in &self.of_type(event.attributes.event_type()).meters {
            if let Some(definition) = &meter.definition {
                countable(definition, &event.data).map_err(|(code, message)| (code, format!("{message} (meter {})", meter.meter_id)))?;
            }
        }
        Ok(())
    }

    fn of_type(&mut self, event_type: &str) -> &OfType {
        if !self.types.contains_key(event_type) {
            let of_type = OfType {
                landing: Landing::of(self.namespace, event_type),
                meters: self.catalog.meters_of_type(self.namespace, event_type),
            };
            self.types.insert(event_type.to_owned(), of_type);
        }
        &self.types[event_type]
    }
}

/// Whether a Meter can count an event of its type with these data.
///
/// # Errors
/// Why not.
pub fn countable(definition: &Definition, data: &Leaves) -> Result<(), (RejectCode, String)> {
    match &definition.measure {
        Measure::Decimal(_, path) => value(path, data.get(path)).map(drop),
        Measure::UniqueCount(path) if data.get(path).is_none() => Err((RejectCode::MissingValue, format!("{path} is missing"))),
        Measure::UniqueCount(_) | Measure::Count => Ok(()),
    }
}

/// A command as the event that says that it was carried out.
fn command_event(id: &str, source: &str, event_type: &str, tenant_id: &str, tenant_name: Option<&str>) -> Event {
    let mut data = Leaves::new();
    if let Some(name) = tenant_name {
        data.push("$.tenantName", Scalar::Text(name));
    }
    Event { attributes: Attributes::new(id, source, event_type, tenant_id), time_ms: None, data }
}

/// The data of an `ingestUsage` command as the meter reads it: `value` at the value path, declared dimensions at their
/// groups' paths, before anything else can take these places; the rest as it is.
///
/// # Errors
/// A Counting meter counts one: another `value` can't be counted.
fn by_meter(definition: &Definition, data: &Leaves) -> Result<Leaves, (RejectCode, String)> {
    let mut placed: Vec<(&str, Scalar<'_>)> = Vec::new();
    let mut rest = Vec::new();
    for (key, scalar) in data.iter() {
        match (key.strip_prefix("$."), definition.value_path()) {
            (Some("tenantId" | "meterId" | "time"), _) => {}
            (Some("value"), Some(path)) => placed.push((path.key(), scalar)),
            (Some("value"), None) if Decimal::parse(scalar.text()).is_ok_and(|value| value.to_string() == "1") => {}
            (Some("value"), None) => {
                return Err((
                    RejectCode::InvalidValue,
                    format!("value is {:?}: a meter that counts events counts 1; leave value out", scalar.text()),
                ));
            }
            (name, _) => match name.and_then(|name| definition.group_by.get(name)) {
                Some(path) => placed.push((path.key(), scalar)),
                None => rest.push((key, scalar)),
            },
        }
    }
    let mut leaves = Leaves::new();
    let mut taken = HashSet::new();
    for (key, scalar) in placed.into_iter().chain(rest) {
        if taken.insert(key) {
            leaves.push(key, scalar);
        }
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Aggregation, MeterSpec};

    fn definition(aggregation: Aggregation, value: Option<&str>) -> Definition {
        Definition::parse(&MeterSpec {
            description: None,
            event_type: "t".to_owned(),
            aggregation,
            value_property: value.map(str::to_owned),
            group_by: [("model".to_owned(), "$.m.name".to_owned())].into(),
            unit: None,
            retention: None,
            deletion_policy: crate::api::DeletionPolicy::Retain,
        })
        .unwrap()
    }

    #[test]
    fn a_commands_value_is_what_counts_in_whatever_order() {
        let sum = definition(Aggregation::Sum, Some("$.tokens"));
        for data in [r#"{"tenantId":"a","tokens":5,"value":7,"model":"x"}"#, r#"{"value":7,"model":"x","tokens":5,"meterId":"m"}"#] {
            let read = by_meter(&sum, &Leaves::from_json(data).unwrap()).unwrap();
            assert_eq!(read.to_json(), r#"{"tokens":7,"m":{"name":"x"}}"#, "{data}");
        }
        let count = definition(Aggregation::Count, None);
        assert!(by_meter(&count, &Leaves::from_json(r#"{"value":"1.0"}"#).unwrap()).is_ok());
        assert!(by_meter(&count, &Leaves::from_json(r#"{"value":2}"#).unwrap()).is_err());
    }
}
