//! A Meter made over stored events: how fast it is complete, and what ingest does meanwhile.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;

use crate::aim::Aim;
use crate::events::TYPE;
use crate::post::Posts;
use crate::report::{Section, Table, ratio};
use crate::setup::{self, Setup};
use crate::stored::{Pass, Reference, YEAR_MS};
use crate::{Result, Sizes, load, progress};

/// Connections and events a batch, as in the first figure of ingest.
const LOAD: (usize, usize) = (16, 1_000);
const METER: &str = "late";
const MANIFEST: &str = "late.yaml";

/// Measures the figures into the report.
pub async fn measure(setup: &Setup, sizes: &Sizes, events: u64, seed: u64, report: &mut Section) -> Result<()> {
    let pass = Pass::in_order(seed, 0..events, YEAR_MS);
    load::load(setup, &pass).await?;
    let mut reference = Reference::new();
    reference.count(&pass, pass.numbers.clone(), 1);

    let (mut stored, mut total) = (events, reference.total());
    let (mut quiet, mut grown, mut busy, mut alone, mut beside) =
        (Rate::default(), Rate::default(), Rate::default(), Rate::default(), Rate::default());
    let mut told = BTreeSet::new();
    for _ in 0..sizes.made {
        made_alone(setup, &mut quiet, stored, total, &mut told).await?;
    }

    // All turns of a kind count together, and every second turn has ingest alone after that beside the backfill: it becomes slower the
    // more is stored. What it stores is merged in waves, some twenty seconds of each minute, and a short time alone may see none.
    for turn in 1..=sizes.made {
        let order = if turn % 2 == 1 { [false, true] } else { [true, false] };
        for (is_beside, stream) in order.into_iter().zip(2 * turn..) {
            let posts = Posts::new(setup, LOAD, seed, stream);
            let work = async {
                let began = Instant::now();
                if is_beside {
                    let (seconds, steps) = made(setup).await?;
                    busy.add(stored, seconds);
                    told.extend(steps);
                } else {
                    tokio::time::sleep(sizes.alone).await;
                }
                let rate = if is_beside { &mut beside } else { &mut alone };
                rate.add(posts.acknowledged(), began.elapsed().as_secs_f64());
                Ok(())
            };
            posts.during(work).await?;
            stored += posts.acknowledged();
            total += posts.thousandths();
            if is_beside {
                check(setup, total).await?;
                gone(setup).await?;
            }
            setup.quiet().await?;
        }
        made_alone(setup, &mut grown, stored, total, &mut told).await?;
        progress(format_args!("backfill: turn {turn} of {} done", sizes.made));
    }

    let (fast, large, slow, lone, both) = (quiet.a_second(), grown.a_second(), busy.a_second(), alone.a_second(), beside.a_second());
    report.aim(Aim::at_least("backfill of a new meter", fast, 1e6, "events/s"));
    report.aim(Aim::at_least("ingest during a backfill, part of ingest alone", both / lone, 0.7, "×"));
    let mut table =
        Table::new(&format!("A meter made over {} million events", load::millions(events)), &["figure", "alone", "both at once", "ratio"]);
    table.row(["backfill".to_owned(), format!("**{fast:.0} events/s**"), format!("{slow:.0} events/s"), ratio(slow / fast)]);
    let more = format!("of what came in, too, {:.1} million at last, most of one month", load::millions(stored));
    table.row([more, format!("{large:.0} events/s"), String::new(), String::new()]);
    table.row(["ingest".to_owned(), format!("{lone:.0} events/s"), format!("**{both:.0} events/s**"), ratio(both / lone)]);
    table.note(format!(
        "From the moment the manifest is there to the meter's first answer; events over twelve months, batches of {} from {} connections. \
         Each figure is that of {} turns together, in which ingest was measured for {:.0} s alone and {:.0} s beside. \
         The new meter's total was each time exactly that of all events. Its status told, of how many of twelve months were done: {}.",
        LOAD.1,
        LOAD.0,
        sizes.made,
        alone.seconds,
        beside.seconds,
        if told.is_empty() {
            "nothing, it took too short".to_owned()
        } else {
            told.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
        }
    ));
    report.table(table);
    Ok(())
}

/// Makes the Meter while nothing else is done, and deletes it.
async fn made_alone(setup: &Setup, rate: &mut Rate, stored: u64, total: i128, told: &mut BTreeSet<u32>) -> Result<()> {
    let (seconds, steps) = made(setup).await?;
    rate.add(stored, seconds);
    told.extend(steps);
    check(setup, total).await?;
    gone(setup).await?;
    setup.quiet().await
}

/// Makes the Meter: seconds until it answers, and what its status told of its progress.
async fn made(setup: &Setup) -> Result<(f64, BTreeSet<u32>)> {
    let mut told = BTreeSet::new();
    let began = Instant::now();
    setup.manifest(MANIFEST, Some(&setup::meter(METER, TYPE)))?;
    let note = |message: &str| {
        if let Some((_, rest)) = message.split_once("Copying stored events: ") {
            told.extend(rest.split(' ').next().and_then(|months| months.parse::<u32>().ok()));
        }
    };
    setup.await_meter(METER, note).await?;
    let seconds = began.elapsed().as_secs_f64();
    progress(format_args!("backfill: the meter answers after {seconds:.1} s"));
    Ok((seconds, told))
}

/// Deletes the Meter, and waits until its tables are gone.
async fn gone(setup: &Setup) -> Result<()> {
    setup.manifest(MANIFEST, None)?;
    let mut direct = setup.clickhouse().await?;
    let tables =
        "SELECT count() FROM system.tables WHERE database = 'kubemeter' AND startsWith(name, 'meter_') AND engine = 'ReplacingMergeTree'";
    let began = Instant::now();
    while setup.run(&mut direct, tables).await? != "1" {
        if began.elapsed() > Duration::from_secs(60) {
            return Err("the deleted meter's table is still there after 60 s".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Events and the seconds they took, of several turns.
#[derive(Default)]
struct Rate {
    events: u64,
    seconds: f64,
}

impl Rate {
    fn add(&mut self, events: u64, seconds: f64) {
        self.events += events;
        self.seconds += seconds;
    }

    fn a_second(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

async fn check(setup: &Setup, thousandths: i128) -> Result<()> {
    for meter in [METER, crate::events::METER] {
        let (total, expected) = (setup.total(meter).await?, BigDecimal::new(thousandths.into(), 3));
        if total != expected {
            return Err(format!("the total of {meter} is {total}, but {expected} is stored").into());
        }
    }
    Ok(())
}
