//! The CRDs on a real API server: what they take, what they refuse and with which words, and how they read.

use std::path::PathBuf;
use std::process::Command;

use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kubemeter::api;
use serde_json::{Value, json};

use crate::cluster::install_crds;
use crate::support::{ControlPlane, tool};

#[test]
fn the_folder_holds_what_the_types_say() {
    for (file, text) in api::crds().unwrap() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crds").join(file);
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == text, "{} is not what the Rust types say: run `make crds` and commit it", path.display());
    }
}

/// Creates objects of a kind in a namespace of its own; gives the API server's words for those that it refuses.
async fn refusals(kind: &str, specs: Vec<(&str, Value)>) -> Vec<(String, Option<String>)> {
    let plane = ControlPlane::shared();
    let client = plane.client().await;
    install_crds(&client).await;
    let namespace = plane.namespace().await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("kubemeter.io", "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource);
    let mut answers = Vec::new();
    for (index, (what, spec)) in specs.into_iter().enumerate() {
        let name = spec.get("name").and_then(Value::as_str).map_or_else(|| format!("o{index}"), str::to_owned);
        let spec = spec.get("spec").cloned().unwrap_or(spec);
        let object = DynamicObject::new(&name, &resource).data(json!({ "spec": spec }));
        // Strict, as kubectl asks for it: a misspelt field is an error.
        let params = PostParams { field_manager: None, dry_run: false };
        let answer = match api.create(&params, &object).await {
            Ok(_) => None,
            Err(kube::Error::Api(status)) => Some(status.message),
            Err(other) => panic!("{what}: {other}"),
        };
        answers.push((what.to_owned(), answer));
    }
    answers
}

#[tokio::test]
async fn good_meters_are_taken() {
    let groups: serde_json::Map<String, Value> = (0..16).map(|n| (format!("g{n}"), json!("$.a"))).collect();
    let good = vec![
        ("least", json!({"eventType": "a", "aggregation": "Count"})),
        (
            "full",
            json!({"description": "d", "eventType": "api.request", "aggregation": "Sum", "valueProperty": "$.a.b", "groupBy": {"method": "$.method"},
                        "unit": "ms", "retention": "400d", "deletionPolicy": "Delete"}),
        ),
        ("quoted path", json!({"eventType": "a", "aggregation": "Max", "valueProperty": r#"$['it\'s "x" \\ y'][0].z"#})),
        ("an odd but legal type", json!({"eventType": "'; DROP TABLE x; -- `\\ 😀", "aggregation": "Count"})),
        ("16 groups", json!({"eventType": "a", "aggregation": "Count", "groupBy": groups})),
        ("a null value path", json!({"eventType": "a", "aggregation": "Count", "valueProperty": null})),
        ("a long group path", json!({"eventType": "a", "aggregation": "Count", "groupBy": {"g": format!("$.{}", "a".repeat(254))}})),
        ("a name of 63", json!({"name": "n".repeat(63), "spec": {"eventType": "a", "aggregation": "Count"}})),
    ];
    for (what, refusal) in refusals("Meter", good).await {
        assert_eq!(refusal, None, "{what}");
    }
}

#[tokio::test]
async fn bad_meters_are_refused_with_a_cause() {
    let count = |more: Value| {
        let mut spec = json!({"eventType": "a", "aggregation": "Count"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let sum = |path: &str| json!({"eventType": "a", "aggregation": "Sum", "valueProperty": path});
    let many: serde_json::Map<String, Value> = (0..17).map(|n| (format!("g{n}"), json!("$.a"))).collect();
    let path = "a JSONPath such as $.a.b, $['a'] or $.a[0] is expected";
    let group_path = "each groupBy value is a JSONPath such as $.a.b, $['a'] or $.a[0]";
    let group_name = "group names are 1 to 63 of a-z, 0-9 and _, and start with a letter";
    let bad = [
        ("no type", json!({"aggregation": "Count"}), "spec.eventType: Required value"),
        ("an empty type", count(json!({"eventType": ""})), "spec.eventType"),
        ("a control character", count(json!({"eventType": "a\u{0}b"})), "an event type has no control characters"),
        ("a newline", count(json!({"eventType": "a\n"})), "an event type has no control characters"),
        ("a long type", count(json!({"eventType": "a".repeat(1025)})), "spec.eventType: Too long"),
        ("a wrong aggregation", json!({"eventType": "a", "aggregation": "Median"}), "supported values: \"Count\""),
        ("a value for Count", count(json!({"valueProperty": "$.a"})), "valueProperty must be absent when aggregation is Count"),
        ("no value for Sum", json!({"eventType": "a", "aggregation": "Sum"}), "valueProperty is required unless aggregation is Count"),
        ("the whole data", sum("$"), "spec.valueProperty"),
        ("no dollar", sum("a.b"), path),
        ("a wildcard", sum("$.a[*]"), path),
        ("a dash", sum("$.a-b"), path),
        ("an open quote", sum("$['a"), path),
        ("an empty member", sum("$['']"), path),
        ("a wrong escape", sum(r"$['\n']"), path),
        ("a newline behind a path", sum("$.a\n"), path),
        ("a long path", sum(&format!("$.{}", "a".repeat(255))), "spec.valueProperty: Too long"),
        ("17 groups", count(json!({"groupBy": many})), "spec.groupBy: Too many"),
        ("a group with a quote", count(json!({"groupBy": {"a'b": "$.a"}})), group_name),
        ("a group with a backtick", count(json!({"groupBy": {"a`b": "$.a"}})), group_name),
        ("a group with a backslash", count(json!({"groupBy": {"a\\b": "$.a"}})), group_name),
        ("an upper-case group", count(json!({"groupBy": {"Method": "$.a"}})), group_name),
        ("a long group", count(json!({"groupBy": {"g".repeat(64): "$.a"}})), group_name),
        ("an empty group", count(json!({"groupBy": {"": "$.a"}})), group_name),
        ("a built-in group", count(json!({"groupBy": {"customer": "$.a"}})), "customer and subject are built in"),
        ("the other built-in group", count(json!({"groupBy": {"subject": "$.a"}})), "customer and subject are built in"),
        ("a bad group path", count(json!({"groupBy": {"g": "$..a"}})), group_path),
        ("a retention in hours", count(json!({"retention": "24h"})), "days such as 400d are expected"),
        ("no retention", count(json!({"retention": "0d"})), "days such as 400d are expected"),
        ("a long retention", count(json!({"retention": "1234567d"})), "spec.retention: Too long"),
        ("a wrong policy", count(json!({"deletionPolicy": "Purge"})), "supported values: \"Retain\", \"Delete\""),
        ("a long unit", count(json!({"unit": "u".repeat(129)})), "spec.unit: Too long"),
        ("a long name", json!({"name": "n".repeat(64), "spec": {"eventType": "a", "aggregation": "Count"}}), "at most 63 characters"),
    ];
    let (specs, causes): (Vec<_>, Vec<_>) = bad.into_iter().map(|(what, spec, cause)| ((what, spec), cause)).unzip();
    for ((what, refusal), cause) in refusals("Meter", specs).await.into_iter().zip(causes) {
        let refusal = refusal.unwrap_or_else(|| panic!("{what} was taken"));
        assert!(refusal.contains(cause), "{what}: {refusal:?} does not say {cause:?}");
    }
}

#[tokio::test]
async fn customers_are_judged() {
    let subjects = |n: usize| (0..n).map(|i| json!(format!("subject-{i}"))).collect::<Vec<_>>();
    let cases = [
        ("least", json!({}), None),
        ("odd subjects", json!({"subjects": ["a'b", "a\\b", "a\"b", "`", "😀", "a b"]}), None),
        ("1,000 subjects", json!({"subjects": subjects(1000)}), None),
        ("a long subject", json!({"subjects": ["s".repeat(1024)]}), None),
        ("1,001 subjects", json!({"subjects": subjects(1001)}), Some("spec.subjects: Too many")),
        ("a subject twice", json!({"subjects": ["a", "b", "a"]}), Some("Duplicate value: \"a\"")),
        ("an empty subject", json!({"subjects": [""]}), Some("spec.subjects[0]")),
        ("a NUL", json!({"subjects": ["a", "b\u{0}"]}), Some("spec.subjects[1]")),
        ("too long a subject", json!({"subjects": ["s".repeat(1025)]}), Some("spec.subjects[0]: Too long")),
        ("too long a name", json!({"displayName": "n".repeat(129)}), Some("spec.displayName: Too long")),
        ("a wrong policy", json!({"deletionPolicy": "Delete"}), Some("supported values: \"Retain\", \"Purge\"")),
    ];
    let (specs, causes): (Vec<_>, Vec<_>) = cases.into_iter().map(|(what, spec, cause)| ((what, spec), cause)).unzip();
    for ((what, refusal), cause) in refusals("Customer", specs).await.into_iter().zip(causes) {
        match (refusal, cause) {
            (None, None) => {}
            (Some(refusal), Some(cause)) => assert!(refusal.contains(cause), "{what}: {refusal:?} does not say {cause:?}"),
            (refusal, cause) => panic!("{what}: answered {refusal:?}, expected {cause:?}"),
        }
    }
}

#[tokio::test]
async fn kubectl_explains_every_field() {
    let plane = ControlPlane::shared();
    install_crds(&plane.client().await).await;
    let kubectl = tool("kubectl");
    for (path, words) in [
        ("meters", "The operator provisions a ClickHouse table"),
        ("mtr.spec.eventType", "CloudEvents `type` of the events that are counted"),
        ("meters.spec.groupBy", "`customer` and `subject` are always there"),
        ("meters.spec.valueProperty", "Required, except for `Count`"),
        ("meters.status.backfill", "How far the table that is being built has come"),
        ("cust.spec.subjects", "A subject belongs to one customer"),
    ] {
        // The server's OpenAPI document follows a CRD with a delay.
        crate::support::eventually(path, async || {
            let output = Command::new(&kubectl).arg("--kubeconfig").arg(&plane.kubeconfig).args(["explain", path]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
            text.contains(words).then_some(())
        })
        .await;
    }
    let output =
        Command::new(&kubectl).arg("--kubeconfig").arg(&plane.kubeconfig).args(["explain", "--recursive", "meters.spec"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for field in ["aggregation", "deletionPolicy", "description", "eventType", "groupBy", "retention", "unit", "valueProperty"] {
        assert!(text.contains(field), "{field} in {text}");
    }
}
