//! Events from a seed: typical CloudEvents of about 300 bytes, by number.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use kubemeter::event::{Form, Incoming, identity, parse};
use kubemeter::warehouse::row::Row;
use kubemeter::warehouse::schema::Landing;
use uuid::Uuid;

use crate::Result;

/// Kubernetes namespace of all events.
pub const NAMESPACE: &str = "default";
/// Type of all events.
pub const TYPE: &str = "api.request";
/// Name of the one Meter: Sum of `$.duration_ms` by method and path.
pub const METER: &str = "bench";
/// Different subjects.
pub const SUBJECTS: u64 = 1_000;
/// The month of all events: May 2026 in UTC, ms since 1970.
pub const MONTH_MS: std::ops::Range<u64> = 1_777_593_600_000..1_780_272_000_000;
/// Values of the groups.
pub const METHODS: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
/// See [`METHODS`].
pub const PATHS: [&str; 8] =
    ["/v1/orders", "/v1/orders/{id}", "/v1/customers", "/v1/invoices", "/v1/search", "/v1/files/{id}", "/v1/export", "/v1/status"];
/// See [`METHODS`].
pub const REGIONS: [&str; 3] = ["eu-central-1", "us-east-1", "ap-south-1"];

/// SplitMix64: a number that follows from the seed and looks random.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Independent of that of another seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// Below a bound.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// One of several.
    pub const fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Makes events that no other generator of this run makes.
pub struct Generator {
    random: Random,
    stream: u64,
    next: u64,
}

/// Events of one request, ready to be sent in either form.
pub struct Batch {
    /// As CloudEvents JSON: one event, or an array of several.
    pub json: Bytes,
    /// How many.
    pub events: usize,
    /// Sum of the values, in thousandths.
    pub thousandths: i128,
}

impl Generator {
    /// Streams of different numbers have different ids.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { random: Random::new(seed ^ (stream << 32)), stream, next: 0 }
    }

    /// The next events.
    pub fn batch(&mut self, events: usize) -> Result<Batch> {
        let mut json = String::with_capacity(events * 320 + 2);
        let mut thousandths = 0;
        for number in 0..events {
            if events > 1 {
                json.push(if number == 0 { '[' } else { ',' });
            }
            thousandths += i128::from(self.event(&mut json)?);
        }
        if events > 1 {
            json.push(']');
        }
        Ok(Batch { json: json.into(), events, thousandths })
    }

    /// Batches of one size.
    pub fn batches(&mut self, size: usize, events: usize) -> Result<Vec<Batch>> {
        (0..events.div_ceil(size)).map(|_| self.batch(size)).collect()
    }

    fn event(&mut self, json: &mut String) -> Result<u64> {
        let random = &mut self.random;
        let time = Timestamp::from_millisecond(i64::try_from(MONTH_MS.start + random.below(MONTH_MS.end - MONTH_MS.start))?)?;
        let value = random.below(2_000_000);
        write!(
            json,
            r#"{{"specversion":"1.0","type":"{TYPE}","source":"gateway-{}","id":"{:04x}-{:012x}-{:08x}","time":"{time:.3}","subject":"customer-{:04}","datacontenttype":"application/json","data":{{"duration_ms":{}.{:03},"method":"{}","path":"{}","status":200,"region":"{}"}}}}"#,
            random.below(4),
            self.stream,
            self.next,
            random.below(1 << 32),
            random.below(SUBJECTS),
            value / 1_000,
            value % 1_000,
            random.of(&METHODS),
            random.of(&PATHS),
            random.of(&REGIONS),
        )?;
        self.next += 1;
        Ok(value)
    }
}

impl Batch {
    /// The same events as the rows that a gateway makes of them, in RowBinary: what a hand-written client would have.
    pub fn row_binary(&self) -> Result<Vec<u8>> {
        self.encoded(|row, rows| row.encode(rows, false))
    }

    /// The claims of their identities, in RowBinary.
    pub fn claims_binary(&self) -> Result<Vec<u8>> {
        self.encoded(Row::encode_identity)
    }

    fn encoded(&self, encode: impl Fn(&Row, &mut Vec<u8>)) -> Result<Vec<u8>> {
        let arrival_us = Timestamp::now().as_microsecond();
        let mut rows = Vec::with_capacity(self.events * 300);
        for item in parse(Form::Json, self.json.clone())? {
            let Ok(Incoming::Event(event)) = item.parsed else { return Err("an event of the benchmark is bad".into()) };
            let row = Row {
                namespace: NAMESPACE.into(),
                landing: Landing::of(NAMESPACE, TYPE),
                identity: identity(NAMESPACE, event.attributes.source(), event.attributes.id()),
                received_us: arrival_us,
                version: Row::arrival_version(arrival_us),
                time_ms: event.time_ms.unwrap_or_default(),
                cancellation: Uuid::nil(),
                event,
            };
            encode(&row, &mut rows);
        }
        Ok(rows)
    }
}
