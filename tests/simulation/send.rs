//! Posts as HTTP has them.

use std::io::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Method;

use super::history::{Coding, Form, Post};
use super::json::Json;
use super::model::Event;
use super::world::Request;

/// What a binary header must not have as it is.
const HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// A post as a request.
pub fn request(post: &Post) -> Request {
    let (content_type, body) = match post.form {
        Form::Array => ("application/json", list(&post.events, structured)),
        Form::Batch => ("application/cloudevents-batch+json; charset=utf-8", list(&post.events, structured)),
        Form::Ndjson => ("application/x-ndjson", post.events.iter().map(structured).collect::<Vec<_>>().join("\n")),
        Form::Structured => ("application/cloudevents+json", post.events.iter().map(structured).collect()),
        Form::Bridge => ("application/json", list(&post.events, bridge)),
        Form::Binary => ("application/json", post.events.iter().map(|event| event.data.write()).collect()),
    };
    let mut headers = vec![("content-type".to_owned(), content_type.to_owned())];
    if post.form == Form::Binary {
        for (name, value) in attributes(&post.events[0]) {
            headers.push((format!("ce-{name}"), utf8_percent_encode(&value, HEADER).to_string()));
        }
    }
    let body = match post.coding {
        Coding::Plain => body.into_bytes(),
        Coding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(body.as_bytes()).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        }
        Coding::Zstd => zstd::encode_all(body.as_bytes(), 1).expect("memory takes it"),
    };
    match post.coding {
        Coding::Plain => {}
        Coding::Gzip => headers.push(("content-encoding".to_owned(), "gzip".to_owned())),
        Coding::Zstd => headers.push(("content-encoding".to_owned(), "zstd".to_owned())),
    }
    let path = if post.atomic { "/events?atomic=true" } else { "/events" };
    Request { method: Method::POST, space: post.space, path: path.to_owned(), headers, body }
}

/// The events of a post as they are read: an envelope's subject is also in its data.
pub fn read(post: &Post) -> Vec<Event> {
    let as_read = |event: &Event| if post.form == Form::Bridge { Event { data: detail(event), ..event.clone() } } else { event.clone() };
    post.events.iter().map(as_read).collect()
}

fn attributes(event: &Event) -> Vec<(&'static str, String)> {
    let mut all =
        vec![("specversion", "1.0".to_owned()), ("source", event.source.clone()), ("id", event.id.clone()), ("type", event.kind.clone())];
    all.extend(event.subject.iter().map(|subject| ("subject", subject.clone())));
    all.extend(event.time.iter().map(|time| ("time", time.clone())));
    all
}

fn structured(event: &Event) -> String {
    let mut members: Vec<(String, Json)> =
        attributes(event).into_iter().map(|(name, value)| (name.to_owned(), Json::Text(value))).collect();
    members.push(("data".to_owned(), event.data.clone()));
    Json::Map(members).write()
}

fn bridge(event: &Event) -> String {
    envelope(event, &event.kind, &detail(event))
}

/// EventBridge's envelope.
pub fn envelope(event: &Event, kind: &str, detail: &Json) -> String {
    let mut members: Vec<(String, Json)> =
        [("source", &event.source), ("id", &event.id)].map(|(name, value)| (name.to_owned(), Json::text(value))).into();
    members.push(("detail-type".to_owned(), Json::text(kind)));
    members.extend(event.time.iter().map(|time| ("time".to_owned(), Json::text(time))));
    members.push(("detail".to_owned(), detail.clone()));
    Json::Map(members).write()
}

fn detail(event: &Event) -> Json {
    let Json::Map(mut members) = event.data.clone() else { panic!("data is a map") };
    members.extend(event.subject.iter().map(|subject| ("subject".to_owned(), Json::text(subject))));
    Json::Map(members)
}

fn list(events: &[Event], write: impl Fn(&Event) -> String) -> String {
    format!("[{}]", events.iter().map(write).collect::<Vec<_>>().join(","))
}
