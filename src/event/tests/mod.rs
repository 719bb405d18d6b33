//! What request bodies turn into.

mod bodies;
mod damage;
mod envelopes;
mod events;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Command, Event, Form, Incoming, Item, Refusal, parse};

/// A good CloudEvent with some attributes replaced (`"name":json`), added, or taken out (`"name"` alone).
fn cloudevent(changes: &[&str]) -> String {
    let mut members = vec![
        r#""specversion":"1.0""#.to_owned(),
        r#""id":"e-1""#.to_owned(),
        r#""source":"gw""#.to_owned(),
        r#""type":"api.request""#.to_owned(),
        r#""subject":"acme""#.to_owned(),
        r#""time":"2025-03-30T02:30:00.123456Z""#.to_owned(),
        r#""data":{"tokens":12.50}"#.to_owned(),
    ];
    for change in changes {
        let name = change.split_inclusive('"').take(2).collect::<String>();
        members.retain(|member| !member.starts_with(&format!("{name}:")));
        if change.len() > name.len() {
            members.push((*change).to_owned());
        }
    }
    format!("{{{}}}", members.join(","))
}

fn one(form: Form, body: &str) -> Item {
    let mut items = parse(form, Bytes::from(body.to_owned())).unwrap();
    assert_eq!(items.len(), 1, "{body}");
    items.remove(0)
}

fn event(form: Form, body: &str) -> Event {
    match one(form, body).parsed {
        Ok(Incoming::Event(event)) => event,
        other => panic!("{body}: {other:?}"),
    }
}

fn attributes(Event { attributes, .. }: &Event) -> (&str, &str, &str, &str) {
    (attributes.id(), attributes.source(), attributes.event_type(), attributes.subject())
}

fn command(form: Form, body: &str) -> Command {
    match one(form, body).parsed {
        Ok(Incoming::Command(command)) => command,
        other => panic!("{body}: {other:?}"),
    }
}

fn refusal(form: Form, body: &str) -> Refusal {
    one(form, body).parsed.expect_err(body)
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
}
