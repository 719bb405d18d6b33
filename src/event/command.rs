//! The events of the SaaS Builder Toolkit that are commands.

use super::cloudevent::{Fault, text_at, time_ms};
use super::{Command, Leaves, Scalar};
use crate::limits;
use crate::metering::RejectCode;

/// Which command an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    IngestUsage,
    Onboard,
    Offboard,
}

impl Kind {
    /// By the event's type, in the toolkit's two spellings.
    pub(super) fn of(event_type: &str) -> Option<Self> {
        match event_type {
            "INGEST_USAGE" | "ingestUsage" => Some(Self::IngestUsage),
            "ONBOARDING_REQUEST" | "onboardingRequest" => Some(Self::Onboard),
            "OFFBOARDING_REQUEST" | "offboardingRequest" => Some(Self::Offboard),
            _ => None,
        }
    }
}

/// What came with a command.
pub(super) struct Sent<'a> {
    pub(super) id: &'a str,
    pub(super) source: &'a str,
    pub(super) time_ms: Option<i64>,
    /// What `data` is called in its envelope.
    pub(super) place: &'a str,
    pub(super) data: Leaves,
}

/// Reads a command's data.
pub(super) fn read(kind: Kind, sent: Sent<'_>) -> Result<Command, Fault> {
    let Sent { id, source, place, data, .. } = sent;
    let text = |name: &str| text_at(&data, &format!("{place}.{name}"), &format!("$.{name}"));
    let needed = |name: &str, hint: &str| {
        text(name)?.map(str::to_owned).ok_or_else(|| Fault::missing(format!("{place}.{name} is missing or empty: {hint}")))
    };
    let tenant_id = needed("tenantId", "name the tenant")?;
    match kind {
        Kind::IngestUsage => {
            let meter_id = needed("meterId", "name the meter that counts the value")?;
            let time_ms = text("time")?.map(|time| time_ms(&format!("{place}.time"), time)).transpose()?.or(sent.time_ms);
            Ok(Command::IngestUsage { id: id.to_owned(), source: source.to_owned(), tenant_id, meter_id, time_ms, data })
        }
        Kind::Onboard => {
            object_name(place, &tenant_id)?;
            let (id, source) = (id.to_owned(), source.to_owned());
            Ok(Command::Onboard { id, source, tenant_id, tenant_name: tenant_name(place, &data)? })
        }
        Kind::Offboard => {
            object_name(place, &tenant_id)?;
            Ok(Command::Offboard { id: id.to_owned(), source: source.to_owned(), tenant_id })
        }
    }
}

/// The tenant becomes, or is, a Customer: its id must be a name that Kubernetes takes.
fn object_name(place: &str, tenant_id: &str) -> Result<(), Fault> {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = tenant_id.len() <= 63
        && tenant_id.chars().all(|c| alphanumeric(c) || c == '-')
        && tenant_id.starts_with(alphanumeric)
        && tenant_id.ends_with(alphanumeric);
    if good {
        return Ok(());
    }
    let shown = super::cloudevent::cut(tenant_id);
    Err(Fault::invalid(format!(
        "{place}.tenantId is {shown:?}, which can't name a Customer: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
    )))
}

fn tenant_name(place: &str, data: &Leaves) -> Result<Option<String>, Fault> {
    match data.iter().find(|(key, _)| *key == "$.tenantName") {
        None | Some((_, Scalar::Text(""))) => Ok(None),
        Some((_, Scalar::Text(name))) if name.chars().count() > limits::LABEL_BYTES => Err(Fault::new(
            RejectCode::TooLarge,
            format!("{place}.tenantName has {} characters; at most {} are allowed", name.chars().count(), limits::LABEL_BYTES),
        )),
        Some((_, Scalar::Text(name))) => Ok(Some(name.to_owned())),
        Some((_, Scalar::Literal(literal))) => {
            Err(Fault::invalid(format!("{place}.tenantName must be a string, but is {}", super::cloudevent::cut(literal))))
        }
    }
}
