//! `/openapi.json` says what is served, and `docs/openapi.json` is the same text.

use std::sync::Arc;

use super::fake::Fake;
use super::*;

/// Set it to have the file written anew instead of compared.
const REGENERATE: &str = "KUBEMETER_REGENERATE";

#[test]
fn the_file_is_what_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let made = crate::http::openapi().unwrap();
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is out of date: run {REGENERATE}=1 cargo test --lib http::tests::document");
}

#[tokio::test]
async fn every_documented_call_is_served_and_every_reference_resolves() {
    let fake = Arc::new(Fake::default());
    let answer = send(&fake, bare("GET", "/openapi.json")).await;
    assert_eq!(answer.text(), crate::http::openapi().unwrap());
    let document = answer.json();
    let mut calls = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let concrete = path.replace("{meterId}", "a").replace("{customerId}", "a").replace("{cancellationId}", "a");
        for (method, operation) in item.as_object().unwrap() {
            assert!(calls.insert(operation["operationId"].as_str().unwrap()), "two calls of one name: {path}");
            let answer = send(&fake, bare(&method.to_uppercase(), &concrete)).await;
            assert!(!matches!(answer.status.as_u16(), 404 | 405), "{method} {path} is documented and not there");
            let declared = operation["parameters"].as_array().map_or(0, Vec::len);
            assert_eq!(path.contains('{'), operation["parameters"].to_string().contains(r#""in":"path""#), "{path}");
            assert!(declared > 0 || operation["tags"][0] == "probes", "{method} {path}");
            let statuses = operation["responses"].as_object().unwrap();
            assert!(statuses.contains_key(&answer.status.as_u16().to_string()), "{method} {path} answers {} undocumented", answer.status);
            assert!(operation["summary"].is_string());
        }
    }
    assert_eq!(calls.len(), 18 + 4, "calls of the contract, and probes");
    let text = answer.text();
    for name in text.match_indices("#/components/schemas/").map(|(at, prefix)| text[at + prefix.len()..].split('"').next().unwrap()) {
        assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not there");
    }
}
