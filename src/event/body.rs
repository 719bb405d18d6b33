//! From a request body to its events, whatever form they come in. One bad event never harms the others.

use std::fmt;

use bytes::Bytes;
use http::HeaderMap;
use serde::de::{DeserializeSeed as _, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::cloudevent::{Dialect, Fault, is_json, judge};
use super::envelope::{Envelope, Fill};
use super::flatten::{Scratch, Text};
use super::rebuild::quote;
use super::{Incoming, Item, Refusal};
use crate::limits;

/// Bytes of a usual event: what is made room for.
const EVENT_BYTES: usize = 256;

/// The forms in which events come over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `application/cloudevents+json`: one CloudEvent.
    Structured,
    /// `application/cloudevents-batch+json`: an array of CloudEvents.
    Batch,
    /// `application/json`: one event or an array, each a CloudEvent or EventBridge's envelope.
    Json,
    /// `application/x-ndjson`: one such event a line.
    Ndjson,
    /// The attributes as `ce-…` headers, the body is `data`. Each header's name after `ce-` and its value as sent.
    Binary(Vec<(String, Vec<u8>)>),
}

/// Why no event can be read from a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Nothing but blanks.
    #[error("the body is empty: send one event or more")]
    Empty,
    /// Says the line and column; serde_json's words.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// The body is JSON of another form than its content type says.
    #[error("{0}")]
    OtherForm(&'static str),
    /// More events than [`limits::BATCH_EVENTS`].
    #[error("the body has more than {} events: send them in several requests", limits::BATCH_EVENTS)]
    TooMany,
    /// More than [`limits::BATCH_BYTES`].
    #[error("the events take more than {} bytes, each value counted with its path: send them in several requests", limits::BATCH_BYTES)]
    TooLarge,
}

impl Form {
    /// The form that a request's headers name; None for a content type that is not taken (415).
    pub fn of(content_type: Option<&str>, headers: &HeaderMap) -> Option<Self> {
        let attributes: Vec<_> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().strip_prefix("ce-")?.to_owned(), value.as_bytes().to_owned())))
            .collect();
        let Some(content_type) = content_type else {
            return (!attributes.is_empty()).then_some(Self::Binary(attributes));
        };
        let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        if !parameters.split(';').filter_map(charset).all(|charset| charset.eq_ignore_ascii_case("utf-8")) {
            return None;
        }
        match essence.trim().to_ascii_lowercase().as_str() {
            "application/cloudevents+json" => Some(Self::Structured),
            "application/cloudevents-batch+json" => Some(Self::Batch),
            "application/x-ndjson" => Some(Self::Ndjson),
            other if !attributes.is_empty() && is_json(other) => Some(Self::Binary(attributes)),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }
}

fn charset(parameter: &str) -> Option<&str> {
    let (name, value) = parameter.split_once('=')?;
    name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
}

/// Reads a body. The items' `raw` share its memory.
///
/// # Errors
/// When the body as a whole can't be read; what is wrong with one event stands in its [`Item`].
pub fn parse(form: Form, body: Bytes) -> Result<Vec<Item>, BodyError> {
    match form {
        Form::Binary(attributes) => Ok(vec![binary(&attributes, &body)]),
        Form::Ndjson => lines(&body),
        Form::Structured | Form::Batch | Form::Json => document(&form, &body),
    }
}

fn document(form: &Form, body: &Bytes) -> Result<Vec<Item>, BodyError> {
    let mut reader = Reader {
        body,
        text: std::str::from_utf8(body).ok(),
        dialect: if *form == Form::Json { Dialect::Either } else { Dialect::CloudEvents },
        scratch: Scratch::default(),
    };
    let first = reader.skip_blanks(0);
    match (form, reader.byte(first)) {
        (_, None) => return Err(BodyError::Empty),
        (Form::Structured, Some(b'[')) => {
            return Err(BodyError::OtherForm(
                "the body is an array, but application/cloudevents+json is one event: send arrays as application/cloudevents-batch+json",
            ));
        }
        (Form::Batch, Some(byte)) if byte != b'[' => {
            return Err(BodyError::OtherForm(
                "application/cloudevents-batch+json must be an array: send one event as application/cloudevents+json",
            ));
        }
        (_, Some(b'[')) => {}
        (_, Some(_)) => {
            let (item, end) = reader.element(first)?;
            reader.end(end)?;
            return Ok(vec![item]);
        }
    }

    let mut items = Items::with_capacity((body.len() / EVENT_BYTES).min(limits::BATCH_EVENTS));
    let mut at = reader.skip_blanks(first + 1);
    if reader.byte(at) == Some(b']') {
        reader.end(at + 1)?;
        return Ok(items.all);
    }
    loop {
        let (item, end) = reader.element(at)?;
        items.push(item)?;
        at = reader.skip_blanks(end);
        match reader.byte(at) {
            Some(b',') => at = reader.skip_blanks(at + 1),
            Some(b']') => {
                reader.end(at + 1)?;
                return Ok(items.all);
            }
            _ => return Err(reader.syntax()),
        }
    }
}

/// The items of a body, as many and as large as one may have.
#[derive(Default)]
struct Items {
    all: Vec<Item>,
    weight: usize,
}

impl Items {
    fn with_capacity(items: usize) -> Self {
        Self { all: Vec::with_capacity(items), weight: 0 }
    }

    fn push(&mut self, item: Item) -> Result<(), BodyError> {
        self.weight += item.weight();
        if self.all.len() == limits::BATCH_EVENTS {
            return Err(BodyError::TooMany);
        }
        if self.weight > limits::BATCH_BYTES {
            return Err(BodyError::TooLarge);
        }
        self.all.push(item);
        Ok(())
    }
}

/// Walks the elements of a body, each parsed where it stands: the body is read once, not first cut and then parsed.
struct Reader<'b> {
    body: &'b Bytes,
    /// The body, if all of it is UTF-8.
    text: Option<&'b str>,
    dialect: Dialect,
    scratch: Scratch<'b>,
}

impl Reader<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.body.get(at).copied()
    }

    fn skip_blanks(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            at += 1;
        }
        at
    }

    /// The element that starts here, and where it ends.
    fn element(&mut self, at: usize) -> Result<(Item, usize), BodyError> {
        if let Some(text) = self.text.and_then(|text| text.get(at..)) {
            let (mut json, mut envelope) = (serde_json::Deserializer::from_str(text), Envelope::default());
            if let Ok(is_object) = Fill(&mut envelope, &mut self.scratch).deserialize(&mut json) {
                let end = at + json.into_iter::<IgnoredAny>().byte_offset();
                let parsed = judged(is_object.map(|()| &envelope), end - at, self.dialect, &mut self.scratch);
                return Ok((Item { raw: self.body.slice(at..end), parsed }, end));
            }
        }
        // Something in it can't be read, such as half a surrogate pair: if the rest can, only this one is refused.
        let mut stream = serde_json::Deserializer::from_slice(self.body.get(at..).unwrap_or_default()).into_iter::<IgnoredAny>();
        let Some(Ok(_)) = stream.next() else { return Err(self.syntax()) };
        let end = at + stream.byte_offset();
        Ok((item(self.body.slice(at..end), self.dialect, "the event"), end))
    }

    /// Nothing may follow.
    fn end(&self, at: usize) -> Result<(), BodyError> {
        if self.byte(self.skip_blanks(at)).is_none() { Ok(()) } else { Err(self.syntax()) }
    }

    /// What serde_json says of the body as a whole, with its line and column.
    fn syntax(&self) -> BodyError {
        let why = serde_json::from_slice::<IgnoredAny>(self.body).err();
        BodyError::NotJson(why.map_or_else(|| "it can't be read".to_owned(), |why| why.to_string()))
    }
}

fn lines(body: &Bytes) -> Result<Vec<Item>, BodyError> {
    let mut items = Items::default();
    for (number, line) in body.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        items.push(item(body.slice_ref(line), Dialect::Either, &format!("line {}", number + 1)))?;
    }
    if items.all.is_empty() { Err(BodyError::Empty) } else { Ok(items.all) }
}

/// One event that stands alone.
fn item(raw: Bytes, dialect: Dialect, place: &str) -> Item {
    let parsed = match std::str::from_utf8(&raw) {
        Err(why) => Err(format!("{place} is not UTF-8 at its byte {}", why.valid_up_to())),
        Ok(text) => alone(text, dialect).map_err(|why| {
            let message = why.to_string();
            // serde_json counts from the start of the event, which for people starts somewhere in a body.
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            let line = if why.line() > 1 { format!("its line {}, ", why.line()) } else { String::new() };
            format!("{place} can't be read: {message} at {line}column {}", why.column())
        }),
    };
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(message) => {
            let (source, id) = names(&raw);
            Err(Fault::invalid(message).of(source.as_deref(), id.as_deref()))
        }
    };
    Item { raw, parsed }
}

fn alone(text: &str, dialect: Dialect) -> serde_json::Result<Result<Incoming, Refusal>> {
    let (mut json, mut envelope, mut scratch) = (serde_json::Deserializer::from_str(text), Envelope::default(), Scratch::default());
    let is_object = Fill(&mut envelope, &mut scratch).deserialize(&mut json)?;
    json.end()?;
    Ok(judged(is_object.map(|()| &envelope), text.len(), dialect, &mut scratch))
}

fn judged<'a>(
    element: Result<&Envelope<'a>, &'static str>,
    bytes: usize,
    dialect: Dialect,
    scratch: &mut Scratch<'a>,
) -> Result<Incoming, Refusal> {
    match element {
        Ok(envelope) => judge(envelope, bytes, dialect, scratch),
        Err(kind) => Err(Fault::invalid(format!("an event must be a JSON object, but this is {kind}")).of(None, None)),
    }
}

/// Source and id of an event as it came, as far as they can be read.
pub fn names(raw: &[u8]) -> (Option<String>, Option<String>) {
    let json = String::from_utf8_lossy(raw);
    let [source, id] = members(&json, ["source", "id"]);
    (source.and_then(text), id.and_then(text))
}

/// Whose event it would have been, as far as that can be read.
pub fn subject(raw: &[u8]) -> Option<String> {
    let json = String::from_utf8_lossy(raw);
    let [subject, data, detail] = members(&json, ["subject", "data", "detail"]);
    let [of_data] = data.map_or([None], |data| members(data, ["tenantId"]));
    let of_detail = detail.map_or([None; 2], |detail| members(detail, ["subject", "tenantId"]));
    [subject, of_data].into_iter().chain(of_detail).flatten().find_map(text)
}

fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// Some members of a JSON object, of several of a name the last. Nothing is kept of others: what is refused may be of any size.
fn members<'a, const N: usize>(json: &'a str, names: [&str; N]) -> [Option<&'a str>; N] {
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Members(names)).and_then(|found| reader.end().map(|()| found)).unwrap_or([None; N])
}

struct Members<'n, const N: usize>([&'n str; N]);

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<&'de str>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some((Text(name), json)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            if let Some(at) = self.0.iter().position(|wanted| *wanted == name) {
                found[at] = Some(json.get());
            }
        }
        Ok(found)
    }
}

/// One event in binary mode, by way of its structured form: there is one set of rules, and that form can be replayed.
fn binary(attributes: &[(String, Vec<u8>)], body: &[u8]) -> Item {
    let mut fault = None;
    let mut json = String::from("{");
    for (name, value) in attributes {
        let value = unquoted(value);
        let value = percent_encoding::percent_decode(&value);
        let text = value.clone().decode_utf8().unwrap_or_else(|_| {
            fault = Some(format!("header ce-{name} is not UTF-8 after percent-decoding: encode it as CloudEvents' HTTP binding says"));
            value.decode_utf8_lossy()
        });
        json.push_str(&format!("{}:{},", quote(name), quote(&text)));
    }
    let body = body.trim_ascii();
    let data = match serde_json::from_slice::<&RawValue>(body) {
        _ if body.is_empty() => "null".to_owned(),
        Ok(data) => data.get().to_owned(),
        Err(why) => {
            fault = Some(format!("the body is the event's data in binary mode, and it is not JSON: {why}"));
            // What is longer is refused, and kept as little of, whatever it is.
            quote(&String::from_utf8_lossy(&body[..body.len().min(limits::EVENT_BYTES)]))
        }
    };
    json.push_str(&format!("\"data\":{data}}}"));

    let mut item = item(Bytes::from(json), Dialect::CloudEvents, "the event");
    if let Some(message) = fault {
        let (source, id) = names(&item.raw);
        item.parsed = Err(Fault::invalid(message).of(source.as_deref(), id.as_deref()));
    }
    item
}

/// A header's value without the double quotes that older senders put around it (RFC 7230, section 3.2.6).
fn unquoted(value: &[u8]) -> Vec<u8> {
    let [b'"', quoted @ .., b'"'] = value else { return value.to_owned() };
    let mut plain = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
    }
    plain
}
