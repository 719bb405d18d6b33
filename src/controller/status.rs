//! Whether a status is worth writing, and what of it is worth telling. Pure.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{Guard, Managed};
use crate::api::{ConditionType, Conditions, Reason};
use crate::telemetry::{Objects, Uncounted};

/// Whether anything but times differs.
pub(super) fn changed<K: Managed>(before: Option<&K::Status>, after: &K::Status) -> bool {
    let timeless = |status: &K::Status| {
        let mut status = status.clone();
        for condition in K::conditions(&mut status) {
            condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        }
        status
    };
    before.is_none_or(|before| timeless(before) != timeless(after))
}

/// The `Ready` condition after, when it says something else than before, by status or reason: what people hear of.
pub(super) fn transition<K: Managed>(before: Option<&K::Status>, after: &K::Status) -> Option<Condition> {
    let after = ready::<K>(after)?;
    let before = before.and_then(ready::<K>);
    before.is_none_or(|before| (&before.status, &before.reason) != (&after.status, &after.reason)).then_some(after)
}

/// How many objects are how ready.
pub(super) fn count<K: Managed>(objects: &[Arc<Guard<K>>]) -> Objects {
    objects.iter().fold(Objects::default(), |mut count, object| {
        let ready = object.0.as_ref().ok().and_then(|object| ready::<K>(object.status()?));
        match ready.as_ref().map(|condition| condition.status.as_str()) {
            Some("True") => count.ready += 1,
            Some("False") => count.not_ready += 1,
            _ => count.unknown += 1,
        }
        if let Ok(object) = &object.0
            && let events @ 1.. = object.uncounted()
        {
            let meta = object.meta();
            let [namespace, meter] = [&meta.namespace, &meta.name].map(|name| name.clone().unwrap_or_default());
            count.uncounted.push(Uncounted { namespace, meter, events });
        }
        count
    })
}

fn ready<K: Managed>(status: &K::Status) -> Option<Condition> {
    let mut status = status.clone();
    K::conditions(&mut status).iter().find(|c| c.type_ == ConditionType::Ready.as_str()).cloned()
}

/// The object's status with `Ready` false and nothing else under way.
pub(super) fn not_ready<K: Managed>(object: &K, reason: Reason, message: &str, now: Timestamp) -> K::Status {
    let mut status = object.status().cloned().unwrap_or_default();
    let conditions = K::conditions(&mut status);
    let next = Conditions::after(conditions, object.meta().generation, now).with(ConditionType::Ready, false, reason, message).build();
    *conditions = next;
    status
}

/// What is sent to the API server. With the uid, so that another object of the same name doesn't get it.
pub(super) fn patch<K: Managed>(object: &K, status: &K::Status) -> serde_json::Value {
    let meta = object.meta();
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Customer, CustomerSpec, CustomerStatus};

    fn status(ready: bool, reason: Reason, message: &str, second: i64) -> CustomerStatus {
        let now = Timestamp::from_second(second).unwrap();
        let conditions = Conditions::after(&[], Some(1), now).with(ConditionType::Ready, ready, reason, message).build();
        CustomerStatus { observed_generation: Some(1), conditions }
    }

    #[test]
    fn times_alone_are_no_change() {
        let before = status(true, Reason::Mapped, "fine", 1);
        assert!(!changed::<Customer>(Some(&before), &status(true, Reason::Mapped, "fine", 2)));
        assert!(changed::<Customer>(Some(&before), &status(true, Reason::Mapped, "finer", 1)));
        assert!(changed::<Customer>(None, &before));
        let generation = CustomerStatus { observed_generation: Some(2), ..before.clone() };
        assert!(changed::<Customer>(Some(&before), &generation));
    }

    #[test]
    fn only_another_status_or_reason_is_news() {
        let before = status(false, Reason::ClickHouseUnavailable, "once", 1);
        let news = |after| transition::<Customer>(Some(&before), &after).map(|c| c.reason);
        assert_eq!(news(status(false, Reason::ClickHouseUnavailable, "twice", 2)), None);
        assert_eq!(news(status(false, Reason::ClickHouseRefused, "once", 1)), Some("ClickHouseRefused".into()));
        assert_eq!(news(status(true, Reason::Mapped, "fine", 1)), Some("Mapped".into()));
        assert!(transition::<Customer>(None, &before).is_some());
    }

    #[test]
    fn giving_up_replaces_all_conditions() {
        let mut customer = Customer::new("c", CustomerSpec::default());
        let now = Timestamp::from_second(9).unwrap();
        customer.status = Some(status(true, Reason::Mapped, "fine", 1));
        let status = not_ready(&customer, Reason::CleanupSkipped, "gone", now);
        let [condition] = status.conditions.as_slice() else { panic!("one condition") };
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "CleanupSkipped"));
        assert_eq!(condition.last_transition_time, Time(now));
    }
}
