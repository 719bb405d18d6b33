//! What is seen from outside: logs, metrics, traces.

mod metrics;
#[cfg(test)]
mod tests;
mod traces;

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub use metrics::{Metrics, Objects, Uncounted};
pub use traces::{Traces, continues};

/// Why logs can't be written, or traces can't be sent.
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
    /// The endpoint is none.
    #[error("--otlp-endpoint: {0}; write a URL like http://collector:4318")]
    Endpoint(String),
}

/// How logs are written: to stderr, one line each.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions<'a> {
    /// Which.
    pub filter: &'a str,
    /// One JSON object each, else text for people.
    pub json: bool,
}

/// Starts to write logs and, with an endpoint of OTLP over HTTP, to send traces. Sending needs the tokio runtime that
/// this is called in.
///
/// # Errors
/// See [`Error`].
pub fn init(logs: LogOptions<'_>, otlp_endpoint: Option<&str>) -> Result<Traces, Error> {
    let filter = parse_filter(logs.filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = if logs.json { lines.json().boxed() } else { lines.boxed() };
    let traces = otlp_endpoint.map_or_else(|| Ok(Traces::default()), Traces::to)?;
    // Spans of our own, whatever the filter of the logs.
    let spans = traces.tracer().map(|tracer| {
        let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours)
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init().map_err(|_| Error::Twice)?;
    Ok(traces)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|why| Error::Filter { filter: filter.to_owned(), why: why.to_string().replace('\n', " ") })
}
