//! Filters and metrics.

use std::time::Duration;

use super::*;
use crate::metering::RejectCode;

#[test]
fn a_filter_that_is_none_is_refused_in_one_line() {
    for filter in ["info", "kubemeter=debug,kube=warn", ""] {
        assert!(parse_filter(filter).is_ok(), "{filter}");
    }
    let why = parse_filter("kubemeter=loud").unwrap_err().to_string();
    assert!(why.contains("kubemeter=loud") && !why.contains('\n'), "{why}");
}

#[test]
fn every_metric_is_written() {
    let metrics = Metrics::new().unwrap();
    metrics.http_request("GET", "/meters", 200, Duration::from_millis(3));
    metrics.event_rejected(RejectCode::InvalidValue);
    metrics.reconciled("Meter", "ok", Duration::from_millis(3));
    metrics.heard("Meter");
    metrics.count_objects("Meter", || Objects { ready: 3, not_ready: 2, unknown: 1, uncounted: 7 });
    metrics.count_objects("Customer", || Objects { ready: 5, ..Objects::default() });
    let text = String::from_utf8(metrics.text().unwrap()).unwrap();
    for line in [
        r#"kubemeter_http_requests_total{method="GET",route="/meters",status="200"} 1"#,
        r#"kubemeter_http_request_duration_seconds_count{method="GET",route="/meters"} 1"#,
        "kubemeter_events_accepted_total 0",
        r#"kubemeter_events_rejected_total{code="invalid_value"} 1"#,
        "kubemeter_insert_duration_seconds_count 0",
        "kubemeter_insert_batch_events_count 0",
        "kubemeter_queued_events 0",
        "kubemeter_queued_bytes 0",
        "kubemeter_queue_limit_bytes 0",
        "kubemeter_unconfirmed_requests_total 0",
        "kubemeter_uncounted_events 7",
        r#"kubemeter_watch_age_seconds{kind="Meter"} 0"#,
        r#"kubemeter_objects{kind="Meter",ready="False"} 2"#,
        r#"kubemeter_objects{kind="Meter",ready="Unknown"} 1"#,
        r#"kubemeter_objects{kind="Customer",ready="True"} 5"#,
        "kubemeter_usage_query_duration_seconds_count 0",
        r#"kubemeter_reconciles_total{kind="Meter",result="ok"} 1"#,
        r#"kubemeter_reconcile_duration_seconds_count{kind="Meter"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}
