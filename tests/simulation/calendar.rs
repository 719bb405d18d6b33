//! Windows of time by the calendar of a time zone.
//!
//! By jiff, as the product's gateway has it for names of zones only: the product's windows are ClickHouse's.

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan as _};

/// A window's start and end, ms since 1970.
pub type Window = (i64, i64);

/// Windows by name.
pub const SIZES: &[&str] = &["MINUTE", "HOUR", "DAY", "WEEK", "MONTH"];

/// Zones with changes of their clocks by an hour, by half an hour, at midnight, with odd offsets, with a day left out.
pub const ZONES: &[&str] = &[
    "UTC",
    "Europe/Paris",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "America/St_Johns",
    "Pacific/Chatham",
    "Pacific/Apia",
];

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// The window that a time is in.
pub fn window(time_ms: i64, size: &str, zone: &str) -> Window {
    if size == "MINUTE" {
        let start = time_ms.div_euclid(MINUTE) * MINUTE;
        return (start, start + MINUTE);
    }
    let zone = TimeZoneDatabase::bundled().get(zone).expect("a zone of the list");
    let date = zone.to_datetime(Timestamp::from_millisecond(time_ms).expect("a time of an event")).date();
    let tomorrow = |date: Date| date.tomorrow().expect("far from the end of time");
    let (first, next) = match size {
        "DAY" | "HOUR" => (date, tomorrow(date)),
        "WEEK" => {
            let monday = if date.weekday() == Weekday::Monday { date } else { date.nth_weekday(-1, Weekday::Monday).expect("near") };
            (monday, monday + 7.days())
        }
        "MONTH" => (date.first_of_month(), tomorrow(date.last_of_month())),
        other => panic!("no window {other}"),
    };
    let (start, end) = (day_start(first, &zone), day_start(next, &zone));
    if size == "HOUR" {
        let start = start + (time_ms - start).div_euclid(HOUR) * HOUR;
        return (start, end.min(start + HOUR));
    }
    (start, end)
}

fn day_start(date: Date, zone: &TimeZone) -> i64 {
    date.to_zoned(zone.clone()).and_then(|midnight| midnight.start_of_day()).expect("a day begins").timestamp().as_millisecond()
}

/// RFC 3339.
pub fn text(ms: i64) -> String {
    Timestamp::from_millisecond(ms).expect("a time of an event").to_string()
}

/// Of RFC 3339 as the product writes it.
pub fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap_or_else(|why| panic!("{text:?} is no time: {why}")).as_millisecond()
}

#[test]
fn windows_follow_the_clocks() {
    let at = |time: &str, size, zone| {
        let (start, end) = window(ms(time), size, zone);
        (text(start), text(end))
    };
    let window = |start: &str, end: &str| (start.to_owned(), end.to_owned());
    assert_eq!(at("2026-03-29T12:00:00Z", "DAY", "Europe/Paris"), window("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"));
    assert_eq!(at("2026-03-29T12:00:00Z", "HOUR", "Asia/Kolkata"), window("2026-03-29T11:30:00Z", "2026-03-29T12:30:00Z"));
    assert_eq!(at("2026-03-29T12:00:00Z", "WEEK", "UTC"), window("2026-03-23T00:00:00Z", "2026-03-30T00:00:00Z"));
}
