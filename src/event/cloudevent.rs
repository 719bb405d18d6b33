//! From an envelope to an event: the rules of CloudEvents 1.0 and of EventBridge, and ours on top.

use std::ops::Range;

use jiff::Timestamp;

use super::envelope::{Attribute, Envelope};
use super::flatten::{Data, Scratch};
use super::{Attributes, Event, Incoming, Leaves, Refusal, Scalar, command};
use crate::limits;
use crate::metering::RejectCode;

/// 2000-01-01 to 2100-01-01 in milliseconds since 1970: outside, a clock or a unit is wrong.
const TIMES_MS: Range<i64> = 946_684_800_000..4_102_444_800_000;

/// Which envelopes a body may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// CloudEvents, as the content type says.
    CloudEvents,
    /// CloudEvents, or EventBridge's where there is a `detail-type` and no `specversion`.
    Either,
}

/// What is wrong with an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: RejectCode,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(code: RejectCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(RejectCode::InvalidEvent, message)
    }

    pub(super) fn missing(message: impl Into<String>) -> Self {
        Self::new(RejectCode::MissingAttribute, message)
    }

    /// A refusal of the event with this source and id.
    pub(super) fn of(self, source: Option<&str>, id: Option<&str>) -> Refusal {
        let shown = |text: &str| text[..text.floor_char_boundary(limits::ATTRIBUTE_BYTES)].to_owned();
        Refusal { code: self.code, source: source.map(shown), id: id.map(shown), message: self.message }
    }
}

/// Judges an envelope that is `bytes` long as JSON.
pub(super) fn judge<'a>(envelope: &Envelope<'a>, bytes: usize, dialect: Dialect, scratch: &mut Scratch<'a>) -> Result<Incoming, Refusal> {
    incoming(envelope, bytes, dialect, scratch).map_err(|fault| fault.of(envelope.source.text(), envelope.id.text()))
}

fn incoming<'a>(envelope: &Envelope<'a>, bytes: usize, dialect: Dialect, scratch: &mut Scratch<'a>) -> Result<Incoming, Fault> {
    if bytes > limits::EVENT_BYTES {
        return Err(Fault::new(
            RejectCode::TooLarge,
            format!("the event is {bytes} bytes long; at most {} are allowed: send only what is counted", limits::EVENT_BYTES),
        ));
    }
    if let Some(name) = &envelope.twice {
        return Err(Fault::invalid(format!("{:?} stands there twice: which one counts is unclear", cut(name))));
    }
    let has_version = !matches!(envelope.specversion, Attribute::Absent | Attribute::Null);
    let is_eventbridge = dialect == Dialect::Either && !has_version && !matches!(envelope.detail_type, Attribute::Absent);
    if !is_eventbridge {
        let hint = match dialect {
            Dialect::CloudEvents => "write \"1.0\"",
            Dialect::Either => "write \"1.0\" for a CloudEvent; an EventBridge event has a detail-type instead",
        };
        let version = required("specversion", &envelope.specversion, hint)?;
        if version != "1.0" {
            return Err(Fault::invalid(format!("specversion is {:?}: only CloudEvents \"1.0\" can be read", cut(version))));
        }
    }

    let id = required("id", &envelope.id, "give every event an id of its own, the same again whenever it is sent again")?;
    let source = required("source", &envelope.source, "name what sends the event, such as \"checkout-service\"")?;
    let event_type = if is_eventbridge {
        required("detail-type", &envelope.detail_type, "name what happened, as the meters' eventType does")?
    } else {
        required("type", &envelope.event_type, "name what happened, as the meters' eventType does")?
    };
    let subject = attribute("subject", &envelope.subject)?;
    let time_ms = attribute("time", &envelope.time)?.map(|time| time_ms("time", time)).transpose()?;

    let (place, data) = if is_eventbridge {
        ("detail", &envelope.detail)
    } else {
        if let Some(media_type) = envelope.datacontenttype.text().filter(|media_type| !is_json(media_type)) {
            return Err(Fault::invalid(format!("datacontenttype is {:?}: data must be JSON", cut(media_type))));
        }
        attribute("datacontenttype", &envelope.datacontenttype)?;
        if !matches!(envelope.data_base64, Attribute::Absent | Attribute::Null) {
            return Err(Fault::invalid("data_base64 can't be counted: send data as a JSON object"));
        }
        ("data", &envelope.data)
    };
    let data = data.as_ref().unwrap_or(&Data::Null);
    let data = Leaves::of(data, scratch).map_err(|why| Fault::new(why.code(), format!("{place} {why}")))?;

    if let Some(kind) = command::Kind::of(event_type) {
        return command::read(kind, command::Sent { id, source, time_ms, place, data }).map(Incoming::Command);
    }
    let subject = match subject {
        Some(subject) if !is_eventbridge => subject,
        None if !is_eventbridge => {
            return Err(Fault::missing("subject is missing or empty: name the customer, or the part of one, whose usage it is"));
        }
        _ => eventbridge_subject(&data)?,
    };
    let attributes = Attributes::new(id, source, event_type, subject);
    Ok(Incoming::Event(Event { attributes, time_ms, data }))
}

/// EventBridge has no subject: the detail has it.
fn eventbridge_subject(detail: &Leaves) -> Result<&str, Fault> {
    for (name, key) in [("detail.subject", "$.subject"), ("detail.tenantId", "$.tenantId")] {
        if let Some(subject) = text_at(detail, name, key)? {
            return Ok(subject);
        }
    }
    Err(Fault::missing("an EventBridge event needs detail.subject or detail.tenantId as text: name the customer whose usage it is"))
}

/// A text in `data` that serves as an attribute; None when it is missing or empty.
pub(super) fn text_at<'a>(data: &'a Leaves, name: &str, key: &str) -> Result<Option<&'a str>, Fault> {
    match data.iter().find(|(at, _)| *at == key) {
        None | Some((_, Scalar::Text(""))) => Ok(None),
        Some((_, Scalar::Text(text))) => checked(name, text).map(Some),
        Some((_, Scalar::Literal(literal))) => Err(Fault::invalid(format!("{name} must be a string, but is {}", cut(literal)))),
    }
}

fn required<'a>(name: &str, attribute_: &'a Attribute<'_>, hint: &str) -> Result<&'a str, Fault> {
    attribute(name, attribute_)?.ok_or_else(|| Fault::missing(format!("{name} is missing or empty: {hint}")))
}

/// An attribute's text; None when it is missing, null or empty.
fn attribute<'a>(name: &str, attribute: &'a Attribute<'_>) -> Result<Option<&'a str>, Fault> {
    match attribute {
        Attribute::Absent | Attribute::Null => Ok(None),
        Attribute::Other(kind) => Err(Fault::invalid(format!("{name} must be a string, but is {kind}"))),
        Attribute::Text(text) if text.is_empty() => Ok(None),
        Attribute::Text(text) => checked(name, text).map(Some),
    }
}

fn checked<'a>(name: &str, text: &'a str) -> Result<&'a str, Fault> {
    if text.len() > limits::ATTRIBUTE_BYTES {
        return Err(Fault::new(
            RejectCode::TooLarge,
            format!("{name} is {} bytes long; at most {} are allowed: {:?}…", text.len(), limits::ATTRIBUTE_BYTES, cut(text)),
        ));
    }
    // Nearly every text passes the first look, which has no branches; U+0080 to U+009F are control characters too.
    if text.bytes().fold(false, |odd, b| odd | !(0x20..0x7f).contains(&b))
        && let Some((at, c)) = text.char_indices().find(|(_, c)| c.is_control())
    {
        return Err(Fault::invalid(format!("{name} has the control character U+{:04X} at byte {at}: take it out", u32::from(c))));
    }
    Ok(text)
}

/// Whether a time is written as RFC 3339 says (5.6). Much else can be read as a time, an offset of 25 hours, too, and would be of another day.
fn is_rfc3339(time: &str) -> bool {
    let (at, rest) = time.as_bytes().split_at(time.len().min(19));
    let digits = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let is_date_time = at.iter().zip(b"0000-00-00T00:00:00").all(|(is, form)| match form {
        b'0' => is.is_ascii_digit(),
        _ => is.eq_ignore_ascii_case(form),
    });
    let fraction = match rest {
        [b'.', decimals @ ..] => 1 + decimals.iter().take_while(|decimal| decimal.is_ascii_digit()).count(),
        _ => 0,
    };
    let is_offset = match &rest[fraction..] {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', hours @ .., b':', m, n] => hours.len() == 2 && digits(hours) && hours < b"24".as_slice() && digits(&[*m, *n]),
        _ => false,
    };
    at.len() == 19 && is_date_time && fraction != 1 && is_offset
}

/// RFC 3339 to milliseconds since 1970, finer parts cut off.
pub(super) fn time_ms(name: &str, time: &str) -> Result<i64, Fault> {
    let parsed = is_rfc3339(time)
        .then(|| time.parse::<Timestamp>().ok())
        .flatten()
        .ok_or_else(|| Fault::invalid(format!("{name} is {:?}, which is no RFC 3339 time such as \"2025-03-30T02:30:00Z\"", cut(time))))?;
    let ms = parsed.as_millisecond();
    if TIMES_MS.contains(&ms) {
        Ok(ms)
    } else {
        Err(Fault::new(
            RejectCode::TimeOutOfRange,
            format!("{name} is {:?}, which is not between 2000-01-01 and 2100-01-01: check the sender's clock", cut(time)),
        ))
    }
}

/// Whether a media type is JSON: `application/json`, `text/json`, or one that ends in `+json`. Parameters don't matter.
pub(super) fn is_json(media_type: &str) -> bool {
    if media_type == "application/json" {
        return true;
    }
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.split_once('/'), Some((_, subtype)) if subtype == "json" || subtype.ends_with("+json"))
}

/// The start of a text, for messages.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}
