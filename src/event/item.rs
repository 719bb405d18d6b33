//! What one element of a request body turned out to be.

use bytes::Bytes;

use super::{Event, Leaves};
use crate::limits;
use crate::metering::RejectCode;

/// One element of a request body: what it means, or why it can't be taken, and its own bytes for the reject table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The element as it came; for binary mode the structured form of it.
    pub raw: Bytes,
    /// What it means.
    pub parsed: Result<Incoming, Refusal>,
}

/// Bytes of memory, about, that a refused element becomes besides its copy: its reason, that in the row that keeps it, and that in the
/// answer.
const REFUSED: usize = 1_024;

impl Item {
    /// Bytes of memory that it takes, about, until its request is answered, besides the body.
    pub fn weight(&self) -> usize {
        let texts = match &self.parsed {
            Ok(Incoming::Event(Event { attributes, data, .. })) => attributes.bytes() + data.bytes(),
            Ok(Incoming::Command(Command::IngestUsage { data, .. })) => self.raw.len() + data.bytes(),
            Ok(Incoming::Command(_)) => self.raw.len(),
            Err(_) => REFUSED + self.raw.len().min(limits::EVENT_BYTES),
        };
        size_of::<Self>() + texts
    }
}

/// A well-formed element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// To be stored and counted.
    Event(Event),
    /// To be carried out.
    Command(Command),
}

/// The events of SaaS Builder Toolkit that are commands. `tenant_id` is a customer's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `INGEST_USAGE` / `ingestUsage`: one usage event by meter, not by event type.
    IngestUsage {
        /// `id` of the envelope.
        id: String,
        /// `source` of the envelope.
        source: String,
        /// The subject.
        tenant_id: String,
        /// The meter whose event type, value path and group paths make the event.
        meter_id: String,
        /// `data.time`, else the envelope's.
        time_ms: Option<i64>,
        /// The scalars of `data`: `$.value` is the value, every other but `$.tenantId`, `$.meterId`, `$.time` a dimension by group name.
        data: Leaves,
    },
    /// `ONBOARDING_REQUEST` / `onboardingRequest`: make a Customer, once per identity. One that exists is fine.
    Onboard {
        /// `id` of the envelope.
        id: String,
        /// `source` of the envelope.
        source: String,
        /// The Customer's name.
        tenant_id: String,
        /// Its display name.
        tenant_name: Option<String>,
    },
    /// `OFFBOARDING_REQUEST` / `offboardingRequest`: delete a Customer, once per identity. One that is gone is fine.
    Offboard {
        /// `id` of the envelope.
        id: String,
        /// `source` of the envelope.
        source: String,
        /// The Customer's name.
        tenant_id: String,
    },
}

/// Why an element can't be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code.
    pub code: RejectCode,
    /// Its source, where it could be read.
    pub source: Option<String>,
    /// Its id, where it could be read.
    pub id: Option<String>,
    /// For people: what, where, what to do.
    pub message: String,
}
