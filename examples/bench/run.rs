//! New events sent as fast as they are answered, to the gateway or straight to ClickHouse, timed and counted.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use kubemeter::warehouse::row::{COLUMNS, IDENTITY_COLUMNS};
use kubemeter::warehouse::{Topology, Warehouse, WarehouseOptions};

use crate::client::{Connection, encoded};
use crate::events::{Batch, Generator, METER};
use crate::report::{milliseconds, percentile};
use crate::setup::{Process, Setup, busy, own_cpu};
use crate::{Result, progress, stored};

/// Pause between the posts on the idle system.
const PAUSE: Duration = Duration::from_millis(25);

/// Who gets the events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    Gateway,
    /// In INSERTs of so many rows, a multiple of the batches'.
    ClickHouse {
        rows: usize,
    },
}

/// What one run took.
pub struct Run {
    pub events: usize,
    pub elapsed: f64,
    pub answers: Vec<f64>,
    pub gateway_cpu: f64,
    pub clickhouse_cpu: f64,
    pub own_cpu: f64,
    /// Share of the machine that processes had which have no part in this.
    pub others: f64,
}

impl Run {
    /// Events a second.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.elapsed
    }

    /// Both as one.
    pub fn and(before: Option<Self>, mut this: Self) -> Self {
        let Some(before) = before else { return this };
        this.events += before.events;
        this.elapsed += before.elapsed;
        this.answers.extend(before.answers);
        this.gateway_cpu += before.gateway_cpu;
        this.clickhouse_cpu += before.clickhouse_cpu;
        this.own_cpu += before.own_cpu;
        this.others = this.others.max(before.others);
        this
    }

    /// CPU seconds of a million events.
    pub fn per_million(&self, cpu: f64) -> String {
        format!("{:.1} s", cpu * 1e6 / self.events as f64)
    }
}

/// Several runs as one.
pub fn together(runs: Vec<Run>) -> Result<Run> {
    runs.into_iter().fold(None, |all, run| Some(Run::and(all, run))).ok_or_else(|| "there was no run".into())
}

pub fn at(run: &Run, percent: usize) -> String {
    milliseconds(percentile(&run.answers, percent))
}

/// Sends to one setup, and knows what its meter's total must be.
pub struct Ingest<'a> {
    setup: &'a Setup,
    seed: u64,
    /// Number of the next generator.
    stream: u64,
    /// What the meter's total must be.
    expected: BigDecimal,
}

/// A step, done several times.
#[derive(Default)]
pub struct Step {
    /// How long each took, s.
    pub times: Vec<f64>,
    /// What ClickHouse used of the CPU for all of them, s. The kernel tells it in steps of 10 ms: only the sum says something.
    pub cpu: f64,
}

impl Step {
    fn add(&mut self, (began, cpu_before): (Instant, f64), (ended, cpu_after): (Instant, f64)) {
        self.times.push((ended - began).as_secs_f64());
        self.cpu += cpu_after - cpu_before;
    }
}

impl<'a> Ingest<'a> {
    /// On top of what is stored.
    pub async fn new(setup: &'a Setup, seed: u64) -> Result<Self> {
        Ok(Self { setup, seed, stream: 0, expected: setup.total(METER).await? })
    }

    /// Waits until this side's ClickHouse is at rest, before the other side is measured.
    pub async fn quiet(&self) -> Result<()> {
        self.setup.quiet().await
    }

    /// Events that no other generator makes, in batches of a size.
    fn stream(&mut self, size: usize, events: usize) -> Result<Vec<Batch>> {
        self.stream += 1;
        Generator::new(self.seed, self.stream).batches(size, events)
    }

    /// New events in batches of a size, which are going to count.
    fn batches(&mut self, size: usize, events: usize) -> Result<Vec<Batch>> {
        let batches = self.stream(size, events)?;
        let thousandths: i128 = batches.iter().map(|batch| batch.thousandths).sum();
        self.expected += BigDecimal::new(thousandths.into(), 3);
        Ok(batches)
    }

    /// Sends new events as fast as they are answered, and checks that they count.
    pub async fn run(&mut self, to: To, connections: usize, size: usize, events: usize) -> Result<Run> {
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
    pub async fn lone(&mut self, to: To, posts: usize) -> Result<Run> {
        let requests = requests(to, &self.setup.landing, &self.batches(1, posts)?)?;
        let open = vec![connect(to, self.setup).await?];
        self.setup.quiet().await?;
        let run = self.timed(to, (1, posts), requests, open, Some(PAUSE)).await?;
        self.check("after lone posts").await?;
        Ok(run)
    }

    /// What a lone post has ClickHouse do, each step by itself, with the same pauses: an empty statement, a claim, and the look after it.
    pub async fn steps(&mut self, times: usize) -> Result<[Step; 3]> {
        let batches = self.stream(1, times)?;
        let mut direct = self.setup.clickhouse().await?;
        let claim = format!("/?query={}", encoded(&format!("INSERT INTO kubemeter.identities ({IDENTITY_COLUMNS}) FORMAT RowBinary")));
        let warehouse = Warehouse::new(&WarehouseOptions {
            url: self.setup.clickhouse.url.clone(),
            database: "kubemeter".to_owned(),
            user: "default".to_owned(),
            password: String::new(),
            topology: Topology::Single,
        });
        self.setup.quiet().await?;
        let mut steps: [Step; 3] = Default::default();
        for batch in batches {
            let claims = batch.claims_binary()?;
            tokio::time::sleep(PAUSE).await;
            let began = self.moment()?;
            self.setup.run(&mut direct, "SELECT 1").await?;
            steps[0].add(began, self.moment()?);
            tokio::time::sleep(PAUSE).await;
            let began = self.moment()?;
            direct.expect(StatusCode::OK, Method::POST, &claim, "text/plain", claims.into()).await?;
            let claimed = self.moment()?;
            warehouse.identity_parts().await?;
            steps[1].add(began, claimed);
            steps[2].add(claimed, self.moment()?);
        }
        Ok(steps)
    }

    /// Now, and what ClickHouse has used of the CPU by now, s.
    fn moment(&self) -> Result<(Instant, f64)> {
        Ok((Instant::now(), self.setup.clickhouse.cpu()?))
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
    pub async fn check_duplicates(&mut self) -> Result<()> {
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
            stored::SOURCE,
            stored::id(0)
        );
        gateway.expect(StatusCode::ACCEPTED, Method::POST, "/events", "application/json", loaded.into()).await?;
        self.check("after duplicates").await
    }

    async fn check(&self, when: &str) -> Result<()> {
        let total = self.setup.total(METER).await?;
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
