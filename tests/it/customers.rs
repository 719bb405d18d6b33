//! Whose usage it is: subjects, their customers, and purging.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kubemeter::api::{Aggregation, Customer, CustomerDeletionPolicy, DeletionPolicy, Meter, MeterSpec};
use kubemeter::metering::{CancelRequest, CancelTarget, EventRef, Metering as _, UsageQuery};
use kubemeter::warehouse::note::TableNote;
use serde_json::{Value, json};

use crate::lab::{Lab, NAMESPACE, event, spec, total};
use crate::support::eventually;

const AGGREGATIONS: [(&str, Aggregation); 7] = [
    ("count", Aggregation::Count),
    ("sum", Aggregation::Sum),
    ("min", Aggregation::Min),
    ("max", Aggregation::Max),
    ("average", Aggregation::Average),
    ("unique", Aggregation::UniqueCount),
    ("latest", Aggregation::Latest),
];

fn grouped(by: &[&str]) -> UsageQuery {
    UsageQuery { group_by: by.iter().map(|name| (*name).to_owned()).collect(), ..total() }
}

fn of(customers: &[&str]) -> UsageQuery {
    UsageQuery { customers: customers.iter().map(|name| (*name).to_owned()).collect(), ..total() }
}

/// Usage per customer: who asks for one, whose subjects were others before, is told the same.
async fn by_customer(lab: &Lab, meter: &str) -> BTreeMap<String, String> {
    let rows = lab.usage(meter, grouped(&["customer"])).await.data;
    let names: Vec<_> = rows.iter().map(|row| row.customer.clone().unwrap()).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "ordered, and no customer twice: {names:?}");
    let all: BTreeMap<_, _> = rows.into_iter().map(|row| (row.customer.unwrap(), row.value)).collect();
    for customer in lab.customers.iter().map(|customer| customer.metadata.name.as_ref().unwrap()).chain(&names) {
        assert_eq!(value(lab, meter, of(&[customer])).await.as_ref(), all.get(customer), "{customer}");
    }
    all
}

fn ready(conditions: &[Condition]) -> (&str, &str) {
    conditions.iter().find(|c| c.type_ == "Ready").map(|c| (c.status.as_str(), c.reason.as_str())).unwrap()
}

/// One number, or none.
async fn value(lab: &Lab, meter: &str, query: UsageQuery) -> Option<String> {
    let usage = lab.usage(meter, query).await;
    assert!(usage.data.len() < 2);
    usage.data.first().map(|row| row.value.clone())
}

/// Ten values of each subject; those of even number are the same for all subjects.
async fn seven_meters(lab: &Lab, subjects: &[&str]) {
    for (name, aggregation) in AGGREGATIONS {
        let value = (aggregation != Aggregation::Count).then_some("$.v");
        lab.meter(name, spec("t", aggregation, value, &[("g", "$.g")])).await;
    }
    let mut events: Vec<Value> = Vec::new();
    for (s, subject) in subjects.iter().enumerate() {
        for n in 0..10 {
            let value = if n % 2 == 0 { format!("0.{n}") } else { format!("{}.{n}", 100 * s + 7) };
            let time = format!("2026-03-{:02}T0{}:00:00Z", 1 + (n * 7 + s * 3) % 28, s % 10);
            events.push(event(&format!("{subject}-{n}"), "t", subject, &time, json!({"v": value, "g": format!("g{}", n % 3)})));
        }
    }
    lab.post(&json!(events)).await.unwrap();
}

#[tokio::test]
async fn every_aggregation_is_the_same_by_customer_and_by_its_subjects() {
    let mut lab = Lab::new();
    seven_meters(&lab, &["a1", "a2", "b1", "alone", "lone"]).await;
    lab.customer("a", &["a1", "a2", "unused"]).await;
    lab.customer("b", &["b1"]).await;
    lab.customer("lone", &[]).await;
    for (meter, _) in AGGREGATIONS {
        let all = by_customer(&lab, meter).await;
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "alone", "b", "lone"], "{meter}");
        for (customer, subjects) in [("a", &["a1", "a2"] as &[&str]), ("b", &["b1"]), ("alone", &["alone"]), ("lone", &["lone"])] {
            let subjects = UsageQuery { subjects: subjects.iter().map(|s| (*s).to_owned()).collect(), ..total() };
            let expected = value(&lab, meter, subjects.clone()).await;
            assert_eq!(all.get(customer), expected.as_ref(), "{meter} of {customer}");
            assert_eq!(value(&lab, meter, of(&[customer])).await, expected, "{meter} filtered by {customer}");
            let both = UsageQuery { group_by: ["customer".to_owned()].into(), ..of(&[customer]) };
            assert_eq!(value(&lab, meter, both).await, expected, "{meter} filtered and grouped by {customer}");
            // By group and by window the same holds.
            let fine = |query: UsageQuery| UsageQuery { window_size: Some(kubemeter::metering::WindowSize::Day), ..query };
            let rows = |by: &[&str], query: &UsageQuery| fine(UsageQuery { group_by: grouped(by).group_by, ..query.clone() });
            let plain: Vec<_> = lab.usage(meter, rows(&["g"], &subjects)).await.data;
            let mapped: Vec<_> = lab.usage(meter, rows(&["g", "customer"], &of(&[customer]))).await.data;
            let strip = |rows: Vec<kubemeter::metering::UsageRow>| {
                rows.into_iter().map(|row| (row.window_start, row.window_end, row.group_by, row.value)).collect::<Vec<_>>()
            };
            assert!(!plain.is_empty());
            assert_eq!(strip(plain), strip(mapped), "{meter} of {customer} by day and group");
        }
        let by_both = lab.usage(meter, grouped(&["customer", "subject"])).await.data;
        let by_subject = lab.usage(meter, grouped(&["subject"])).await.data;
        let pairs =
            |rows: &[kubemeter::metering::UsageRow]| rows.iter().map(|r| (r.subject.clone(), r.value.clone())).collect::<BTreeMap<_, _>>();
        assert_eq!(pairs(&by_both), pairs(&by_subject), "{meter}");
        assert_eq!(by_both.len(), 5);
    }
    // Five values that both subjects share, and five of each alone.
    assert_eq!(by_customer(&lab, "unique").await["a"], "15");
    assert_eq!(value(&lab, "count", of(&["a", "b", "alone", "nobody"])).await.as_deref(), Some("40"));
    assert_eq!(value(&lab, "count", of(&["nobody"])).await, None);
    // A customer whose subjects are all other names is not asked for by a subject's name.
    assert_eq!(value(&lab, "count", of(&["a1"])).await, None);
}

#[tokio::test]
async fn a_subject_has_one_customer_the_oldest_and_may_move() {
    let mut lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let events: Vec<Value> = ["s", "s", "x", "x", "x", "y"]
        .iter()
        .enumerate()
        .map(|(n, subject)| event(&n.to_string(), "t", subject, "2026-03-04T05:06:07Z", json!({})))
        .collect();
    lab.post(&json!(events)).await.unwrap();
    let counts = |pairs: &[(&str, &str)]| pairs.iter().map(|(c, n)| ((*c).to_owned(), (*n).to_owned())).collect::<BTreeMap<_, _>>();

    let old = lab.customer("old", &["s"]).await;
    let young = lab.customer("young", &["s", "y"]).await;
    let told = lab.reconciler.customer(&young, &lab.customers).await.unwrap();
    assert_eq!(ready(&told.status.conditions), ("False", "SubjectConflict"));
    assert_eq!(by_customer(&lab, "count").await, counts(&[("old", "2"), ("x", "3"), ("young", "1")]));
    assert_eq!(value(&lab, "count", of(&["young"])).await.as_deref(), Some("1"));

    // Subject x is another customer's, named like a customer of its own whose subjects are others.
    lab.customer("x", &["z"]).await;
    assert_eq!(by_customer(&lab, "count").await["x"], "3", "nobody claims the subject x: it is the customer of its name");
    lab.customer("owner-of-x", &["x"]).await;
    assert_eq!(by_customer(&lab, "count").await, counts(&[("old", "2"), ("owner-of-x", "3"), ("young", "1")]));
    assert_eq!(value(&lab, "count", of(&["x"])).await, None);
    assert_eq!(value(&lab, "count", of(&["owner-of-x"])).await.as_deref(), Some("3"));

    // The older gives it up: it is the younger's, with its history.
    let mut moved = old.clone();
    moved.spec.subjects = vec!["elsewhere".to_owned()];
    lab.reconciler.customer(&moved, &lab.customers).await.unwrap();
    assert_eq!(by_customer(&lab, "count").await, counts(&[("owner-of-x", "3"), ("young", "3")]));
    // And back.
    lab.reconciler.customer(&old, &lab.customers).await.unwrap();
    assert_eq!(by_customer(&lab, "count").await, counts(&[("old", "2"), ("owner-of-x", "3"), ("young", "1")]));
    // Deleted with Retain: its subject is the next claimant's; with nobody left its own customer.
    lab.reconciler.forget_customer(&old).await.unwrap();
    assert_eq!(by_customer(&lab, "count").await["young"], "3");
    lab.reconciler.forget_customer(&young).await.unwrap();
    assert_eq!(by_customer(&lab, "count").await, counts(&[("owner-of-x", "3"), ("s", "2"), ("y", "1")]));
}

/// More than are named in a question.
#[tokio::test]
async fn customers_may_have_many_subjects() {
    let mut lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let subjects: Vec<String> = (0..1_100).map(|n| format!("s{n}")).collect();
    let sent = |subject: &String| event(subject, "t", subject, "2026-03-04T05:06:07Z", json!({}));
    lab.post(&json!(subjects.iter().map(sent).collect::<Vec<_>>())).await.unwrap();
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    lab.customer("few", &subjects[..10]).await;
    lab.customer("many", &subjects[10..610]).await;
    lab.customer("more", &subjects[610..1_050]).await;
    for _ in 0..2 {
        let mut counted = Vec::new();
        for customers in [&["few"][..], &["few", "many", "s1099"], &["many", "more"], &["few", "more", "many", "s1099"]] {
            counted.extend(value(&lab, "count", of(customers)).await);
        }
        assert_eq!(counted, ["10", "611", "1040", "1051"]);
    }
}

/// How many rows each table has of each subject, after its duplicates are gone.
async fn stored(lab: &Lab, tables: &[String]) -> BTreeMap<(String, String), u64> {
    let mut all = BTreeMap::new();
    for table in tables {
        // Claims are never repeated here, and their table has no FINAL.
        let last = if table == "identities" { "" } else { "FINAL" };
        let sql = format!("SELECT subject, count() FROM {} {last} GROUP BY subject", lab.warehouse.table(table));
        let rows: Vec<(String, u64)> = lab.warehouse.query(&sql).rows().await.unwrap();
        all.extend(rows.into_iter().map(|(subject, count)| ((table.clone(), subject), count)));
    }
    all
}

fn table(meter: &Meter) -> String {
    meter.status.as_ref().unwrap().active.as_ref().unwrap().table.clone()
}

#[tokio::test]
async fn purging_a_customer_takes_all_of_it_from_every_table_and_nothing_of_others() {
    let mut lab = Lab::new();
    let retained = MeterSpec { deletion_policy: DeletionPolicy::Retain, ..spec("t", Aggregation::Sum, Some("$.v"), &[]) };
    let gone = lab.meter("gone", retained).await;
    let live = lab.meter("live", spec("t", Aggregation::Count, None, &[])).await;
    let subjects = ["p1", "p2", "it's \\ 😀", "other", "purged", "elder"];
    let events: Vec<Value> = subjects
        .iter()
        .flat_map(|subject| {
            (0..20).map(move |n| {
                event(&format!("{subject}{n}"), "t", subject, &format!("2026-{:02}-04T05:06:07Z", 1 + n % 12), json!({"v": 1}))
            })
        })
        .collect();
    lab.post(&json!(events)).await.unwrap();
    let cancel = |subject: &str| {
        let events = vec![EventRef { source: "test".to_owned(), id: format!("{subject}0") }];
        CancelRequest { target: CancelTarget::Events(events), reason: None, dry_run: false }
    };
    for subject in ["p1", "other"] {
        lab.service.cancel_usage_events(&Lab::caller(), cancel(subject)).await.unwrap();
    }
    lab.reconciler.forget_meter(&gone).await.unwrap();
    lab.catalog.remove_meter(NAMESPACE, "gone");
    lab.customer("older", &["elder"]).await;
    let mut purged = lab.customer("purged", &["p1", "p2", "it's \\ 😀", "elder"]).await;
    purged.spec.deletion_policy = CustomerDeletionPolicy::Purge;

    let tables =
        ["events", "identities", "cancelled_events"].map(str::to_owned).into_iter().chain([table(&gone), table(&live)]).collect::<Vec<_>>();
    let before = stored(&lab, &tables).await;
    assert_eq!(before.len(), 6 * 4 + 2, "every subject is in every table");
    lab.reconciler.forget_customer(&purged).await.unwrap();
    let after = stored(&lab, &tables).await;
    // Events of a subject that is the customer's name and nobody else's are the customer's, too.
    let kept = |subject: &str| !["p1", "p2", "it's \\ 😀", "purged"].contains(&subject);
    assert_eq!(after, before.into_iter().filter(|((_, subject), _)| kept(subject)).collect());
    // It may run again, and what is sent after it counts anew.
    lab.reconciler.forget_customer(&purged).await.unwrap();
    lab.post(&json!([events[0], events[20]])).await.unwrap();
    assert_eq!(stored(&lab, &tables).await[&("events".to_owned(), "p1".to_owned())], 1);
    assert_eq!(value(&lab, "live", UsageQuery { subjects: vec!["p1".to_owned(), "p2".to_owned()], ..total() }).await.as_deref(), Some("2"));
}

/// Ids of the events of a subject that a table has, each with how many rows it has after duplicates are gone.
async fn ids(lab: &Lab, table: &str, subject: &str) -> BTreeMap<u128, u64> {
    let last = if table == "identities" { "" } else { "FINAL" };
    let sql = format!("SELECT id, count() FROM {} {last} WHERE subject = {{subject:String}} GROUP BY id", lab.warehouse.table(table));
    lab.warehouse.query(&sql).bind("subject", subject).rows().await.unwrap().into_iter().collect()
}

#[tokio::test]
async fn an_event_that_comes_while_its_customer_is_purged_is_in_all_tables_or_in_none() {
    let mut lab = Lab::new();
    let meters =
        [lab.meter("a", spec("t", Aggregation::Count, None, &[])).await, lab.meter("b", spec("t", Aggregation::Count, None, &[])).await];
    let mut purged = lab.customer("purged", &["p"]).await;
    purged.spec.deletion_policy = CustomerDeletionPolicy::Purge;
    let gateways = [lab.another_gateway(), lab.another_gateway()];
    let sent = |n: usize, time: &str| event(&format!("e{n}"), "t", "p", time, json!({}));
    let (ended, came, posters) = (AtomicBool::new(false), AtomicUsize::new(0), 6);
    let post = async |poster: usize| {
        for n in (poster..).step_by(posters) {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let time = format!("2026-{:02}-04T05:06:07Z", 1 + n % 3);
            // What was refused meanwhile is sent again below.
            let _ = Lab::post_to(&gateways[poster % 2], &sent(n, &time)).await;
            // Again, perhaps when its claim has gone, and with another time.
            let _ = Lab::post_to(&gateways[(poster + 1) % 2], &sent(n.saturating_sub(posters), "2026-06-04T05:06:07Z")).await;
            came.fetch_max(n + 1, Ordering::Relaxed);
        }
    };
    let purge = async {
        for turn in 1..=4 {
            eventually("events have come", async || (came.load(Ordering::Relaxed) > turn * 60).then_some(())).await;
            lab.reconciler.forget_customer(&purged).await.unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    };
    tokio::join!(purge, futures::future::join_all((0..posters).map(post)));

    let stored = ids(&lab, "events", "p").await;
    assert!(stored.len() < came.load(Ordering::Relaxed), "nothing was purged");
    for table in ["identities".to_owned(), table(&meters[0]), table(&meters[1])] {
        let others = ids(&lab, &table, "p").await;
        let differ: Vec<_> = stored.iter().filter(|(id, _)| !others.contains_key(id)).collect();
        let more: Vec<_> = others.iter().filter(|(id, count)| stored.get(id) != Some(count)).collect();
        assert!(differ.is_empty(), "{} events are not in {table}", differ.len());
        assert!(more.is_empty() || table == "identities", "{} events are in {table} and not in events", more.len());
    }
    assert_eq!(lab.number("a").await, stored.len().to_string());
    // Sent again, with other times, each counts once.
    let came = came.load(Ordering::Relaxed);
    let again: Vec<Value> = (0..came).map(|n| sent(n, "2026-07-04T05:06:07Z")).collect();
    for again in again.chunks(500) {
        lab.post(&json!(again)).await.unwrap();
    }
    for meter in ["a", "b"] {
        assert_eq!(lab.number(meter).await, came.to_string());
    }
}

#[tokio::test]
async fn purging_stays_within_its_namespace() {
    let mut lab = Lab::new();
    let live = lab.meter("live", spec("t", Aggregation::Count, None, &[])).await;
    lab.post(&event("e", "t", "p", "2026-03-04T05:06:07Z", json!({}))).await.unwrap();
    let mut elsewhere: Customer = lab.customer("p", &[]).await;
    elsewhere.metadata.namespace = Some("elsewhere".to_owned());
    elsewhere.spec.deletion_policy = CustomerDeletionPolicy::Purge;
    lab.reconciler.forget_customer(&elsewhere).await.unwrap();
    assert_eq!(lab.number("live").await, "1");
    let note: Vec<(String, String)> = lab.warehouse.tables_with_prefix(&table(&live)).await.unwrap();
    assert!(note.iter().any(|(_, comment)| serde_json::from_str::<TableNote>(comment).is_ok()));
}
