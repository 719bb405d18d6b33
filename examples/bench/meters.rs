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

/// Measures the figure into the report.
pub async fn measure(setup: &Setup, sizes: &Sizes, seed: u64, report: &mut Section) -> Result<()> {
    let mut bench = Ingest::new(setup, seed).await?;
    // Caches are warm, and tables have as many parts as later, before the first that counts.
    for to in [To::ClickHouse { rows: ROWS }, To::Gateway] {
        bench.run(to, 1, ROWS, ROWS * 300).await?;
    }
    let one = turns(&mut bench, sizes).await?;

    let others: Vec<String> = (0..sizes.meters).map(|number| format!("other.{number}")).collect();
    let manifests: String = others.iter().enumerate().map(|(number, of)| setup::meter(&format!("other-{number}"), of)).collect();
    let began = Instant::now();
    setup.manifest("others.yaml", Some(&manifests))?;
    for number in 0..sizes.meters {
        setup.await_meter(&format!("other-{number}"), |_| ()).await?;
    }
    progress(format_args!("{} more meters are ready after {} s", sizes.meters, began.elapsed().as_secs()));
    let beside = others.iter().filter(|of| Landings::NEW.table(Landing::of(NAMESPACE, of)) == setup.landing).count();
    let many = turns(&mut bench, sizes).await?;

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
    table.note(format!(
        "One connection, one INSERT after the other. {beside} of the other meters have by chance the same landing table, of {}; each \
         costs as its view does.",
        Landings::NEW.count()
    ));
    report.table(table);
    Ok(())
}

/// Through the gateway and straight, in turn; of both all answers.
async fn turns(bench: &mut Ingest<'_>, sizes: &Sizes) -> Result<(Run, Run)> {
    let (mut ours, mut direct): (Option<Run>, Option<Run>) = (None, None);
    for _ in 0..sizes.turns {
        ours = Some(Run::and(ours, bench.run(To::Gateway, 1, ROWS, sizes.inserts * ROWS).await?));
        direct = Some(Run::and(direct, bench.run(To::ClickHouse { rows: ROWS }, 1, ROWS, sizes.inserts * ROWS).await?));
    }
    ours.zip(direct).ok_or_else(|| "no turn was made".into())
}
