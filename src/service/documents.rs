//! Between the custom resources and the API's flat documents.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::ObjectMeta;

use crate::api::{ConditionType, Customer, CustomerSpec, Meter, MeterSpec};
use crate::metering::{CustomerDocument, DocumentStatus, MeterDocument};

fn metadata(name: String, namespace: &str, resource_version: Option<String>) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), resource_version, ..ObjectMeta::default() }
}

fn ready(conditions: &[Condition]) -> DocumentStatus {
    match conditions.iter().find(|c| c.type_ == ConditionType::Ready.as_str()) {
        Some(c) => DocumentStatus { ready: c.status == "True", reason: c.reason.clone(), message: c.message.clone() },
        None => DocumentStatus { ready: false, reason: "Pending".to_owned(), message: "The operator has not looked at it yet.".to_owned() },
    }
}

fn created(metadata: &ObjectMeta) -> Option<String> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.to_string())
}

impl MeterDocument {
    /// The custom resource that it stands for.
    pub fn into_object(self, namespace: &str) -> Meter {
        Meter {
            metadata: metadata(self.meter_id, namespace, self.resource_version),
            spec: MeterSpec {
                description: self.description,
                event_type: self.event_type,
                aggregation: self.aggregation,
                value_property: self.value_property,
                group_by: self.group_by,
                unit: self.unit,
                retention: self.retention,
                deletion_policy: self.deletion_policy,
            },
            status: None,
        }
    }
}

impl From<Meter> for MeterDocument {
    fn from(meter: Meter) -> Self {
        let Meter { metadata, spec, status } = meter;
        Self {
            created_at: created(&metadata),
            meter_id: metadata.name.unwrap_or_default(),
            description: spec.description,
            event_type: spec.event_type,
            aggregation: spec.aggregation,
            value_property: spec.value_property,
            group_by: spec.group_by,
            unit: spec.unit,
            retention: spec.retention,
            deletion_policy: spec.deletion_policy,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            status: Some(ready(&status.unwrap_or_default().conditions)),
        }
    }
}

impl CustomerDocument {
    /// The custom resource that it stands for.
    pub fn into_object(self, namespace: &str) -> Customer {
        Customer {
            metadata: metadata(self.customer_id, namespace, self.resource_version),
            spec: CustomerSpec { display_name: self.display_name, subjects: self.subjects, deletion_policy: self.deletion_policy },
            status: None,
        }
    }
}

impl From<Customer> for CustomerDocument {
    fn from(customer: Customer) -> Self {
        let Customer { metadata, spec, status } = customer;
        Self {
            created_at: created(&metadata),
            customer_id: metadata.name.unwrap_or_default(),
            display_name: spec.display_name,
            subjects: spec.subjects,
            deletion_policy: spec.deletion_policy,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            status: Some(ready(&status.unwrap_or_default().conditions)),
        }
    }
}
