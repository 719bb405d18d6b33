//! `make bench`: what Kubemeter does on the real engine, beside what the same ClickHouse does without it.
//!
//! The gateway and ClickHouse run as processes of their own, so that their CPU seconds can be told apart. Load comes
//! from this program over HTTP, its bodies built beforehand. Every figure stands beside its limit: the same rows
//! inserted or read straight from the same tables by hand-written requests. Every answer is checked.

mod client;
mod events;
mod ingest;
mod load;
mod query;
mod report;
mod setup;

use std::error::Error;
use std::time::Instant;

use clap::Parser;

use report::Report;
use setup::Setup;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures Kubemeter against the limit of the same ClickHouse and prints a Markdown table.
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Options {
    /// Smaller sizes: under a minute, and figures that only show that everything runs.
    #[arg(long)]
    quick: bool,
    /// Measure one part only.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result into docs/performance.md, between its markers.
    #[arg(long)]
    write: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Ingest,
    Query,
}

/// How much is measured.
struct Sizes {
    /// Stored events at which queries are measured; ingest comes on top of the last.
    stored: &'static [u64],
    /// Times that one customer's query is asked, and that all customers' are.
    asked: (usize, usize),
    /// (events a request, events) of the ingest figures.
    batches: &'static [(usize, usize)],
    /// Rows of one INSERT of the direct limit, and how many INSERTs.
    direct: (usize, usize),
    /// Times that ours and the limit are measured in turn; the medians count.
    turns: usize,
    /// Posts for the figure of the idle system.
    lone: usize,
}

const FULL: Sizes = Sizes {
    stored: &[1_000_000, 10_000_000],
    asked: (100, 30),
    batches: &[(1_000, 400_000), (100, 200_000), (1, 4_000)],
    direct: (100_000, 4),
    turns: 3,
    lone: 100,
};

const QUICK: Sizes = Sizes {
    stored: &[100_000, 500_000],
    asked: (20, 5),
    batches: &[(1_000, 100_000), (100, 20_000), (1, 1_000)],
    direct: (50_000, 2),
    turns: 1,
    lone: 20,
};

// One thread: the load must leave the machine to what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let sizes = if options.quick { &QUICK } else { &FULL };
    let began = Instant::now();
    let mut report = Report::new(options.seed, options.quick);
    let setup = Setup::start().await?;
    report.engine(&setup.engine_version().await?);

    let mut stored = 0;
    for &target in sizes.stored {
        load::load(&setup, options.seed, stored..target).await?;
        stored = target;
        if options.only != Some(Part::Ingest) {
            query::measure(&setup, sizes, options.seed, stored, &mut report).await?;
        }
    }
    if options.only != Some(Part::Query) {
        ingest::measure(&setup, sizes, options.seed, stored, &mut report).await?;
    }
    report.took(began.elapsed());
    print!("{}", report.markdown());
    if options.write {
        report.write()?;
    }
    Ok(())
}

/// Says on standard error what goes on.
fn progress(text: impl std::fmt::Display) {
    eprintln!("bench: {text}");
}
