//! Bodies: their types, encodings, sizes, and what is wrong in them.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::fake::Fake;
use super::*;
use crate::limits;

const EVENTS: &str = r#"[{"specversion":"1.0","id":"e1","source":"gw","type":"t","subject":"s"},{"specversion":"1.0","id":"e2","source":"gw","type":"t","subject":"s"}]"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn encoded(encoding: &str, body: Vec<u8>) -> Request<Body> {
    request("POST", "/events")
        .header("content-type", "application/json")
        .header("content-encoding", encoding)
        .body(Body::from(body))
        .unwrap()
}

#[tokio::test]
async fn events_come_in_every_form() {
    let one = r#"{"specversion":"1.0","id":"e1","source":"gw","type":"t","subject":"s"}"#;
    let lines = format!("{one}\n{one}\n");
    for (kind, body, items) in [
        ("application/cloudevents+json", one, 1),
        ("application/cloudevents-batch+json; charset=UTF-8", EVENTS, 2),
        ("application/json", one, 1),
        ("Application/JSON;charset=utf-8", EVENTS, 2),
        ("application/x-ndjson", &lines, 2),
        ("application/json", "[]", 0),
    ] {
        let fake = Arc::new(Fake::default());
        let answer = send(&fake, request("POST", "/events").header("content-type", kind).body(Body::from(body.to_owned())).unwrap()).await;
        assert_eq!(answer.status, 202, "{kind}: {}", answer.text());
        assert!(fake.last().contains(&format!("items={items} ")), "{kind}: {}", fake.last());
    }
    let fake = Arc::new(Fake::default());
    let mut binary = request("POST", "/events").header("content-type", "application/json");
    for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "e1"), ("ce-source", "gw"), ("ce-type", "t"), ("ce-subject", "s")] {
        binary = binary.header(name, value);
    }
    assert_eq!(send(&fake, binary.body(Body::from("{\"v\":1}")).unwrap()).await.status, 202);
    assert!(fake.last().contains("items=1 ") && fake.last().contains("Ok(Event("), "{}", fake.last());
}

#[tokio::test]
async fn compressed_bodies_are_taken() {
    let zstd = zstd::encode_all(EVENTS.as_bytes(), 3).unwrap();
    for request in [encoded("gzip", gzip(EVENTS.as_bytes())), encoded("zstd", zstd), encoded("identity", EVENTS.into())] {
        let fake = Arc::new(Fake::default());
        assert_eq!(send(&fake, request).await.status, 202);
        assert!(fake.last().contains("items=2 "), "{}", fake.last());
    }
    // Each as several, one after the other, and an empty one.
    let halves = EVENTS.split_at(EVENTS.len() / 2);
    let parts = [halves.0, "", halves.1].map(str::as_bytes);
    let zstd = parts.map(|part| zstd::encode_all(part, 3).unwrap()).concat();
    for (encoding, mut body) in [("gzip", parts.map(gzip).concat()), ("zstd", zstd)] {
        let fake = Arc::new(Fake::default());
        assert_eq!(send(&fake, encoded(encoding, body.clone())).await.status, 202, "{encoding}");
        assert!(fake.last().contains("items=2 "), "{encoding}: {}", fake.last());
        body.extend(b"what is no part");
        send(&fake, encoded(encoding, body)).await.problem(400, "unreadable_body");
    }
    let fake = Arc::new(Fake::default());
    let answer = send(&fake, encoded("br", EVENTS.into())).await;
    answer.problem(415, "unsupported_encoding");
    assert!(answer.header("accept-encoding").contains("gzip"));
    let mut cut = gzip(EVENTS.as_bytes());
    cut.truncate(cut.len() - 12);
    send(&fake, encoded("gzip", cut)).await.problem(400, "unreadable_body");
    send(&fake, encoded("zstd", EVENTS.into())).await.problem(400, "unreadable_body");
    assert_eq!(fake.last(), "");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whatever_it_is_packed_in() {
    let big = vec![b' '; limits::BODY_BYTES + 1];
    let fake = Arc::new(Fake::default());
    // Packed, they are a thousandth of it.
    let zstd = zstd::encode_all(big.as_slice(), 3).unwrap();
    for request in [encoded("gzip", gzip(&big)), encoded("zstd", zstd), encoded("identity", big.clone())] {
        send(&fake, request).await.problem(413, "too_large");
    }
    let chunks = futures::stream::iter((0..17).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let streamed = request("POST", "/events").header("content-type", "application/json").body(Body::from_stream(chunks)).unwrap();
    send(&fake, streamed).await.problem(413, "too_large");
    send(&fake, with_json("POST", "/meters", &" ".repeat(limits::BODY_BYTES + 1))).await.problem(413, "too_large");
    assert_eq!(fake.last(), "");
    // Exactly the limit is not over it.
    send(&fake, with_json("POST", "/events", &" ".repeat(limits::BODY_BYTES))).await.problem(400, "invalid_event");
}

#[tokio::test]
async fn bodies_share_a_bounded_memory() {
    let small = HttpOptions { bodies_bytes: 64 * 1024, ..options() };
    let fake = Arc::new(Fake::default());
    let body = format!("{}{EVENTS}", " ".repeat(100_000));
    send_with(&fake, small.clone(), with_json("POST", "/events", &body)).await.problem(429, "overloaded");
    // And it is given back.
    let router = router(Arc::clone(&fake), small);
    for _ in 0..100 {
        let body = format!("{}{EVENTS}", " ".repeat(30_000));
        let response = router.clone().oneshot(with_json("POST", "/events", &body)).await.unwrap();
        assert_eq!(response.status(), 202);
    }
    // A decompressor has a price, too, and gives it back.
    let packed = || encoded("gzip", gzip(EVENTS.as_bytes()));
    assert_eq!(router.clone().oneshot(packed()).await.unwrap().status(), 429);
    let enough = super::router(fake, HttpOptions { bodies_bytes: 1024 * 1024, ..options() });
    for _ in 0..10 {
        assert_eq!(enough.clone().oneshot(packed()).await.unwrap().status(), 202);
    }
    // Who comes while there is no room waits for it: two bodies that have no length and are not yet read.
    let slow = || {
        let body = futures::stream::once(async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(EVENTS)
        });
        request("POST", "/events").header("content-type", "application/json").body(Body::from_stream(body)).unwrap()
    };
    for response in futures::future::join_all([slow(), slow()].map(|request| enough.clone().oneshot(request))).await {
        assert_eq!(response.unwrap().status(), 202);
    }
}

#[tokio::test]
async fn events_that_take_far_more_than_their_body_share_its_memory() {
    // 5 KB as JSON, and 160 as values with their paths.
    let body = format!(
        r#"{{"specversion":"1.0","id":"e","source":"gw","type":"t","subject":"s","data":{{"{}":[{}]}}}}"#,
        "k".repeat(4_096),
        ["1"; 40].join(",")
    );
    let fake = Arc::new(Fake::default());
    let kib = |kib: usize| HttpOptions { bodies_bytes: kib * 1024, ..options() };
    send_with(&fake, kib(20), with_json("POST", "/events", &body)).await.problem(429, "overloaded");
    assert_eq!(fake.last(), "");
    // And it is given back.
    let router = router(fake, kib(60));
    for _ in 0..10 {
        assert_eq!(router.clone().oneshot(with_json("POST", "/events", &body)).await.unwrap().status(), 202);
    }
}

#[tokio::test]
async fn other_types_are_refused() {
    let fake = Arc::new(Fake::default());
    for (method, path) in [
        ("POST", "/events"),
        ("POST", "/meters"),
        ("PUT", "/meters/a"),
        ("POST", "/customers"),
        ("DELETE", "/usage"),
        ("POST", "/events/rejected/replay"),
    ] {
        for kind in ["text/plain", "application/xml", "", "application/x-www-form-urlencoded"] {
            let detail = send(&fake, request(method, path).header("content-type", kind).body(Body::from("{}")).unwrap()).await;
            let detail = detail.problem(415, "unsupported_media_type");
            assert!(detail.starts_with("Content-Type: "), "{detail}");
        }
        send(&fake, request(method, path).body(Body::from("{}")).unwrap()).await.problem(415, "unsupported_media_type");
    }
}

#[tokio::test]
async fn a_bad_event_body_is_refused_with_an_events_code() {
    let fake = Arc::new(Fake::default());
    for body in ["", " ", "{", "[1,", "nonsense"] {
        send(&fake, with_json("POST", "/events", body)).await.problem(400, "invalid_event");
    }
    let many = format!("[{}]", vec!["{}"; limits::BATCH_EVENTS + 1].join(","));
    send(&fake, with_json("POST", "/events", &many)).await.problem(400, "too_large");
    assert_eq!(fake.last(), "");
}

#[tokio::test]
async fn what_is_wrong_in_a_document_is_named() {
    let good = r#""eventType":"t","aggregation":"Count""#;
    for (method, path, body, code, says) in [
        ("POST", "/meters", "{\n \"meterId\":", "invalid_json", "EOF while parsing a value at line 2 column 11"),
        ("POST", "/meters", "", "invalid_json", "EOF"),
        (
            "POST",
            "/meters",
            r#"{"meterId":"a","eventType":"t","aggregation":"Count"} x"#,
            "invalid_json",
            "trailing characters at line 1 column 55",
        ),
        ("POST", "/meters", r#"{"meterID":"a"}"#, "invalid_body", "meterID: unknown field `meterID`, expected one of `meterId`"),
        ("POST", "/meters", r#"{"meterId":"a","eventType":7}"#, "invalid_body", "eventType: invalid type: integer `7`, expected a string"),
        (
            "POST",
            "/meters",
            r#"{"meterId":"a","eventType":"t","aggregation":"Median"}"#,
            "invalid_body",
            "aggregation: unknown variant `Median`, expected one of `Count`",
        ),
        (
            "POST",
            "/meters",
            r#"{"meterId":"a","eventType":"t","aggregation":"Count","groupBy":{"m":1}}"#,
            "invalid_body",
            "groupBy.m: invalid type",
        ),
        (
            "POST",
            "/meters",
            r#"{"meterId":"a","meterId":"b","eventType":"t","aggregation":"Count"}"#,
            "invalid_body",
            "duplicate field `meterId`",
        ),
        ("POST", "/meters", r#"{"eventType":"t","aggregation":"Count"}"#, "invalid_body", "missing field `meterId`"),
        ("POST", "/meters", &format!(r#"{{"meterId":"A b",{good}}}"#), "invalid_body", "meterId: \"A b\" is no name"),
        (
            "POST",
            "/meters",
            &format!(r#"{{"meterId":"a","namespace":"other",{good}}}"#),
            "invalid_body",
            "namespace: \"other\" is not \"shop\"",
        ),
        ("POST", "/meters", "[]", "invalid_body", "invalid length 0"),
        ("PUT", "/meters/a", &format!(r#"{{"meterId":"b",{good}}}"#), "invalid_body", "meterId: \"b\" is not \"a\""),
        ("PUT", "/meters/a", r#"{"unit":1}"#, "invalid_body", "unit: invalid type"),
        ("PUT", "/meters/a", "[]", "invalid_body", "invalid type: sequence, expected a map"),
        ("PUT", "/meters/a", r#"{"nme":1}"#, "invalid_body", "nme: unknown field `nme`"),
        ("POST", "/customers", r#"{"customerId":"acme","subjects":"x"}"#, "invalid_body", "subjects: invalid type"),
        (
            "PUT",
            "/customers/acme",
            r#"{"deletionPolicy":"Delete"}"#,
            "invalid_body",
            "deletionPolicy: unknown variant `Delete`, expected `Retain` or `Purge`",
        ),
        ("PUT", "/customers/acme", r#"{"customerId":"other"}"#, "invalid_body", "customerId: \"other\" is not \"acme\""),
    ] {
        let fake = Arc::new(Fake::default());
        let detail = send(&fake, with_json(method, path, body)).await.problem(400, code);
        assert!(detail.contains(says), "{body}: {detail}");
        assert_eq!(fake.last(), "");
    }
}

#[tokio::test]
async fn an_update_takes_its_name_from_the_path_and_its_own_answer_back() {
    let fake = Arc::new(Fake::default());
    let answer = send(&fake, with_json("PUT", "/meters/calls", r#"{"eventType":"t","aggregation":"Count","resourceVersion":"7"}"#)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["meterId"]), (200, &"calls".into()));
    assert!(fake.last().contains(r#"resource_version: Some("7")"#), "{}", fake.last());
    let mut shown = serde_json::to_value(fake::meter("calls")).unwrap();
    shown["namespace"] = "shop".into();
    shown["status"] = serde_json::json!({"ready": true, "reason": "Provisioned", "message": ""});
    assert_eq!(send(&fake, with_json("PUT", "/meters/calls", &shown.to_string())).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let fake = Arc::new(Fake::default());
    let drip = futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Some((Ok::<_, std::io::Error>(" "), ()))
    });
    let slow = request("POST", "/events").header("content-type", "application/json").body(Body::from_stream(drip)).unwrap();
    send(&fake, slow).await.problem(408, "body_timeout");
    assert_eq!(fake.last(), "");
}
