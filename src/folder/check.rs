//! What the API server would check: names, and all that the CRDs' schemas say. Pure.

use std::collections::BTreeSet;

use kube::core::DynamicObject;

use crate::api::{CustomerSpec, MeterSpec};
use crate::limits;
use crate::meter::{self, Definition, InvalidField};

/// Everything that is wrong with an object.
pub(super) fn object(object: &DynamicObject) -> Vec<InvalidField> {
    let mut wrong = Vec::new();
    let mut refuse = |field: &str, message: String| wrong.push(InvalidField { field: field.to_owned(), message });
    let (name, namespace) = (object.metadata.name.as_deref().unwrap_or(""), object.metadata.namespace.as_deref().unwrap_or(""));
    if name.len() > 63 || !name.split('.').all(is_label) {
        refuse(
            "metadata.name",
            format!("{name:?} is no name: 1 to 63 of a-z, 0-9, - and ., each part starting and ending with a letter or digit"),
        );
    }
    if namespace.len() > 63 || !is_label(namespace) {
        refuse(
            "metadata.namespace",
            format!("{namespace:?} is no namespace: 1 to 63 of a-z, 0-9 and -, starting and ending with a letter or digit"),
        );
    }
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    match super::memory::kind(object) {
        "Meter" if name == "cancellations" => {
            refuse("metadata.name", "a Meter can't be named cancellations: GET /usage/cancellations is something else".to_owned());
        }
        "Meter" => match serde_json::from_value::<MeterSpec>(spec) {
            Ok(spec) => wrong.extend(Definition::parse(&spec).err().unwrap_or_default()),
            Err(why) => refuse("spec", why.to_string()),
        },
        _ => match serde_json::from_value::<CustomerSpec>(spec) {
            Ok(spec) => wrong.extend(customer(&spec)),
            Err(why) => refuse("spec", why.to_string()),
        },
    }
    wrong
}

fn customer(spec: &CustomerSpec) -> Vec<InvalidField> {
    let mut wrong = Vec::new();
    let mut refuse = |field: String, message: String| wrong.push(InvalidField { field, message });
    if let Err(why) = meter::text(spec.display_name.as_deref().unwrap_or(""), 0, limits::LABEL_BYTES * 4) {
        refuse("spec.displayName".to_owned(), why);
    }
    if spec.subjects.len() > limits::SUBJECTS {
        refuse("spec.subjects".to_owned(), format!("has {} subjects; at most {} are allowed", spec.subjects.len(), limits::SUBJECTS));
    }
    let mut seen = BTreeSet::new();
    for (index, subject) in spec.subjects.iter().enumerate() {
        if let Err(why) = meter::text(subject, 1, limits::ATTRIBUTE_BYTES) {
            refuse(format!("spec.subjects[{index}]"), why);
        }
        if !seen.insert(subject) {
            refuse(format!("spec.subjects[{index}]"), format!("{subject:?} is in the list twice"));
        }
    }
    wrong
}

/// Whether a text is a label as RFC 1123 has it.
fn is_label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || c == '-')
}
