//! Makes ClickHouse as a Meter or Customer says: observe → plan → apply → status. The same for a cluster and for `dev`.

use std::time::Duration;

use crate::api::{Customer, CustomerStatus, Meter, MeterStatus, Reason};

/// What a reconcile came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<S> {
    /// The whole next status.
    pub status: S,
    /// What changed and people should hear of: Kubernetes Events in a cluster, log lines in `dev`.
    pub notices: Vec<Notice>,
    /// Come again after this time; None: only when something changes.
    pub requeue: Option<Duration>,
}

/// One thing to tell people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// Stable reason.
    pub reason: Reason,
    /// For people; at most 1,000 bytes.
    pub message: String,
}

/// Why a reconcile could not be finished; it should be tried again with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// ClickHouse did not answer in time, or at all.
    #[error("ClickHouse does not answer: {0}")]
    Unavailable(String),
    /// ClickHouse refused a statement.
    #[error("ClickHouse refused a statement: {0}")]
    Refused(String),
}

impl Error {
    /// The category, as conditions and metrics name it.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unavailable(_) => Reason::ClickHouseUnavailable,
            Self::Refused(_) => Reason::ClickHouseRefused,
        }
    }
}

/// Reconciles objects with one ClickHouse. Cheap to clone.
#[derive(Clone)]
pub struct Reconciler {}

impl Reconciler {
    /// Provisions what the Meter says. A long backfill goes on from call to call (`requeue`), each bounded in time.
    ///
    /// # Errors
    /// When ClickHouse fails; an invalid spec is no error but a status that says so.
    pub async fn meter(&self, _meter: &Meter) -> Result<Outcome<MeterStatus>, Error> {
        Err(Error::Unavailable("not built yet".to_owned()))
    }

    /// The status of a Meter whose reconcile failed. Pure.
    pub fn meter_failed(_meter: &Meter, _error: &Error) -> MeterStatus {
        MeterStatus::default()
    }

    /// Stops counting, and drops the tables when the deletion policy says so. Idempotent.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn forget_meter(&self, _meter: &Meter) -> Result<(), Error> {
        Err(Error::Unavailable("not built yet".to_owned()))
    }

    /// Makes the Customer's subjects known to queries. `others` are the namespace's other Customers: of two that claim
    /// a subject the older has it, and the younger's status says so.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn customer(&self, _customer: &Customer, _others: &[Customer]) -> Result<Outcome<CustomerStatus>, Error> {
        Err(Error::Unavailable("not built yet".to_owned()))
    }

    /// The status of a Customer whose reconcile failed. Pure.
    pub fn customer_failed(_customer: &Customer, _error: &Error) -> CustomerStatus {
        CustomerStatus::default()
    }

    /// Makes the Customer's subjects unknown, and purges their events when the deletion policy says so. Idempotent.
    ///
    /// # Errors
    /// When ClickHouse fails.
    pub async fn forget_customer(&self, _customer: &Customer, _others: &[Customer]) -> Result<(), Error> {
        Err(Error::Unavailable("not built yet".to_owned()))
    }
}
