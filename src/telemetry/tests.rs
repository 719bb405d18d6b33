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
    metrics.count_objects("Meter", || Objects { ready: 3, not_ready: 2, unknown: 1, uncounted: vec![uncounted()] });
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
        "kubemeter_unfinished_events 0",
        "kubemeter_abandoned_events_total 0",
        r#"kubemeter_uncounted_events{meter="tokens",meter_namespace="shop"} 7"#,
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
    // A Meter that was mended has no series any more.
    metrics.count_objects("Meter", Objects::default);
    assert!(!String::from_utf8(metrics.text().unwrap()).unwrap().contains("kubemeter_uncounted_events"));
}

fn uncounted() -> Uncounted {
    Uncounted { namespace: "shop".to_owned(), meter: "tokens".to_owned(), events: 7 }
}

/// A metric as docs/observability.md has it: name, type, labels, what it is.
fn described(text: &str) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for block in text.split("# HELP ").skip(1) {
        let (name, help) = block.lines().next().and_then(|line| line.split_once(' ')).unwrap();
        let kind = block.lines().nth(1).and_then(|line| line.rsplit(' ').next()).unwrap();
        let sample = block.lines().nth(2).unwrap();
        let labels = sample.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let labels: Vec<_> = labels.split(',').filter_map(|label| label.split('=').next()).filter(|l| !["", "le"].contains(l)).collect();
        rows.push(format!("| `{name}` | {kind} | {} | {help} |", labels.join(", ")));
    }
    rows
}

/// Every metric, with something in each.
fn whole() -> String {
    let metrics = Metrics::new().unwrap();
    metrics.http_request("GET", "/meters", 200, Duration::from_millis(3));
    metrics.event_rejected(RejectCode::InvalidValue);
    metrics.reconciled("Meter", "ok", Duration::from_millis(3));
    metrics.heard("Meter");
    metrics.count_objects("Meter", || Objects { uncounted: vec![uncounted()], ..Objects::default() });
    String::from_utf8(metrics.text().unwrap()).unwrap()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_table_in_the_docs_is_what_is_printed() {
    let (rows, docs) = (described(&whole()), file("docs/observability.md"));
    let documented: Vec<_> = docs.lines().filter(|line| line.starts_with("| `kubemeter_")).collect();
    assert!(rows == documented, "docs/observability.md is to have this table:\n{}", rows.join("\n"));
    for row in &rows {
        let (name, kind) = (row.split('`').nth(1).unwrap(), row.split(" | ").nth(1).unwrap());
        assert_eq!(name.ends_with("_total"), kind == "counter", "{row}");
        assert!(kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_events"), "{row}: base units");
    }
}

#[test]
fn alerts_and_dashboard_use_only_metrics_that_exist() {
    let text = whole();
    let mut used = 0;
    for path in ["charts/kubemeter/files/alerts.yaml", "charts/kubemeter/files/dashboard.json", "tests/alerts.yaml"] {
        for part in file(path).split("kubemeter_").skip(1) {
            let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(part.len());
            let name = format!("kubemeter_{}", &part[..end]);
            let exists = text.lines().any(|line| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with([' ', '{'])));
            assert!(exists, "{path}: there is no metric {name}");
            used += 1;
        }
    }
    assert!(used > 60, "{used}");
}
