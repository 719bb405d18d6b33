//! How fast events are acknowledged, beside direct INSERTs of the same rows into the same landing table.

use crate::aim::Aim;
use crate::report::{Section, Table, milliseconds, percentile, ratio};
use crate::run::{Ingest, Run, Step, To, at, together};
use crate::setup::Setup;
use crate::{Result, Sizes, load, progress};

/// Events that are made at a time for large INSERTs.
const BIG_BATCH: usize = 1_000;

/// Connections from which large INSERTs are sent: the limit is the fastest of them.
const LIMIT_CONNECTIONS: [usize; 2] = [1, 2];

/// Measures all ingest figures into the report. What is inserted directly goes to a ClickHouse of its own, in which as much is
/// stored: parts of earlier runs are merged with those of later ones, and each side is to pay for its own only.
pub async fn measure((setup, direct): (&Setup, &Setup), sizes: &Sizes, seed: u64, stored: u64, report: &mut Section) -> Result<()> {
    let (mut bench, mut direct) = (Ingest::new(setup, seed).await?, Ingest::new(direct, seed).await?);
    let mut big = LIMIT_CONNECTIONS.map(|_| Vec::new());
    let mut ours: Vec<Vec<Run>> = sizes.batches.iter().map(|_| Vec::new()).collect();
    let mut same: Vec<Vec<Run>> = sizes.batches.iter().map(|_| Vec::new()).collect();
    // In turn, so that whatever else the machine does meets all of them; the figure with the largest batches and the limit
    // before any small parts are there.
    for (at, &(connections, size, events)) in sizes.batches.iter().enumerate() {
        for turn in 1..=sizes.turns {
            if at == 0 {
                let (rows, inserts) = sizes.direct;
                for (connections, runs) in LIMIT_CONNECTIONS.into_iter().zip(&mut big) {
                    bench.quiet().await?;
                    direct.quiet().await?;
                    runs.push(direct.run(To::ClickHouse { rows }, connections, BIG_BATCH, rows * inserts).await?);
                }
            }
            direct.quiet().await?;
            ours[at].push(bench.run(To::Gateway, connections, size, events).await?);
            progress(format_args!("ingest: {connections} × {size}, turn {turn} of {} done", sizes.turns));
        }
    }
    for (at, &(connections, size, events)) in sizes.batches.iter().enumerate() {
        for _ in 0..sizes.turns {
            bench.quiet().await?;
            same[at].push(direct.run(To::ClickHouse { rows: size }, connections, size, events.min(size * 1_000)).await?);
        }
    }
    direct.quiet().await?;
    let lone = bench.lone(To::Gateway, sizes.lone).await?;
    bench.quiet().await?;
    let lone_direct = direct.lone(To::ClickHouse { rows: 1 }, sizes.lone).await?;
    let steps = direct.steps(sizes.lone).await?;
    bench.check_duplicates().await?;

    let others: Vec<f64> =
        big.iter().flatten().chain(ours.iter().flatten()).chain(same.iter().flatten()).map(|run| run.others * 100.0).collect();
    let big = big.into_iter().map(together).collect::<Result<Vec<_>>>()?;
    let told: Vec<_> = LIMIT_CONNECTIONS.iter().zip(&big).map(|(of, run)| format!("{:.0} from {of}", run.rate())).collect();
    let (limit_connections, big) = LIMIT_CONNECTIONS
        .into_iter()
        .zip(big)
        .max_by(|(_, one), (_, other)| one.rate().total_cmp(&other.rate()))
        .ok_or("the limit was not measured")?;
    let mut table = Table::new(
        &format!("Ingest, with {} million events stored", load::millions(stored)),
        &["figure", "ours", "the limit", "ratio", "direct, in the same batches"],
    );
    let mut cpu = Table::new(
        "CPU seconds per million events",
        &[
            "figure",
            "gateway",
            "ClickHouse behind it",
            "load generator",
            "events/s if all cores were always busy",
            "ClickHouse, the limit",
            "ClickHouse, direct in the same batches",
        ],
    );
    for ((&(connections, size, _), ours), same) in sizes.batches.iter().zip(ours).zip(same) {
        let (ours, same) = (together(ours)?, together(same)?);
        aims(report, (connections, size), &ours, &big);
        table.row([
            format!("batches of {size}, {connections} connections"),
            format!("**{:.0} events/s**, p50 {}, p99 {}", ours.rate(), at(&ours, 50), at(&ours, 99)),
            format!("{:.0} rows/s", big.rate()),
            ratio(ours.rate() / big.rate()),
            format!("{:.0} rows/s, p50 {}, p99 {}", same.rate(), at(&same, 50), at(&same, 99)),
        ]);
        cpu.row([
            format!("batches of {size}, {connections} connections"),
            ours.per_million(ours.gateway_cpu),
            ours.per_million(ours.clickhouse_cpu),
            ours.per_million(ours.own_cpu),
            format!("{:.0}", ours.events as f64 * crate::report::cores() as f64 / (ours.gateway_cpu + ours.clickhouse_cpu + ours.own_cpu)),
            big.per_million(big.clickhouse_cpu),
            same.per_million(same.clickhouse_cpu),
        ]);
    }
    let (p50, p50_direct) = (percentile(&lone.answers, 50) * 1e3, percentile(&lone_direct.answers, 50) * 1e3);
    report.aim(Aim::at_most("a lone post on an idle system, p50", p50, 15.0, "ms").limit(p50_direct));
    table.row([
        "a lone post on an idle system".to_owned(),
        format!("**p50 {}**, p99 {}", at(&lone, 50), at(&lone, 99)),
        format!("p50 {}, p99 {}", at(&lone_direct, 50), at(&lone_direct, 99)),
        ratio(percentile(&lone.answers, 50) / percentile(&lone_direct.answers, 50)),
        "one row an INSERT".to_owned(),
    ]);
    table.note(format!(
        "The limit: INSERTs of {} rows, pre-encoded as RowBinary, of such events into the same landing table, from as many connections as were fastest ({limit_connections}; rows/s: {}), in a ClickHouse \
         of its own with as many events stored, so that each side pays for its own merges. Each figure is that of {} turns together, so that merges that become due in one of them count. The load generator shares the {} cores with gateway and ClickHouse; other processes \
         took {:.0} to {:.0} % of the machine meanwhile. After every run the meter's total was compared with the sum of what was sent.",
        sizes.direct.0,
        told.join(", "),
        sizes.turns,
        crate::report::cores(),
        others.iter().copied().fold(f64::INFINITY, f64::min),
        others.iter().copied().fold(0.0, f64::max),
    ));
    report.table(table);
    report.table(cpu);
    report.table(lone_steps(&lone, &lone_direct, &steps));
    Ok(())
}

/// Where a lone post's time goes.
fn lone_steps(lone: &Run, insert: &Run, [nothing, claim, look]: &[Step; 3]) -> Table {
    let mut table = Table::new("A lone post, step by step", &["step", "p50", "p99", "CPU of ClickHouse"]);
    for (step, times, cpu) in [
        ("claim its identity: one row into `identities`", &claim.times, claim.cpu),
        ("look who else did: the list of the table's parts", &look.times, look.cpu),
        ("insert it: one row through the landing table's views", &insert.answers, insert.clickhouse_cpu),
        ("the post as a whole, its INSERT begun beside the claim", &lone.answers, lone.clickhouse_cpu),
        ("for comparison: `SELECT 1`", &nothing.times, nothing.cpu),
    ] {
        let [p50, p99] = [50, 99].map(|percent| milliseconds(percentile(times, percent)));
        table.row([step.to_owned(), p50, p99, milliseconds(cpu / times.len() as f64)]);
    }
    table.note(format!(
        "The steps straight at ClickHouse, one after the other, each on the idle system. Everything inserted is on the disk. CPU for one of each, that of \
         the INSERT and of the post with what ClickHouse does meanwhile by itself, such as merging. The gateway takes {} for a post.",
        milliseconds(lone.gateway_cpu / lone.events as f64)
    ));
    table
}

fn aims(report: &mut Section, kind: (usize, usize), ours: &Run, big: &Run) {
    let million = 1e6 / ours.events as f64;
    match kind {
        (16, 1_000) => {
            let part = ours.rate() / big.rate();
            report.aim(Aim::at_least("batches of 1,000 from 16, part of the direct insert", part, 0.8, "×").limit(1.0));
            report.aim(Aim::at_most("gateway CPU per million events", ours.gateway_cpu * million, 2.5, "s"));
            report.aim(Aim::at_most("gateway CPU, part of ClickHouse's", ours.gateway_cpu / ours.clickhouse_cpu, 0.25, "×"));
        }
        (256, 1) => {
            report.aim(Aim::at_least("single posts from 256 connections", ours.rate(), 30_000.0, "events/s"));
            let p99 = percentile(&ours.answers, 99) * 1e3;
            report.aim(Aim::at_most("single posts from 256 connections, p99", p99, 250.0, "ms"));
        }
        _ => {}
    }
}
