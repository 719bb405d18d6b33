//! `make bench`: what Kubemeter does on the real engine, beside what the same ClickHouse does without it.
//!
//! The gateway and ClickHouse run as processes of their own, so that their CPU seconds can be told apart. Load comes
//! from this program over HTTP, its bodies built beforehand. Every figure stands beside its limit: the same rows
//! inserted or read straight from the same tables by hand-written requests. Every answer is checked.

mod aim;
mod backfill;
mod client;
mod disk;
mod events;
mod ingest;
mod large;
mod load;
mod meters;
mod plot;
mod post;
mod query;
mod raw;
mod report;
mod run;
mod setup;
mod stall;
mod stored;

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};

use report::{Report, Section};
use setup::Setup;
use stored::{Pass, Reference};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures Kubemeter against its aims and the limit of the same ClickHouse, and prints Markdown tables.
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Options {
    /// Smaller sizes: two minutes, and figures that only show that everything runs.
    #[arg(long)]
    quick: bool,
    /// Measure these parts only; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Stored events of the parts `large` and `backfill`, such as 20M: 16 GB of disk for 100 million.
    #[arg(long, value_parser = number)]
    events: Option<u64>,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result into docs/performance.md between its markers, and as a plot; other parts' earlier results stay.
    #[arg(long)]
    write: bool,
}

/// What can be measured by itself.
#[derive(clap::ValueEnum, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// Events acknowledged a second, beside direct INSERTs.
    Ingest,
    /// The cost of Meters on other event types.
    Meters,
    /// The gateway's memory while ClickHouse stands still.
    Stall,
    /// A Meter made over stored events.
    Backfill,
    /// Queries at up to ten million events, beside hand-written SQL.
    Query,
    /// The query of a meter that reads raw events.
    Raw,
    /// Queries at a hundred million events, and what they take on the disk.
    Large,
}

impl Part {
    const ALL: [Self; 7] = [Self::Query, Self::Raw, Self::Ingest, Self::Meters, Self::Stall, Self::Backfill, Self::Large];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Meters => "meters",
            Self::Stall => "stall",
            Self::Backfill => "backfill",
            Self::Query => "query",
            Self::Raw => "raw",
            Self::Large => "large",
        }
    }
}

/// How much is measured.
struct Sizes {
    /// Stored events at which queries are measured; the last is also what the other parts find stored.
    stored: &'static [u64],
    /// Times that one customer's query is asked, and that all customers' are.
    asked: (usize, usize),
    /// (connections, events a request, events) of the ingest figures.
    batches: &'static [(usize, usize, usize)],
    /// Rows of one INSERT of the direct limit, and how many INSERTs.
    direct: (usize, usize),
    /// Times that ours and the limit are measured in turn; the medians count.
    turns: usize,
    /// Posts for the figure of the idle system.
    lone: usize,
    /// Times that the raw-events query is asked.
    raw: usize,
    /// Meters on other event types.
    meters: usize,
    /// INSERTs of one turn beside them.
    inserts: usize,
    /// How long ClickHouse stands still.
    stall: Duration,
    /// How long the gateway may take to come to rest.
    after_stall: Duration,
    /// Stored events over which a Meter is made.
    backfill: u64,
    /// Times that it is made, alone and beside ingest.
    made: u64,
    /// How long ingest alone is measured each time.
    alone: Duration,
    /// Stored events of the part `large`.
    large: u64,
}

const FULL: Sizes = Sizes {
    stored: &[1_000_000, 10_000_000],
    asked: (300, 60),
    batches: &[(16, 1_000, 3_000_000), (16, 100, 200_000), (16, 1, 4_000), (256, 1, 100_000)],
    direct: (100_000, 30),
    turns: 3,
    lone: 100,
    raw: 5,
    meters: 1_000,
    inserts: 300,
    stall: Duration::from_secs(60),
    after_stall: Duration::from_secs(30),
    backfill: 10_000_000,
    made: 2,
    alone: Duration::from_secs(100),
    large: 100_000_000,
};

const QUICK: Sizes = Sizes {
    stored: &[100_000, 500_000],
    asked: (21, 6),
    batches: &[(16, 1_000, 100_000), (16, 100, 20_000), (16, 1, 1_000), (256, 1, 10_000)],
    direct: (50_000, 2),
    turns: 1,
    lone: 20,
    raw: 2,
    meters: 20,
    inserts: 20,
    stall: Duration::from_secs(5),
    after_stall: Duration::from_secs(2),
    backfill: 500_000,
    made: 1,
    alone: Duration::from_secs(3),
    large: 500_000,
};

// One thread: the load must leave the machine to what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let sizes = if options.quick { &QUICK } else { &FULL };
    let wanted = |part: &Part| options.only.is_empty() || options.only.contains(part);
    if wanted(&Part::Large) {
        large::check_disk(options.events.unwrap_or(sizes.large))?;
    }
    let mut report = Report::default();
    let mut month = None;
    for part in Part::ALL.into_iter().filter(wanted) {
        progress(format_args!("{}", part.name()));
        let began = Instant::now();
        let mut section = Section::new(options.seed, options.quick);
        // The first parts share a month of stored events; the others begin with nothing.
        let of_month = matches!(part, Part::Query | Part::Raw | Part::Ingest);
        let mut stored = match month.take() {
            Some(stored) if of_month => stored,
            before => {
                // Its processes end first.
                drop(before);
                Stored::new().await?
            }
        };
        section.engine(&stored.setup.engine_version().await?);
        stored.measure(part, sizes, (options.seed, options.events), &mut section).await?;
        section.took(began.elapsed());
        report.put(part, section);
        month = of_month.then_some(stored);
    }
    drop(month);
    print!("{}", report.markdown());
    if options.write {
        report.write()?;
    }
    Ok(())
}

/// A setup, and what is stored of the benchmark's month.
struct Stored {
    setup: Setup,
    events: u64,
    reference: Reference,
}

impl Stored {
    async fn new() -> Result<Self> {
        Ok(Self { setup: Setup::start().await?, events: 0, reference: Reference::new() })
    }

    /// Stores the month's events up to so many.
    async fn up_to(&mut self, events: u64, seed: u64) -> Result<()> {
        if self.events < events {
            let pass = Pass::random(seed, self.events..events, events::MONTH_MS);
            load::load(&self.setup, &pass).await?;
            self.reference.count(&pass, pass.numbers.clone(), 1);
            self.events = events;
        }
        Ok(())
    }

    async fn measure(&mut self, part: Part, sizes: &Sizes, (seed, events): (u64, Option<u64>), section: &mut Section) -> Result<()> {
        let all = sizes.stored.last().copied().unwrap_or_default();
        match part {
            Part::Query => {
                for &stored in sizes.stored {
                    self.up_to(stored, seed).await?;
                    query::measure(&self.setup, sizes, seed, (stored, &self.reference), section).await?;
                }
                Ok(())
            }
            Part::Raw => {
                self.up_to(all, seed).await?;
                raw::measure(&self.setup, sizes, all, &self.reference.groups_by_day(stored::MONTHS[11]..stored::MONTHS[12]), section).await
            }
            Part::Ingest => {
                self.up_to(all, seed).await?;
                let mut direct = Self::new().await?;
                direct.up_to(all, seed).await?;
                ingest::measure((&self.setup, &direct.setup), sizes, seed, all, section).await
            }
            Part::Meters => meters::measure(&self.setup, sizes, seed, section).await,
            Part::Stall => stall::measure(&self.setup, sizes, seed, section).await,
            Part::Backfill => backfill::measure(&self.setup, sizes, events.unwrap_or(sizes.backfill), seed, section).await,
            Part::Large => large::measure(&self.setup, sizes, events.unwrap_or(sizes.large), seed, section).await,
        }
    }
}

/// A number of events: digits, maybe with `k` or `M`.
fn number(text: &str) -> std::result::Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['M', 'k']) {
        Some(digits) => (digits, if text.ends_with('M') { 1_000_000 } else { 1_000 }),
        None => (text, 1),
    };
    match digits.parse::<u64>() {
        Ok(number) if (10_000..=1_000_000_000).contains(&(number.saturating_mul(unit))) => Ok(number * unit),
        _ => Err(format!("{text:?} is no number of events from 10k to 1000M, such as 20M")),
    }
}

/// Says on standard error what goes on.
fn progress(text: impl std::fmt::Display) {
    eprintln!("bench: {text}");
}
