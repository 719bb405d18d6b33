//! Each path and method: what the service is called with, what is answered.

use std::sync::Arc;

use super::fake::Fake;
use super::*;
use crate::metering::{Error, Ingested, RejectCode, Rejection};

const METER: &str = r#"{"meterId":"calls","eventType":"api.request","aggregation":"Count"}"#;
const CUSTOMER: &str = r#"{"customerId":"acme","subjects":["acme-prod"]}"#;
const EVENT: &str = r#"{"specversion":"1.0","id":"e1","source":"gw","type":"api.request","subject":"acme"}"#;
const CANCELLATION: &str = "/usage/cancellations/0195d3a4-7c1f-7b6e-8a3c-0123456789ab/revert";

/// (method, path, body, status, how the call's note starts)
const GOOD: &[(&str, &str, &str, u16, &str)] = &[
    ("POST", "/meters", METER, 201, "create_meter"),
    ("GET", "/meters", "", 200, "fetch_all_meters"),
    ("GET", "/meters/calls", "", 200, "fetch_meter"),
    ("PUT", "/meters/calls", METER, 200, "update_meter"),
    ("DELETE", "/meters/calls", "", 202, "delete_meter"),
    ("POST", "/customers", CUSTOMER, 201, "create_customer"),
    ("GET", "/customers", "", 200, "fetch_all_customers"),
    ("GET", "/customers/acme", "", 200, "fetch_customer"),
    ("PUT", "/customers/acme", CUSTOMER, 200, "update_customer"),
    ("DELETE", "/customers/acme", "", 202, "delete_customer"),
    ("POST", "/events", EVENT, 202, "ingest"),
    ("GET", "/events", "", 200, "list_events"),
    ("GET", "/events/rejected", "", 200, "list_rejected"),
    ("POST", "/events/rejected/replay", "", 200, "replay"),
    ("GET", "/usage/calls", "", 200, "fetch_usage"),
    ("DELETE", "/usage", r#"{"events":[{"source":"gw","id":"e2"}]}"#, 200, "cancel"),
    ("GET", "/usage/cancellations", "", 200, "list_cancellations"),
    ("POST", CANCELLATION, "", 200, "revert"),
];

fn of(method: &str, path: &str, body: &str) -> Request<Body> {
    if body.is_empty() { bare(method, path) } else { with_json(method, path, body) }
}

#[tokio::test]
async fn each_call_reaches_its_function() {
    for (method, path, body, status, call) in GOOD {
        let fake = Arc::new(Fake::default());
        let answer = send(&fake, of(method, path, body)).await;
        assert_eq!(answer.status.as_u16(), *status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/json", "{method} {path}");
        assert!(answer.json().is_object());
        assert!(
            fake.last().starts_with(&format!("{call} Caller {{ namespace: \"shop\", acts_as: Gateway, name: None }}")),
            "{}",
            fake.last()
        );
    }
}

#[tokio::test]
async fn each_call_refuses_unknown_parameters_and_bad_namespaces() {
    for (method, path, body, _, _) in GOOD {
        let fake = Arc::new(Fake::default());
        let detail = send(&fake, of(method, &format!("{path}?windowsize=DAY"), body)).await.problem(400, "invalid_parameter");
        assert!(detail.starts_with("\"windowsize\": is no parameter here; there are namespace"), "{detail}");
        for bad in ["", "Shop", "a.b", "-a", "..%2Fkube-system", "a&namespace=b", &"a".repeat(64)] {
            let detail = send(&fake, of(method, &format!("{path}?namespace={bad}"), body)).await.problem(400, "invalid_parameter");
            assert!(detail.starts_with("namespace: "), "{detail}");
        }
        assert_eq!(fake.last(), "", "{method} {path}");
    }
}

#[tokio::test]
async fn each_failure_of_the_service_has_its_status() {
    type Failure = (fn() -> Error, u16, &'static str);
    let failures: &[Failure] = &[
        (|| Error::Invalid { code: "invalid_parameter", message: "groupBy: none".into() }, 400, "invalid_parameter"),
        (|| Error::NotFound("no such meter".into()), 404, "not_found"),
        (|| Error::Conflict("stale".into()), 409, "conflict"),
        (|| upstream(403, "Forbidden"), 403, "forbidden"),
        (|| upstream(422, "AlreadyExists"), 422, "already_exists"),
        (|| upstream(429, ""), 429, "upstream"),
        (|| upstream(200, "Odd one"), 502, "upstream"),
        (|| Error::Overloaded { message: "full".into(), retry_after: 7 }, 429, "overloaded"),
        (|| Error::Unavailable { message: "ClickHouse".into(), retry_after: 7 }, 503, "unavailable"),
        (|| Error::Internal("table kubemeter.meter_1".into()), 500, "internal"),
    ];
    for (method, path, body, _, _) in GOOD {
        for (error, status, code) in failures {
            let answer = send(&Fake::failing(*error), of(method, path, body)).await;
            let detail = answer.problem(*status, code);
            assert!(!detail.contains("kubemeter.meter_1"), "the inside is told: {detail}");
            match error() {
                Error::Upstream { .. } => assert_eq!(answer.json()["causes"][0]["field"], "spec.valueProperty"),
                Error::Overloaded { .. } | Error::Unavailable { .. } => assert_eq!(answer.header("retry-after"), "7"),
                _ => assert!(answer.json().get("causes").is_none()),
            }
        }
    }
}

fn upstream(status: u16, reason: &str) -> Error {
    let causes = vec![("spec.valueProperty".to_owned(), "is required".to_owned())];
    Error::Upstream { status, reason: reason.to_owned(), message: "refused".to_owned(), causes }
}

#[tokio::test]
async fn what_is_made_has_a_location() {
    let fake = Arc::new(Fake::default());
    let answer = send(&fake, with_json("POST", "/meters?namespace=other", METER)).await;
    assert_eq!(answer.header("location"), "/meters/calls?namespace=other");
    assert_eq!(send(&fake, bare("GET", answer.header("location"))).await.json()["meterId"], "calls");
    let answer = send(&fake, with_json("POST", "/customers", CUSTOMER)).await;
    assert_eq!(answer.header("location"), "/customers/acme?namespace=shop");
}

#[tokio::test]
async fn a_listing_gives_its_continue_token_and_takes_it_back() {
    let fake = Arc::new(Fake::default());
    for path in ["/meters", "/customers", "/events", "/events/rejected", "/usage/cancellations"] {
        let answer = send(&fake, bare("GET", &format!("{path}?limit=1000&continue=a%2Bb%3D"))).await;
        assert_eq!(answer.json()["continue"], "more");
        assert!(fake.last().ends_with("Page { limit: Some(1000), token: Some(\"a+b=\") }"), "{}", fake.last());
        for (query, name) in
            [("limit=0", "limit"), ("limit=1001", "limit"), ("limit=ten", "limit"), ("limit=1&limit=2", "limit"), ("continue=", "continue")]
        {
            let detail = send(&fake, bare("GET", &format!("{path}?{query}"))).await.problem(400, "invalid_parameter");
            assert!(detail.starts_with(&format!("{name}: ")), "{detail}");
        }
        let long = format!("{path}?continue={}", "x".repeat(4097));
        send(&fake, bare("GET", &long)).await.problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn names_in_paths_never_reach_another_path_of_the_kubernetes_api() {
    for name in ["..", "%2e%2e%2fsecrets", "a%2Fb", "A", "a_b", "%00", "%F0%9F%92%A9", "a'b", "-a", "a..b", &"a".repeat(64)] {
        for (method, path, body) in [("GET", "meters", ""), ("PUT", "meters", METER), ("DELETE", "meters", ""), ("GET", "usage", "")] {
            let fake = Arc::new(Fake::default());
            let detail = send(&fake, of(method, &format!("/{path}/{name}"), body)).await.problem(400, "invalid_parameter");
            assert!(detail.starts_with("meterId: "), "{detail}");
            assert_eq!(fake.last(), "");
        }
    }
    let fake = Arc::new(Fake::default());
    send(&fake, bare("GET", "/customers/a%2Fb")).await.problem(400, "invalid_parameter");
    send(&fake, bare("POST", "/usage/cancellations/1/revert")).await.problem(400, "invalid_parameter");
    send(&fake, bare("GET", "/meters/%FF")).await.problem(400, "bad_request");
    assert_eq!(send(&fake, bare("GET", "/meters/a.b-c")).await.status, 200);
}

#[tokio::test]
async fn the_namespace_is_named_or_the_tokens_or_the_default() {
    let token = |claims: &str| {
        use base64::Engine as _;
        format!("eyJhbGciOiJub25lIn0.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
    };
    let asked = async |uri: &str, token: &str| {
        let fake = Arc::new(Fake::default());
        let answer = send(&fake, request("GET", uri).header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(fake.last().contains("acts_as: Token(…)") && !fake.last().contains(token), "{}", fake.last());
        fake.last().split('"').nth(1).unwrap().to_owned()
    };
    let projected = token(r#"{"kubernetes.io":{"namespace":"team-a"},"sub":"system:serviceaccount:team-b:robot"}"#);
    assert_eq!(asked("/meters", &projected).await, "team-a");
    assert_eq!(asked("/meters?namespace=other", &projected).await, "other");
    assert_eq!(asked("/meters", &token(r#"{"sub":"system:serviceaccount:team-b:robot"}"#)).await, "team-b");
    for odd in [
        token(r#"{"sub":"jane"}"#),
        token(r#"{"kubernetes.io":{"namespace":"../x"}}"#),
        token("[]"),
        "opaque".into(),
        "a.!.c".replace('!', "_"),
    ] {
        assert_eq!(asked("/meters", &odd).await, "shop", "{odd}");
    }
}

#[tokio::test]
async fn an_authorization_that_is_no_bearer_token_is_refused() {
    let fake = Arc::new(Fake::default());
    for bad in ["Basic dXNlcjpwdw==", "Bearer", "Bearer ", "Bearer a b", "token", &format!("Bearer {}", "a".repeat(20_000))] {
        let answer = send(&fake, request("GET", "/meters").header("authorization", bad).body(Body::empty()).unwrap()).await;
        answer.problem(401, "invalid_token");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(fake.last(), "");
}

#[tokio::test]
async fn rejected_events_are_listed_in_the_answer_and_counted() {
    let rejection = || Rejection {
        index: 1,
        source: Some("gw".into()),
        id: None,
        code: RejectCode::InvalidValue,
        message: "$.tokens is \"abc\": not a decimal number".into(),
    };
    let options = options();
    let some = Ingested { accepted: 2, rejected: vec![rejection()] };
    let fake = Arc::new(Fake { ingested: Some(some), ..Fake::default() });
    let answer = send_with(&fake, options.clone(), with_json("POST", "/events?atomic=false", EVENT)).await;
    assert_eq!(answer.status, 202);
    let expected = r#"{"accepted":2,"rejected":[{"index":1,"source":"gw","code":"invalid_value","message":"$.tokens is \"abc\": not a decimal number"}]}"#;
    assert_eq!(answer.text(), expected);

    fn one() -> Error {
        let rejection =
            Rejection { index: 0, source: None, id: Some("e1".into()), code: RejectCode::MissingValue, message: "no $.v".into() };
        Error::AllRejected(Ingested { accepted: 0, rejected: vec![rejection] })
    }
    let fake = Fake::failing(one);
    let answer = send_with(&fake, options.clone(), with_json("POST", "/events?atomic=true", EVENT)).await;
    answer.problem(400, "missing_value");
    assert!(fake.last().contains("atomic=true"));
    assert_eq!((&answer.json()["accepted"], &answer.json()["rejected"][0]["id"]), (&0.into(), &"e1".into()));
    let answer = send_with(&fake, options.clone(), bare("POST", "/events/rejected/replay")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["rejected"][0]["code"]), (200, &"missing_value".into()));

    let metrics = String::from_utf8(options.metrics.text().unwrap()).unwrap();
    for line in ["kubemeter_events_accepted_total 2", r#"kubemeter_events_rejected_total{code="missing_value"} 2"#] {
        assert!(metrics.contains(line), "{metrics}");
    }
    send(&fake, with_json("POST", "/events?atomic=yes", EVENT)).await.problem(400, "invalid_parameter");
}

#[tokio::test]
async fn stored_events_are_listed_as_filtered() {
    let fake = Arc::new(Fake::default());
    let uri = "/events?type=api.request&subject=a%27b&customer=acme&from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00%2B01:00";
    let answer = send(&fake, bare("GET", uri)).await;
    assert_eq!(answer.json()["items"][0]["time"], "2026-01-31T00:00:00.25Z");
    assert!(answer.text().contains(r#""data":{"a":1.50}"#), "{}", answer.text());
    let call = fake.last();
    for part in [
        r#"event_type: Some("api.request")"#,
        r#"subject: Some("a'b")"#,
        "from: Some(2026-01-01T00:00:00Z)",
        "to: Some(2026-01-31T23:00:00Z)",
    ] {
        assert!(call.contains(part), "{call}");
    }
    send(&fake, bare("GET", &format!("/events?type={}", "x".repeat(1025)))).await.problem(400, "invalid_parameter");
}

#[tokio::test]
async fn rejects_are_replayed_all_or_by_id() {
    let fake = Arc::new(Fake::default());
    send(&fake, bare("POST", "/events/rejected/replay")).await;
    assert!(fake.last().ends_with("[]"));
    send(&fake, with_json("POST", "/events/rejected/replay", r#"{"rejectIds":["0195d3a4-7c1f-7b6e-8a3c-0123456789ab"]}"#)).await;
    assert!(fake.last().ends_with("[0195d3a4-7c1f-7b6e-8a3c-0123456789ab]"), "{}", fake.last());
    for (body, says) in [(r#"{"rejectIds":[]}"#, "rejectIds: "), (r#"{"rejectIds":["x"]}"#, "rejectIds[0]: "), (r#"{"ids":[]}"#, "ids")] {
        let detail = send(&fake, with_json("POST", "/events/rejected/replay", body)).await.problem(400, "invalid_body");
        assert!(detail.contains(says), "{detail}");
    }
}

#[tokio::test]
async fn a_strangers_body_is_not_read() {
    let read = Arc::new(std::sync::atomic::AtomicBool::new(false));
    struct Nobody;
    impl crate::auth::Reviewer for Nobody {
        fn user<'a>(
            &'a self,
            _: &'a str,
        ) -> futures::future::BoxFuture<'a, Result<Result<Arc<crate::auth::User>, String>, crate::auth::Unavailable>> {
            Box::pin(async { Ok(Err("unknown".to_owned())) })
        }
        fn may<'a>(
            &'a self,
            _: &'a crate::auth::User,
            _: &'a crate::auth::Right,
        ) -> futures::future::BoxFuture<'a, Result<bool, crate::auth::Unavailable>> {
            Box::pin(async { Ok(false) })
        }
    }
    let reviews = crate::auth::Cached::new(Nobody, crate::auth::Times::default()).unwrap();
    let options = HttpOptions { auth: crate::auth::Auth::on(reviews, None, "kubemeter".into(), "kubemeter".into()), ..options() };
    for (method, path, ..) in GOOD {
        let (fake, read) = (Arc::new(Fake::default()), Arc::clone(&read));
        let body = Body::from_stream(futures::stream::once(async move {
            read.store(true, std::sync::atomic::Ordering::SeqCst);
            Ok::<_, std::io::Error>("{}")
        }));
        let request = request(method, path).header("authorization", "Bearer strange").header("content-type", "application/json");
        send_with(&fake, options.clone(), request.body(body).unwrap()).await.problem(401, "unauthorized");
        assert_eq!(fake.last(), "", "{method} {path}");
    }
    assert!(!read.load(std::sync::atomic::Ordering::SeqCst));
}
