//! Events become numbers: once each, exactly, whatever comes in whatever order.

use kubemeter::api::{Aggregation, Meter};
use kubemeter::limits;
use kubemeter::metering::{
    CancelRequest, CancelTarget, Error, EventFilter, EventRef, Metering as _, Page, Records as _, RejectCode, UsageQuery,
};
use serde_json::{Value, json};

use crate::lab::{Lab, event, spec, total};

const TIME: &str = "2026-03-04T05:06:07Z";

fn cancel(target: CancelTarget) -> CancelRequest {
    CancelRequest { target, reason: Some("test".to_owned()), dry_run: false }
}

fn named(ids: &[&str]) -> CancelTarget {
    CancelTarget::Events(ids.iter().map(|id| EventRef { source: "test".to_owned(), id: (*id).to_owned() }).collect())
}

#[tokio::test]
async fn every_aggregation_gives_its_number() {
    let lab = Lab::new();
    for (name, aggregation) in [
        ("sum", Aggregation::Sum),
        ("min", Aggregation::Min),
        ("max", Aggregation::Max),
        ("average", Aggregation::Average),
        ("unique", Aggregation::UniqueCount),
        ("latest", Aggregation::Latest),
    ] {
        lab.meter(name, spec("t", aggregation, Some("$.v"), &[])).await;
    }
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let values = [("a", "0.1"), ("b", "-3.25"), ("c", "12345678901234567890.123456789"), ("d", "0.1"), ("e", "9007199254740993")];
    let events: Vec<Value> = values
        .iter()
        .enumerate()
        .map(|(i, (id, v))| event(id, "t", "s", &format!("2026-03-04T05:0{}:00Z", 9 - i), json!({"v": v})))
        .collect();
    lab.post(&json!(events)).await.unwrap();
    for (meter, number) in [
        ("count", "5"),
        ("sum", "12354686100489308880.073456789"),
        ("min", "-3.25"),
        ("max", "12345678901234567890.123456789"),
        ("average", "2470937220097861776.0146913578"),
        ("unique", "4"),
        ("latest", "0.1"),
    ] {
        assert_eq!(lab.number(meter).await, number, "{meter}");
    }
}

#[tokio::test]
async fn a_batch_counts_once_however_often_and_concurrently_it_comes() {
    let lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let batch: Vec<Value> = (0..200).map(|i| event(&format!("e{i}"), "t", &format!("s{}", i % 7), TIME, json!({"v": "0.1"}))).collect();
    let batch = json!(batch);
    let posts = futures::future::join_all((0..10).map(|_| lab.post(&batch))).await;
    assert!(posts.iter().all(|p| p.as_ref().unwrap().accepted == 200));
    assert_eq!(lab.number("sum").await, "20");
}

#[tokio::test]
async fn as_many_as_one_request_may_hold_count_and_can_be_cancelled() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let ids: Vec<String> = (0..limits::BATCH_EVENTS.min(limits::CANCEL_EVENTS)).map(|i| format!("e{i}")).collect();
    let batch: Vec<Value> = ids.iter().map(|id| event(id, "t", "s", TIME, json!({}))).collect();
    lab.post(&json!(batch)).await.unwrap();
    assert_eq!(lab.number("count").await, ids.len().to_string());
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let cancelled = lab.service.cancel_usage_events(&Lab::caller(), cancel(named(&ids))).await.unwrap();
    assert_eq!((cancelled.cancelled, cancelled.not_found.len()), (ids.len() as u64, 0));
    assert_eq!(lab.number("count").await, "0");
}

#[tokio::test]
async fn the_same_identity_counts_once_with_another_time_without_time_and_with_another_subject() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let mut again = event("e", "t", "s", TIME, json!({}));
    lab.post(&again).await.unwrap();
    again["time"] = json!("2026-05-01T00:00:00Z");
    lab.post(&again).await.unwrap();
    again.as_object_mut().unwrap().remove("time");
    futures::future::join_all((0..5).map(|_| lab.post(&again))).await;
    again["subject"] = json!("other");
    lab.post(&json!([again, again])).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
    let by_subject = lab.usage("count", UsageQuery { group_by: ["subject".to_owned()].into(), ..total() }).await;
    assert_eq!(by_subject.data[0].subject.as_deref(), Some("s"), "the first sending counts");
}

#[tokio::test]
async fn events_from_before_their_meter_count_in_their_own_window() {
    let lab = Lab::new();
    let times = ["2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00Z", "2026-02-15T12:00:00Z"];
    for (i, time) in times.iter().enumerate() {
        lab.post(&event(&format!("early{i}"), "t", "s", time, json!({"v": 1}))).await.unwrap();
    }
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    lab.post(&event("late", "t", "s", "2025-12-01T00:00:00Z", json!({"v": 10}))).await.unwrap();
    let query = UsageQuery { window_size: Some(kubemeter::metering::WindowSize::Month), ..total() };
    let usage = lab.usage("sum", query).await;
    let months: Vec<_> = usage.data.iter().map(|row| (row.window_start.unwrap().to_string(), row.value.as_str())).collect();
    let expected = [("2025-12-01T00:00:00Z", "11"), ("2026-01-01T00:00:00Z", "1"), ("2026-02-01T00:00:00Z", "1")];
    assert_eq!(months, expected.map(|(start, value)| (start.to_owned(), value)));
    // The same months by where the question begins and ends, which leaves partitions; of all subjects and of some.
    for subjects in [vec![], vec!["s".to_owned()]] {
        for (from, to, value) in [("2025-12-01", "2026-01-01", "11"), ("2026-01-01", "2026-02-01", "1"), ("2025-12-01", "2026-03-01", "13")]
        {
            let [from, to] = [from, to].map(|day| Some(format!("{day}T00:00:00Z").parse().unwrap()));
            let usage = lab.usage("sum", UsageQuery { from, to, subjects: subjects.clone(), ..total() }).await;
            assert_eq!(usage.data[0].value, value, "{from:?} {to:?} {subjects:?}");
        }
    }
}

#[tokio::test]
async fn cancelled_events_stay_cancelled_until_the_revert() {
    let lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[("method", "$.method")])).await;
    let events = json!([
        event("a", "t", "s1", TIME, json!({"v": 1, "method": "GET"})),
        event("b", "t", "s1", TIME, json!({"v": 2, "method": "PUT"})),
        event("c", "t", "s2", TIME, json!({"v": 4, "method": "GET"})),
    ]);
    lab.post(&events).await.unwrap();
    let caller = Lab::caller();

    let one = lab.service.cancel_usage_events(&caller, cancel(named(&["a", "unknown"]))).await.unwrap();
    assert_eq!((one.cancelled, one.not_found.len()), (1, 1));
    assert_eq!(lab.number("sum").await, "6");
    let twice = lab.service.cancel_usage_events(&caller, cancel(named(&["a"]))).await.unwrap();
    assert_eq!(twice.cancelled, 0);
    assert!(twice.cancellation_id.is_some());

    lab.post(&events).await.unwrap();
    assert_eq!(lab.number("sum").await, "6", "a cancelled event that comes again stays cancelled");

    let filter = UsageQuery { filters: [("method".to_owned(), vec!["GET".to_owned()])].into(), ..total() };
    let by_filter = |dry_run| CancelRequest {
        target: CancelTarget::Filter { meter_id: "sum".to_owned(), query: Box::new(filter.clone()) },
        reason: None,
        dry_run,
    };
    let dry = lab.service.cancel_usage_events(&caller, by_filter(true)).await.unwrap();
    assert_eq!((dry.cancelled, dry.cancellation_id), (1, None));
    assert_eq!(lab.number("sum").await, "6");
    let filtered = lab.service.cancel_usage_events(&caller, by_filter(false)).await.unwrap();
    assert_eq!(filtered.cancelled, 1);
    assert_eq!(lab.number("sum").await, "2");

    let id = one.cancellation_id.unwrap();
    let reverted = lab.service.revert_cancellation(&caller, id).await.unwrap();
    assert!(reverted.reverted_at.is_some());
    assert_eq!(lab.number("sum").await, "3");
    lab.service.revert_cancellation(&caller, id).await.unwrap();
    assert_eq!(lab.number("sum").await, "3");
    lab.service.cancel_usage_events(&caller, cancel(named(&["a"]))).await.unwrap();
    assert_eq!(lab.number("sum").await, "2");

    let listed = lab.service.list_cancellations(&caller, Default::default()).await.unwrap().items;
    assert_eq!(listed.iter().rev().map(|c| c.cancelled).collect::<Vec<_>>(), [1, 0, 1, 1]);
    assert_eq!(listed.iter().filter(|c| c.reverted_at.is_some()).map(|c| c.cancellation_id).collect::<Vec<_>>(), [id]);
    let events = lab.service.list_events(&caller, Default::default(), Default::default()).await.unwrap().items;
    let states: Vec<_> = events.iter().map(|e| (e.id.as_str(), e.cancellation_id.is_some(), e.meters.len())).collect();
    assert_eq!(states.len(), 3);
    for (id, cancelled, meters) in states {
        assert_eq!((cancelled, meters), (id != "b", usize::from(id == "b")), "{id}");
    }
}

#[tokio::test]
async fn what_a_meter_cannot_count_is_refused_kept_and_replayed_when_the_meter_is_mended() {
    let lab = Lab::new();
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let refused = [
        (json!({"v": "abc"}), RejectCode::InvalidValue),
        (json!({"v": "NaN"}), RejectCode::InvalidValue),
        (json!({"v": true}), RejectCode::InvalidValue),
        (json!({"v": ""}), RejectCode::InvalidValue),
        (json!({"v": "1e400"}), RejectCode::InexactNumber),
        (json!({"v": "0.0000000000001"}), RejectCode::InexactNumber),
        (json!({"w": 1}), RejectCode::MissingValue),
        (json!({"v": null, "w": 2}), RejectCode::MissingValue),
    ];
    let events: Vec<Value> =
        refused.iter().enumerate().map(|(i, (data, _))| event(&format!("r{i}"), "t", "s", TIME, data.clone())).collect();
    let mut all = events.clone();
    all.push(event("good", "t", "s", TIME, json!({"v": 5})));
    let answer = lab.post(&json!(all)).await.unwrap();
    assert_eq!(answer.accepted, 1);
    assert_eq!(answer.rejected.iter().map(|r| r.code).collect::<Vec<_>>(), refused.iter().map(|(_, code)| *code).collect::<Vec<_>>());
    assert!(answer.rejected[0].message.contains(r#"$.v is "abc""#), "{}", answer.rejected[0].message);

    let kept = lab.service.list_rejected(&Lab::caller(), Default::default()).await.unwrap().items;
    assert_eq!(kept.len(), refused.len());

    let mut mended = meter.clone();
    mended.spec.value_property = Some("$.w".to_owned());
    mended.metadata.generation = Some(2);
    lab.settle(mended).await;
    let replayed = lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap();
    assert_eq!((replayed.accepted, replayed.rejected.len()), (2, 6));
    assert_eq!(lab.number("sum").await, "3");
    assert_eq!(lab.service.list_rejected(&Lab::caller(), Default::default()).await.unwrap().items.len(), 6);
    lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap();
    assert_eq!(lab.number("sum").await, "3");
}

#[tokio::test]
async fn what_a_meter_cannot_count_is_listed_whatever_a_purge_has_taken_before_it() {
    let lab = Lab::new();
    let of = |subject: &str, n: usize| event(&format!("{subject}{n}"), "t", subject, TIME, json!({"w": n}));
    lab.post(&json!((0..200).map(|n| of("a", n)).chain((0..7).map(|n| of("b", n))).collect::<Vec<_>>())).await.unwrap();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let events = lab.warehouse.table(&lab.warehouse.topology().stored("events"));
    lab.warehouse.run_ddl(&format!("ALTER TABLE {events} DELETE WHERE subject = 'a'")).await.unwrap();
    let (mut ids, mut next) = (Vec::new(), None);
    loop {
        let filter = EventFilter { uncounted_by: Some("sum".to_owned()), ..EventFilter::default() };
        let listing = lab.service.list_events(&Lab::caller(), filter, Page { limit: Some(3), token: next }).await.unwrap();
        ids.extend(listing.items.into_iter().map(|event| event.id));
        next = listing.next;
        if next.is_none() {
            break;
        }
    }
    ids.sort();
    assert_eq!(ids, (0..7).map(|n| format!("b{n}")).collect::<Vec<_>>());
}

/// A list in a list is one reject: replayed it would be read as several events.
#[tokio::test]
async fn a_reject_that_is_a_list_is_kept_whole() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let all = [1, 2].map(|n| event(&format!("e{n}"), "t", "s", TIME, json!({})));
    assert_eq!(lab.post(&json!([all, event("good", "t", "s", TIME, json!({}))])).await.unwrap().rejected.len(), 1);
    let replayed = lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap();
    assert_eq!((replayed.accepted, replayed.rejected.len()), (0, 1));
    assert_eq!(lab.number("count").await, "1");
    assert_eq!(lab.service.list_rejected(&Lab::caller(), Default::default()).await.unwrap().items.len(), 1);
}

/// 48 events of 240 KiB, half of which no Meter can count: two pages of 4 MiB of either.
#[tokio::test]
async fn pages_of_large_events_end_before_a_thousand() {
    let lab = Lab::new();
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let ids: Vec<String> = (0..48).map(|i| format!("e{i:02}")).collect();
    for (i, id) in ids.iter().enumerate() {
        let text = "x".repeat(240 << 10);
        let data = if i < 24 { json!({"text": text, "v": 1}) } else { json!({"text": text, "w": 1}) };
        let answer = lab.post(&json!([event(id, "t", "s", TIME, data)])).await;
        assert_eq!(answer.is_ok(), i < 24, "{answer:?}");
    }
    let (mut stored, mut rejected) = ((Vec::new(), 0), (Vec::new(), 0));
    let page = |token| Page { limit: Some(1_000), token };
    let mut next = None;
    loop {
        let listing = lab.service.list_events(&Lab::caller(), Default::default(), page(next)).await.unwrap();
        stored.0.extend(listing.items.into_iter().map(|event| event.id));
        stored.1 += 1;
        next = listing.next;
        if next.is_none() {
            break;
        }
    }
    loop {
        let listing = lab.service.list_rejected(&Lab::caller(), page(next)).await.unwrap();
        rejected.0.extend(listing.items.into_iter().filter_map(|reject| reject.id));
        rejected.1 += 1;
        next = listing.next;
        if next.is_none() {
            break;
        }
    }
    stored.0.sort();
    assert_eq!((stored.0.as_slice(), stored.1), (&ids[..24], 2));
    assert_eq!((rejected.0.as_slice(), rejected.1), (&ids[24..], 2));

    // A replay goes through all of them, too.
    let mut mended = meter.clone();
    mended.spec.value_property = Some("$.w".to_owned());
    mended.metadata.generation = Some(2);
    lab.settle(mended).await;
    assert_eq!(lab.service.replay_rejected(&Lab::caller(), vec![]).await.unwrap().accepted, 24);
    assert_eq!(lab.number("sum").await, "24");
}

#[tokio::test]
async fn what_was_stored_before_its_meter_and_has_no_value_is_listed_by_meter() {
    let lab = Lab::new();
    let uncounted = |meter: &'static str, subject: Option<&'static str>| {
        let filter = EventFilter {
            uncounted_by: Some(meter.to_owned()),
            subject: subject.map(str::to_owned),
            from: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            ..EventFilter::default()
        };
        let lab = &lab;
        async move {
            let (mut ids, mut page) = (Vec::new(), Page { limit: Some(2), token: None });
            loop {
                let listing = lab.service.list_events(&Lab::caller(), filter.clone(), page.clone()).await?;
                ids.extend(listing.items.into_iter().map(|event| event.id));
                page.token = listing.next;
                if page.token.is_none() {
                    break Ok::<_, Error>(ids);
                }
            }
        }
    };
    let events: Vec<Value> = (0..10)
        .map(|i| {
            let data = if i % 2 == 0 { json!({"v": "none"}) } else { json!({"v": i}) };
            event(&format!("e{i}"), if i < 8 { "t" } else { "other" }, if i < 4 { "a" } else { "b" }, TIME, data)
        })
        .collect();
    lab.post(&json!(events)).await.unwrap();
    let sum = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let count = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let (sum, count) = (lab.counted(sum).await, lab.counted(count).await);
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(sorted(uncounted("sum", None).await.unwrap()), ["e0", "e2", "e4", "e6"]);
    let counts = |meter: &Meter| meter.status.as_ref().map(|status| (status.events, status.uncounted_events)).unwrap();
    assert_eq!((counts(&sum), counts(&count)), ((Some(8), Some(4)), (Some(8), Some(0))), "the status says how many");
    assert_eq!(sorted(uncounted("sum", Some("b")).await.unwrap()), ["e4", "e6"]);
    assert_eq!(uncounted("count", None).await.unwrap(), [""; 0]);
    assert!(matches!(uncounted("no-such", None).await, Err(Error::NotFound(_))));

    // Who cancels them, or mends the Meter, has them counted or gone.
    lab.service.cancel_usage_events(&Lab::caller(), cancel(named(&["e0"]))).await.unwrap();
    assert_eq!(sorted(uncounted("sum", None).await.unwrap()), ["e2", "e4", "e6"]);
    let mut mended = sum.clone();
    mended.spec = spec("t", Aggregation::UniqueCount, Some("$.v"), &[]);
    mended.metadata.generation = Some(2);
    let mended = lab.settle(mended).await;
    assert_eq!(uncounted("sum", None).await.unwrap(), [""; 0]);
    let mended = lab.counted(mended).await;
    assert_eq!(counts(&mended), (Some(7), Some(0)), "all but the cancelled one");
}

#[tokio::test]
async fn two_gateways_that_get_one_identity_with_different_times_count_it_once() {
    let lab = Lab::new();
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let other = lab.another_gateway();
    // Each round is a race; the two posts of a round differ in time and subject, and so in their keys.
    for round in 0..30 {
        let batch = |subject: &str, time: &str| {
            let events: Vec<Value> = (0..20).map(|i| event(&format!("r{round}-{i}"), "t", subject, time, json!({"v": 1}))).collect();
            json!(events)
        };
        let (first, second) = (batch("a", "2026-01-01T00:00:00Z"), batch("b", "2026-02-01T00:00:00Z"));
        let (one, two) = tokio::join!(lab.post(&first), Lab::post_to(&other, &second));
        assert_eq!((one.unwrap().accepted, two.unwrap().accepted), (20, 20));
        assert_eq!(lab.number("sum").await, ((round + 1) * 20).to_string(), "after round {round}");
    }
    let raced: u64 = lab
        .warehouse
        .query(&format!(
            "SELECT count() FROM (SELECT id FROM {} GROUP BY id HAVING uniqExact(subject) > 1)",
            lab.warehouse.table("identities")
        ))
        .one()
        .await
        .unwrap();
    assert!(raced > 0, "no race happened: the test showed nothing");
    let events = lab.warehouse.table("events");
    let apart: u64 = lab
        .warehouse
        .query(&format!("SELECT count() FROM (SELECT id FROM {events} GROUP BY id HAVING uniqExact(subject, time) > 1)"))
        .one()
        .await
        .unwrap();
    assert_eq!(apart, 0, "an identity has rows under two keys");
    assert_eq!(
        lab.service
            .list_events(&Lab::caller(), Default::default(), kubemeter::metering::Page { limit: Some(1000), token: None })
            .await
            .unwrap()
            .items
            .len(),
        600
    );
}

#[tokio::test]
async fn a_gateway_knows_what_another_one_stored_whatever_was_merged_or_emptied() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let other = lab.another_gateway();
    let batch = |round: usize, subject: &str| {
        let events: Vec<Value> = (0..50).map(|i| event(&format!("r{round}-{i}"), "t", subject, TIME, json!({}))).collect();
        json!(events)
    };
    let (identities, copy) = (lab.warehouse.table(&lab.warehouse.topology().stored("identities")), lab.warehouse.table("copy"));
    let run = async |sql: String| lab.warehouse.run_ddl(&sql).await.unwrap();
    for round in 0..30 {
        Lab::post_to(&other, &batch(round, "a")).await.unwrap();
        if round % 3 == 0 {
            // Old blocks and new ones are in one part.
            run(format!("OPTIMIZE TABLE {identities} FINAL")).await;
        }
        lab.post(&batch(round, "b")).await.unwrap();
        Lab::post_to(&other, &batch(round / 2, "c")).await.unwrap();
        assert_eq!(lab.number("count").await, ((round + 1) * 50).to_string(), "after round {round}");
    }
    // Another table under the name of the old one, with the same numbers of blocks: what was known of that is void.
    run(format!("CREATE TABLE {copy} AS {identities}")).await;
    run(format!("INSERT INTO {copy} SELECT * FROM {identities}")).await;
    run(format!("EXCHANGE TABLES {copy} AND {identities}")).await;
    for round in 0..31 {
        lab.post(&batch(round, "d")).await.unwrap();
        Lab::post_to(&other, &batch(round, "e")).await.unwrap();
    }
    assert_eq!(lab.number("count").await, (31 * 50).to_string());
}

/// A database that an earlier version made has cancellations without the names of who made them.
#[tokio::test]
async fn cancellations_of_an_earlier_version_are_listed_and_go_on() {
    let lab = Lab::new();
    let (database, table) = (lab.warehouse.database(), lab.warehouse.table("cancellations"));
    let before = "namespace LowCardinality(String), cancellation UUID, created DateTime64(6, 'UTC'), reason String, cancelled UInt64, \
                  reverted Nullable(DateTime64(6, 'UTC')), version UInt64";
    for sql in [
        format!("CREATE DATABASE {database}"),
        format!("CREATE TABLE {table} ({before}) ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, cancellation)"),
        format!("INSERT INTO {table} SELECT 'shop', '0195d3a4-7c1f-7b6e-8a3c-0123456789ab', now64(6), 'old', 1, NULL, 0"),
    ] {
        lab.warehouse.run_ddl(&sql).await.unwrap();
    }
    let mut caller = Lab::caller();
    caller.name = Some("system:serviceaccount:shop:ann".to_owned());
    lab.post(&event("1", "a", "s", "2026-01-01T00:00:00Z", json!({}))).await.unwrap();
    let made = lab.service.cancel_usage_events(&caller, cancel(named(&["1"]))).await.unwrap().cancellation_id.unwrap();
    caller.name = Some("bob".to_owned());
    lab.service.revert_cancellation(&caller, made).await.unwrap();
    // Twice is once.
    caller.name = Some("eve".to_owned());
    lab.service.revert_cancellation(&caller, made).await.unwrap();
    let page = kubemeter::metering::Page { limit: Some(10), token: None };
    let listed = lab.service.list_cancellations(&caller, page).await.unwrap().items;
    let names: Vec<_> = listed.iter().map(|one| (one.reason.as_deref(), one.cancelled_by.as_deref(), one.reverted_by.as_deref())).collect();
    let new = (Some("test"), Some("system:serviceaccount:shop:ann"), Some("bob"));
    assert_eq!(names, [new, (Some("old"), None, None)]);
}
