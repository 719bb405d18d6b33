//! Customers, as the controller sees them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Managed, Work};
use crate::api::{Customer, CustomerStatus};
use crate::reconcile::{Error, Outcome, Reconciler};

impl Managed for Customer {
    /// A subject belongs to one Customer.
    fn claims(&self) -> Vec<&str> {
        self.subjects()
    }

    fn conditions(status: &mut CustomerStatus) -> &mut Vec<Condition> {
        &mut status.conditions
    }
}

impl Work<Customer> for Reconciler {
    async fn apply(&self, customer: &Customer, rivals: &[Customer]) -> Result<Outcome<CustomerStatus>, Error> {
        self.customer(customer, rivals).await
    }

    async fn forget(&self, customer: &Customer, _rivals: &[Customer]) -> Result<(), Error> {
        self.forget_customer(customer).await
    }

    fn failed(customer: &Customer, error: &Error) -> CustomerStatus {
        Self::customer_failed(customer, error)
    }
}
