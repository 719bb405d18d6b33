//! The gateway's memory at full load while ClickHouse stands still.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;

use crate::aim::Aim;
use crate::events::METER;
use crate::post::Posts;
use crate::report::{Section, Table};
use crate::setup::Setup;
use crate::{Result, Sizes, progress};

/// Connections, and events a batch: more than the gateway takes.
const LOAD: (usize, usize) = (256, 1_000);
/// How long load runs before and after.
const AROUND: Duration = Duration::from_secs(5);
const SAMPLE: Duration = Duration::from_millis(100);

/// Measures the figure into the report.
pub async fn measure(setup: &Setup, sizes: &Sizes, seed: u64, report: &mut Section) -> Result<()> {
    let new = mib(setup)?;
    let (earlier, posts) = (Posts::new(setup, LOAD, seed, 1), Posts::new(setup, LOAD, seed, 2));
    let peak = Cell::new(0.0_f64);
    // What it keeps after load, though nothing ever stood still.
    earlier.during(watch(setup, AROUND, &peak)).await?;
    tokio::time::sleep(sizes.after_stall).await;
    let before = mib(setup)?;
    peak.take();
    let (loaded, stalled) = posts
        .during(async {
            watch(setup, AROUND, &peak).await?;
            let loaded = peak.take();
            let acknowledged = posts.acknowledged();
            let frozen = setup.clickhouse.frozen()?;
            watch(setup, sizes.stall, &peak).await?;
            // What ClickHouse had confirmed may still have been on its way.
            let meanwhile = posts.acknowledged() - acknowledged;
            drop(frozen);
            progress(format_args!("{meanwhile} events were acknowledged while ClickHouse stood still"));
            let stalled = peak.take();
            watch(setup, AROUND, &peak).await?;
            Ok((loaded, stalled))
        })
        .await?;
    let after_load = peak.get();
    tokio::time::sleep(sizes.after_stall).await;
    let after = mib(setup)?;
    let (total, sent) = (setup.total(METER).await?, BigDecimal::new((earlier.thousandths() + posts.thousandths()).into(), 3));
    if total != sent {
        return Err(format!("after the stall the meter's total is {total}, but {sent} was acknowledged").into());
    }
    report.aim(Aim::at_most("gateway memory, ClickHouse stalled", stalled.max(after_load), 256.0, "MiB"));
    // "Back to normal": what it was at rest after load; it knows more events by then.
    report.aim(Aim::at_most("gateway memory at rest afterwards, part of that before", after / before, 1.2, "×"));
    let mut table = Table::new(
        "Gateway memory while ClickHouse stands still",
        &["new", "at rest after load", "full load", "stalled", "load again", "at rest afterwards"],
    );
    table.row([new, before, loaded, stalled, after_load, after].map(|mib| format!("{mib:.0} MiB")));
    table.note(format!(
        "Resident memory, the most of samples every {} ms. {} connections post batches of {} events and send each again until it is \
         acknowledged; ClickHouse is stopped (SIGSTOP) for {} s. {} batches were told to come again; {:.2} million events were acknowledged \
         in all, and the meter's total is exactly theirs. At rest: {} s after the last post.",
        SAMPLE.as_millis(),
        LOAD.0,
        LOAD.1,
        sizes.stall.as_secs(),
        posts.refused(),
        (earlier.acknowledged() + posts.acknowledged()) as f64 / 1e6,
        sizes.after_stall.as_secs(),
    ));
    report.table(table);
    Ok(())
}

async fn watch(setup: &Setup, time: Duration, peak: &Cell<f64>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        peak.set(peak.get().max(mib(setup)?));
        tokio::time::sleep(SAMPLE).await;
    }
    Ok(())
}

fn mib(setup: &Setup) -> Result<f64> {
    Ok(setup.gateway.memory()? as f64 / f64::from(1 << 20))
}
