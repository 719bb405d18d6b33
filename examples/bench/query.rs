//! How fast usage is answered, beside hand-written SQL on the same table.

use std::time::Instant;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::client::encoded;
use crate::events::{METER, Random, SUBJECTS};
use crate::report::{Section, Table, milliseconds, percentile, ratio};
use crate::setup::Setup;
use crate::stored::{Answer, MONTHS, Reference, customer};
use crate::{Result, Sizes, load, progress};

/// The month as both kinds of question have it.
pub const FROM: &str = "2026-05-01T00:00:00Z";
pub const TO: &str = "2026-06-01T00:00:00Z";
pub const MONTH: &str = "time >= '2026-05-01 00:00:00' AND time < '2026-06-01 00:00:00'";
/// What the gateway's client sets too, and a good engineer would.
const SETTINGS: &str = "SETTINGS do_not_merge_across_partitions_select_final = 0";

/// A question, as Kubemeter is asked it and as an engineer would write it.
struct Question {
    name: &'static str,
    /// Whether it is asked for one customer, each time another.
    one_customer: bool,
    /// Besides the time.
    parameters: &'static str,
    /// Key columns, if any, before the value.
    keys: &'static str,
}

const QUESTIONS: [Question; 3] = [
    Question {
        name: "one customer's month by day",
        one_customer: true,
        parameters: "windowSize=DAY",
        keys: "toUnixTimestamp(toStartOfDay(time)) AS day",
    },
    Question { name: "all customers' month", one_customer: false, parameters: "groupBy=customer", keys: "subject" },
    Question {
        name: "a month by hour and two groups",
        one_customer: false,
        parameters: "windowSize=HOUR&groupBy=method&groupBy=path",
        keys: "toUnixTimestamp(toStartOfHour(time)) AS hour, group_method, group_path",
    },
];

/// Measures all queries into the report. Every answer must be that of the SQL, and what `reference` adds up to.
pub async fn measure(setup: &Setup, sizes: &Sizes, seed: u64, (stored, reference): (u64, &Reference), report: &mut Section) -> Result<()> {
    let mut gateway = setup.gateway().await?;
    let mut direct = setup.clickhouse().await?;
    let parts = setup
        .run(
            &mut direct,
            &format!("SELECT count() FROM system.parts WHERE active AND database = 'kubemeter' AND table = '{}'", setup.table),
        )
        .await?;
    let mut table = Table::new(
        &format!("Queries, at {} million events", load::millions(stored)),
        &["figure", "ours", "the limit", "ratio of the p50", "rows"],
    );
    let mut random = Random::new(seed);
    for question in &QUESTIONS {
        let asked = if question.one_customer { sizes.asked.0 } else { sizes.asked.1 };
        let (mut ours, mut limit, mut rows) = (Vec::new(), Vec::new(), 0);
        // The first is not counted: it fills caches.
        for number in 0..=asked {
            let subject = random.below(SUBJECTS);
            let (path, sql) = question.texts(&setup.table, &customer(subject));
            let began = Instant::now();
            let answer = gateway.expect(StatusCode::OK, Method::GET, &path, "application/json", Bytes::new()).await?;
            let of_ours = began.elapsed().as_secs_f64();
            let began = Instant::now();
            let expected = setup.run(&mut direct, &sql).await?;
            if number > 0 {
                ours.push(of_ours);
                limit.push(began.elapsed().as_secs_f64());
            }
            let expected = of_clickhouse(&expected)?;
            rows = expected.len();
            let answer = of_kubemeter(&answer)?;
            if answer != expected {
                return Err(format!("{path} is answered otherwise than {sql}").into());
            }
            if !question.is_right(&answer, subject, reference)? {
                return Err(format!("{path} is answered otherwise than the events add up to").into());
            }
        }
        let at = |times: &[f64], percent| milliseconds(percentile(times, percent));
        progress(format_args!("{}: ours p50 {}, the limit p50 {}", question.name, at(&ours, 50), at(&limit, 50)));
        table.row([
            question.name.to_owned(),
            format!("**p50 {}**, p99 {}", at(&ours, 50), at(&ours, 99)),
            format!("p50 {}, p99 {}", at(&limit, 50), at(&limit, 99)),
            ratio(percentile(&ours, 50) / percentile(&limit, 50)),
            rows.to_string(),
        ]);
    }
    table.note(format!(
        "The limit: hand-written SQL with FINAL on the same table, without Kubemeter's mapping of subjects to customers, asked in turn \
         with ours {} times (one customer) or {} times (all). The table had {parts} parts; nothing was merged by force. Every answer was \
         compared with that of the SQL and with what the generator's decimals add up to, to the last digit.",
        sizes.asked.0, sizes.asked.1
    ));
    report.table(table);
    Ok(())
}

impl Question {
    /// Whether an answer is what the events add up to. Hours are added up to days.
    fn is_right(&self, answer: &Answer, subject: u64, reference: &Reference) -> Result<bool> {
        let month = MONTHS[11]..MONTHS[12];
        if self.one_customer {
            return Ok(*answer == reference.customer_by_day(month, subject));
        }
        if !self.keys.contains("hour") {
            return Ok(*answer == reference.customers(month));
        }
        let mut days = Answer::new();
        for (key, value) in answer {
            let (hour, groups) = key.split_once('\t').ok_or("an hour has no groups")?;
            let hour: u64 = hour.parse()?;
            *days.entry(format!("{}\t{groups}", hour - hour % 86_400)).or_default() += value;
        }
        Ok(days == reference.groups_by_day(month))
    }

    /// The path for Kubemeter and the SQL for ClickHouse.
    fn texts(&self, table: &str, customer: &str) -> (String, String) {
        let (of_customer, of_subject) = if self.one_customer {
            (format!("&customer={}", encoded(customer)), format!(" AND subject = '{customer}'"))
        } else {
            (String::new(), String::new())
        };
        let path = format!("/usage/{METER}?from={FROM}&to={TO}&{}{of_customer}", self.parameters);
        let by = self.keys.split(", ").map(|key| key.rsplit(' ').next().unwrap_or(key)).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT {}, sum(value) FROM kubemeter.{table} FINAL WHERE {MONTH}{of_subject} GROUP BY {by} ORDER BY {by} {SETTINGS} FORMAT TSV",
            self.keys
        );
        (path, sql)
    }
}

/// Lines of keys and a value.
pub fn of_clickhouse(answer: &str) -> Result<Answer> {
    let line = |line: &str| -> Result<_> {
        let (key, value) = line.rsplit_once('\t').ok_or_else(|| format!("no value in {line:?}"))?;
        Ok((key.to_owned(), value.parse()?))
    };
    answer.lines().map(line).collect()
}

/// The same of Kubemeter's answer.
pub fn of_kubemeter(answer: &[u8]) -> Result<Answer> {
    let answer: Value = serde_json::from_slice(answer)?;
    let row = |row: &Value| -> Result<_> {
        let mut key = Vec::new();
        if let Some(start) = row["windowStart"].as_str() {
            key.push(start.parse::<jiff::Timestamp>()?.as_second().to_string());
        }
        let groups = ["method", "path"].map(|group| &row["groupBy"][group]);
        let texts = groups.into_iter().chain([&row["customer"]]);
        key.extend(texts.filter_map(Value::as_str).map(str::to_owned));
        Ok((key.join("\t"), row["value"].as_str().ok_or("a row has no value")?.parse()?))
    };
    // A total has the whole range as its window: only windows are keys.
    let windows = !answer["windowSize"].is_null();
    let rows = answer["data"].as_array().ok_or("an answer has no data")?;
    rows.iter()
        .map(|found| {
            let mut found = found.clone();
            if !windows {
                found["windowStart"] = Value::Null;
            }
            row(&found)
        })
        .collect()
}
