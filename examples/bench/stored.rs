//! Stored events by number: the same in SQL, which makes them by the million, and here, which knows what the answers must be.

use std::collections::BTreeMap;
use std::ops::Range;

use bigdecimal::BigDecimal;
use jiff::Timestamp;

use crate::Result;
use crate::events::{METHODS, NAMESPACE, PATHS, REGIONS, SUBJECTS, TYPE};
use kubemeter::warehouse::row::ARRIVAL_MARK;

/// Source of stored events.
pub const SOURCE: &str = "loaded";
/// The twelve months before the end of the benchmark's month: June 2025 to May 2026 in UTC, ms since 1970.
pub const YEAR_MS: Range<u64> = 1_748_736_000_000..1_780_272_000_000;
/// Days of the year at which its months begin, and its end.
pub const MONTHS: [u64; 13] = [0, 30, 61, 92, 122, 153, 183, 214, 245, 273, 304, 334, 365];
const DAY_MS: u64 = 86_400_000;
const HOUR_MS: u64 = 3_600_000;
/// Multipliers of SplitMix64, which both sides compute in wrapping 64 bits.
const MIX: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// Id of a stored event.
pub fn id(number: u64) -> String {
    format!("loaded-{number:016}")
}

/// Events of some numbers, and when they happened.
#[derive(Clone, Debug)]
pub struct Pass {
    seed: u64,
    /// Their numbers.
    pub numbers: Range<u64>,
    start_ms: u64,
    step_ms: u64,
    random_ms: u64,
}

/// One stored event.
pub struct Event {
    pub subject: u64,
    pub time_ms: u64,
    /// In thousandths.
    pub value: u64,
    method: usize,
    path: usize,
}

impl Pass {
    /// At random in a span: late, retried, in no order.
    pub const fn random(seed: u64, numbers: Range<u64>, span_ms: Range<u64>) -> Self {
        Self { seed, numbers, start_ms: span_ms.start, step_ms: 0, random_ms: span_ms.end - span_ms.start }
    }

    /// From the start of a span to its end, as time goes by, each up to an hour late.
    pub const fn in_order(seed: u64, numbers: Range<u64>, span_ms: Range<u64>) -> Self {
        let step_ms = (span_ms.end - span_ms.start - HOUR_MS) / (numbers.end - numbers.start);
        Self { seed, numbers, start_ms: span_ms.start, step_ms, random_ms: HOUR_MS }
    }

    const fn salt(&self, draw: u64) -> u64 {
        self.seed.wrapping_mul(MIX[1]).wrapping_add(draw.wrapping_mul(MIX[2]))
    }

    /// An event by its number.
    pub fn event(&self, number: u64) -> Event {
        let draw = |draw| {
            let x = number.wrapping_mul(MIX[0]).wrapping_add(self.salt(draw));
            let x = (x ^ (x >> 30)).wrapping_mul(MIX[1]);
            let x = (x ^ (x >> 27)).wrapping_mul(MIX[2]);
            x ^ (x >> 31)
        };
        let (when, what) = (draw(1), draw(2));
        let of = |rest: u64, choices: usize| (rest % choices as u64) as usize;
        Event {
            subject: when % SUBJECTS,
            time_ms: self.start_ms + (number - self.numbers.start) * self.step_ms + when / SUBJECTS % self.random_ms,
            value: what % 2_000_000,
            method: of(what / 2_000_000, METHODS.len()),
            path: of(what / 8_000_000, PATHS.len()),
        }
    }

    /// The same event as CloudEvents JSON.
    pub fn json(&self, number: u64) -> Result<String> {
        let event = self.event(number);
        Ok(format!(
            r#"{{"specversion":"1.0","type":"{TYPE}","source":"{SOURCE}","id":"{}","time":"{:.3}","subject":"{}","data":{{"duration_ms":{}.{:03},"method":"{}","path":"{}","status":200,"region":"{}"}}}}"#,
            id(number),
            Timestamp::from_millisecond(i64::try_from(event.time_ms)?)?,
            customer(event.subject),
            event.value / 1_000,
            event.value % 1_000,
            METHODS[event.method],
            PATHS[event.path],
            REGIONS[0],
        ))
    }

    /// A SELECT of some of the events as a landing table has them.
    pub fn rows(&self, numbers: &Range<u64>) -> String {
        // The identity as the gateway computes it: the same event over HTTP is a duplicate, which is checked.
        let part = |length: usize, text: &str| format!("char({length},0,0,0,0,0,0,0), {text}");
        let identity =
            [part(NAMESPACE.len(), &format!("'{NAMESPACE}'")), part(SOURCE.len(), &format!("'{SOURCE}'")), part(id(0).len(), "event_id")]
                .join(", ");
        let choice = |rest: u64, of: &[&str]| format!("'\"' || ['{}'][1 + intDiv(what, {rest}) % {}]", of.join("','"), of.len());
        let draw = |draw: u64, name: &str| {
            format!(
                "number * {} + {} AS {name}0, bitXor({name}0, bitShiftRight({name}0, 30)) * {} AS {name}1, \
                 bitXor({name}1, bitShiftRight({name}1, 27)) * {} AS {name}2, bitXor({name}2, bitShiftRight({name}2, 31)) AS {name}",
                MIX[0],
                self.salt(draw),
                MIX[1],
                MIX[2]
            )
        };
        format!(
            "SELECT number, '{NAMESPACE}' AS namespace, '{TYPE}' AS type, 'customer-' || leftPad(toString(when % {SUBJECTS}), 4, '0') AS subject, \
             fromUnixTimestamp64Milli(toInt64({start} + (number - {first}) * {step} + intDiv(when, {SUBJECTS}) % {random}), 'UTC') AS time, \
             reinterpretAsUInt128(substring(SHA256(concat({identity})), 1, 16)) AS id, \
             '{SOURCE}' AS source, 'loaded-' || leftPad(toString(number), 16, '0') AS event_id, toDateTime64(time, 6, 'UTC') AS received, \
             map('$.duration_ms', toString(intDiv(what % 2000000, 1000)) || '.' || leftPad(toString(what % 2000000 % 1000), 3, '0'), \
             '$.method', {method}, '$.path', {path}, '$.status', '200', '$.region', {region}) AS data, \
             toUInt64({ARRIVAL_MARK}) - toUInt64(toUnixTimestamp64Micro(toDateTime64(time, 6, 'UTC'))) AS version, \
             toUUID('00000000-0000-0000-0000-000000000000') AS cancellation \
             FROM (SELECT number, {when}, {what} FROM numbers({from}, {count}))",
            start = self.start_ms,
            first = self.numbers.start,
            step = self.step_ms,
            random = self.random_ms,
            method = choice(2_000_000, &METHODS),
            path = choice(8_000_000, &PATHS),
            region = choice(64_000_000, &REGIONS),
            when = draw(1, "when"),
            what = draw(2, "what"),
            from = numbers.start,
            count = numbers.end - numbers.start,
        )
    }
}

/// Answers by key (as in [`crate::query`]) without those that are zero.
pub type Answer = BTreeMap<String, BigDecimal>;

/// What the sums must be: the events themselves, added up without the product and without ClickHouse.
pub struct Reference {
    /// By subject and day of the year, in thousandths.
    by_subject: Vec<i128>,
    /// By day, method and path.
    by_groups: Vec<i128>,
}

const DAYS: usize = 365;

impl Reference {
    pub fn new() -> Self {
        Self { by_subject: vec![0; SUBJECTS as usize * DAYS], by_groups: vec![0; DAYS * METHODS.len() * PATHS.len()] }
    }

    /// Counts events, or (`sign` -1) counts them no more.
    pub fn count(&mut self, pass: &Pass, numbers: impl Iterator<Item = u64>, sign: i128) {
        for event in numbers.map(|number| pass.event(number)) {
            let day = ((event.time_ms - YEAR_MS.start) / DAY_MS) as usize;
            let value = sign * i128::from(event.value);
            self.by_subject[event.subject as usize * DAYS + day] += value;
            self.by_groups[(day * METHODS.len() + event.method) * PATHS.len() + event.path] += value;
        }
    }

    /// All of it, in thousandths.
    pub fn total(&self) -> i128 {
        self.by_subject.iter().sum()
    }

    /// By day, for one customer.
    pub fn customer_by_day(&self, days: Range<u64>, subject: u64) -> Answer {
        answer(days.map(|day| (window(day), self.by_subject[subject as usize * DAYS + day as usize])))
    }

    /// By customer.
    pub fn customers(&self, days: Range<u64>) -> Answer {
        let sum = |subject| days.clone().map(|day| self.by_subject[subject as usize * DAYS + day as usize]).sum();
        answer((0..SUBJECTS).map(|subject| (customer(subject), sum(subject))))
    }

    /// By day and customer.
    pub fn customers_by_day(&self, days: Range<u64>) -> Answer {
        let of =
            |day, subject| (format!("{}\t{}", window(day), customer(subject)), self.by_subject[subject as usize * DAYS + day as usize]);
        answer(days.flat_map(|day| (0..SUBJECTS).map(move |subject| of(day, subject))))
    }

    /// By day, method and path.
    pub fn groups_by_day(&self, days: Range<u64>) -> Answer {
        let groups = METHODS.iter().flat_map(|method| PATHS.iter().map(move |path| format!("{method}\t{path}")));
        let groups: Vec<String> = groups.collect();
        answer(days.flat_map(|day| {
            let sums = &self.by_groups[day as usize * groups.len()..];
            groups.iter().zip(sums).map(move |(group, sum)| (format!("{}\t{group}", window(day)), *sum))
        }))
    }
}

/// A subject's name: the customer's, too.
pub fn customer(subject: u64) -> String {
    format!("customer-{subject:04}")
}

/// RFC 3339 of the start of a day of the year.
pub fn day(day: u64) -> Result<Timestamp> {
    Ok(Timestamp::from_millisecond(i64::try_from(YEAR_MS.start + day * DAY_MS)?)?)
}

fn window(day: u64) -> String {
    ((YEAR_MS.start + day * DAY_MS) / 1_000).to_string()
}

fn answer(sums: impl Iterator<Item = (String, i128)>) -> Answer {
    sums.filter(|(_, sum)| *sum != 0).map(|(key, thousandths)| (key, BigDecimal::new(thousandths.into(), 3))).collect()
}
