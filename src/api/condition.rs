//! Conditions: one list of types and reasons for everything the operator says of an object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Condition types, after the kstatus convention: `Ready` always, the others only while they are true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The object does its work now.
    Ready,
    /// Work is under way.
    Reconciling,
    /// Only a change of the object helps.
    Stalled,
}

impl ConditionType {
    /// The text in `conditions[].type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

/// Stable machine-readable reasons, on conditions and Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Tables and views are there and complete.
    Provisioned,
    /// The table is being filled with events that were stored before.
    Backfilling,
    /// The spec can't work; the message says what to change.
    InvalidSpec,
    /// A subject is another Customer's already.
    SubjectConflict,
    /// ClickHouse did not answer.
    ClickHouseUnavailable,
    /// ClickHouse refused a statement; the message has its words.
    ClickHouseRefused,
    /// The object is going; ClickHouse is being cleaned.
    Deleting,
    /// The object went though ClickHouse could not be cleaned.
    CleanupSkipped,
    /// Subjects are known to queries.
    Mapped,
}

impl Reason {
    /// The text in `conditions[].reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioned => "Provisioned",
            Self::Backfilling => "Backfilling",
            Self::InvalidSpec => "InvalidSpec",
            Self::SubjectConflict => "SubjectConflict",
            Self::ClickHouseUnavailable => "ClickHouseUnavailable",
            Self::ClickHouseRefused => "ClickHouseRefused",
            Self::Deleting => "Deleting",
            Self::CleanupSkipped => "CleanupSkipped",
            Self::Mapped => "Mapped",
        }
    }
}

/// Longest message of a condition or note of an Event, in bytes: the API's bound for notes is 1,024.
const MESSAGE_BYTES: usize = 1_000;

/// Builds the next condition list from the last one, so that `lastTransitionTime` moves only when a status does.
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    next: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts from the conditions the object has.
    pub fn after(before: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { before, generation, now, next: Vec::new() }
    }

    /// Adds a condition. One that is not added is gone from the result.
    #[must_use]
    pub fn with(mut self, kind: ConditionType, status: bool, reason: Reason, message: &str) -> Self {
        let status = if status { "True" } else { "False" };
        let kept = self.before.iter().find(|c| c.type_ == kind.as_str() && c.status == status);
        self.next.push(Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: truncate(message).to_owned(),
            observed_generation: self.generation,
            last_transition_time: kept.map_or(Time(self.now), |c| c.last_transition_time.clone()),
        });
        self
    }

    /// The finished list.
    pub fn build(self) -> Vec<Condition> {
        self.next
    }
}

/// Cuts a message to what the API takes, at a character's boundary.
pub fn truncate(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES)]
}
