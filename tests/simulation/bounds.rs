//! Bounds of time for questions, listings and cancellations: where months and days begin, where events are, and anywhere.

use fastrand::Rng;

use super::calendar::{ZONES, window};
use super::usage::Query;

const DAY_MS: i64 = 86_400_000;
/// 2026-03-01, a month that most events are near.
const MARCH_MS: i64 = 1_772_323_200_000;
/// 2000-01-01 and 2100-01-01: no event is outside.
const ALL_MS: (i64, i64) = (946_684_800_000, 4_102_444_800_000);

/// From and to, of which the first is earlier.
pub fn bounds(rng: &mut Rng, times: &[i64]) -> (i64, i64) {
    let from = bound(rng, times);
    let to = match rng.u32(0..4) {
        // A bill of one month or of several.
        0 | 1 => months_after(from, rng.usize(0..4)),
        2 => bound(rng, times),
        _ => from + rng.i64(1..60 * DAY_MS),
    };
    (from, if to > from { to } else { months_after(from, 0) })
}

/// What a month's bill asks for, by customer: a month in which an event is, or several from there on.
pub fn bill(rng: &mut Rng, meter: &str, times: &[i64]) -> Query {
    let (from, to) = month(some(rng, times));
    let to = if rng.bool() { to } else { months_after(to, rng.usize(0..3)) };
    Query { meter: meter.to_owned(), from: Some(from), to: Some(to), groups: ["customer".to_owned()].into(), ..Query::default() }
}

/// A time that is one end of what is asked for.
fn bound(rng: &mut Rng, times: &[i64]) -> i64 {
    let time = some(rng, times);
    let ms = match rng.u32(0..9) {
        0..3 => month(time).0,
        3 => month(time).1,
        4 => window(time, "DAY", "UTC").0,
        5 => window(time, "MONTH", ZONES[rng.usize(0..ZONES.len())]).0,
        6 => time + rng.i64(-1..=1),
        _ => MARCH_MS + rng.i64(0..40 * DAY_MS),
    };
    ms.clamp(ALL_MS.0, ALL_MS.1)
}

fn some(rng: &mut Rng, times: &[i64]) -> i64 {
    if times.is_empty() { MARCH_MS } else { times[rng.usize(0..times.len())] }
}

fn month(time: i64) -> (i64, i64) {
    window(time, "MONTH", "UTC")
}

/// The end of a time's month, or of one that is so many months later.
fn months_after(time: i64, months: usize) -> i64 {
    (0..months).fold(month(time).1, |end, _| month(end).1)
}

#[test]
fn bounds_are_of_months_and_of_events() {
    use super::calendar::ms;
    let time = ms("2026-02-28T23:59:59.999Z");
    assert_eq!(months_after(time, 0), ms("2026-03-01T00:00:00Z"));
    assert_eq!(months_after(time, 2), ms("2026-05-01T00:00:00Z"));
    let mut rng = Rng::with_seed(1);
    let all: Vec<_> = (0..1_000).map(|_| bounds(&mut rng, &[time])).collect();
    assert!(all.iter().all(|(from, to)| from < to));
    let of_months = |(from, to): &&(i64, i64)| month(*from).0 == *from && month(*to).0 == *to;
    assert!(all.iter().filter(of_months).count() > 200);
    assert!([time - 1, time, time + 1].iter().all(|near| all.iter().any(|(from, _)| from == near)));
}
