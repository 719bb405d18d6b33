//! What request bodies turn into, by table and by arbitrary bytes.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::{BodyError, Command, Event, Form, Incoming, Item, Refusal, parse, subject};
use crate::limits;
use crate::metering::RejectCode;

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

#[test]
fn a_good_event_is_read_whole() {
    let body = cloudevent(&[r#""traceparent":{"x":[1,"}"]}"#]);
    let item = one(Form::Structured, &format!("\n {body} \n"));
    assert_eq!(item.raw, body);
    let Ok(Incoming::Event(event)) = item.parsed else { panic!() };
    assert_eq!(attributes(&event), ("e-1", "gw", "api.request", "acme"));
    assert_eq!(event.time_ms, Some(1_743_301_800_123));
    assert_eq!(event.data.to_json(), r#"{"tokens":12.50}"#);
}

#[test]
fn what_may_be_absent_may_be_null() {
    let bare = event(Form::Structured, &cloudevent(&[r#""time""#, r#""data""#]));
    assert_eq!((bare.time_ms, bare.data.is_empty()), (None, true));
    let null = cloudevent(&[r#""time":null"#, r#""data":null"#, r#""datacontenttype":null"#, r#""data_base64":null"#]);
    assert_eq!(event(Form::Structured, &null), bare);
}

#[test]
fn odd_texts_stay_themselves() {
    for text in ["it's", r"a\b", "`x`", "😀", "a\"b", " ", "\u{2028}", "'; DROP TABLE events; --", &"é".repeat(limits::ATTRIBUTE_BYTES / 2)]
    {
        let json = serde_json::Value::from(text).to_string();
        let body = cloudevent(&[&format!("\"subject\":{json}"), &format!("\"id\":{json}")]);
        let event = event(Form::Structured, &body);
        assert_eq!((event.attributes.subject(), event.attributes.id()), (text, text));
    }
    assert_eq!(event(Form::Structured, &cloudevent(&[r#""\u0069d":"\ud83d\ude00""#, r#""id""#])).attributes.id(), "😀");
}

#[test]
fn every_refusal_has_its_code_and_says_what() {
    use RejectCode::{InvalidEvent, MissingAttribute, TimeOutOfRange, TooLarge};
    let long = |n: usize| "x".repeat(n);
    let wide = vec!["1"; limits::DATA_LEAVES + 1].join(",");
    let deep = format!("{}{}", "[".repeat(limits::DATA_DEPTH), "]".repeat(limits::DATA_DEPTH));
    let table: &[(&[&str], RejectCode, &str)] = &[
        (&[r#""specversion""#], MissingAttribute, "specversion is missing"),
        (&[r#""id""#], MissingAttribute, "id is missing"),
        (&[r#""id":"""#], MissingAttribute, "id is missing or empty"),
        (&[r#""id":null"#], MissingAttribute, "id is missing"),
        (&[r#""source""#], MissingAttribute, "source is missing"),
        (&[r#""type""#], MissingAttribute, "type is missing"),
        (&[r#""subject""#], MissingAttribute, "subject is missing"),
        (&[r#""subject":"""#], MissingAttribute, "subject is missing or empty"),
        (&[r#""specversion":"0.3""#], InvalidEvent, "specversion is \"0.3\""),
        (&[r#""specversion":1.0"#], InvalidEvent, "specversion must be a string, but is a number"),
        (&[r#""id":7"#], InvalidEvent, "id must be a string, but is a number"),
        (&[r#""source":true"#], InvalidEvent, "source must be a string, but is a boolean"),
        (&[r#""type":{"a":[1]}"#], InvalidEvent, "type must be a string, but is an object"),
        (&[r#""subject":[1,[2]]"#], InvalidEvent, "subject must be a string, but is an array"),
        (&[r#""time":1743301800"#], InvalidEvent, "time must be a string"),
        (&[r#""id":"a\nb""#], InvalidEvent, "id has the control character U+000A at byte 1"),
        (&[r#""source":"\u0000""#], InvalidEvent, "source has the control character U+0000"),
        (&[r#""type":"a\u007f""#], InvalidEvent, "type has the control character U+007F"),
        (&[r#""subject":"é\u0085""#], InvalidEvent, "subject has the control character U+0085 at byte 2"),
        (&[r#""subject":"\ud800""#], InvalidEvent, "can't be read"),
        (&[r#""data":{"a":"\udc00"}"#], InvalidEvent, "data is not well-formed JSON"),
        (&[r#""id":1e999"#], InvalidEvent, "can't be read"),
        (&[r#""time":"yesterday""#], InvalidEvent, "time is \"yesterday\", which is no RFC 3339 time"),
        (&[r#""time":"2025-02-29T00:00:00Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00+25:00""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"20250330T023000Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00Z[Europe/Berlin]""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00,5Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00.Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00+0100""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30 02:30:00Z""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"2025-03-30T02:30:00+01:60""#], InvalidEvent, "no RFC 3339 time"),
        (&[r#""time":"1999-12-31T23:59:59.999999Z""#], TimeOutOfRange, "between 2000-01-01 and 2100-01-01"),
        (&[r#""time":"2100-01-01T00:00:00Z""#], TimeOutOfRange, "check the sender's clock"),
        (&[r#""time":"1970-01-01T00:00:00Z""#], TimeOutOfRange, "1970"),
        (&[r#""data":"x""#], InvalidEvent, "data must be a JSON object, but is a string"),
        (&[r#""data":[{"a":1}]"#], InvalidEvent, "data must be a JSON object, but is an array"),
        (&[r#""data":5"#], InvalidEvent, "data must be a JSON object, but is a number"),
        (&[r#""data_base64":"e30=""#], InvalidEvent, "data_base64"),
        (&[r#""datacontenttype":"text/xml""#], InvalidEvent, "datacontenttype is \"text/xml\""),
        (&[r#""datacontenttype":1"#], InvalidEvent, "datacontenttype must be a string"),
        (&[r#""a":1,"a":1"#], InvalidEvent, "\"a\" stands there twice"),
        (&[r#""subject":"a","subject":"b""#], InvalidEvent, "\"subject\" stands there twice"),
        (&[r#""time":null,"time":null"#], InvalidEvent, "\"time\" stands there twice"),
        (&[r#""data":null,"data":{}"#], InvalidEvent, "\"data\" stands there twice"),
        (&[&format!("\"subject\":{:?}", long(limits::ATTRIBUTE_BYTES + 1))], TooLarge, "subject is 1025 bytes long; at most 1024"),
        (&[&format!("\"id\":{:?}", long(10_000))], TooLarge, "id is 10000 bytes long"),
        (&[&format!("\"x\":{:?}", long(limits::EVENT_BYTES))], TooLarge, "at most 262144 are allowed"),
        (&[&format!("\"data\":{{\"a\":[{wide}]}}")], TooLarge, "data has more than 1024 values"),
        (&[&format!("\"data\":{{\"a\":{deep}}}")], TooLarge, "data is nested deeper than 32"),
        (&[r#""type":"INGEST_USAGE""#], MissingAttribute, "data.tenantId is missing"),
        (&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":"acme"}"#], MissingAttribute, "data.meterId is missing"),
        (&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":7,"meterId":"m"}"#], InvalidEvent, "data.tenantId must be a string, but is 7"),
        (&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":"a\u0000","meterId":"m"}"#], InvalidEvent, "control character"),
        (&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":"a","meterId":"m","time":"now"}"#], InvalidEvent, "data.time is \"now\""),
        (
            &[r#""type":"ingestUsage""#, r#""data":{"tenantId":"a","meterId":"m","time":"2222-01-01T00:00:00Z"}"#],
            TimeOutOfRange,
            "data.time",
        ),
        (&[r#""type":"ONBOARDING_REQUEST""#, r#""data":null"#], MissingAttribute, "data.tenantId is missing"),
        (&[r#""type":"ONBOARDING_REQUEST""#, r#""data":{"tenantId":"Acme Inc"}"#], InvalidEvent, "1 to 63 of a-z, 0-9 and -"),
        (&[r#""type":"onboardingRequest""#, r#""data":{"tenantId":"-a"}"#], InvalidEvent, "can't name a Customer"),
        (&[r#""type":"OFFBOARDING_REQUEST""#, r#""data":{"tenantId":"../x"}"#], InvalidEvent, "can't name a Customer"),
        (
            &[r#""type":"ONBOARDING_REQUEST""#, r#""data":{"tenantId":"a","tenantName":{}}"#],
            InvalidEvent,
            "data.tenantName must be a string",
        ),
        (
            &[r#""type":"ONBOARDING_REQUEST""#, &format!("\"data\":{{\"tenantId\":\"a\",\"tenantName\":{:?}}}", long(129))],
            TooLarge,
            "data.tenantName has 129 characters",
        ),
    ];
    for (changes, code, message) in table {
        let body = cloudevent(changes);
        let refused = refusal(Form::Structured, &body);
        assert_eq!(refused.code, *code, "{changes:?}: {}", refused.message);
        assert!(refused.message.contains(message), "{changes:?}: {}", refused.message);
        let changed = |name: &str| changes.iter().any(|change| change.starts_with(&format!("\"{name}\"")));
        if !changed("source") {
            assert_eq!(refused.source.as_deref(), Some("gw"), "{changes:?}");
        }
        if !changed("id") {
            assert_eq!(refused.id.as_deref(), Some("e-1"), "{changes:?}");
        }
        assert!(refused.message.len() < 300, "{}", refused.message);
        // The same in every other form.
        for form in [Form::Json, Form::Ndjson] {
            assert_eq!(refusal(form, &body).code, *code);
        }
    }
}

#[test]
fn times_are_cut_to_the_millisecond() {
    for (time, ms) in [
        ("2000-01-01T00:00:00Z", 946_684_800_000),
        ("2025-03-30T04:30:00.999999999+02:00", 1_743_301_800_999),
        ("2025-03-30t02:30:00z", 1_743_301_800_000),
        ("2099-12-31T23:59:59.9999Z", 4_102_444_799_999),
    ] {
        assert_eq!(event(Form::Structured, &cloudevent(&[&format!("\"time\":\"{time}\"")])).time_ms, Some(ms), "{time}");
    }
}

#[test]
fn one_bad_element_never_harms_the_others() {
    let (good, lone) = (cloudevent(&[]), cloudevent(&[r#""subject":"\ud800x""#]));
    let body = format!("[ {good},5 , null,\"x\",[[{{}}]],{{}},{lone},\n{} , {good}\t]\n", cloudevent(&[r#""id""#]));
    for form in [Form::Batch, Form::Json] {
        let items = parse(form, Bytes::from(body.clone())).unwrap();
        let raws: Vec<_> = items.iter().map(|item| std::str::from_utf8(&item.raw).unwrap()).collect();
        assert_eq!(raws, [&good, "5", "null", "\"x\"", "[[{}]]", "{}", &lone, &cloudevent(&[r#""id""#]), &good]);
        let codes: Vec<_> = items.iter().map(|item| item.parsed.as_ref().err().map(|why| why.code.as_str())).collect();
        let (invalid, missing) = (Some("invalid_event"), Some("missing_attribute"));
        assert_eq!(codes, [None, invalid, invalid, invalid, invalid, missing, invalid, missing, None]);
        let refused = items[6].parsed.as_ref().unwrap_err();
        assert_eq!((refused.source.as_deref(), refused.id.as_deref()), (Some("gw"), Some("e-1")));
        assert!(refused.message.contains("hex escape at column"), "{}", refused.message);
        assert!(items[1].parsed.as_ref().unwrap_err().message.contains("must be a JSON object, but this is a number"));
    }
}

#[test]
fn what_is_not_utf8_is_refused_alone() {
    let good = cloudevent(&[]);
    let mut bad = cloudevent(&[r#""subject":"@""#]).into_bytes();
    *bad.iter_mut().find(|b| **b == b'@').unwrap() = 0xff;
    for (form, between) in [(Form::Batch, [&b"["[..], b",", b",", b"]"]), (Form::Ndjson, [&b""[..], b"\n", b"\r\n", b""])] {
        let body = [between[0], good.as_bytes(), between[1], &bad, between[2], good.as_bytes(), between[3]].concat();
        let items = parse(form, Bytes::from(body)).unwrap();
        assert_eq!(items.iter().map(|item| item.parsed.is_ok()).collect::<Vec<_>>(), [true, false, true]);
        let refused = items[1].parsed.as_ref().unwrap_err();
        assert!(refused.message.contains("not UTF-8"), "{}", refused.message);
        assert_eq!(refused.id.as_deref(), Some("e-1"));
        assert_eq!(items[1].raw, bad);
    }
}

#[test]
fn raw_is_the_body_itself() {
    let body = Bytes::from(format!("[{},{}]", cloudevent(&[]), cloudevent(&[])));
    let range = body.as_ptr_range();
    for item in parse(Form::Batch, body.clone()).unwrap() {
        assert!(range.contains(&item.raw.as_ptr()));
    }
}

#[test]
fn a_body_that_is_no_json_is_refused_as_a_whole() {
    let good = cloudevent(&[]);
    for (form, body, place) in [
        (Form::Structured, "{\"id\":\n  oops}".to_owned(), "line 2 column 3"),
        (Form::Json, format!("{good} {good}"), "trailing characters"),
        (Form::Json, format!("[{good}\n{good}]"), "line 2 column 1"),
        (Form::Json, format!("[{good},]"), "expected value at line 1 column"),
        (Form::Json, format!("[{good}"), "EOF while parsing"),
        (Form::Json, format!("[{good}]]"), "trailing characters"),
        (Form::Batch, "[".to_owned(), "EOF while parsing"),
        (Form::Batch, "[,]".to_owned(), "expected value at line 1 column 2"),
        (Form::Batch, "[1x]".to_owned(), "line 1 column 3"),
        (Form::Json, "\u{feff}{}".to_owned(), "expected value"),
        (Form::Json, "x".to_owned(), "expected value"),
    ] {
        match parse(form, Bytes::from(body.clone())) {
            Err(BodyError::NotJson(why)) => assert!(why.contains(place), "{body}: {why}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    for form in [Form::Structured, Form::Batch, Form::Json, Form::Ndjson] {
        assert_eq!(parse(form, Bytes::from_static(b" \r\n\t")), Err(BodyError::Empty));
    }
    assert!(matches!(parse(Form::Structured, Bytes::from(format!("[{good}]"))), Err(BodyError::OtherForm(_))));
    assert!(matches!(parse(Form::Batch, Bytes::from(good)), Err(BodyError::OtherForm(_))));
    assert_eq!(parse(Form::Batch, Bytes::from_static(b" [ ] ")), Ok(Vec::new()));
}

#[test]
fn too_many_events_are_refused_as_a_whole() {
    let body = |n: usize, joint: &str| vec!["{}"; n].join(joint);
    let (most, more) = (limits::BATCH_EVENTS, limits::BATCH_EVENTS + 1);
    assert_eq!(parse(Form::Json, Bytes::from(format!("[{}]", body(most, ",")))).map(|items| items.len()), Ok(most));
    assert_eq!(parse(Form::Json, Bytes::from(format!("[{}]", body(more, ",")))), Err(BodyError::TooMany));
    assert_eq!(parse(Form::Ndjson, Bytes::from(body(most, "\n"))).map(|items| items.len()), Ok(most));
    assert_eq!(parse(Form::Ndjson, Bytes::from(body(more, "\n"))), Err(BodyError::TooMany));
}

#[test]
fn a_bad_line_is_one_refusal() {
    let good = cloudevent(&[]);
    let body = format!("\n{good}\r\n\n  {{\"id\": oops}}\n{good} {good}\n{good}");
    let items = parse(Form::Ndjson, Bytes::from(body)).unwrap();
    assert_eq!(items.iter().map(|item| item.parsed.is_ok()).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!(items[1].raw, r#"{"id": oops}"#);
    let messages: Vec<_> = items.iter().filter_map(|item| Some(&*item.parsed.as_ref().err()?.message)).collect();
    assert!(messages[0].starts_with("line 4 can't be read: expected value at column 8"), "{}", messages[0]);
    assert!(messages[1].starts_with("line 5 can't be read: trailing characters"), "{}", messages[1]);
}

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

/// Every form that a body can have.
fn forms() -> Vec<Form> {
    let attribute = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
    let binary =
        vec![attribute("id", b"%f"), attribute("source", b"\"\\"), attribute("type", b"\xff%ff"), attribute("specversion", b"1.0")];
    vec![Form::Structured, Form::Batch, Form::Json, Form::Ndjson, Form::Binary(binary)]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for form in forms() {
            let _ = parse(form, Bytes::from(body.clone()));
        }
    }

    /// Good bodies with a few bytes cut out and replaced come much further than noise.
    #[test]
    fn no_damage_makes_it_panic(cut in 0_usize..900, length in 0_usize..8, put in prop::collection::vec(any::<u8>(), 0..4)) {
        let usage = cloudevent(&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":"a","meterId":"m","x":[{"y":"\u00e9"}]}"#]);
        let body = format!("[{},{usage},{}]", cloudevent(&[r#""subject":"é\\\ud83d\ude00""#]), cloudevent(&[r#""id":"2""#]));
        let mut body = body.into_bytes();
        let cut = cut.min(body.len());
        let end = (cut + length).min(body.len());
        body.splice(cut..end, put);
        for form in forms() {
            if let Ok(items) = parse(form.clone(), Bytes::from(body.clone())) {
                for item in items {
                    // An element means the same alone as among others.
                    if let (Ok(text), Form::Batch) = (std::str::from_utf8(&item.raw), &form) {
                        prop_assert_eq!(one(Form::Structured, text).parsed.ok(), item.parsed.ok().filter(|_| !text.starts_with('[')));
                    }
                }
            }
        }
    }
}

#[test]
fn what_the_events_of_a_body_take_is_bounded() {
    // A name of 4 KiB above forty values: forty times as much as was sent.
    let long = |id: usize| {
        let data = format!(r#"{{"{}":[{}]}}"#, "k".repeat(4_096), ["1"; 40].join(","));
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"t","subject":"c","data":{data}}}"#)
    };
    let body = |events: usize, between: &str| (0..events).map(long).collect::<Vec<_>>().join(between);
    for (events, form) in [(190, Form::Ndjson), (190, Form::Batch), (210, Form::Ndjson), (210, Form::Batch)] {
        let text = if form == Form::Batch { format!("[{}]", body(events, ",")) } else { body(events, "\n") };
        let parsed = parse(form.clone(), text.into());
        if events == 190 {
            assert_eq!(parsed.unwrap().iter().filter(|item| item.parsed.is_ok()).count(), events, "{form:?}");
        } else {
            assert_eq!(parsed, Err(BodyError::TooLarge), "{form:?}");
        }
    }
}

#[test]
fn a_body_has_room_for_what_its_events_become() {
    for data in [r#"{"v":1}"#, r#"{"tokens":1234,"model":"large","region":"eu"}"#] {
        let event = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"c","data":{data}}}"#);
        let items = parse(Form::Json, event.clone().into()).unwrap();
        assert!(items[0].parsed.is_ok() && items[0].weight() < event.len() * limits::BODY_GROWS, "{event}: {}", items[0].weight());
    }
}

#[test]
fn whose_event_a_refused_one_is_is_found_wherever_it_says_so() {
    for (raw, expected) in [
        (r#"{"subject":"a","subject":"b","data":{"tenantId":"c"}}"#, Some("b")),
        (r#"{"\u0073ubject":"a"}"#, Some("a")),
        (r#"{"subject":5,"data":{"tenantId":"c"},"detail":{"subject":"d"}}"#, Some("c")),
        (r#"{"data":[],"detail":{"tenantId":"e","subject":"d"}}"#, Some("d")),
        (r#"{"detail":{"tenantId":"e"}}"#, Some("e")),
        ("[1]", None),
        (r#"{"subject":"a""#, None),
    ] {
        assert_eq!(subject(raw.as_bytes()).as_deref(), expected, "{raw}");
    }
}
