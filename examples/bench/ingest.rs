//! How fast events are acknowledged, beside direct INSERTs of the same rows into the same landing table.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use kubemeter::warehouse::row::COLUMNS;

use crate::client::{Connection, encoded};
use crate::events::{Batch, Generator, METER};
use crate::report::{Report, Table, milliseconds, percentile, ratio};
use crate::setup::{Process, Setup, busy, own_cpu};
use crate::{Result, Sizes, load, progress};

/// Connections that post at the same time.
const CONNECTIONS: usize = 16;
/// Events that are made at a time for large INSERTs.
const BIG_BATCH: usize = 1_000;
/// Pause between the posts on the idle system.
const PAUSE: Duration = Duration::from_millis(25);

/// Who gets the events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Gateway,
    /// In INSERTs of so many rows, a multiple of the batches'.
    ClickHouse {
        rows: usize,
    },
}

/// What one run took.
struct Run {
    events: usize,
    elapsed: f64,
    answers: Vec<f64>,
    gateway_cpu: f64,
    clickhouse_cpu: f64,
    own_cpu: f64,
    /// Share of the machine that processes had which have no part in this.
    others: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed
    }

    fn per_million(&self, cpu: f64) -> String {
        format!("{:.1} s", cpu * 1e6 / self.events as f64)
    }
}

/// Measures all ingest figures into the report.
pub async fn measure(setup: &Setup, sizes: &Sizes, seed: u64, stored: u64, report: &mut Report) -> Result<()> {
    let mut bench = Ingest { setup, seed, stream: 0, expected: total(setup).await? };
    let mut big = Vec::new();
    let mut ours: Vec<Vec<Run>> = sizes.batches.iter().map(|_| Vec::new()).collect();
    let mut same: Vec<Vec<Run>> = sizes.batches.iter().map(|_| Vec::new()).collect();
    // In turn, so that whatever else the machine does meets all of them.
    for turn in 1..=sizes.turns {
        let (rows, inserts) = sizes.direct;
        big.push(bench.run(To::ClickHouse { rows }, 1, BIG_BATCH, rows * inserts).await?);
        for (at, &(size, events)) in sizes.batches.iter().enumerate() {
            ours[at].push(bench.run(To::Gateway, CONNECTIONS, size, events).await?);
            same[at].push(bench.run(To::ClickHouse { rows: size }, CONNECTIONS, size, events.min(size * 1_000)).await?);
        }
        progress(format_args!("ingest: turn {turn} of {} done", sizes.turns));
    }
    let lone = bench.lone(To::Gateway, sizes.lone).await?;
    let lone_direct = bench.lone(To::ClickHouse { rows: 1 }, sizes.lone).await?;
    bench.check_duplicates().await?;

    let others: Vec<f64> = big.iter().chain(ours.iter().flatten()).chain(same.iter().flatten()).map(|run| run.others * 100.0).collect();
    let big = median(big);
    let mut table = Table::new(
        &format!("Ingest, with {} million events stored", load::millions(stored)),
        &["figure", "ours", "the limit", "ratio", "direct, in the same batches"],
    );
    let mut cpu = Table::new(
        "CPU seconds per million events",
        &["figure", "gateway", "ClickHouse behind it", "load generator", "ClickHouse, the limit", "ClickHouse, direct in the same batches"],
    );
    for ((&(size, _), ours), same) in sizes.batches.iter().zip(ours).zip(same) {
        let (ours, same) = (median(ours), median(same));
        table.row([
            format!("batches of {size}, {CONNECTIONS} connections"),
            format!("**{:.0} events/s**, p50 {}, p99 {}", ours.rate(), at(&ours, 50), at(&ours, 99)),
            format!("{:.0} rows/s", big.rate()),
            ratio(ours.rate() / big.rate()),
            format!("{:.0} rows/s, p50 {}, p99 {}", same.rate(), at(&same, 50), at(&same, 99)),
        ]);
        cpu.row([
            format!("batches of {size}, {CONNECTIONS} connections"),
            ours.per_million(ours.gateway_cpu),
            ours.per_million(ours.clickhouse_cpu),
            ours.per_million(ours.own_cpu),
            big.per_million(big.clickhouse_cpu),
            same.per_million(same.clickhouse_cpu),
        ]);
    }
    table.row([
        "a lone post on an idle system".to_owned(),
        format!("**p50 {}**, p99 {}", at(&lone, 50), at(&lone, 99)),
        format!("p50 {}, p99 {}", at(&lone_direct, 50), at(&lone_direct, 99)),
        ratio(percentile(&lone.answers, 50) / percentile(&lone_direct.answers, 50)),
        "one row an INSERT".to_owned(),
    ]);
    table.note(format!(
        "The limit: INSERTs of {} rows one after the other, pre-encoded as RowBinary, of the same events into the same landing table. \
         Each figure is the median of {} turns. The load generator shares the {} cores with gateway and ClickHouse; other processes \
         took {:.0} to {:.0} % of the machine meanwhile. After every run the meter's total was compared with the sum of what was sent.",
        sizes.direct.0,
        sizes.turns,
        crate::report::cores(),
        others.iter().copied().fold(f64::INFINITY, f64::min),
        others.iter().copied().fold(0.0, f64::max),
    ));
    report.table(table);
    report.table(cpu);
    Ok(())
}

/// Of several runs the one whose rate is the median.
fn median(mut runs: Vec<Run>) -> Run {
    runs.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    runs.swap_remove(runs.len() / 2)
}

fn at(run: &Run, percent: usize) -> String {
    milliseconds(percentile(&run.answers, percent))
}

struct Ingest<'a> {
    setup: &'a Setup,
    seed: u64,
    /// Number of the next generator.
    stream: u64,
    /// What the meter's total must be.
    expected: BigDecimal,
}

impl Ingest<'_> {
    /// New events in batches of a size.
    fn batches(&mut self, size: usize, events: usize) -> Result<Vec<Batch>> {
        self.stream += 1;
        let batches = Generator::new(self.seed, self.stream).batches(size, events)?;
        let thousandths: i128 = batches.iter().map(|batch| batch.thousandths).sum();
        self.expected += BigDecimal::new(thousandths.into(), 3);
        Ok(batches)
    }

    /// Sends new events as fast as they are answered, and checks that they count.
    async fn run(&mut self, to: To, connections: usize, size: usize, events: usize) -> Result<Run> {
        let requests = requests(to, &self.setup.landing, &self.batches(size, events)?)?;
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(connect(to, self.setup).await?);
        }
        self.setup.quiet().await?;
        let run = self.timed(to, (size, events), requests, open, None).await?;
        let (who, rows) = match to {
            To::Gateway => ("gateway", size),
            To::ClickHouse { rows } => ("ClickHouse", rows),
        };
        progress(format_args!(
            "{who}, {connections} × {rows}: {:.0} events/s, p50 {}, p99 {}; CPU per million: gateway {}, ClickHouse {}; others {:.0} %",
            run.rate(),
            at(&run, 50),
            at(&run, 99),
            run.per_million(run.gateway_cpu),
            run.per_million(run.clickhouse_cpu),
            run.others * 100.0
        ));
        self.check("after a run").await?;
        Ok(run)
    }

    /// Posts single events with pauses.
    async fn lone(&mut self, to: To, posts: usize) -> Result<Run> {
        let requests = requests(to, &self.setup.landing, &self.batches(1, posts)?)?;
        let open = vec![connect(to, self.setup).await?];
        self.setup.quiet().await?;
        let run = self.timed(to, (1, posts), requests, open, Some(PAUSE)).await?;
        self.check("after lone posts").await?;
        Ok(run)
    }

    async fn timed(
        &self,
        to: To,
        (size, events): (usize, usize),
        requests: Vec<Request>,
        connections: Vec<Connection>,
        pause: Option<Duration>,
    ) -> Result<Run> {
        let answers = RefCell::new(Vec::with_capacity(requests.len()));
        let queue = RefCell::new(requests.into_iter());
        let cpu = || -> Result<[f64; 4]> { Ok([self.setup.gateway.cpu()?, self.setup.clickhouse.cpu()?, own_cpu()?, busy()?]) };
        let before = cpu()?;
        let began = Instant::now();
        let posting = connections.into_iter().map(|mut connection| {
            let (queue, answers) = (&queue, &answers);
            async move {
                loop {
                    let Some(request) = queue.borrow_mut().next() else { return Result::Ok(()) };
                    if let Some(pause) = pause {
                        tokio::time::sleep(pause).await;
                    }
                    let sent = Instant::now();
                    let answer = connection.expect(request.status, Method::POST, &request.path, "application/json", request.body).await?;
                    answers.borrow_mut().push(sent.elapsed().as_secs_f64());
                    if to == To::Gateway && !answer.starts_with(format!("{{\"accepted\":{size},").as_bytes()) {
                        return Err(format!("not all was accepted: {}", String::from_utf8_lossy(&answer)).into());
                    }
                }
            }
        });
        futures::future::try_join_all(posting).await?;
        let elapsed = began.elapsed().as_secs_f64();
        let after = cpu()?;
        let [gateway_cpu, clickhouse_cpu, own_cpu, busy] = std::array::from_fn(|at| after[at] - before[at]);
        let others = (busy - gateway_cpu - clickhouse_cpu - own_cpu).max(0.0) / elapsed / crate::report::cores() as f64;
        Ok(Run { events, elapsed, answers: answers.into_inner(), gateway_cpu, clickhouse_cpu, own_cpu, others })
    }

    /// Events that are there already change nothing: a batch again, and a loaded one at another time for another subject.
    async fn check_duplicates(&mut self) -> Result<()> {
        let again = self.batches(1_000, 1_000)?;
        let mut gateway = self.setup.gateway().await?;
        for _ in 0..2 {
            for request in requests(To::Gateway, &self.setup.landing, &again)? {
                gateway.expect(request.status, Method::POST, &request.path, "application/json", request.body).await?;
            }
        }
        let loaded = format!(
            r#"{{"specversion":"1.0","type":"{}","source":"{}","id":"{}","subject":"customer-other","data":{{"duration_ms":5}}}}"#,
            crate::events::TYPE,
            load::SOURCE,
            load::id(0)
        );
        gateway.expect(StatusCode::ACCEPTED, Method::POST, "/events", "application/json", loaded.into()).await?;
        self.check("after duplicates").await
    }

    async fn check(&self, when: &str) -> Result<()> {
        let total = total(self.setup).await?;
        if total == self.expected {
            Ok(())
        } else {
            Err(format!("{when} the meter's total is {total}, but {} was sent", self.expected).into())
        }
    }
}

struct Request {
    path: String,
    body: Bytes,
    status: StatusCode,
}

fn requests(to: To, landing: &str, batches: &[Batch]) -> Result<Vec<Request>> {
    let insert = format!("/?query={}", encoded(&format!("INSERT INTO kubemeter.{landing} ({COLUMNS}) FORMAT RowBinary")));
    let to_gateway = |batch: &Batch| Request { path: "/events".to_owned(), body: batch.json.clone(), status: StatusCode::ACCEPTED };
    let to_clickhouse = |batches: &[Batch]| -> Result<Request> {
        let rows = batches.iter().map(Batch::row_binary).collect::<Result<Vec<_>>>()?.concat();
        Ok(Request { path: insert.clone(), body: rows.into(), status: StatusCode::OK })
    };
    match to {
        To::Gateway => Ok(batches.iter().map(to_gateway).collect()),
        To::ClickHouse { rows } => batches.chunks(rows / batches[0].events).map(to_clickhouse).collect(),
    }
}

async fn connect(to: To, setup: &Setup) -> Result<Connection> {
    let process: &Process = if to == To::Gateway { &setup.gateway } else { &setup.clickhouse };
    Connection::open(&process.url).await
}

/// The meter's number over all that is stored.
async fn total(setup: &Setup) -> Result<BigDecimal> {
    let path = format!("/usage/{METER}");
    let answer = setup.gateway().await?.expect(StatusCode::OK, Method::GET, &path, "application/json", Bytes::new()).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    Ok(answer["data"][0]["value"].as_str().unwrap_or("0").parse()?)
}
