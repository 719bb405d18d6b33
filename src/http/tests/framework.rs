//! What every request has: problems for the framework's own refusals, ids, metrics, probes, no secrets told.

use std::sync::Arc;
use std::time::Duration;

use super::fake::Fake;
use super::*;
use crate::metering::Error;

#[tokio::test]
async fn the_frameworks_refusals_are_problems_too() {
    let fake = Arc::new(Fake::default());
    for path in ["/", "/meter", "/meters/", "/usage", "/events/x", "/v1/meters"] {
        if path != "/usage" {
            let answer = send(&fake, bare("GET", path)).await;
            answer.problem(404, "not_found");
        }
    }
    for (method, path, allow) in [
        ("PATCH", "/meters", "POST,GET,HEAD"),
        ("POST", "/meters/a", "GET,HEAD,PUT,DELETE"),
        ("GET", "/usage", "DELETE"),
        ("PUT", "/events", "POST,GET,HEAD"),
        ("DELETE", "/healthz", "GET,HEAD"),
    ] {
        let answer = send(&fake, bare(method, path)).await;
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing() {
    let fake = Arc::new(Fake { panics: true, ..Fake::default() });
    let answer = send(&fake, bare("GET", "/meters")).await;
    let detail = answer.problem(500, "internal");
    assert!(!detail.contains("secret"), "{detail}");
    assert!(!answer.header("x-request-id").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_too_long_is_a_503() {
    let fake = Arc::new(Fake { delay: Duration::from_secs(3600), ..Fake::default() });
    send(&fake, bare("GET", "/usage/calls")).await.problem(503, "timeout");
    send(&fake, bare("GET", "/readyz")).await.problem(503, "not_ready");
}

#[tokio::test]
async fn a_request_has_an_id() {
    let fake = Arc::new(Fake::default());
    let asked = async |id: &[u8]| {
        let answer = send(&fake, request("GET", "/meters").header("x-request-id", id).body(Body::empty()).unwrap()).await;
        answer.header("x-request-id").to_owned()
    };
    assert_eq!(asked(b"4bf9-A.b/c:1").await, "4bf9-A.b/c:1");
    for odd in [&b""[..], b"a b", b"\"x\"", b"a\xff", &[b'a'; 129]] {
        assert_eq!(asked(odd).await.len(), 36, "{odd:?}");
    }
    let (first, second) = (send(&fake, bare("GET", "/nowhere")).await, send(&fake, bare("GET", "/nowhere")).await);
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn probes_and_metrics_are_served() {
    let (fake, options) = (Arc::new(Fake::default()), options());
    assert_eq!(send(&fake, bare("GET", "/healthz")).await.text(), "ok\n");
    assert_eq!(fake.last(), "", "the process answers by itself");
    assert_eq!(send(&fake, bare("GET", "/readyz")).await.status, 200);
    let unready = Fake::failing(|| Error::NotFound("ClickHouse does not answer".into()));
    assert_eq!(send(&unready, bare("GET", "/readyz")).await.problem(503, "not_ready"), "ClickHouse does not answer");
    assert_eq!(send(&unready, bare("GET", "/healthz")).await.status, 200);

    for (method, uri) in
        [("GET", "/meters/secret-one"), ("GET", "/nowhere/secret"), ("BREW", "/meters"), ("GET", "/usage/a?customer=secret")]
    {
        send_with(&fake, options.clone(), bare(method, uri)).await;
    }
    let answer = send_with(&fake, options, bare("GET", "/metrics")).await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        r#"kubemeter_http_requests_total{method="GET",route="/meters/{meterId}",status="200"} 1"#,
        r#"kubemeter_http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"kubemeter_http_requests_total{method="other",route="/meters",status="405"} 1"#,
        "kubemeter_usage_query_duration_seconds_count 1",
    ] {
        assert!(answer.text().lines().any(|l| l == line), "{line} is not in\n{}", answer.text());
    }
    assert!(!answer.text().contains("secret"));
}

#[derive(Clone, Default)]
struct Written(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_has_no_secrets_and_an_inner_error_once() {
    let written = Written::default();
    let writer = written.clone();
    // For the whole process: a thread's own would be missed by spans that another test's thread met first.
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone()).init();
    let fake = Fake::failing(|| Error::Internal("table gone".into()));
    let answer = send(
        &fake,
        request("POST", "/events?namespace=team-secret")
            .header("content-type", "application/json")
            .header("authorization", "Bearer token-secret")
            .header("x-request-id", "this-tests-own")
            .body(Body::from(r#"{"specversion":"1.0","id":"id-secret","source":"gw","type":"t","subject":"s"}"#))
            .unwrap(),
    )
    .await;
    answer.problem(500, "internal");
    let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let log = log.lines().filter(|line| line.contains("this-tests-own")).collect::<Vec<_>>().join("\n");
    assert_eq!(log.matches("table gone").count(), 1, "{log}");
    assert!(log.contains("WARN") && log.contains("/events"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}
