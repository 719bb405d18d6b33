//! What is not a CloudEvent in JSON: other envelopes, headers.

use http::HeaderMap;

use super::{attributes, cloudevent, command, event, headers, one, refusal};
use crate::event::{Command, Form};
use crate::metering::RejectCode;

#[test]
fn eventbridge_is_read_where_json_may_be_anything() {
    let bridge = |detail: &str| {
        format!(
            r#"{{"version":"0","id":"e-1","detail-type":"api.request","source":"gw","account":"1","time":"2025-03-30T02:30:00Z","region":"eu","resources":[],"detail":{detail}}}"#
        )
    };
    for form in [Form::Json, Form::Ndjson] {
        let read = event(form, &bridge(r#"{"subject":"acme","tenantId":"other","tokens":1}"#));
        assert_eq!(attributes(&read), ("e-1", "gw", "api.request", "acme"));
        assert_eq!((read.time_ms, read.data.len()), (Some(1_743_301_800_000), 3));
    }
    assert_eq!(event(Form::Json, &bridge(r#"{"tenantId":"acme"}"#)).attributes.subject(), "acme");
    for (detail, code, message) in [
        ("{}", RejectCode::MissingAttribute, "detail.subject or detail.tenantId"),
        (r#"{"subject":7,"tenantId":"acme"}"#, RejectCode::InvalidEvent, "detail.subject must be a string"),
        ("[]", RejectCode::InvalidEvent, "detail must be a JSON object"),
    ] {
        let refused = refusal(Form::Json, &bridge(detail));
        assert_eq!(refused.code, code);
        assert!(refused.message.contains(message), "{}", refused.message);
        assert_eq!((refused.source.as_deref(), refused.id.as_deref()), (Some("gw"), Some("e-1")));
    }
    let refused = refusal(Form::Structured, &bridge("{}"));
    assert!(refused.message.contains("specversion is missing"), "{}", refused.message);
}

#[test]
fn commands_are_read_from_both_envelopes() {
    let bridge = |kind: &str, detail: &str| format!(r#"{{"id":"e-1","source":"gw","detail-type":"{kind}","detail":{detail}}}"#);
    let cloud = |kind: &str, data: &str| cloudevent(&[&format!("\"type\":\"{kind}\""), r#""subject""#, &format!("\"data\":{data}")]);
    let usage = r#"{"tenantId":"Acme Inc","meterId":"tokens","value":1.50,"model":"m1"}"#;
    for (body, time) in [(cloud("INGEST_USAGE", usage), Some(1_743_301_800_123)), (bridge("ingestUsage", usage), None)] {
        let Command::IngestUsage { id, source, tenant_id, meter_id, time_ms, data } = command(Form::Json, &body) else { panic!("{body}") };
        assert_eq!((&*id, &*source, &*tenant_id, &*meter_id, time_ms), ("e-1", "gw", "Acme Inc", "tokens", time));
        assert_eq!(data.to_json(), usage);
    }
    let timed = cloud("ingestUsage", r#"{"tenantId":"a","meterId":"m","time":"2024-01-01T00:00:00Z"}"#);
    assert!(matches!(command(Form::Structured, &timed), Command::IngestUsage { time_ms: Some(1_704_067_200_000), .. }));

    let tenant = r#"{"tenantId":"acme-1","tenantName":"Acme Inc"}"#;
    for body in [cloud("ONBOARDING_REQUEST", tenant), bridge("onboardingRequest", tenant), bridge("ONBOARDING_REQUEST", tenant)] {
        let expected = Command::Onboard {
            id: "e-1".to_owned(),
            source: "gw".to_owned(),
            tenant_id: "acme-1".to_owned(),
            tenant_name: Some("Acme Inc".to_owned()),
        };
        assert_eq!(command(Form::Json, &body), expected);
    }
    for body in [cloud("OFFBOARDING_REQUEST", tenant), bridge("offboardingRequest", tenant)] {
        assert_eq!(
            command(Form::Json, &body),
            Command::Offboard { id: "e-1".to_owned(), source: "gw".to_owned(), tenant_id: "acme-1".to_owned() }
        );
    }
    let unnamed = command(Form::Json, &bridge("onboardingRequest", r#"{"tenantId":"a","tenantName":""}"#));
    assert_eq!(unnamed, Command::Onboard { id: "e-1".to_owned(), source: "gw".to_owned(), tenant_id: "a".to_owned(), tenant_name: None });
}

#[test]
fn headers_name_the_form() {
    let ce = headers(&[("ce-id", "e-1"), ("accept", "x")]);
    let binary = Some(Form::Binary(vec![("id".to_owned(), b"e-1".to_vec())]));
    let none = HeaderMap::new();
    for (content_type, headers, form) in [
        (Some("application/cloudevents+json"), &none, Some(Form::Structured)),
        (Some("application/cloudevents+json; charset=utf-8"), &ce, Some(Form::Structured)),
        (Some("Application/CloudEvents-Batch+JSON ; Charset=\"UTF-8\"; a=b"), &none, Some(Form::Batch)),
        (Some("application/json"), &none, Some(Form::Json)),
        (Some("application/json;charset=UTF-8"), &none, Some(Form::Json)),
        (Some("application/x-ndjson"), &ce, Some(Form::Ndjson)),
        (Some("application/json"), &ce, binary.clone()),
        (Some("application/vnd.acme+json; v=1"), &ce, binary.clone()),
        (None, &ce, binary),
        (Some("application/json; charset=latin1"), &none, None),
        (Some("application/vnd.acme+json"), &none, None),
        (Some("text/plain"), &none, None),
        (Some("text/plain"), &ce, None),
        (Some(""), &none, None),
        (None, &none, None),
    ] {
        assert_eq!(Form::of(content_type, headers), form, "{content_type:?}");
    }
}

#[test]
fn binary_mode_is_the_structured_form_in_headers() {
    let good = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e%201%25"),
        ("ce-source", "\"a \\\"gw\\\"\""),
        ("ce-type", "api.request"),
        ("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("ce-time", "2025-03-30T02:30:00Z"),
        ("ce-extra", "100% %zz"),
    ];
    let with = |change: (&'static str, &'static str)| {
        let all: Vec<_> =
            good.iter().copied().filter(|(name, _)| *name != change.0).chain([change]).filter(|(_, value)| *value != "-").collect();
        Form::of(Some("application/json"), &headers(&all)).unwrap()
    };
    let form = || Form::of(Some("application/json"), &headers(&good)).unwrap();
    let read = event(form(), "\n{\"tokens\": 1.50}\n");
    assert_eq!((read.attributes.id(), read.attributes.source(), read.attributes.subject()), ("e 1%", "a \"gw\"", "Euro € 😀"));
    assert_eq!((read.time_ms, read.data.to_json()), (Some(1_743_301_800_000), r#"{"tokens":1.50}"#.to_owned()));
    assert!(event(form(), "").data.is_empty());
    // What is kept of it can be replayed as one structured event.
    let raw = one(form(), "{\"tokens\": 1.50}").raw;
    assert_eq!(event(Form::Structured, std::str::from_utf8(&raw).unwrap()), read);

    for (form, body, code, message) in [
        (with(("ce-subject", "-")), "{}", RejectCode::MissingAttribute, "subject is missing"),
        (with(("ce-specversion", "-")), "{}", RejectCode::MissingAttribute, "specversion is missing"),
        (with(("ce-subject", "")), "{}", RejectCode::MissingAttribute, "subject is missing or empty"),
        (with(("ce-subject", "a%00b")), "{}", RejectCode::InvalidEvent, "control character U+0000"),
        (with(("ce-subject", "%ff")), "{}", RejectCode::InvalidEvent, "header ce-subject is not UTF-8"),
        (with(("ce-data", "x")), "{}", RejectCode::InvalidEvent, "\"data\" stands there twice"),
        (form(), "[1]", RejectCode::InvalidEvent, "data must be a JSON object, but is an array"),
        (form(), "{oops", RejectCode::InvalidEvent, "binary mode, and it is not JSON: key must be a string at line 1 column 2"),
    ] {
        let refused = refusal(form, body);
        assert_eq!(refused.code, code, "{}", refused.message);
        assert!(refused.message.contains(message), "{}", refused.message);
        assert_eq!(refused.id.as_deref(), Some("e 1%"));
    }
}
