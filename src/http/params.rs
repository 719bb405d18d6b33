//! Query parameters: known ones, each checked, with errors that name the parameter and say what to write.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Unit};
use uuid::Uuid;

use super::problem::Problem;
use crate::api::is_label;
use crate::limits;
use crate::metering::Page;

/// Stands in a list of known parameters for every `filter[…]`.
pub const FILTER: &str = "filter[NAME]";
/// Every call takes it.
const NAMESPACE: &str = "namespace";

/// What stands after `?`, decoded; of each name all values in their order.
#[derive(Debug, Default)]
pub struct Params(BTreeMap<String, Vec<String>>);

impl Params {
    /// Decodes a query string and refuses names that are not `known` (`namespace` is, always).
    pub fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let query = query.unwrap_or_default();
        // form_urlencoded puts U+FFFD for bytes that are no UTF-8: another value than was sent.
        if percent_encoding::percent_decode(query.as_bytes()).decode_utf8().is_err() {
            return Err(Problem::parameter("query", "its percent-encoded bytes are not UTF-8"));
        }
        let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let shape = if filter_name(&name).is_some() { FILTER } else { &name };
            if shape != NAMESPACE && !known.contains(&shape) {
                let known = std::iter::once(&NAMESPACE).chain(known).copied().collect::<Vec<_>>().join(", ");
                return Err(Problem::parameter(&shown(&name), format_args!("is no parameter here; there are {known}")));
            }
            given.entry(name.into_owned()).or_default().push(value.into_owned());
        }
        Ok(Self(given))
    }

    /// A parameter that comes at most once.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        match self.0.get(name).map(Vec::as_slice) {
            None | Some([]) => Ok(None),
            Some([value]) => Ok(Some(value)),
            Some(values) => Err(Problem::parameter(name, format_args!("comes {} times; write it once", values.len()))),
        }
    }

    /// A text that comes at most once and is 1 to `max` bytes long.
    pub fn text(&self, name: &str, max: usize) -> Result<Option<String>, Problem> {
        self.one(name)?.map(|value| bounded(name, value, max)).transpose()
    }

    /// Texts of 1 to `max` bytes each, at most [`limits::FILTER_VALUES`] of them.
    pub fn texts(&self, name: &str, max: usize) -> Result<Vec<String>, Problem> {
        let values = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        at_most_values(name, values.len())?;
        values.iter().map(|value| bounded(name, value, max)).collect()
    }

    /// All `filter[name]=value`, by name. An empty value is one: the group of events that lack it.
    pub fn filters(&self) -> Result<BTreeMap<String, Vec<String>>, Problem> {
        let mut filters = BTreeMap::new();
        for (key, values) in &self.0 {
            let Some(name) = filter_name(key) else { continue };
            group(name).map_err(|why| Problem::parameter(&format!("filter[{}]", shown(name)), why))?;
            at_most_values(key, values.len())?;
            if let Some(long) = values.iter().map(String::len).find(|length| *length > limits::FILTER_BYTES) {
                return Err(Problem::parameter(key, too_long(long, limits::FILTER_BYTES)));
            }
            filters.insert(name.to_owned(), values.clone());
        }
        Ok(filters)
    }

    /// `true` or `false`; absent: false.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.one(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Problem::parameter(name, format_args!("{} is neither: write true or false", shown(other)))),
        }
    }

    /// `from` (inclusive) and `to` (exclusive), in order.
    pub fn range(&self) -> Result<(Option<Timestamp>, Option<Timestamp>), Problem> {
        let read = |name| self.one(name)?.map(|text| timestamp(text).map_err(|why| Problem::parameter(name, why))).transpose();
        let (from, to) = (read("from")?, read("to")?);
        in_order(from, to).map_err(|why| Problem::parameter("from", why))?;
        Ok((from, to))
    }

    /// `limit` and `continue`.
    pub fn page(&self) -> Result<Page, Problem> {
        let limit = self.one("limit")?.map(|text| {
            let number = text.parse().ok().filter(|n| (1..=limits::PAGE_MAX).contains(n));
            number.ok_or_else(|| Problem::parameter("limit", format_args!("{} is none: write 1 to {}", shown(text), limits::PAGE_MAX)))
        });
        Ok(Page { limit: limit.transpose()?, token: self.text("continue", limits::CONTINUE_BYTES)? })
    }
}

/// A client's text in an error: quoted, and not all of it when it is long.
pub fn shown(text: &str) -> String {
    if text.len() <= 80 { format!("{text:?}") } else { format!("{:?}…", &text[..text.floor_char_boundary(80)]) }
}

fn filter_name(key: &str) -> Option<&str> {
    key.strip_prefix("filter[")?.strip_suffix(']')
}

fn too_long(length: usize, max: usize) -> String {
    format!("is {length} bytes long; at most {max} are allowed")
}

fn bounded(name: &str, value: &str, max: usize) -> Result<String, Problem> {
    match value.len() {
        0 => Err(Problem::parameter(name, "is empty; write a value or leave it out")),
        length if length > max => Err(Problem::parameter(name, too_long(length, max))),
        _ => Ok(value.to_owned()),
    }
}

fn at_most_values(name: &str, count: usize) -> Result<(), Problem> {
    if count <= limits::FILTER_VALUES {
        return Ok(());
    }
    Err(Problem::parameter(name, format_args!("has {count} values; at most {} are allowed", limits::FILTER_VALUES)))
}

/// Checks the name of a declared group, as a filter has it.
pub fn group(name: &str) -> Result<(), String> {
    match name {
        "customer" | "subject" => Err(format!("is built in: write {name} by itself, not as a group")),
        name => crate::meter::group_name(name).map_err(str::to_owned),
    }
}

/// Checks an object's name as Kubernetes has it (RFC 1123 subdomain). It becomes part of a URL of the Kubernetes API.
pub fn object_name(name: &str, max: usize) -> Result<(), String> {
    if name.len() <= max && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!("{} is no name: write 1 to {max} of a-z, 0-9, - and ., starting and ending with a letter or digit", shown(name)))
}

/// Parses an id of ours.
pub fn uuid(field: &str, text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text).map_err(|_| Problem::parameter(field, format_args!("{} is no UUID", shown(text))))
}

/// Parses RFC 3339, and nothing else that a calendar library would take.
///
/// Rounded up to the millisecond: events are kept to it, so both `from ≤ t` and `t < to` say the same as before.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    let hint = if text.contains(' ') { " (a + in a URL is a space: write %2B)" } else { "" };
    let wrong = || format!("{} is no RFC 3339 time: write it like 2026-01-31T00:00:00Z{hint}", shown(text));
    let to_millisecond = jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Ceil);
    let time = is_rfc3339(text).then(|| text.parse::<Timestamp>().and_then(|time| time.round(to_millisecond)).ok());
    let time = time.flatten().ok_or_else(wrong)?;
    let year = jiff::tz::Offset::UTC.to_datetime(time).year();
    if (1900..=2299).contains(&year) { Ok(time) } else { Err(format!("{} is outside the years 1900 to 2299", shown(text))) }
}

fn is_rfc3339(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let Some((head, tail)) = text.as_bytes().split_at_checked(SHAPE.len()) else { return false };
    let like = |bytes: &[u8], shape: &[u8]| {
        bytes.len() == shape.len()
            && bytes.iter().zip(shape).all(|(b, s)| if *s == b'0' { b.is_ascii_digit() } else { b.eq_ignore_ascii_case(s) })
    };
    let zone = match tail.strip_prefix(b".") {
        None => tail,
        Some(rest) => match rest.iter().position(|b| !b.is_ascii_digit()) {
            Some(digits @ 1..=9) => &rest[digits..],
            _ => return false,
        },
    };
    like(head, SHAPE) && (like(zone, b"Z") || like(zone, b"+00:00") || like(zone, b"-00:00"))
}

/// Checks that a range is not empty.
pub fn in_order(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<(), String> {
    match (from, to) {
        (Some(from), Some(to)) if from >= to => Err(format!("{from} is not before to ({to})")),
        _ => Ok(()),
    }
}

/// Finds a time zone by its name in the IANA database.
///
/// The bundled one, so that every replica and `dev` have the same rules whatever the machine has installed.
pub fn time_zone(field: &str, name: &str) -> Result<TimeZone, Problem> {
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let zone = ZONES.get(name).ok().filter(|zone| zone.iana_name().is_some() && !zone.is_unknown());
    zone.ok_or_else(|| {
        Problem::parameter(field, format_args!("{} is no time zone of the IANA database: write one like Europe/Paris", shown(name)))
    })
}
