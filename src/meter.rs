//! What a Meter means: its spec, parsed. Pure.

use std::collections::BTreeMap;

use crate::api::{ActiveMeter, Aggregation, MeterSpec};
use crate::event::JsonPath;
use crate::limits;

/// A Meter whose every field is known to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The event type that it counts.
    pub event_type: String,
    /// The number that it takes from an event, and how numbers of a window become one.
    pub measure: Measure,
    /// Group names and where their values are.
    pub group_by: BTreeMap<String, JsonPath>,
    /// Unit of the value.
    pub unit: Option<String>,
    /// Days that usage stays; None: for ever.
    pub retention_days: Option<u32>,
}

/// An aggregation with the path that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Counts events.
    Count,
    /// Aggregates decimal values.
    Decimal(DecimalAggregation, JsonPath),
    /// Counts different values as text.
    UniqueCount(JsonPath),
}

impl Measure {
    /// Whether an event that was added can be taken off again.
    pub const fn is_additive(&self) -> bool {
        matches!(self, Self::Count | Self::Decimal(DecimalAggregation::Sum | DecimalAggregation::Average, _))
    }
}

/// Aggregations of decimal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecimalAggregation {
    /// See [`Aggregation::Sum`].
    Sum,
    /// See [`Aggregation::Min`].
    Min,
    /// See [`Aggregation::Max`].
    Max,
    /// See [`Aggregation::Average`].
    Average,
    /// See [`Aggregation::Latest`].
    Latest,
}

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Path of the field, such as `spec.groupBy.method`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl std::fmt::Display for InvalidField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Definition {
    /// Parses a spec.
    ///
    /// # Errors
    /// Everything that is wrong, not just the first.
    pub fn parse(spec: &MeterSpec) -> Result<Self, Vec<InvalidField>> {
        let mut wrong = Vec::new();
        let mut refuse = |field: &str, message: String| wrong.push(InvalidField { field: field.to_owned(), message });

        if let Err(why) = text(&spec.event_type, 1, limits::ATTRIBUTE_BYTES) {
            refuse("spec.eventType", why);
        }
        // For people: several lines are welcome.
        let description = spec.description.as_deref().unwrap_or("").replace(['\n', '\r', '\t'], " ");
        if let Err(why) = text(&description, 0, limits::DESCRIPTION_BYTES * 4) {
            refuse("spec.description", why);
        }
        if let Err(why) = text(spec.unit.as_deref().unwrap_or(""), 0, limits::LABEL_BYTES * 4) {
            refuse("spec.unit", why);
        }
        let value = match (&spec.value_property, spec.aggregation) {
            (None, Aggregation::Count) => None,
            (Some(_), Aggregation::Count) => {
                refuse("spec.valueProperty", "must be absent when aggregation is Count: events are counted, not values".to_owned());
                None
            }
            (None, aggregation) => {
                refuse(
                    "spec.valueProperty",
                    format!("is required when aggregation is {aggregation:?}: the JSONPath of the value, such as $.duration_ms"),
                );
                None
            }
            (Some(path), _) => JsonPath::parse(path).map_err(|why| refuse("spec.valueProperty", why.to_string())).ok(),
        };
        if spec.group_by.len() > limits::GROUP_BYS {
            refuse("spec.groupBy", format!("has {} names; at most {} are allowed", spec.group_by.len(), limits::GROUP_BYS));
        }
        let mut group_by = BTreeMap::new();
        for (name, path) in &spec.group_by {
            let field = format!("spec.groupBy.{name}");
            if let Err(why) = group_name(name) {
                refuse(&field, why.to_owned());
            }
            match JsonPath::parse(path) {
                Ok(path) => drop(group_by.insert(name.clone(), path)),
                Err(why) => refuse(&field, why.to_string()),
            }
        }
        let retention_days =
            spec.retention.as_deref().map(retention).transpose().map_err(|why| refuse("spec.retention", why)).ok().flatten();

        let measure = match (spec.aggregation, value) {
            (Aggregation::Count, _) => Measure::Count,
            (Aggregation::UniqueCount, Some(path)) => Measure::UniqueCount(path),
            (Aggregation::Sum, Some(path)) => Measure::Decimal(DecimalAggregation::Sum, path),
            (Aggregation::Min, Some(path)) => Measure::Decimal(DecimalAggregation::Min, path),
            (Aggregation::Max, Some(path)) => Measure::Decimal(DecimalAggregation::Max, path),
            (Aggregation::Average, Some(path)) => Measure::Decimal(DecimalAggregation::Average, path),
            (Aggregation::Latest, Some(path)) => Measure::Decimal(DecimalAggregation::Latest, path),
            // The missing path was noted above, so `wrong` isn't empty.
            (_, None) => Measure::Count,
        };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self { event_type: spec.event_type.clone(), measure, group_by, unit: spec.unit.clone(), retention_days })
    }

    /// Parses what a status says of the active table.
    ///
    /// # Errors
    /// As [`Self::parse`]: someone other than the operator wrote the status.
    pub fn parse_active(active: &ActiveMeter) -> Result<Self, Vec<InvalidField>> {
        Self::parse(&MeterSpec {
            description: None,
            event_type: active.event_type.clone(),
            aggregation: active.aggregation,
            value_property: active.value_property.clone(),
            group_by: active.group_by.clone(),
            unit: active.unit.clone(),
            retention: active.retention.clone(),
            deletion_policy: crate::api::DeletionPolicy::Retain,
        })
    }

    /// The aggregation's name in the API.
    pub const fn aggregation(&self) -> Aggregation {
        match &self.measure {
            Measure::Count => Aggregation::Count,
            Measure::UniqueCount(_) => Aggregation::UniqueCount,
            Measure::Decimal(DecimalAggregation::Sum, _) => Aggregation::Sum,
            Measure::Decimal(DecimalAggregation::Min, _) => Aggregation::Min,
            Measure::Decimal(DecimalAggregation::Max, _) => Aggregation::Max,
            Measure::Decimal(DecimalAggregation::Average, _) => Aggregation::Average,
            Measure::Decimal(DecimalAggregation::Latest, _) => Aggregation::Latest,
        }
    }

    /// Where the value is; None for `Count`.
    pub const fn value_path(&self) -> Option<&JsonPath> {
        match &self.measure {
            Measure::Count => None,
            Measure::Decimal(_, path) | Measure::UniqueCount(path) => Some(path),
        }
    }

    /// What `status.active` says of a table that this definition fills.
    pub fn active(&self, table: String) -> ActiveMeter {
        ActiveMeter {
            table,
            event_type: self.event_type.clone(),
            aggregation: self.aggregation(),
            value_property: self.value_path().map(|path| path.key().to_owned()),
            group_by: self.group_by.iter().map(|(name, path)| (name.clone(), path.key().to_owned())).collect(),
            unit: self.unit.clone(),
            retention: self.retention_days.map(|days| format!("{days}d")),
        }
    }
}

/// Checks a group name: a column name that needs no quoting, and none of the built-in ones.
///
/// # Errors
/// What a name looks like.
pub fn group_name(name: &str) -> Result<(), &'static str> {
    let shape = name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    match name {
        "customer" | "subject" => Err("is built in: leave it out of groupBy"),
        _ if shape => Ok(()),
        _ => Err("a group name is 1 to 63 of a-z, 0-9 and _, and starts with a letter"),
    }
}

/// Checks a text's length and that it has no control characters.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that starts with its name.
pub fn text(text: &str, min: usize, max: usize) -> Result<(), String> {
    if text.len() < min {
        Err("must not be empty".to_owned())
    } else if text.len() > max {
        Err(format!("is {} bytes long; at most {max} are allowed", text.len()))
    } else if text.chars().any(char::is_control) {
        Err("has a control character in it".to_owned())
    } else {
        Ok(())
    }
}

fn retention(text: &str) -> Result<u32, String> {
    text.strip_suffix('d')
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|days| (1..=limits::RETENTION_DAYS).contains(days))
        .ok_or_else(|| format!("{text:?} is no retention: write days, from 1d to {}d", limits::RETENTION_DAYS))
}
