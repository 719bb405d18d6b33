//! Meters, as the controller sees them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Managed, Work};
use crate::api::{Meter, MeterStatus};
use crate::reconcile::{Error, Outcome, Reconciler};

impl Managed for Meter {
    /// Meters share nothing.
    fn claims(&self) -> Vec<&str> {
        Vec::new()
    }

    fn conditions(status: &mut MeterStatus) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    fn uncounted(&self) -> i64 {
        self.status.as_ref().and_then(|status| status.uncounted_events).unwrap_or_default()
    }
}

impl Work<Meter> for Reconciler {
    async fn apply(&self, meter: &Meter, _rivals: &[Meter]) -> Result<Outcome<MeterStatus>, Error> {
        self.meter(meter).await
    }

    async fn forget(&self, meter: &Meter, _rivals: &[Meter]) -> Result<(), Error> {
        self.forget_meter(meter).await
    }

    fn failed(meter: &Meter, error: &Error) -> MeterStatus {
        Self::meter_failed(meter, error)
    }
}
