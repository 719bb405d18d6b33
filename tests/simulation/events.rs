//! Events from a seed: new ones, old ones again, changed ones, faulty ones.

use super::calendar::text;
use super::generate::{Generator, KINDS, SUBJECTS};
use super::json::Json;
use super::model::Event;

/// Around changes of clocks and the ends of months, a leap day, the first and the last that are taken.
const MOMENTS_MS: &[i64] = &[
    1_774_746_000_000,
    1_774_742_400_000,
    1_793_494_800_000,
    1_761_440_400_000,
    1_772_323_200_000,
    1_709_164_800_000,
    1_767_225_600_000,
    946_684_800_000,
    4_102_444_799_999,
    1_325_203_200_000,
    1_743_868_800_000,
];

impl Generator {
    /// A new event or one like another; of a hundred so many are faulty.
    pub fn event(&mut self, space: usize, faulty: u32) -> Event {
        let again = self.rng.u32(0..4) == 0 && !self.spaces[space].events.is_empty();
        let event = if again { self.again(space) } else { self.fresh() };
        self.spaces[space].events.push(event.clone());
        if self.rng.u32(0..100) < faulty { self.spoilt(event) } else { event }
    }

    fn fresh(&mut self) -> Event {
        self.ids += 1;
        let (subject, time) = (Some(self.pick(SUBJECTS)), self.time());
        // Another source may use the same id.
        let id = if self.rng.u32(0..6) == 0 { format!("e-{}", self.ids / 2) } else { format!("e-{}", self.ids) };
        Event { source: self.pick(&["gw", "gw-a", "batch"]), id, kind: self.pick(KINDS), subject, time, data: self.data() }
    }

    /// One that was made before, the same or changed.
    fn again(&mut self, space: usize) -> Event {
        let index = self.rng.usize(0..self.spaces[space].events.len());
        let event = self.spaces[space].events[index].clone();
        self.changed(event)
    }

    pub fn changed(&mut self, event: Event) -> Event {
        match self.rng.u32(0..8) {
            0 => Event { time: None, ..event },
            1 | 2 => Event { time: self.time(), ..event },
            3 => Event { subject: Some(self.pick(SUBJECTS)), ..event },
            4 => Event { data: self.data(), ..event },
            5 => Event { kind: self.pick(KINDS), ..event },
            _ => event,
        }
    }

    fn spoilt(&mut self, event: Event) -> Event {
        let wrong = match self.rng.u32(0..8) {
            0 => return Event { subject: None, ..event },
            1 => return Event { time: Some("1999-12-31T23:59:59Z".to_owned()), ..event },
            2 => return Event { time: Some("yesterday".to_owned()), ..event },
            3 => Json::text("many"),
            4 => Json::literal("1e26"),
            5 => Json::text("0.0000000000001"),
            6 => Json::literal("true"),
            _ => Json::Null,
        };
        let places = *self.one_of(&[&["v"][..], &["w"], &["v", "w"]]);
        let Json::Map(mut members) = event.data else { return event };
        members.retain(|(name, _)| !places.contains(&name.as_str()));
        members.extend(places.iter().map(|place| ((*place).to_owned(), wrong.clone())));
        Event { data: Json::Map(members), ..event }
    }

    pub fn time(&mut self) -> Option<String> {
        let moment = *self.one_of(MOMENTS_MS);
        let ms = match self.rng.u32(0..10) {
            0 => return None,
            1..5 => moment + *self.one_of(&[0, -1, 1, 3_600_000, -3_600_000, 1_800_000]),
            5 => self.rng.i64(946_684_800_000..4_102_444_800_000),
            _ => 1_772_323_200_000 + self.rng.i64(0..40 * 86_400_000),
        };
        let ms = ms.clamp(946_684_800_000, 4_102_444_799_999);
        let utc = text(ms);
        Some(match self.rng.u32(0..6) {
            0 => utc.trim_end_matches('Z').to_owned() + "+00:00",
            // An hour and a half ahead.
            1 => text(ms + 5_400_000).trim_end_matches('Z').to_owned() + "+01:30",
            2 if !utc.contains('.') => utc.trim_end_matches('Z').to_owned() + ".000999Z",
            _ => utc,
        })
    }

    /// Data that every meter of this generator can count.
    fn data(&mut self) -> Json {
        let mut data = vec![("v".to_owned(), self.value()), ("w".to_owned(), self.value())];
        let meta = vec![("k".to_owned(), self.value()), ("x y".to_owned(), self.label())];
        data.push(("meta".to_owned(), Json::Map(meta)));
        data.push(("list".to_owned(), Json::List(vec![self.value(), self.label()])));
        if self.rng.bool() {
            data.push(("model".to_owned(), self.label()));
        }
        if self.rng.bool() {
            data.push(("region".to_owned(), self.label()));
        }
        if self.rng.u32(0..5) == 0 {
            data.push(("none".to_owned(), Json::Null));
        }
        self.rng.shuffle(&mut data);
        Json::Map(data)
    }

    pub fn value(&mut self) -> Json {
        let number = match self.rng.u32(0..10) {
            0 => "12345678901234567890.123456789012".to_owned(),
            1 => "99999999999999999999999999.999999999999".to_owned(),
            2 => "-0.000000000001".to_owned(),
            3 => "1.5E-3".to_owned(),
            4 => "0".to_owned(),
            5 => "2.50".to_owned(),
            6 => "7e3".to_owned(),
            7 => format!("-{}.{}", self.rng.u32(0..50), self.rng.u32(0..1000)),
            _ => self.rng.u32(0..20).to_string(),
        };
        match self.rng.u32(0..4) {
            0 => Json::Text(number),
            1 if !number.starts_with('-') => Json::Text(format!("00{number}")),
            _ => Json::Literal(number),
        }
    }

    pub fn label(&mut self) -> Json {
        match self.rng.u32(0..8) {
            0 => Json::literal("true"),
            1 => Json::literal("1.50"),
            2 => Json::text(""),
            3 => Json::text("größe, \"quoted\"\n'x'\\"),
            _ => Json::Text(self.pick(&["large", "small", "GET"])),
        }
    }
}
