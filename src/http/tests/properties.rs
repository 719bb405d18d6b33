//! Whatever is sent, the answer is an answer: never a 5xx, and every error a problem.

use std::sync::Arc;

use axum::http::Uri;
use proptest::prelude::*;

use super::fake::Fake;
use super::*;

const NAMES: &[&str] = &[
    "namespace",
    "limit",
    "continue",
    "from",
    "to",
    "windowSize",
    "windowTimeZone",
    "customer",
    "subject",
    "groupBy",
    "filter[method]",
    "filter[",
    "atomic",
    "type",
];
const PATHS: &[(&str, &str)] = &[
    ("POST", "/meters"),
    ("GET", "/meters"),
    ("PUT", "/meters/a"),
    ("POST", "/customers"),
    ("PUT", "/customers/a"),
    ("POST", "/events"),
    ("GET", "/events"),
    ("POST", "/events/rejected/replay"),
    ("GET", "/usage/a"),
    ("DELETE", "/usage"),
    ("GET", "/usage/cancellations"),
];
const TYPES: &[&str] =
    &["application/json", "application/cloudevents+json", "application/cloudevents-batch+json", "application/x-ndjson", "text/plain"];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9]{1,12}",
        "(19|20|99)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,10})?(Z|[+-][0-2][0-9]:[0-6][0-9])",
        Just("DAY".to_owned()),
        "[A-Z][a-z]{2,7}/[A-Z][a-z]{2,7}",
    ]
}

fn query() -> impl Strategy<Value = String> {
    let pairs = proptest::collection::vec((prop::sample::select(NAMES), value()), 0..5);
    prop_oneof![
        pairs.prop_map(|pairs| form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()),
        "[ -~]{0,40}".prop_map(|text| text.replace(['#', ' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}'], "%")),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let document = r#"\{("(meterId|customerId|eventType|aggregation|events|filter|reason|id|source|type|subject|data|specversion|time)":("[a-zA-Z0-9.]{0,6}"|[0-9.eE+-]{1,6}|null|\[\]|\{\}|\[\{"id":"1","source":"2"\}\]),?){0,6}\}"#;
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), document.prop_map(String::into_bytes)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_sent_makes_a_5xx(
        (method, path) in prop::sample::select(PATHS),
        query in query(),
        kind in prop::sample::select(TYPES),
        encoding in prop::option::weighted(0.1, prop::sample::select(&["gzip", "zstd", "br"][..])),
        body in body(),
    ) {
        let uri: Result<Uri, _> = format!("{path}?{query}").parse();
        prop_assume!(uri.is_ok());
        let mut request = Request::builder().method(method).uri(uri.unwrap()).header("content-type", kind);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(send(&Arc::new(Fake::default()), request.body(Body::from(body)).unwrap()));
        prop_assert!(!answer.status.is_server_error(), "{} {}", answer.status, answer.text());
        if answer.status.is_client_error() {
            prop_assert_eq!(answer.header("content-type"), "application/problem+json");
            prop_assert!(!answer.json()["detail"].as_str().unwrap().is_empty());
        }
    }
}
