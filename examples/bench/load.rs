//! Stored events by the million, fast: rows made inside ClickHouse, claimed and then through the landing table.

use std::ops::Range;
use std::time::Instant;

use kubemeter::warehouse::row::{ARRIVAL_MARK, COLUMNS, IDENTITY_COLUMNS};

use crate::events::{METHODS, MONTH_MS, NAMESPACE, PATHS, REGIONS, SUBJECTS, TYPE};
use crate::setup::Setup;
use crate::{Result, progress};

/// Rows of one INSERT.
const STEP: u64 = 250_000;

/// Source of loaded events.
pub const SOURCE: &str = "loaded";

/// Id of a loaded event.
pub fn id(number: u64) -> String {
    format!("loaded-{number:016}")
}

/// Loads events by number: times and subjects in random order, as late and retried events have them.
pub async fn load(setup: &Setup, seed: u64, numbers: Range<u64>) -> Result<()> {
    let began = Instant::now();
    let mut direct = setup.clickhouse().await?;
    let mut at = numbers.start;
    while at < numbers.end {
        let end = (at + STEP).min(numbers.end);
        let rows = rows(seed, at..end);
        setup
            .run(&mut direct, &format!("INSERT INTO kubemeter.identities ({IDENTITY_COLUMNS}) SELECT {IDENTITY_COLUMNS} FROM ({rows})"))
            .await?;
        setup.run(&mut direct, &format!("INSERT INTO kubemeter.{} ({COLUMNS}) SELECT {COLUMNS} FROM ({rows})", setup.landing)).await?;
        at = end;
        progress(format_args!(
            "{:.2} of {:.2} million events loaded, {} s",
            millions(at),
            millions(numbers.end),
            began.elapsed().as_secs()
        ));
    }
    setup.quiet().await
}

pub fn millions(events: u64) -> f64 {
    events as f64 / 1e6
}

/// A SELECT of events as a landing table has them.
fn rows(seed: u64, numbers: Range<u64>) -> String {
    // The identity as the gateway computes it: the same event over HTTP is a duplicate, which is checked.
    let part = |length: usize, text: &str| format!("char({length},0,0,0,0,0,0,0), {text}");
    let identity =
        [part(NAMESPACE.len(), &format!("'{NAMESPACE}'")), part(SOURCE.len(), &format!("'{SOURCE}'")), part(id(0).len(), "event_id")]
            .join(", ");
    let random = |salt: u64, below: u64| format!("cityHash64(number, {seed}, {salt}) % {below}");
    let choice = |salt: u64, of: &[&str]| format!("'\"' || ['{}'][1 + {}]", of.join("','"), random(salt, of.len() as u64));
    format!(
        "SELECT '{NAMESPACE}' AS namespace, '{TYPE}' AS type, 'customer-' || leftPad(toString({subject}), 4, '0') AS subject, \
         fromUnixTimestamp64Milli(toInt64({month} + {time}), 'UTC') AS time, reinterpretAsUInt128(substring(SHA256(concat({identity})), 1, 16)) AS id, \
         '{SOURCE}' AS source, 'loaded-' || leftPad(toString(number), 16, '0') AS event_id, toDateTime64(time, 6, 'UTC') AS received, \
         map('$.duration_ms', toString(intDiv({value}, 1000)) || '.' || leftPad(toString({value} % 1000), 3, '0'), '$.method', {method}, \
         '$.path', {path}, '$.status', '200', '$.region', {region}) AS data, \
         toUInt64({ARRIVAL_MARK}) - toUInt64(toUnixTimestamp64Micro(toDateTime64(time, 6, 'UTC'))) AS version, \
         toUUID('00000000-0000-0000-0000-000000000000') AS cancellation \
         FROM numbers({}, {})",
        numbers.start,
        numbers.end - numbers.start,
        subject = random(1, SUBJECTS),
        month = MONTH_MS.start,
        time = random(2, MONTH_MS.end - MONTH_MS.start),
        value = random(3, 2_000_000),
        method = choice(4, &METHODS),
        path = choice(5, &PATHS),
        region = choice(6, &REGIONS),
    )
}
