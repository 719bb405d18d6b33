//! Makes ClickHouse as a Meter or Customer says: observe → plan → apply → status. The same for a cluster and for `dev`.

mod backfill;
mod balance;
mod counts;
mod customer;
mod meter;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{ConditionType, Conditions, Customer, CustomerStatus, Meter, MeterStatus, Reason};
use crate::command::ClickhouseOptions;
use crate::warehouse::{self, Warehouse};

pub use balance::Balancer;

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
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// ClickHouse did not answer in time, or at all.
    #[error("ClickHouse does not answer: {0}")]
    Unavailable(String),
    /// ClickHouse refused a statement.
    #[error("ClickHouse refused a statement: {0}")]
    Refused(String),
}

impl From<warehouse::Error> for Error {
    fn from(error: warehouse::Error) -> Self {
        match error {
            warehouse::Error::Unavailable(why) | warehouse::Error::Fenced(why) | warehouse::Error::NotWhole(why) => Self::Unavailable(why),
            warehouse::Error::UnknownTable(why) | warehouse::Error::Refused(why) => Self::Refused(why),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Refused(format!("a table's note can't be written: {error}"))
    }
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

/// How often it is looked whether landing tables take events.
const MEND: Duration = Duration::from_secs(60);

/// Reconciles objects with one ClickHouse. Cheap to clone.
#[derive(Clone)]
pub struct Reconciler {
    warehouse: Warehouse,
    backfills: backfill::Backfills,
    counts: counts::Counts,
    /// When it was last seen that landing tables take events.
    mended: Arc<Mutex<Option<Instant>>>,
}

impl Reconciler {
    /// Reconciles with a ClickHouse.
    pub fn new(warehouse: Warehouse) -> Self {
        Self { warehouse, backfills: backfill::Backfills::default(), counts: counts::Counts::default(), mended: Arc::default() }
    }

    /// Looks from time to time whether landing tables take events, and mends those that do not. Of views it looks only at the Meters':
    /// nobody makes the standing ones again without their tables.
    async fn mend(&self) -> Result<(), Error> {
        let mended = || self.mended.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut mended = mended();
            if mended.is_some_and(|at| at.elapsed() < MEND) {
                return Ok(());
            }
            *mended = Some(Instant::now());
        }
        let mend = async {
            for view in self.warehouse.orphaned_views().await? {
                tracing::warn!(%view, "dropping a view whose table is gone: ClickHouse refused the events that came through it");
                self.warehouse.run_ddl(&self.warehouse.topology().drop_one(self.warehouse.database(), &view)).await?;
            }
            self.warehouse.mend_fence().await
        };
        Ok(mend.await.inspect_err(|_| *mended() = None)?)
    }

    /// Reconciles with the ClickHouse that options name. It need not answer yet.
    ///
    /// # Errors
    /// When the password file can't be read.
    pub async fn connect(options: &ClickhouseOptions) -> Result<Self, String> {
        Ok(Self::new(options.warehouse().await?))
    }

    /// The status of a Meter whose reconcile failed. Pure.
    pub fn meter_failed(meter: &Meter, error: &Error) -> MeterStatus {
        let before = meter.status.clone().unwrap_or_default();
        let conditions = failed(&before.conditions, meter.metadata.generation, error);
        MeterStatus { conditions, observed_generation: meter.metadata.generation, ..before }
    }

    /// The status of a Customer whose reconcile failed. Pure.
    pub fn customer_failed(customer: &Customer, error: &Error) -> CustomerStatus {
        let before = customer.status.clone().unwrap_or_default();
        let conditions = failed(&before.conditions, customer.metadata.generation, error);
        CustomerStatus { conditions, observed_generation: customer.metadata.generation }
    }
}

type ConditionList = Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>;

fn failed(before: &ConditionList, generation: Option<i64>, error: &Error) -> ConditionList {
    let message = format!("{error}. It is tried again with growing pauses; look at ClickHouse and at the operator's log.");
    Conditions::after(before, generation, jiff::Timestamp::now())
        .with(ConditionType::Ready, false, error.reason(), &message)
        .with(ConditionType::Reconciling, true, error.reason(), &message)
        .build()
}

/// A notice when the `Ready` condition's reason or status is another than before.
fn transition(before: &ConditionList, after: &ConditionList, reason: Reason) -> Vec<Notice> {
    let ready =
        |list: &ConditionList| list.iter().find(|c| c.type_ == ConditionType::Ready.as_str()).map(|c| (c.status.clone(), c.reason.clone()));
    let (was, is) = (ready(before), after.iter().find(|c| c.type_ == ConditionType::Ready.as_str()));
    match is {
        Some(is) if was != Some((is.status.clone(), is.reason.clone())) => {
            vec![Notice { warning: matches!(reason, Reason::InvalidSpec | Reason::SubjectConflict), reason, message: is.message.clone() }]
        }
        _ => Vec::new(),
    }
}
