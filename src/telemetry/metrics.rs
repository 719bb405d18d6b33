//! Metrics, in Prometheus' text format.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    exponential_buckets,
};

use crate::metering::RejectCode;

/// Objects of a kind, by the status of their condition Ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// `True`.
    pub ready: i64,
    /// `False`.
    pub not_ready: i64,
    /// Neither, or none yet.
    pub unknown: i64,
    /// Meters that can't count some of the stored events of their type.
    pub uncounted: Vec<Uncounted>,
}

/// A Meter that can't count some stored events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncounted {
    /// The Meter's Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub meter: String,
    /// How many, when they were last counted.
    pub events: i64,
}

type Count = Box<dyn Fn() -> Objects + Send + Sync>;

/// All counters, with labels of few values. One for the process, shared.
pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    events_rejected: IntCounterVec,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    watch_age_seconds: IntGaugeVec,
    objects: IntGaugeVec,
    uncounted_events: IntGaugeVec,
    /// By kind, when the API server last said something about it.
    heard: Mutex<BTreeMap<String, Instant>>,
    /// By kind, what counts its objects.
    counts: Mutex<BTreeMap<String, Count>>,
    /// Events that ClickHouse has confirmed, duplicates included.
    pub events_accepted: IntCounter,
    /// Seconds of one INSERT, tries again included.
    pub insert_seconds: Histogram,
    /// Events in one INSERT.
    pub batch_events: Histogram,
    /// Events that wait for their INSERT now.
    pub queued_events: IntGauge,
    /// Bytes of events that wait for their INSERT now.
    pub queued_bytes: IntGauge,
    /// Most of them.
    pub queue_limit_bytes: IntGauge,
    /// Requests whose events ClickHouse did not confirm.
    pub unconfirmed_requests: IntCounter,
    /// Events whose senders were told to send them again, while the gateway itself goes on trying.
    pub unfinished_events: IntGauge,
    /// Those with which it did not go on.
    pub abandoned_events: IntCounter,
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
        let gauges = |name, help, labels: &[&str]| added(&registry, IntGaugeVec::new(Opts::new(name, help), labels));
        let gauge = |name, help| added(&registry, IntGauge::new(name, help));
        let build = gauges("kubemeter_build_info", "1; which version runs.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            http_requests: counters("kubemeter_http_requests_total", "HTTP requests answered.", &["method", "route", "status"])?,
            http_seconds: histograms("kubemeter_http_request_duration_seconds", "Time to the answer.", &["method", "route"])?,
            events_rejected: counters("kubemeter_events_rejected_total", "Events that were not taken.", &["code"])?,
            reconciles: counters("kubemeter_reconciles_total", "Reconciles finished.", &["kind", "result"])?,
            reconcile_seconds: histograms("kubemeter_reconcile_duration_seconds", "Time of a reconcile.", &["kind"])?,
            watch_age_seconds: gauges(
                "kubemeter_watch_age_seconds",
                "Time since the API server last said something about a kind that is watched; every minute or two it says that nothing changed.",
                &["kind"],
            )?,
            objects: gauges(
                "kubemeter_objects",
                "Objects by the status of their condition Ready; told by the operator that leads.",
                &["kind", "ready"],
            )?,
            uncounted_events: gauges(
                "kubemeter_uncounted_events",
                "Stored events of a Meter's type in which it finds nothing to count; told by the operator that leads, of Meters that have some.",
                &["meter_namespace", "meter"],
            )?,
            heard: Mutex::default(),
            counts: Mutex::default(),
            events_accepted: added(
                &registry,
                IntCounter::new("kubemeter_events_accepted_total", "Events confirmed by ClickHouse, duplicates included."),
            )?,
            insert_seconds: histogram("kubemeter_insert_duration_seconds", "Time of an INSERT, tries again included.", seconds.clone())?,
            batch_events: histogram("kubemeter_insert_batch_events", "Events in one INSERT.", exponential_buckets(1.0, 4.0, 10)?)?,
            queued_events: gauge("kubemeter_queued_events", "Events that wait for their INSERT.")?,
            queued_bytes: gauge("kubemeter_queued_bytes", "Bytes of the events that wait for their INSERT.")?,
            queue_limit_bytes: gauge(
                "kubemeter_queue_limit_bytes",
                "Bytes of events that may wait; beyond, requests are answered 429. 0: takes no events.",
            )?,
            unconfirmed_requests: added(
                &registry,
                IntCounter::new(
                    "kubemeter_unconfirmed_requests_total",
                    "Requests whose events ClickHouse did not confirm, or for which the queue had no room.",
                ),
            )?,
            abandoned_events: added(
                &registry,
                IntCounter::new(
                    "kubemeter_abandoned_events_total",
                    "Events that ClickHouse did not confirm and the gateway did not go on with: until they are sent again some Meters may lack them.",
                ),
            )?,
            unfinished_events: gauge(
                "kubemeter_unfinished_events",
                "Events that ClickHouse did not confirm, so that their requests were answered 5xx, and that the gateway goes on trying to write.",
            )?,
            usage_seconds: histogram("kubemeter_usage_query_duration_seconds", "Time of a usage query.", seconds.clone())?,
            leading: gauge("kubemeter_leading", "1 while this replica of the operator works.")?,
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

    /// The API server said something about a kind, if only that nothing changed.
    pub fn heard(&self, kind: &str) {
        locked(&self.heard).insert(kind.to_owned(), Instant::now());
    }

    /// Says how the objects of a kind are counted, which is done whenever somebody asks.
    pub fn count_objects(&self, kind: &str, count: impl Fn() -> Objects + Send + Sync + 'static) {
        locked(&self.counts).insert(kind.to_owned(), Box::new(count));
    }

    /// Sets what is only known when it is asked for.
    fn look(&self, counts: &BTreeMap<String, Count>) {
        for (kind, heard) in &*locked(&self.heard) {
            let age = i64::try_from(heard.elapsed().as_secs()).unwrap_or(i64::MAX);
            self.watch_age_seconds.with_label_values(&[kind]).set(age);
        }
        self.uncounted_events.reset();
        for (kind, count) in counts {
            let objects = count();
            for (ready, number) in [("True", objects.ready), ("False", objects.not_ready), ("Unknown", objects.unknown)] {
                self.objects.with_label_values(&[kind.as_str(), ready]).set(number);
            }
            for Uncounted { namespace, meter, events } in &objects.uncounted {
                self.uncounted_events.with_label_values(&[namespace, meter]).set(*events);
            }
        }
    }

    /// All of them in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        // Held until they are written: who else asks would take series away meanwhile.
        let counts = locked(&self.counts);
        self.look(&counts);
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

/// A poisoned lock only means that a thread panicked between two whole changes.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
