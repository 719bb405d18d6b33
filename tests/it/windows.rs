//! Windows follow the calendar of any time zone, through every change of its clocks.

use std::collections::BTreeMap;

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan as _, Unit};
use kubemeter::api::Aggregation;
use kubemeter::metering::{Error, Metering as _, UsageQuery, WindowSize};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::lab::{Lab, event, spec, total};

const ZONES: &[&str] = &[
    "UTC",
    "Europe/Paris",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "America/Havana",
    "Pacific/Apia",
];

const SIZES: &[WindowSize] = &[WindowSize::Minute, WindowSize::Hour, WindowSize::Day, WindowSize::Week, WindowSize::Month];

fn zone(name: &str) -> TimeZone {
    TimeZoneDatabase::bundled().get(name).unwrap()
}

fn start_of(date: Date, zone: &TimeZone) -> Timestamp {
    date.to_zoned(zone.clone()).unwrap().start_of_day().unwrap().timestamp()
}

/// The window of an instant, by jiff.
fn window(time: Timestamp, size: WindowSize, zone: &TimeZone) -> (Timestamp, Timestamp) {
    let local = time.to_zoned(zone.clone());
    let date = local.date();
    let days = |first: Date, next: Date| (start_of(first, zone), start_of(next, zone));
    match size {
        WindowSize::Minute => {
            let start = time.round(jiff::TimestampRound::new().smallest(Unit::Minute).mode(jiff::RoundMode::Floor)).unwrap();
            (start, start + 1.minute())
        }
        WindowSize::Hour => {
            // Counted from the start of the day.
            let (start, end) = days(date, date.tomorrow().unwrap());
            let hours = time.duration_since(start).as_hours();
            (start + hours.hours(), end.min(start + (hours + 1).hours()))
        }
        WindowSize::Day => days(date, date.tomorrow().unwrap()),
        WindowSize::Week => {
            let monday = if date.weekday() == Weekday::Monday { date } else { date.nth_weekday(-1, Weekday::Monday).unwrap() };
            days(monday, monday + 7.days())
        }
        WindowSize::Month => days(date.first_of_month(), date.last_of_month().tomorrow().unwrap()),
    }
}

/// Instants around changes of clocks in a few years, and some anywhere, all within 2000 to 2099.
fn instants() -> Vec<Timestamp> {
    let mut times = Vec::new();
    let anywhere = (946_684_800_000_i64..4_102_444_800_000).prop_map(|ms| Timestamp::from_millisecond(ms).unwrap());
    let mut runner = TestRunner::default();
    for _ in 0..30 {
        times.push(anywhere.new_tree(&mut runner).unwrap().current());
    }
    for name in ZONES {
        let zone = zone(name);
        for year in [2011, 2017, 2018, 2026, 2080] {
            let first = start_of(Date::constant(year, 1, 1), &zone);
            for change in
                zone.following(first).take(4).map(|change| change.timestamp()).filter(|at| at.to_zoned(zone.clone()).year() <= year)
            {
                for ms in [-3_600_000, -1_800_001, -1, 0, 1, 1_799_999, 1_800_000, 3_599_999, 3_600_000, 5_400_000, 86_400_000] {
                    times.push(change + SignedDuration::from_millis(ms));
                }
                let day = change.to_zoned(zone.clone()).start_of_day().unwrap().timestamp();
                let next = change.to_zoned(zone.clone()).tomorrow().unwrap().start_of_day().unwrap().timestamp();
                times.extend([day, next].into_iter().flat_map(|start| [start, start - SignedDuration::from_millis(1)]));
            }
        }
    }
    times.extend(["2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999Z"].map(|time| time.parse::<Timestamp>().unwrap()));
    times.sort();
    times.dedup();
    times
}

/// Events per window, cut to what is asked, as usage ought to say.
fn expected(times: &[Timestamp], query: &UsageQuery) -> BTreeMap<(Timestamp, Timestamp), String> {
    let mut windows: BTreeMap<_, u64> = BTreeMap::new();
    for time in times.iter().filter(|time| query.from.is_none_or(|from| **time >= from) && query.to.is_none_or(|to| **time < to)) {
        let (start, end) = window(*time, query.window_size.unwrap(), &query.time_zone);
        *windows.entry((query.from.map_or(start, |from| from.max(start)), query.to.map_or(end, |to| to.min(end)))).or_default() += 1;
    }
    windows.into_iter().map(|(window, count)| (window, count.to_string())).collect()
}

async fn check(lab: &Lab, times: &[Timestamp], query: UsageQuery) {
    let usage = lab.usage("count", query.clone()).await;
    let order: Vec<_> = usage.data.iter().map(|row| row.window_start.unwrap()).collect();
    assert!(order.is_sorted(), "ordered by window");
    let rows = usage.data.len();
    let got: BTreeMap<_, _> = usage.data.into_iter().map(|row| ((row.window_start.unwrap(), row.window_end.unwrap()), row.value)).collect();
    assert_eq!(got.len(), rows, "no window comes twice");
    let expected = expected(times, &query);
    let wrong: Vec<_> = got.iter().filter(|(window, count)| expected.get(window) != Some(count)).take(3).collect();
    let missing: Vec<_> = expected.iter().filter(|(window, count)| got.get(window) != Some(count)).take(3).collect();
    assert!(
        wrong.is_empty() && missing.is_empty(),
        "{:?} in {:?} from {:?} to {:?}: answered {wrong:?} but should {missing:?}",
        query.window_size,
        query.time_zone.iana_name(),
        query.from,
        query.to
    );
}

#[tokio::test]
async fn windows_are_those_of_the_calendar_in_every_zone_and_year() {
    let lab = Lab::new();
    let times = instants();
    let events: Vec<Value> = times.iter().map(|time| event(&time.to_string(), "t", "s", &time.to_string(), json!({}))).collect();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    for events in events.chunks(5_000) {
        lab.post(&json!(events)).await.unwrap();
    }
    let mut runner = TestRunner::default();
    let cut = (946_684_800_000_000_000_i128..4_102_444_800_000_000_000).prop_map(|ns| Timestamp::from_nanosecond(ns).unwrap());
    let mut anywhere = || cut.new_tree(&mut runner).unwrap().current();
    for name in ZONES {
        // Two that changed their rules in 2026: what came after depends on how old ClickHouse's list of zones is.
        let changed = ["Africa/Casablanca", "America/Havana"].contains(name);
        let to = changed.then(|| "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        for size in SIZES {
            let query = UsageQuery { to, window_size: Some(*size), time_zone: zone(name), ..total() };
            check(&lab, &times, query.clone()).await;
            let (a, b) = (anywhere(), anywhere());
            check(&lab, &times, UsageQuery { from: Some(a.min(b)), to: Some(to.map_or(a.max(b), |to| to.min(a.max(b)))), ..query }).await;
        }
    }
}

#[tokio::test]
async fn bounds_finer_than_a_millisecond_and_beyond_all_events_are_kept() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let times: Vec<Timestamp> = [
        "2026-03-29T00:59:59.999Z",
        "2026-03-29T01:00:00Z",
        "2026-03-29T01:00:00.001Z",
        "2000-01-01T00:00:00Z",
        "2099-12-31T23:59:59.999Z",
    ]
    .iter()
    .map(|time| time.parse().unwrap())
    .collect();
    let events: Vec<Value> = times.iter().map(|time| event(&time.to_string(), "t", "s", &time.to_string(), json!({}))).collect();
    lab.post(&json!(events)).await.unwrap();
    let bounds: Vec<Option<Timestamp>> = [
        "-009999-01-02T01:59:59Z",
        "0001-01-01T00:00:00Z",
        "1677-09-21T00:12:43.145Z",
        "1899-12-31T23:59:59Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00Z",
        "2000-01-01T00:00:00Z",
        "2026-03-29T00:59:59.998999999Z",
        "2026-03-29T00:59:59.999Z",
        "2026-03-29T00:59:59.999000001Z",
        "2026-03-29T00:59:59.9999Z",
        "2026-03-29T01:00:00Z",
        "2026-03-29T01:00:00.000000001Z",
        "2026-03-29T01:00:00.001Z",
        "2026-03-29T01:00:00.0010005Z",
        "2099-12-31T23:59:59.999Z",
        "2099-12-31T23:59:59.9995Z",
        "2100-01-01T00:00:00Z",
        "2106-02-07T06:28:16Z",
        "2262-04-11T23:47:16.855Z",
        "2299-12-31T23:59:59.999Z",
        "2300-01-01T00:00:00Z",
        "9999-12-30T22:00:00.999999999Z",
    ]
    .iter()
    .map(|time| Some(time.parse().unwrap()))
    .chain([None])
    .collect();
    for bound in &bounds {
        for (from, to) in [(*bound, None), (None, *bound), (Some("2026-03-29T00:59:59.9995Z".parse().unwrap()), *bound)] {
            let within = times.iter().filter(|time| from.is_none_or(|from| **time >= from) && to.is_none_or(|to| **time < to)).count();
            let usage = lab.usage("count", UsageQuery { from, to, ..total() }).await;
            assert_eq!(usage.data.first().map_or("0", |row| &row.value), within.to_string(), "from {from:?} to {to:?}");
            check(&lab, &times, UsageQuery { from, to, window_size: Some(WindowSize::Day), time_zone: zone("Europe/Paris"), ..total() })
                .await;
        }
    }
}

/// A zone at UTC that no list has.
fn unheard_of() -> TimeZone {
    let header = |version: &[u8]| [b"TZif", version, &[0; 15], &[0; 19], &[1, 0, 0, 0, 4]].concat();
    let body = [&[0_u8; 6][..], b"UTC\0"].concat();
    let data = [header(b"2"), body.clone(), header(b"2"), body, b"\nUTC0\n".to_vec()].concat();
    TimeZone::tzif("Moon/Tranquility", &data).unwrap()
}

#[tokio::test]
async fn every_time_zone_that_a_request_may_name_is_answered_and_another_refused() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab.post(&event("e", "t", "s", "2026-03-04T05:06:07Z", json!({}))).await.unwrap();
    let in_zone = |time_zone| UsageQuery { window_size: Some(WindowSize::Day), time_zone, ..total() };
    let known: Vec<String> = lab.warehouse.query("SELECT time_zone FROM system.time_zones").rows().await.unwrap();
    let names: Vec<_> = TimeZoneDatabase::bundled().available().map(|name| name.as_str().to_owned()).collect();
    // A zone that is younger than ClickHouse's own list it may have from its machine.
    for name in names.iter().filter(|name| zone(name).iana_name().is_some() && !zone(name).is_unknown() && !known.contains(name)) {
        match lab.service.fetch_usage(&Lab::caller(), "count", in_zone(zone(name))).await {
            Ok(usage) => assert_eq!(usage.data.len(), 1),
            Err(refused) => assert!(matches!(&refused, Error::Invalid { message, .. } if message.contains(name)), "{name}: {refused:?}"),
        }
    }
    let refused = lab.service.fetch_usage(&Lab::caller(), "count", in_zone(unheard_of())).await.unwrap_err();
    assert!(matches!(&refused, Error::Invalid { message, .. } if message.contains("Moon/Tranquility")), "{refused:?}");
}
