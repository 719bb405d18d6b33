//! Names and values with anything in them: found again exactly, or refused.

use std::collections::BTreeMap;

use kubemeter::api::{Aggregation, CustomerDeletionPolicy};
use kubemeter::metering::{
    CancelRequest, CancelTarget, Error, EventFilter, EventRef, Listing, Metering as _, Page, Records as _, RejectCode, StoredEvent,
    UsageQuery,
};
use serde_json::{Value, json};

use crate::lab::{Lab, event, spec, total};

const TIME: &str = "2026-03-04T05:06:07.089Z";

/// Texts that mean something to SQL, to URLs, to ClickHouse's parameters, to JSON or to people.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "'",
        "''",
        "\"",
        "`",
        "\\",
        "\\\\",
        "\\'",
        "\\\"",
        "\\n",
        "\\t",
        "\\N",
        "\\0",
        "\\x41",
        "NULL",
        "null",
        "it's",
        "a`b",
        "😀",
        "👩‍👩‍👧",
        "é",
        "e\u{301}",
        "\u{200b}",
        "\u{feff}x",
        "\u{202e}abc",
        "%",
        "%27",
        "%00",
        "%s",
        "?",
        "??",
        "?fields",
        "{x:String}",
        "{namespace:String}",
        "{subjects:Array(String)}",
        "{}",
        "{",
        "-- c",
        "/* c */",
        "# c",
        "'; DROP TABLE events; --",
        "') OR 1=1 --",
        "1' UNION SELECT 1 --",
        "[]",
        "['a']",
        "[",
        "]",
        "('a','b')",
        ",",
        ", ",
        "a,b",
        "a;b",
        "a&b=c",
        "a+b",
        "a b",
        " a",
        "a ",
        "$",
        "$1",
        "$a$",
        "@x",
        "0",
        "-1",
        "1e5",
        "true",
        "0x41",
        "default",
        "*",
        "_",
        "a_b",
        "a%b",
        "acme",
        "ACME",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend(["x", "'", "\\", "\"", "%"].map(|text| text.repeat(1_024)));
    texts.push("😀".repeat(256));
    texts
}

fn id_of(text: &str) -> EventRef {
    EventRef { source: text.to_owned(), id: text.to_owned() }
}

async fn value(lab: &Lab, query: UsageQuery) -> String {
    let usage = lab.usage("sum", query).await;
    assert!(usage.data.len() < 2);
    usage.data.first().map_or_else(|| "none".to_owned(), |row| row.value.clone())
}

async fn listed(lab: &Lab, filter: EventFilter) -> Vec<StoredEvent> {
    let mut all = Vec::new();
    let mut page = Page { limit: Some(17), token: None };
    loop {
        let Listing { items, next } = lab.service.list_events(&Lab::caller(), filter.clone(), page.clone()).await.unwrap();
        assert!(items.len() <= 17);
        all.extend(items);
        match next {
            Some(token) => page.token = Some(token),
            None => return all,
        }
    }
}

#[tokio::test]
async fn attributes_and_groups_are_found_again_exactly() {
    let mut lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[("g", "$.g")])).await;
    let texts = texts();
    let events: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| {
            json!({"specversion": "1.0", "id": text, "source": text, "type": "t", "subject": text, "time": TIME, "data": {"v": n + 1, "g": text, text.as_str(): 1}})
        })
        .collect();
    assert_eq!(lab.post(&json!(events)).await.unwrap().accepted, texts.len());
    // The same again: found by identity, counted once.
    assert_eq!(lab.post(&json!(events)).await.unwrap().accepted, texts.len());

    for (n, text) in texts.iter().enumerate() {
        let number = (n + 1).to_string();
        assert_eq!(value(&lab, UsageQuery { subjects: vec![text.clone()], ..total() }).await, number, "subject {text:?}");
        assert_eq!(value(&lab, UsageQuery { customers: vec![text.clone()], ..total() }).await, number, "customer {text:?}");
        let filters = BTreeMap::from([("g".to_owned(), vec![text.clone()])]);
        assert_eq!(value(&lab, UsageQuery { filters, ..total() }).await, number, "filter {text:?}");
        let found = listed(&lab, EventFilter { subject: Some(text.clone()), customer: Some(text.clone()), ..EventFilter::default() }).await;
        assert_eq!(found.len(), 1, "listed by subject {text:?}");
        assert_eq!((&found[0].id, &found[0].source, &found[0].subject), (text, text, text));
        let data: Value = serde_json::from_str(found[0].data.get()).unwrap();
        assert_eq!(data["g"], json!(text));
        assert_eq!(data[text.as_str()], if text == "g" { json!(text) } else { json!(1) }, "member {text:?}");
    }

    let all = value(&lab, UsageQuery { subjects: texts.clone(), ..total() }).await;
    assert_eq!(all, (texts.len() * (texts.len() + 1) / 2).to_string());
    let by_all = UsageQuery { group_by: ["g", "subject", "customer"].map(str::to_owned).into(), ..total() };
    let rows = lab.usage("sum", by_all.clone()).await.data;
    assert_eq!(rows.len(), texts.len());
    for row in &rows {
        let group = &row.group_by["g"];
        assert_eq!(row.value, (texts.iter().position(|text| text == group).unwrap() + 1).to_string());
        assert_eq!((row.subject.as_ref(), row.customer.as_ref()), (Some(group), Some(group)));
    }
    assert_eq!(listed(&lab, EventFilter::default()).await.len(), texts.len(), "every page goes on where the one before ended");

    // One customer has all of them as subjects.
    let subjects: Vec<&str> = texts.iter().map(String::as_str).collect();
    lab.customer("everyone", &subjects).await;
    assert_eq!(value(&lab, UsageQuery { customers: vec!["everyone".to_owned()], ..total() }).await, all);
    assert!(lab.usage("sum", by_all).await.data.iter().all(|row| row.customer.as_deref() == Some("everyone")));

    for text in texts.iter().step_by(2) {
        let target = CancelTarget::Events(vec![id_of(text)]);
        let request = CancelRequest { target, reason: Some(text.clone()), dry_run: false };
        let cancelled = lab.service.cancel_usage_events(&Lab::caller(), request).await.unwrap();
        assert_eq!((cancelled.cancelled, cancelled.not_found.len()), (1, 0), "{text:?}");
        assert_eq!(value(&lab, UsageQuery { subjects: vec![text.clone()], ..total() }).await, "none", "{text:?}");
    }
    let left: usize = (0..texts.len()).filter(|n| n % 2 == 1).map(|n| n + 1).sum();
    assert_eq!(lab.number("sum").await, left.to_string());
    let reasons: Vec<_> = lab.service.list_cancellations(&Lab::caller(), Page { limit: Some(1_000), token: None }).await.unwrap().items;
    let mut reasons: Vec<_> = reasons.into_iter().filter_map(|record| record.reason).collect();
    reasons.sort();
    let mut expected: Vec<_> = texts.iter().step_by(2).cloned().collect();
    expected.sort();
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn group_values_may_have_control_characters_and_be_long() {
    let lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[("g", "$.g"), ("h", "$['it\\'s \\\\ `a`']")])).await;
    let mut values: Vec<String> = [
        "\0",
        "a\0b",
        "\0\0",
        "\n",
        "a\nb",
        "\r",
        "\r\n",
        "\t",
        "a\tb",
        "\u{1}",
        "\u{8}",
        "\u{b}",
        "\u{c}",
        "\u{1b}[0m",
        "\u{7f}",
        "\u{85}",
        "\\\n",
        "\\\t",
        "\\\0",
        "'\n'",
        "",
    ]
    .map(str::to_owned)
    .to_vec();
    values.extend(["x", "'", "\\", "é'\\\0😀\n", "%27", "\t"].map(|text| text.repeat(10_240 / text.len())));
    let events: Vec<Value> = values
        .iter()
        .enumerate()
        .map(|(n, text)| event(&n.to_string(), "t", "s", TIME, json!({"v": n + 1, "g": text, "it's \\ `a`": text})))
        .collect();
    lab.post(&json!(events)).await.unwrap();
    for (n, text) in values.iter().enumerate() {
        for group in ["g", "h"] {
            let filters = BTreeMap::from([(group.to_owned(), vec![text.clone()])]);
            let query = UsageQuery { filters, group_by: [group.to_owned()].into(), ..total() };
            let rows = lab.usage("sum", query).await.data;
            assert_eq!(rows.len(), 1, "{:?}", &text[..text.floor_char_boundary(20)]);
            assert_eq!((&rows[0].value, &rows[0].group_by[group]), (&(n + 1).to_string(), text));
        }
    }
    let filters = BTreeMap::from([("g".to_owned(), values.clone()), ("h".to_owned(), values.clone())]);
    let sum = (values.len() * (values.len() + 1) / 2).to_string();
    assert_eq!(value(&lab, UsageQuery { filters: filters.clone(), ..total() }).await, sum);
    let target = CancelTarget::Filter { meter_id: "sum".to_owned(), query: Box::new(UsageQuery { filters, ..total() }) };
    let cancelled = lab.service.cancel_usage_events(&Lab::caller(), CancelRequest { target, reason: None, dry_run: false }).await.unwrap();
    assert_eq!(cancelled.cancelled, values.len() as u64);
}

#[tokio::test]
async fn what_is_as_large_as_it_may_be_is_taken() {
    let mut lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[("g", "$.g")])).await;
    let nasty = |n: usize| format!("{n:04}{}", "'".repeat(1_020));
    let subjects: Vec<String> = (0..1_000).map(nasty).collect();
    let events: Vec<Value> =
        subjects.iter().enumerate().map(|(n, subject)| event(&n.to_string(), "t", subject, TIME, json!({"v": 1, "g": subject}))).collect();
    lab.post(&json!(events)).await.unwrap();
    // A Customer with as many subjects as there may be, each as long as it may be.
    let mut wide = lab.customer("wide", &subjects.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(value(&lab, UsageQuery { customers: vec!["wide".to_owned()], ..total() }).await, "1000");
    // As many long values as the URL of a request holds.
    let some = subjects[..60].to_vec();
    assert_eq!(value(&lab, UsageQuery { subjects: some.clone(), ..total() }).await, "60");
    assert_eq!(value(&lab, UsageQuery { filters: BTreeMap::from([("g".to_owned(), some)]), ..total() }).await, "60");
    // As many events as one request, and as one cancellation, may have.
    let many: Vec<Value> = (0..10_000).map(|n| event(&format!("many{n}"), "t", "s", TIME, json!({"v": 1}))).collect();
    lab.post(&json!(many)).await.unwrap();
    lab.post(&json!(many)).await.unwrap();
    assert_eq!(value(&lab, UsageQuery { subjects: vec!["s".to_owned()], ..total() }).await, "10000");
    let target = CancelTarget::Events((0..10_000).map(|n| EventRef { source: "test".to_owned(), id: format!("many{n}") }).collect());
    let cancelled = lab.service.cancel_usage_events(&Lab::caller(), CancelRequest { target, reason: None, dry_run: false }).await.unwrap();
    assert_eq!((cancelled.cancelled, cancelled.not_found.len()), (10_000, 0));
    assert_eq!(lab.number("sum").await, "1000");

    wide.spec.deletion_policy = CustomerDeletionPolicy::Purge;
    lab.reconciler.forget_customer(&wide).await.unwrap();
    assert_eq!(lab.number("sum").await, "0");
}

#[tokio::test]
async fn event_types_and_paths_may_have_anything_in_them() {
    let lab = Lab::new();
    let types = ["it's", "\\", "a\\'b", "`", "{x:String}", "'; DROP TABLE events; --", "😀", "?", "% /* -- "];
    let long = "'".repeat(1_024);
    let types: Vec<&str> = types.into_iter().chain([long.as_str()]).collect();
    let members = ["a'b", "a\\b", "$['x y']", "`", "\"", "{x:String}", "😀", "?", "'); SELECT 1 --", "\\'"];
    let path = |member: &str| format!("$['{}']", member.replace('\\', "\\\\").replace('\'', "\\'"));
    for (n, (event_type, member)) in types.iter().zip(members).enumerate() {
        let early = event(&format!("early{n}"), event_type, "s", TIME, json!({member: "1.5", "g": {member: member}}));
        lab.post(&early).await.unwrap();
        let group = path(member).replacen('$', "$.g", 1);
        lab.meter(&format!("m{n}"), spec(event_type, Aggregation::Sum, Some(&path(member)), &[("g", &group)])).await;
        let late = event(&format!("late{n}"), event_type, "s", TIME, json!({member: 1, "g": {member: member}}));
        lab.post(&json!([late])).await.unwrap();
    }
    for (n, (event_type, member)) in types.iter().zip(members).enumerate() {
        let query =
            UsageQuery { group_by: ["g".to_owned()].into(), filters: [("g".to_owned(), vec![member.to_owned()])].into(), ..total() };
        let rows = lab.usage(&format!("m{n}"), query).await.data;
        assert_eq!(
            rows.iter().map(|row| (row.value.as_str(), row.group_by["g"].as_str())).collect::<Vec<_>>(),
            [("2.5", member)],
            "{event_type}"
        );
        let found = listed(&lab, EventFilter { event_type: Some((*event_type).to_owned()), ..EventFilter::default() }).await;
        assert_eq!(found.len(), 2, "{event_type}");
        assert!(found.iter().all(|event| event.event_type == *event_type && event.meters == [format!("m{n}")]));
        let target = CancelTarget::Filter { meter_id: format!("m{n}"), query: Box::new(total()) };
        let cancelled =
            lab.service.cancel_usage_events(&Lab::caller(), CancelRequest { target, reason: None, dry_run: false }).await.unwrap();
        assert_eq!(cancelled.cancelled, 2, "{event_type}");
        assert!(lab.usage(&format!("m{n}"), total()).await.data.is_empty(), "{event_type}");
    }
}

#[tokio::test]
async fn attributes_with_control_characters_or_too_long_are_refused_and_kept() {
    let lab = Lab::new();
    let bad = |field: &str, text: &str| {
        let mut event = event("id", "t", "s", TIME, json!({}));
        event[field] = json!(text);
        event
    };
    let mut expected = Vec::new();
    let mut events = Vec::new();
    for field in ["id", "source", "type", "subject"] {
        for text in ["\0", "a\0", "a\nb", "\t", "\r", "\u{1b}", "\u{7f}", "\u{85}", "\u{9f}"] {
            events.push(bad(field, text));
            expected.push(RejectCode::InvalidEvent);
        }
        for text in ["x".repeat(1_025), "é".repeat(513)] {
            events.push(bad(field, &text));
            expected.push(RejectCode::TooLarge);
        }
    }
    let Err(Error::AllRejected(answer)) = lab.post(&json!(events)).await else { panic!("nothing of it is good") };
    assert_eq!(answer.rejected.iter().map(|rejection| rejection.code).collect::<Vec<_>>(), expected);
    let kept = lab.service.list_rejected(&Lab::caller(), Page { limit: Some(1_000), token: None }).await.unwrap().items;
    let mut texts: Vec<String> = kept.into_iter().map(|reject| reject.event).collect();
    let mut sent: Vec<String> = events.iter().map(Value::to_string).collect();
    texts.sort();
    sent.sort();
    assert_eq!(texts, sent);
    assert!(listed(&lab, EventFilter::default()).await.is_empty());
}
