//! Event bodies: what the event parser says becomes items or a problem.

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};

use super::params::shown;
use super::problem::Problem;
use crate::event::{self, BodyError, Form, Item};
use crate::metering::{Error, Ingested, RejectCode, Rejection};

/// Reads the events of a body, in the form that the headers name.
pub fn parse(headers: &HeaderMap, body: Bytes) -> Result<Vec<Item>, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("(not text)"));
    let form = Form::of(content_type, headers).ok_or_else(|| {
        let detail = format!(
            "Content-Type: {} is not taken; send application/cloudevents+json, application/cloudevents-batch+json, application/json, application/x-ndjson, or ce-… headers with a JSON body",
            shown(content_type.unwrap_or_default())
        );
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    })?;
    event::parse(form, body).map_err(|why| {
        let code = match why {
            BodyError::TooMany | BodyError::TooLarge => RejectCode::TooLarge,
            BodyError::Empty | BodyError::NotJson(_) | BodyError::OtherForm(_) => RejectCode::InvalidEvent,
        };
        // Nothing in it can be told apart: it is refused as one event.
        let rejected = vec![Rejection { index: 0, source: None, id: None, code, message: why.to_string() }];
        Problem::from(Error::AllRejected(Ingested { accepted: 0, rejected }))
    })
}
