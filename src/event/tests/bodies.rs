//! Bodies of many events.

use bytes::Bytes;

use super::cloudevent;
use crate::event::{BodyError, Form, parse};
use crate::limits;

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
