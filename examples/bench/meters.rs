//! What Meters on other event types cost an INSERT.

use std::time::Instant;

use kubemeter::warehouse::schema::{Landing, Landings};

use crate::aim::Aim;
use crate::events::NAMESPACE;
use crate::report::{Section, Table, percentile, ratio};
use crate::run::{Ingest, Run, To, at};
use crate::setup::{self, Setup};
use crate::{Result, Sizes, progress};

/// Events of one INSERT.
const ROWS: usize = 1_000;

/// Measures the figure into the report: in two ClickHouses of the same age, each of which stands still while the other one is measured.
pub async fn measure(one: &Setup, sizes: &Sizes, seed: u64, report: &mut Section) -> Result<()> {
    let all = Setup::start().await?;
    let others: Vec<String> = (0..sizes.meters).map(|number| format!("other.{number}")).collect();
    let manifests: String = others.iter().enumerate().map(|(number, of)| setup::meter(&format!("other-{number}"), of)).collect();
    let began = Instant::now();
    all.manifest("others.yaml", Some(&manifests))?;
    for number in 0..sizes.meters {
        all.await_meter(&format!("other-{number}"), |_| ()).await?;
    }
    progress(format_args!("{} more meters are ready after {} s", sizes.meters, began.elapsed().as_secs()));
    let beside = others.iter().filter(|of| Landings::NEW.table(Landing::of(NAMESPACE, of)) == all.landing).count();

    let mut sides = [(one, Ingest::new(one, seed).await?, None), (&all, Ingest::new(&all, seed).await?, None)];
    // Caches are warm, and tables have as many parts as later, before the first turn that counts.
    for number in 0..=sizes.turns {
        for at in [0, 1] {
            let still = sides[1 - at].0;
            let _still = (still.gateway.frozen()?, still.clickhouse.frozen()?);
            let (_, bench, runs) = &mut sides[at];
            let inserts = if number == 0 { 300 } else { sizes.inserts };
            let ours = bench.run(To::Gateway, 1, ROWS, inserts * ROWS).await?;
            let direct = bench.run(To::ClickHouse { rows: ROWS }, 1, ROWS, inserts * ROWS).await?;
            if number > 0 {
                let (before, direct_before) = runs.take().unzip();
                *runs = Some((Run::and(before, ours), Run::and(direct_before, direct)));
            }
        }
    }
    let [(_, _, Some(one)), (_, _, Some(many))] = sides else { return Err("no turn was made".into()) };

    let mut table = Table::new(
        &format!("An INSERT of {ROWS} events, with {} meters on other event types", sizes.meters),
        &["figure", "one meter", "all", "ratio"],
    );
    for (name, one, many) in [("through the gateway", &one.0, &many.0), ("straight into the landing table", &one.1, &many.1)] {
        let times = |run: &Run| format!("p50 {}, p99 {}", at(run, 50), at(run, 99));
        table.row([name.to_owned(), times(one), times(many), ratio(percentile(&many.answers, 50) / percentile(&one.answers, 50))]);
        let (before, after) = (one.per_million(one.clickhouse_cpu), many.per_million(many.clickhouse_cpu));
        table.row([format!("{name}, CPU of ClickHouse per million"), before, after, ratio(many.clickhouse_cpu / one.clickhouse_cpu)]);
    }
    let cost = percentile(&many.1.answers, 50) / percentile(&one.1.answers, 50);
    report.aim(Aim::at_most(&format!("an INSERT with {} meters on other types", sizes.meters), cost, 1.1, "×"));
    let cpu = many.1.clickhouse_cpu / one.1.clickhouse_cpu;
    report.aim(Aim::at_most(&format!("an INSERT with {} meters on other types, CPU of ClickHouse", sizes.meters), cpu, 1.1, "×"));
    table.note(format!(
        "One connection, one INSERT after the other, in two ClickHouses of the same age, in turn. {beside} of the other meters have by \
         chance the same landing table, of {}; each costs as its view does.",
        Landings::NEW.count()
    ));
    report.table(table);
    Ok(())
}
