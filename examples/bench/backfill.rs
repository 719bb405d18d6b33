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

    let (quiet, steps) = made(setup).await?;
    check(setup, reference.total()).await?;
    setup.manifest(MANIFEST, None)?;
    gone(setup).await?;
    setup.quiet().await?;
    progress(format_args!("a meter over {} million events: {quiet:.1} s", load::millions(events)));

    let alone = Posts::new(setup, LOAD, seed, 1);
    let alone_rate = alone
        .during(rate(&alone, async {
            tokio::time::sleep(sizes.alone).await;
            Ok(())
        }))
        .await?
        .1;
    setup.quiet().await?;
    let beside = Posts::new(setup, LOAD, seed, 2);
    let ((busy, _), beside_rate) = beside.during(rate(&beside, made(setup))).await?;
    check(setup, reference.total() + alone.thousandths() + beside.thousandths()).await?;

    let all = events + alone.acknowledged();
    let (fast, slow) = (events as f64 / quiet, all as f64 / busy);
    report.aim(Aim::at_least("backfill of a new meter", fast, 1e6, "events/s"));
    report.aim(Aim::at_least("ingest during a backfill, part of ingest alone", beside_rate / alone_rate, 0.7, "×"));
    let mut table =
        Table::new(&format!("A meter made over {} million events", load::millions(events)), &["figure", "alone", "both at once", "ratio"]);
    table.row(["backfill".to_owned(), format!("**{fast:.0} events/s**"), format!("{slow:.0} events/s"), ratio(slow / fast)]);
    table.row([
        "ingest".to_owned(),
        format!("{alone_rate:.0} events/s"),
        format!("**{beside_rate:.0} events/s**"),
        ratio(beside_rate / alone_rate),
    ]);
    table.note(format!(
        "From the moment the manifest is there to the meter's first answer; events over twelve months, batches of {} from {} connections. \
         The new meter's total is exactly that of all events. Its status told, of how far it was: {}.",
        LOAD.1,
        LOAD.0,
        if steps.is_empty() { "nothing, it took too short".to_owned() } else { steps.join(", ") }
    ));
    report.table(table);
    Ok(())
}

/// Makes the Meter: seconds until it answers, and what its status told of its progress.
async fn made(setup: &Setup) -> Result<(f64, Vec<String>)> {
    let mut told = BTreeSet::new();
    let began = Instant::now();
    setup.manifest(MANIFEST, Some(&setup::meter(METER, TYPE)))?;
    let note = |message: &str| {
        if let Some((_, rest)) = message.split_once("Copying stored events: ") {
            told.insert(rest.split(" done").next().unwrap_or_default().to_owned());
        }
    };
    setup.await_meter(METER, note).await?;
    Ok((began.elapsed().as_secs_f64(), told.into_iter().collect()))
}

/// Waits until the Meter's tables are gone.
async fn gone(setup: &Setup) -> Result<()> {
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

/// Events a second that are acknowledged during some work.
async fn rate<T>(posts: &Posts<'_>, work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let (began, before) = (Instant::now(), posts.acknowledged());
    let done = work.await?;
    Ok((done, (posts.acknowledged() - before) as f64 / began.elapsed().as_secs_f64()))
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
