//! The query of a raw-events meter, on the same events in the same engine: JSON read anew by every question.

use std::time::Instant;

use bigdecimal::BigDecimal;
use bytes::Bytes;
use hyper::{Method, StatusCode};

use crate::aim::Aim;
use crate::events::{METER, NAMESPACE, TYPE};
use crate::query::{FROM, MONTH, TO, of_clickhouse, of_kubemeter};
use crate::report::{Section, Table, milliseconds, percentile, ratio};
use crate::setup::Setup;
use crate::stored::Answer;
use crate::{Result, Sizes, load};

/// Measures the comparison into the report. `expected`: the month by day and both groups.
pub async fn measure(setup: &Setup, sizes: &Sizes, stored: u64, expected: &Answer, report: &mut Section) -> Result<()> {
    let mut direct = setup.clickhouse().await?;
    let text = |key: &str| format!("substring(data['$.{key}'], 2)");
    let json = format!(
        "'{{\"duration_ms\":' || data['$.duration_ms'] || ',\"method\":\"' || {} || '\",\"path\":\"' || {} || '\",\"status\":200,\"region\":\"' || {} || '\"}}'",
        text("method"),
        text("path"),
        text("region")
    );
    for sql in [
        "CREATE TABLE raw_events (namespace String, type String, subject String, time DateTime64(3, 'UTC'), source String, id String, data String) \
         ENGINE = MergeTree ORDER BY (namespace, type, subject, toStartOfHour(time))",
        &format!("INSERT INTO raw_events SELECT namespace, type, subject, time, source, event_id, {json} FROM kubemeter.events FINAL"),
    ] {
        setup.run(&mut direct, sql).await?;
    }
    setup.quiet().await?;

    let question = format!("/usage/{METER}?from={FROM}&to={TO}&windowSize=DAY&groupBy=method&groupBy=path");
    let sql = format!(
        "SELECT toUnixTimestamp(toStartOfDay(time)) AS day, JSON_VALUE(data, '$.method') AS method, JSON_VALUE(data, '$.path') AS path, \
         sum(toFloat64OrNull(JSON_VALUE(data, '$.duration_ms'))) FROM raw_events WHERE namespace = '{NAMESPACE}' AND type = '{TYPE}' AND {MONTH} \
         GROUP BY day, method, path FORMAT TSV"
    );
    let mut gateway = setup.gateway().await?;
    let (mut ours, mut raw, mut inexact, mut largest) = (Vec::new(), Vec::new(), 0, BigDecimal::default());
    for _ in 0..sizes.raw {
        let began = Instant::now();
        let answer = gateway.expect(StatusCode::OK, Method::GET, &question, "application/json", Bytes::new()).await?;
        ours.push(began.elapsed().as_secs_f64());
        if of_kubemeter(&answer)? != *expected {
            return Err(format!("{question} is answered otherwise than the events add up to").into());
        }
        let began = Instant::now();
        let answer = of_clickhouse(&setup.run(&mut direct, &sql).await?)?;
        raw.push(began.elapsed().as_secs_f64());
        let off = |(key, exact): (&String, &BigDecimal)| (exact - answer.get(key).cloned().unwrap_or_default()).abs();
        let off: Vec<BigDecimal> = expected.iter().map(off).filter(|off| *off != BigDecimal::default()).collect();
        inexact = off.len();
        largest = off.into_iter().max().unwrap_or_default();
    }
    setup.run(&mut direct, "DROP TABLE raw_events SYNC").await?;

    let [p50_ours, p50_raw] = [&ours, &raw].map(|times| percentile(times, 50));
    report.aim(Aim::at_least("against a raw-events meter, a month by day and group", p50_raw / p50_ours, 10.0, "× faster"));
    let mut table = Table::new(
        &format!("Against a raw-events meter, at {} million events", load::millions(stored)),
        &["figure", "ours", "JSON_VALUE over raw events", "ratio", "rows", "rows that are not exact: ours, theirs"],
    );
    table.row([
        "a month by day and two groups".to_owned(),
        format!("**p50 {}**", milliseconds(p50_ours)),
        format!("p50 {}", milliseconds(p50_raw)),
        ratio(p50_raw / p50_ours),
        expected.len().to_string(),
        format!("0, {inexact}"),
    ]);
    table.note(format!(
        "Theirs: `sum(toFloat64OrNull(JSON_VALUE(data, '$.duration_ms')))` with both groups read by `JSON_VALUE`, over one table of all events, \
         `MergeTree ORDER BY (namespace, type, subject, toStartOfHour(time))`, without a look at duplicates; asked in turn {} times. Exact is what \
         the generator's decimals add up to; theirs is off by up to {}, with values of three decimals below 2,000.",
        sizes.raw,
        largest.to_plain_string()
    ));
    report.table(table);
    Ok(())
}
