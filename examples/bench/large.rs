//! A year of many events: how queries grow, and what duplicates, late events and cancellations cost them.

use std::ops::Range;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use kubemeter::warehouse::row::{ARRIVAL_MARK, CONTRA};
use serde_json::json;

use crate::aim::Aim;
use crate::events::{METER, Random, SUBJECTS};
use crate::query::of_kubemeter;
use crate::report::{Section, Table, milliseconds, percentile, ratio};
use crate::setup::{Setup, free_disk};
use crate::stored::{Answer, MONTHS, Pass, Reference, SOURCE, YEAR_MS, customer, day, id};
use crate::{Result, Sizes, disk, load, progress};

/// Room for one event while parts are merged, in bytes: some twice of what it takes at rest.
const ROOM: u64 = 160;
/// One event in so many is cancelled, so many in one request.
const CANCELLED: u64 = 1_000;
const CANCELLED_AT_ONCE: usize = 1_000;
/// How long the operator may take until it has mapped the customers.
const MAPPED: Duration = Duration::from_secs(300);
/// How long the operator may take until it has balanced the sums.
const BALANCED: Duration = Duration::from_secs(900);
/// One event in so many is posted to the gateway; the others are stored by SQL.
const POSTED: u64 = 100;

#[derive(Clone, Copy)]
enum Question {
    CustomerByDay,
    Customers,
    CustomersByDay,
    GroupsByDay,
}

const QUESTIONS: [(Question, &str); 4] = [
    (Question::CustomerByDay, "one customer's month by day"),
    (Question::Customers, "all customers' month"),
    (Question::CustomersByDay, "all customers' month by day"),
    (Question::GroupsByDay, "a month by day and two groups"),
];

/// Statement about rows that never change, asked in turn with the questions: what it takes longer is the machine's doing.
const UNCHANGED: &str = "SELECT subject, sum(value) FROM bench.unchanged GROUP BY subject FORMAT Null";

/// Seconds that each question's answers took, and those about unchanged rows.
#[derive(Default)]
struct Times {
    questions: [Vec<f64>; QUESTIONS.len()],
    unchanged: Vec<f64>,
}

impl Times {
    fn p50(&self, at: usize) -> f64 {
        percentile(&self.questions[at], 50)
    }

    /// How many times as long a question took as in another phase, at the same speed of the machine.
    fn ratio(&self, before: &Self, at: usize) -> f64 {
        self.p50(at) / before.p50(at) / self.slowness(before)
    }

    fn slowness(&self, before: &Self) -> f64 {
        percentile(&self.unchanged, 50) / percentile(&before.unchanged, 50)
    }
}

/// Says before anything is done whether the disk has room for so many events.
pub fn check_disk(events: u64) -> Result<()> {
    let (free, needed) = (free_disk()? >> 20, (events * ROOM) >> 20);
    if free < needed {
        return Err(
            format!("{events} events need {needed} MiB of disk, {free} MiB are free: give fewer --events, or another TMPDIR").into()
        );
    }
    progress(format_args!("{events} events need up to {needed} MiB of disk, {free} MiB are free"));
    Ok(())
}

/// Measures all figures of this kind into the report.
pub async fn measure(setup: &Setup, sizes: &Sizes, events: u64, seed: u64, report: &mut Section) -> Result<()> {
    let mut bench = Large { setup, sizes, seed, reference: Reference::new() };
    bench.map_customers().await?;
    let by_sql = events - events / POSTED;
    let (first, rest) = (Pass::in_order(seed, 0..events / 10, YEAR_MS), Pass::in_order(seed, events / 10..by_sql, YEAR_MS));
    let posted = Pass::random(seed, by_sql..events, YEAR_MS);
    bench.load(&first).await?;
    bench.keep_unchanged().await?;
    let small = bench.ask().await?;
    bench.load(&rest).await?;
    load::post(setup, &posted).await?;
    bench.reference.count(&posted, posted.numbers.clone(), 1);
    let large = bench.ask().await?;
    let parts = bench.parts().await?;
    disk::measure(setup, report).await?;

    load::post(setup, &posted).await?;
    let written_again = bench.rows_again().await?;
    let late = Pass::random(seed, events..events + events / 100, YEAR_MS);
    bench.load(&late).await?;
    for pass in [&first, &rest] {
        bench.cancel(pass).await?;
    }
    let balanced_after = bench.await_balance().await?;
    let disturbed = bench.ask().await?;
    let parts_after = bench.parts().await?;
    load::repeat(setup, &first, 100, 41).await?;
    load::repeat(setup, &rest, 100, 41).await?;
    bench.await_balance().await?;
    let again = bench.ask().await?;

    let [one, customers, by_day, _] = &large.questions;
    let ms = |times: &[f64], percent| percentile(times, percent) * 1e3;
    let million = load::millions(events);
    report.aim(Aim::at_most(&format!("one customer's month by day at {million} M, p50"), ms(one, 50), 20.0, "ms"));
    report.aim(Aim::at_most(&format!("one customer's month by day at {million} M, p99"), ms(one, 99), 60.0, "ms"));
    report.aim(Aim::at_most(&format!("all customers' month at {million} M, p50"), ms(customers, 50), 1_000.0, "ms"));
    report.aim(Aim::at_most(&format!("all customers' month by day at {million} M, p50"), ms(by_day, 50), 1_000.0, "ms"));
    let worst = |above: &Times, below: &Times, of: Range<usize>| of.map(|at| above.ratio(below, at)).fold(0.0, f64::max);
    report.aim(Aim::at_most(
        &format!("all customers: growth from {} M to {million} M", million / 10.0),
        worst(&large, &small, 1..3),
        4.0,
        "×",
    ));
    let disturbance = worst(&disturbed, &large, 0..3).max(worst(&again, &large, 0..3));
    report.aim(Aim::at_most("the same after duplicates, late events, cancels", disturbance, 1.3, "×"));

    let mut table = Table::new(
        &format!("Queries, at {million} million events over a year"),
        &[
            "figure",
            &format!("at {} million", million / 10.0),
            &format!("at {million} million"),
            "growth",
            "after 1 % again, 1 % late, 0.1 % cancelled",
            "ratio",
            "and 1 % written again",
            "ratio",
        ],
    );
    for (at, (_, name)) in QUESTIONS.iter().enumerate() {
        let times = |times: &Times| {
            let times = &times.questions[at];
            format!("**p50 {}**, p99 {}", milliseconds(percentile(times, 50)), milliseconds(percentile(times, 99)))
        };
        table.row([
            (*name).to_owned(),
            times(&small),
            times(&large),
            ratio(large.ratio(&small, at)),
            times(&disturbed),
            ratio(disturbed.ratio(&large, at)),
            times(&again),
            ratio(again.ratio(&large, at)),
        ]);
    }
    let unchanged = |times: &Times| format!("p50 {}", milliseconds(percentile(&times.unchanged, 50)));
    table.row([
        "the same rows each time".to_owned(),
        unchanged(&small),
        unchanged(&large),
        ratio(large.slowness(&small)),
        unchanged(&disturbed),
        ratio(disturbed.slowness(&large)),
        unchanged(&again),
        ratio(again.slowness(&large)),
    ]);
    table.note(format!(
        "Customers have two subjects each, of which one sends events. A month and a customer at random each time, {} times (one customer) or {} times (all), of files in memory: the table was read once before. Phases are minutes apart, and a machine that others use, too, \
         changes its speed meanwhile. So rows of a quarter of the small table that nothing changed were added up by hand, in turn with the questions about all: \
         what these took longer, in the last line, is taken out of the ratios above it. Events were stored in the order of their times, \
         each up to an hour late, first a tenth of them over the whole year, then the rest, of that every {POSTED}th by HTTP, at random over the year. \
         After that these were posted again (of which the gateway wrote {written_again} again, for the others it knew to be everywhere), 1 % more came \
         at random over the year, and of what was stored in order every 1,000th was cancelled over HTTP by its id. {:.0} s after the last of these answers the sums were balanced again, and the tables at rest later. At last every 100th \
         was written again, as a gateway does that can't know. The meter's table had {parts} parts before all that and {parts_after} after the cancellations; nothing was \
         merged by force. Every answer was compared with what the generator's decimals add up to, to the last digit.",
        sizes.asked.0,
        sizes.asked.1,
        balanced_after.as_secs_f64(),
    ));
    report.table(table);
    Ok(())
}

/// Rounds in which the questions are asked.
const ROUNDS: usize = 3;

struct Large<'a> {
    setup: &'a Setup,
    sizes: &'a Sizes,
    seed: u64,
    reference: Reference,
}

impl Large<'_> {
    /// Makes a Customer for each subject, with one more subject: whose an event is has to be looked up.
    async fn map_customers(&self) -> Result<()> {
        let customer = |number| {
            let name = customer(number);
            format!(
                "---\napiVersion: kubemeter.io/v1alpha1\nkind: Customer\nmetadata:\n  name: {name}\nspec:\n  subjects: [{name}, other-{number}]\n"
            )
        };
        self.setup.manifest("customers.yaml", Some(&(0..SUBJECTS).map(customer).collect::<String>()))?;
        let mut direct = self.setup.clickhouse().await?;
        let began = Instant::now();
        while self.setup.run(&mut direct, "SELECT count() FROM kubemeter.subjects FINAL").await? != (2 * SUBJECTS).to_string() {
            if began.elapsed() > MAPPED {
                return Err(format!("the customers are not mapped after {} s", MAPPED.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        progress(format_args!("{SUBJECTS} customers of two subjects each are mapped, {:.0} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    async fn load(&mut self, pass: &Pass) -> Result<()> {
        load::load(self.setup, pass).await?;
        self.reference.count(pass, pass.numbers.clone(), 1);
        Ok(())
    }

    /// Sets a quarter of the table's rows aside, as they are: the same files, which are never merged.
    async fn keep_unchanged(&self) -> Result<()> {
        let mut direct = self.setup.clickhouse().await?;
        let table = &self.setup.table;
        for sql in
            ["CREATE DATABASE bench", &format!("CREATE TABLE bench.unchanged AS kubemeter.{table}"), "SYSTEM STOP MERGES bench.unchanged"]
        {
            self.setup.run(&mut direct, sql).await?;
        }
        let first = format!(
            "SELECT DISTINCT partition_id FROM system.parts WHERE active AND database = 'kubemeter' AND table = '{table}' ORDER BY 1 LIMIT 3"
        );
        for partition in self.setup.run(&mut direct, &first).await?.lines() {
            let sql = format!("ALTER TABLE bench.unchanged ATTACH PARTITION ID '{partition}' FROM kubemeter.{table}");
            self.setup.run(&mut direct, &sql).await?;
        }
        Ok(())
    }

    /// Cancels every 1,000th event of a pass over HTTP, by its id: all subjects and the whole year have some.
    async fn cancel(&mut self, pass: &Pass) -> Result<()> {
        let numbers: Vec<u64> = pass.numbers.clone().filter(|number| number % CANCELLED == 7).collect();
        let mut gateway = self.setup.gateway().await?;
        let began = Instant::now();
        for numbers in numbers.chunks(CANCELLED_AT_ONCE) {
            let events: Vec<_> = numbers.iter().map(|&number| json!({"source": SOURCE, "id": id(number)})).collect();
            let body = json!({"events": events, "reason": "benchmark"}).to_string();
            let answer = gateway.expect(StatusCode::OK, Method::DELETE, "/usage", "application/json", body.into()).await?;
            let answer: serde_json::Value = serde_json::from_slice(&answer)?;
            if answer["cancelled"] != numbers.len() {
                return Err(format!("of {} events not all were cancelled: {answer}", numbers.len()).into());
            }
        }
        progress(format_args!("{} events cancelled, {:.1} s", numbers.len(), began.elapsed().as_secs_f64()));
        self.reference.count(pass, numbers.into_iter(), -1);
        Ok(())
    }

    /// Rows of the meter's table that are no first sendings.
    async fn rows_again(&self) -> Result<u64> {
        let mut direct = self.setup.clickhouse().await?;
        let sql = format!("SELECT count() FROM kubemeter.{} WHERE version >= {ARRIVAL_MARK}", self.setup.table);
        Ok(self.setup.run(&mut direct, &sql).await?.parse()?)
    }

    /// Waits until every key that was written again has a contra row, and until the tables are at rest. Gives how long the first took.
    async fn await_balance(&self) -> Result<Duration> {
        let mut direct = self.setup.clickhouse().await?;
        let sql = format!(
            "SELECT uniqExactIf(id, version >= {ARRIVAL_MARK}) = uniqExactIf(id, version = {CONTRA}) FROM kubemeter.{} \
             WHERE NOT endsWith(_partition_id, '-0') AND NOT endsWith(_partition_id, '-2')",
            self.setup.table
        );
        let began = Instant::now();
        while self.setup.run(&mut direct, &sql).await? != "1" {
            if began.elapsed() > BALANCED {
                return Err(format!("the sums are not balanced after {} s", BALANCED.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let took = began.elapsed();
        progress(format_args!("sums are balanced, {:.0} s", took.as_secs_f64()));
        self.setup.quiet().await?;
        Ok(took)
    }

    async fn parts(&self) -> Result<u64> {
        let mut direct = self.setup.clickhouse().await?;
        let of = format!("FROM system.parts WHERE active AND database = 'kubemeter' AND table = '{}'", self.setup.table);
        Ok(self.setup.run(&mut direct, &format!("SELECT count() {of}")).await?.parse()?)
    }

    /// Asks all questions, each of some customers and months, and compares every answer. In rounds, so that whatever else the machine
    /// does meets all of them.
    async fn ask(&self) -> Result<Times> {
        // What was written minutes ago the system may have put out of memory.
        let mut direct = self.setup.clickhouse().await?;
        self.setup.run(&mut direct, &format!("SELECT * FROM kubemeter.{} FORMAT Null", self.setup.table)).await?;
        let mut random = Random::new(self.seed);
        let mut all = Times::default();
        for _ in 0..ROUNDS {
            self.ask_each(&mut random, &mut all).await?;
        }
        for ((_, name), times) in QUESTIONS.iter().zip(&all.questions) {
            progress(format_args!("{name}: p50 {}, p99 {}", milliseconds(percentile(times, 50)), milliseconds(percentile(times, 99))));
        }
        Ok(all)
    }

    async fn ask_each(&self, random: &mut Random, all: &mut Times) -> Result<()> {
        let (mut gateway, mut direct) = (self.setup.gateway().await?, self.setup.clickhouse().await?);
        for ((question, _), times) in QUESTIONS.iter().zip(&mut all.questions) {
            let asked = if matches!(question, Question::CustomerByDay) { self.sizes.asked.0 } else { self.sizes.asked.1 };
            // The first is not counted: it fills caches.
            for number in 0..=asked / ROUNDS {
                let (month, subject) = (random.below(12) as usize, random.below(SUBJECTS));
                let (path, expected) = self.question(*question, MONTHS[month]..MONTHS[month + 1], subject)?;
                let began = Instant::now();
                let answer = gateway.expect(StatusCode::OK, Method::GET, &path, "application/json", Bytes::new()).await?;
                if number > 0 {
                    times.push(began.elapsed().as_secs_f64());
                }
                let mut answer = of_kubemeter(&answer)?;
                answer.retain(|_, value| *value != BigDecimal::default());
                if !matches!(question, Question::CustomerByDay) {
                    let began = Instant::now();
                    self.setup.run(&mut direct, UNCHANGED).await?;
                    all.unchanged.push(began.elapsed().as_secs_f64());
                }
                if answer != expected {
                    return Err(format!("{path} is answered otherwise than the events add up to").into());
                }
            }
        }
        Ok(())
    }

    fn question(&self, question: Question, days: Range<u64>, subject: u64) -> Result<(String, Answer)> {
        let (from, to) = (day(days.start)?, day(days.end)?);
        let (what, expected) = match question {
            Question::CustomerByDay => {
                (format!("windowSize=DAY&customer={}", customer(subject)), self.reference.customer_by_day(days, subject))
            }
            Question::Customers => ("groupBy=customer".to_owned(), self.reference.customers(days)),
            Question::CustomersByDay => ("windowSize=DAY&groupBy=customer".to_owned(), self.reference.customers_by_day(days)),
            Question::GroupsByDay => ("windowSize=DAY&groupBy=method&groupBy=path".to_owned(), self.reference.groups_by_day(days)),
        };
        Ok((format!("/usage/{METER}?from={from}&to={to}&{what}"), expected))
    }
}
