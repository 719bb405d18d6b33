//! Each event by itself.

use super::{attributes, cloudevent, event, one, refusal};
use crate::event::{Form, Incoming, subject};
use crate::limits;
use crate::metering::RejectCode;

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
