//! Logs and metrics.

use std::io::IsTerminal as _;
use std::time::Duration;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    exponential_buckets,
};
use tracing_subscriber::EnvFilter;

use crate::metering::RejectCode;

/// Why logs can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("{filter:?} is no log filter ({why}): write one like info or kubemeter=debug,kube=warn")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something else in this process writes logs.
    #[error("logs were set up twice")]
    Twice,
}

/// Starts to write logs, to stderr: one line each, or one JSON object each.
///
/// # Errors
/// When the filter is none, or logs are set up already.
pub fn init(filter: &str, json: bool) -> Result<(), Error> {
    let parsed = parse_filter(filter)?;
    let logs = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let done = if json { logs.json().try_init() } else { logs.try_init() };
    done.map_err(|_| Error::Twice)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|why| Error::Filter { filter: filter.to_owned(), why: why.to_string().replace('\n', " ") })
}

/// All counters, with labels of few values. One for the process, shared.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    events_rejected: IntCounterVec,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    /// Events that ClickHouse has confirmed, duplicates included.
    pub events_accepted: IntCounter,
    /// Seconds of one INSERT, tries again included.
    pub insert_seconds: Histogram,
    /// Events in one INSERT.
    pub batch_events: Histogram,
    /// Events that wait for their INSERT now.
    pub queued_events: IntGauge,
    /// Seconds of one usage query.
    pub usage_seconds: Histogram,
    /// 1 while this replica of the operator works, and the others wait.
    pub leading: IntGauge,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Errors
    /// When two metrics have one name; a test shows that none have.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let seconds = exponential_buckets(0.001, 2.0, 16)?;
        let counters = |name, help, labels: &[&str]| added(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let histograms = |name, help, labels: &[&str]| {
            added(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds.clone()), labels))
        };
        let histogram = |name, help, buckets| added(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)));
        Ok(Self {
            http_requests: counters("kubemeter_http_requests_total", "HTTP requests answered.", &["method", "route", "status"])?,
            http_seconds: histograms("kubemeter_http_request_duration_seconds", "Time to the answer.", &["method", "route"])?,
            events_rejected: counters("kubemeter_events_rejected_total", "Events that were not taken.", &["code"])?,
            reconciles: counters("kubemeter_reconciles_total", "Reconciles finished.", &["kind", "result"])?,
            reconcile_seconds: histograms("kubemeter_reconcile_duration_seconds", "Time of a reconcile.", &["kind"])?,
            events_accepted: added(
                &registry,
                IntCounter::new("kubemeter_events_accepted_total", "Events confirmed by ClickHouse, duplicates included."),
            )?,
            insert_seconds: histogram("kubemeter_insert_duration_seconds", "Time of an INSERT, tries again included.", seconds.clone())?,
            batch_events: histogram("kubemeter_insert_batch_events", "Events in one INSERT.", exponential_buckets(1.0, 4.0, 10)?)?,
            queued_events: added(&registry, IntGauge::new("kubemeter_queued_events", "Events that wait for their INSERT."))?,
            usage_seconds: histogram("kubemeter_usage_query_duration_seconds", "Time of a usage query.", seconds.clone())?,
            leading: added(&registry, IntGauge::new("kubemeter_leading", "1 while this replica of the operator works."))?,
            registry,
        })
    }

    /// An HTTP request was answered. `route` is a pattern such as `/meters/{meterId}`, never a path.
    pub fn http_request(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        self.http_requests.with_label_values(&[method, route, &status.to_string()]).inc();
        self.http_seconds.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    /// An event was not taken.
    pub fn event_rejected(&self, code: RejectCode) {
        self.events_rejected.with_label_values(&[code.as_str()]).inc();
    }

    /// A reconcile of a kind (`Meter`, `Customer`) ended with a result (`ok` or an error's reason).
    pub fn reconciled(&self, kind: &str, result: &str, took: Duration) {
        self.reconciles.with_label_values(&[kind, result]).inc();
        self.reconcile_seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// All of them in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn added<T: prometheus::core::Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<T>) -> prometheus::Result<T> {
    let metric = made?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for line in [
            r#"kubemeter_http_requests_total{method="GET",route="/meters",status="200"} 1"#,
            r#"kubemeter_http_request_duration_seconds_count{method="GET",route="/meters"} 1"#,
            "kubemeter_events_accepted_total 0",
            r#"kubemeter_events_rejected_total{code="invalid_value"} 1"#,
            "kubemeter_insert_duration_seconds_count 0",
            "kubemeter_insert_batch_events_count 0",
            "kubemeter_queued_events 0",
            "kubemeter_usage_query_duration_seconds_count 0",
            r#"kubemeter_reconciles_total{kind="Meter",result="ok"} 1"#,
            r#"kubemeter_reconcile_duration_seconds_count{kind="Meter"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
