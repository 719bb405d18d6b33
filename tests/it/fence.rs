//! What a purge shuts out, what it lets in, and what becomes of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kubemeter::api::Aggregation;
use kubemeter::metering::Error;
use kubemeter::reconcile::Reconciler;
use kubemeter::warehouse::schema::Landings;
use kubemeter::warehouse::{Cluster, Topology, WarehouseOptions};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::lab::{Lab, NAMESPACE, event, new_database, options, shards_of, spec};
use crate::support::{ClickHouse, eventually};
use crate::way::{Asked, BEGINS_WITH, LATER, TIME, Way, lab, until_read, without_begun};

/// As the operator purges the Customer of subject `s`.
async fn purge(lab: &Lab) {
    lab.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.unwrap();
}

/// The same database by another way.
async fn by(way: &Way, lab: &Lab) -> Lab {
    let mut to = WarehouseOptions { url: way.to(ClickHouse::shared().url()).await, ..lab.options.clone() };
    if let Topology::Cluster(cluster) = &lab.options.topology {
        let shards = ClickHouse::shared_shards();
        to.url = way.to(shards[0].url()).await;
        let nodes = futures::future::join_all(shards.iter().map(|shard| way.to(shard.url()))).await;
        to.topology = Topology::Cluster(Cluster::new(cluster.name().to_owned(), None, nodes).unwrap());
    }
    Lab::with(&to)
}

fn sent(time: &str) -> Value {
    event("e", "t", "s", time, json!({}))
}

/// Posts events again until they are taken: what a gateway knows of fences it read during a purge, perhaps.
async fn let_in(lab: &Lab, events: &Value) {
    eventually("it is let in", async || lab.post(events).await.ok()).await;
}

async fn forget_event(lab: &Lab) {
    lab.warehouse.run_ddl(&format!("ALTER TABLE {} DELETE WHERE event_id = 'e'", lab.warehouse.table("events"))).await.unwrap();
}

/// The event is claimed and not stored; and who purges its subject, held up when it is about to remove claims until it is told to.
async fn claimed_and_not_stored(way: &Way) -> (Lab, Lab, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let (lab, purging_way) = (without_begun(way, &new_database()).await, Way::default());
    lab.post(&sent(TIME)).await.unwrap();
    forget_event(&lab).await;
    let (removes, remove) = purging_way.hold(Asked::Removal);
    let purging = by(&purging_way, &lab).await;
    (lab, purging, removes, remove)
}

/// The event counts once, in a Meter from before and in a new one, and has one key.
async fn counts_once(lab: &Lab) {
    counts_once_in(lab, &["count", "all"]).await;
}

async fn counts_once_in(lab: &Lab, meters: &[&str]) {
    lab.meter("all", spec("t", Aggregation::Count, None, &[])).await;
    for meter in meters {
        assert_eq!(lab.number(meter).await, "1", "{meter}");
    }
    let keys = format!("SELECT uniqExact(subject, time) FROM {} WHERE event_id = 'e'", lab.warehouse.table("events"));
    assert_eq!(lab.warehouse.query(&keys).one::<u64>().await.unwrap(), 1, "one identity, one key");
}

/// Posts events of subject `s` and holds the first statement of a kind up until the subject is purged. They are refused; sent again, with
/// another time, they count once.
async fn shuts_out(lab: &Lab, way: &Way, of: Asked, sent: impl Fn(&str) -> Value) {
    let purging = by(&Way::default(), lab).await;
    let (comes, go) = way.hold(of);
    let purged = async {
        comes.await.unwrap();
        purge(&purging).await;
        go.send(()).unwrap();
    };
    let first = sent(TIME);
    let (posted, ()) = tokio::join!(lab.post(&first), purged);
    let refused = posted.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { message, .. } if message.contains("a purge")), "{refused}");
    assert_eq!(lab.number("count").await, "0", "nothing is stored under a claim that is gone");
    // The next time it is let in.
    lab.post(&sent(LATER)).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_that_was_decided_on_before_a_purge_is_refused_after_it() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    until_read(&lab, &way, || true).await;
    purge(&lab).await;
    shuts_out(&lab, &way, Asked::Landing, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_that_was_decided_on_in_a_database_that_was_made_anew_since_is_refused() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    until_read(&lab, &way, || true).await;
    let other = by(&Way::default(), &lab).await;
    let (comes, go) = way.hold(Asked::Landing);
    let made_anew = async {
        comes.await.unwrap();
        other.warehouse.run_ddl(&format!("DROP DATABASE {} SYNC", other.warehouse.database())).await.unwrap();
        let_in(&other, &sent(LATER)).await;
        go.send(()).unwrap();
    };
    let first = sent(TIME);
    let (posted, ()) = tokio::join!(lab.post(&first), made_anew);
    posted.unwrap_err();
    counts_once_in(&other, &["all"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_of_a_gateway_that_has_not_read_what_is_claimed_is_refused() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    shuts_out(&lab, &way, Asked::Landing, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserts_of_a_round_of_many_types_are_refused() {
    let way = Way::default();
    let lab = lab(&way).await;
    purge(&lab).await;
    let types = ["t", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];
    let sent = |types: &[&str], subject: &str, time: &str| -> Value {
        types.iter().map(|of| event(&format!("{of} of {subject}"), of, subject, time, json!({}))).collect()
    };
    // Of so many, whose tables there are by now, none is begun beside its claim.
    lab.post(&sent(&types[1..], "other", TIME)).await.unwrap();
    // The first of them is held up: of the others some came before the purge, which took them.
    shuts_out(&lab, &way, Asked::Landing, |time| sent(&types, "s", time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_to_be_completed_before_a_purge_is_refused() {
    let way = Way::default();
    let lab = lab(&way).await;
    purge(&lab).await;
    lab.post(&sent(TIME)).await.unwrap();
    forget_event(&lab).await;
    shuts_out(&lab, &way, Asked::Completed, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_refuse_what_was_decided_on_before_a_purge() {
    let (way, shards) = (Way::default(), ClickHouse::shared_shards());
    let lab = Lab::with(&options(&way.to(shards[0].url()).await, &new_database(), shards_of(shards)));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    shuts_out(&lab, &way, Asked::Landing, sent).await;
}

/// An INSERT that has begun was let in: a purge waits for it, and then takes its event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_for_an_insert_that_was_let_in() {
    let (way, purging_way) = (Way::default(), Way::default());
    let lab = lab(&way).await;
    let purging = by(&purging_way, &lab).await;
    let (comes, go) = way.hold(Asked::Look);
    let has_purged = AtomicBool::new(false);
    let purged = async {
        comes.await.unwrap();
        assert!(way.has_begun());
        purge(&purging).await;
        has_purged.store(true, Ordering::SeqCst);
    };
    let waited = async {
        let waits = async || (has_purged.load(Ordering::SeqCst) || purging_way.has_purge_that_waits()).then_some(());
        eventually("the purge waits, or doesn't", waits).await;
        assert!(!has_purged.load(Ordering::SeqCst), "it waits for what runs");
        go.send(()).unwrap();
    };
    way.forget();
    let first = sent(TIME);
    let (posted, (), ()) = tokio::join!(lab.post(&first), purged, waited);
    assert_eq!(posted.unwrap().accepted, 1);
    assert_eq!(lab.number("count").await, "0", "it came before the purge");
    // What the gateway knows of fences it read before the purge, perhaps.
    let_in(&lab, &sent(LATER)).await;
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_leaves_claims_that_came_since_it_began() {
    let (way, purging_way) = (Way::that_refuses(BEGINS_WITH), Way::default());
    let lab = without_begun(&way, &new_database()).await;
    let (purging, other) = (by(&purging_way, &lab).await, by(&Way::default(), &lab).await);
    let ((removes, remove), (lands, land)) = (purging_way.hold(Asked::Removal), way.hold(Asked::Landing));
    // Claimed when the purge is about to remove claims, and stored when it has ended.
    let posted = async {
        removes.await.unwrap();
        lab.post(&sent(TIME)).await
    };
    let purged = async {
        let claimed = async {
            lands.await.unwrap();
            remove.send(()).unwrap();
        };
        tokio::join!(purge(&purging), claimed);
        let_in(&other, &sent(LATER)).await;
        land.send(()).unwrap();
    };
    let (posted, ()) = tokio::join!(posted, purged);
    posted.unwrap();
    counts_once(&lab).await;
}

/// Of an operator that was cut off: another has done the whole of it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_comes_late_removes_nothing() {
    let lab = lab(&Way::default()).await;
    lab.post(&sent(TIME)).await.unwrap();
    for removal in 0..4 {
        let purging_way = Way::default();
        let (purging, other) = (by(&purging_way, &lab).await, by(&Way::default(), &lab).await);
        let mut held = purging_way.hold(Asked::OtherRemoval);
        let overtaken = async {
            // Three are of `events`, then one of the Meter.
            for _ in 0..removal {
                (&mut held.0).await.unwrap();
                let (_, go) = std::mem::replace(&mut held, purging_way.hold(Asked::OtherRemoval));
                go.send(()).unwrap();
            }
            (&mut held.0).await.unwrap();
            purge(&other).await;
            let_in(&lab, &sent(LATER)).await;
            held.1.send(()).unwrap();
        };
        let (late, ()) = tokio::join!(purging.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)), overtaken);
        assert!(late.is_err(), "another purge has begun since");
        counts_once_in(&lab, &["count"]).await;
    }
}

/// While a purge runs the claim of another may go at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_completed_while_a_purge_runs_is_claimed_anew() {
    let (lab, purging, removes, remove) = claimed_and_not_stored(&Way::that_refuses(BEGINS_WITH)).await;
    let other = by(&Way::default(), &lab).await;
    let completed = async {
        removes.await.unwrap();
        lab.post(&sent(LATER)).await.unwrap();
        remove.send(()).unwrap();
    };
    tokio::join!(purge(&purging), completed);
    let_in(&other, &sent("2026-06-04T05:06:07Z")).await;
    counts_once(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_completed_while_a_purge_runs_gives_way_to_who_claimed_it_meanwhile() {
    let way = Way::that_refuses(BEGINS_WITH);
    let (lab, purging, removes, remove) = claimed_and_not_stored(&way).await;
    let (other, (comes, go)) = (by(&Way::default(), &lab).await, way.hold(Asked::Claims));
    let completed = async {
        removes.await.unwrap();
        lab.post(&sent("2026-06-04T05:06:07Z")).await
    };
    let purged = async {
        // Its claim is on the way when the first one goes.
        let claims = async {
            comes.await.unwrap();
            remove.send(()).unwrap();
        };
        tokio::join!(purge(&purging), claims);
        let_in(&other, &sent(LATER)).await;
        go.send(()).unwrap();
    };
    let (posted, ()) = tokio::join!(completed, purged);
    assert!(matches!(posted.unwrap_err(), Error::Unavailable { .. }), "its claims have two keys");
    let_in(&lab, &sent("2026-06-04T05:06:07Z")).await;
    counts_once(&lab).await;
}

/// Of claims with different keys nobody knows which will be the first when the purge has removed those from before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_claims_of_two_keys_waits_until_the_purge_has_ended() {
    let (lab, purging, removes, remove) = claimed_and_not_stored(&Way::that_refuses(BEGINS_WITH)).await;
    let posted = async {
        removes.await.unwrap();
        let identities = lab.warehouse.table("identities");
        // As of a gateway that had not heard of the first claim.
        let claim = format!(
            "INSERT INTO {identities} SELECT id, namespace, type, subject, time + INTERVAL 1 DAY FROM {identities} WHERE subject = 's' LIMIT 1"
        );
        lab.warehouse.run_ddl(&claim).await.unwrap();
        let both = json!([sent(LATER), event("other", "t", "other", TIME, json!({}))]);
        let one = event("alone", "t", "other", TIME, json!({}));
        let (alone, refused) = tokio::join!(lab.post(&one), lab.post(&both));
        assert!(matches!(refused.unwrap_err(), Error::Unavailable { .. }));
        assert_eq!(alone.unwrap().accepted, 1, "others of its round are told nothing");
        remove.send(()).unwrap();
    };
    tokio::join!(purge(&purging), posted);
    assert_eq!(lab.number("count").await, "2");
    let both = json!([sent(LATER), event("other", "t", "other", TIME, json!({}))]);
    let_in(&lab, &both).await;
    assert_eq!(lab.number("count").await, "3");
    let keys = format!("SELECT uniqExact(subject, time) FROM {} WHERE event_id = 'e'", lab.warehouse.table("events"));
    assert_eq!(lab.warehouse.query(&keys).one::<u64>().await.unwrap(), 1, "one identity, one key");
}

/// What was stored from before by a statement that had read it keeps a claim.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_again_while_a_purge_runs_is_claimed() {
    let purging_way = Way::default();
    let lab = without_begun(&Way::that_refuses(BEGINS_WITH), &new_database()).await;
    let purging = by(&purging_way, &lab).await;
    lab.post(&sent(TIME)).await.unwrap();
    let (events, kept) = (lab.warehouse.table("events"), lab.warehouse.table("kept"));
    for sql in [format!("CREATE TABLE {kept} AS {events}"), format!("INSERT INTO {kept} SELECT * FROM {events} WHERE event_id = 'e'")] {
        lab.warehouse.run_ddl(&sql).await.unwrap();
    }
    let (stored, store) = purging_way.hold(Asked::Claims);
    let mut purge = std::pin::pin!(purge(&purging));
    tokio::select! {
        () = &mut purge => panic!("it has not claimed what is stored"),
        came = stored => came.unwrap(),
    }
    // When `events` was cleared for the last time, and before the purge claims what is there.
    lab.warehouse.run_ddl(&format!("INSERT INTO {events} SELECT * FROM {kept}")).await.unwrap();
    store.send(()).unwrap();
    purge.await;
    let_in(&lab, &sent(LATER)).await;
    counts_once(&lab).await;
}

/// An INSERT may have its row in a Meter's table, from where it is removed, and none in `events` yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_for_inserts_that_began_before_it_cleared_tables() {
    let (way, purging_way) = (Way::default(), Way::default());
    let lab = lab(&way).await;
    let purging = by(&purging_way, &lab).await;
    let (removes, remove) = purging_way.hold(Asked::Removal);
    let has_purged = AtomicBool::new(false);
    let first = sent(TIME);
    let purged = async {
        purge(&purging).await;
        has_purged.store(true, Ordering::SeqCst);
    };
    let waited = async {
        removes.await.unwrap();
        // The next look is that of the post below: one of an idle gateway comes two seconds after this.
        lab.post(&event("before", "another", "another", TIME, json!({}))).await.unwrap();
        let (comes, go) = way.hold(Asked::Look);
        let goes_on = async {
            comes.await.unwrap();
            assert!(way.has_begun());
            remove.send(()).unwrap();
            let waits = async || (has_purged.load(Ordering::SeqCst) || purging_way.has_purge_that_waits()).then_some(());
            eventually("the purge waits, or doesn't", waits).await;
            assert!(!has_purged.load(Ordering::SeqCst), "it waits for what runs");
            go.send(()).unwrap();
        };
        way.forget();
        tokio::join!(lab.post(&first), goes_on).0.unwrap();
    };
    tokio::join!(purged, waited);
    counts_once(&lab).await;
}

/// A ClickHouse that takes claims and no events shall not fill its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_what_can_not_be_stored_while_a_purge_runs_are_bounded() {
    let purging_way = Way::default();
    let lab = without_begun(&Way::that_refuses(BEGINS_WITH), &new_database()).await;
    let purging = by(&purging_way, &lab).await;
    let (events, identities) = (lab.warehouse.table("events"), lab.warehouse.table("identities"));
    let (removes, remove) = purging_way.hold(Asked::Removal);
    let posted = async {
        removes.await.unwrap();
        lab.warehouse.run_ddl(&format!("ALTER TABLE {events} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
        // By a gateway that goes at once: it would go on with it, and come to its end without the constraint.
        Lab::post_to(&lab.another_gateway(), &sent(TIME)).await.unwrap_err();
        let mut last = None;
        for _ in 0..9 {
            last = Some(lab.post(&sent(TIME)).await.unwrap_err());
        }
        assert!(matches!(last, Some(Error::Unavailable { .. })), "told to come again: {last:?}");
        let claims: u64 = lab.warehouse.query(&format!("SELECT count() FROM {identities} WHERE subject = 's'")).one().await.unwrap();
        assert_eq!(claims, 8);
        lab.warehouse.run_ddl(&format!("ALTER TABLE {events} DROP CONSTRAINT broken")).await.unwrap();
        lab.post(&sent(TIME)).await.unwrap_err();
        remove.send(()).unwrap();
    };
    tokio::join!(purge(&purging), posted);
    let_in(&lab, &sent(TIME)).await;
    lab.post(&sent(LATER)).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

/// Events of others come meanwhile, and nobody is told anything of it.
async fn gateways_go_on(lab: Lab) {
    let lab = Arc::new(lab);
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let gateways = [lab.another_gateway(), lab.another_gateway()];
    let has_purged = AtomicBool::new(false);
    let purged = async {
        for _ in 0..3 {
            purge(&lab).await;
        }
        has_purged.store(true, Ordering::SeqCst);
    };
    // One posts all the time, the other seldom.
    let post = async |number: usize, pause: Duration| {
        let (mut posted, mut last) = (0, Instant::now());
        while !has_purged.load(Ordering::SeqCst) {
            let began = Instant::now();
            let sent = event(&format!("{number} {posted}"), "t", "other", TIME, json!({}));
            match Lab::post_to(&gateways[number], &sent).await {
                Ok(_) => posted += 1,
                // Where the machine stood still it has not looked for as long as a purge waits.
                Err(why) => assert!(last.elapsed() > Duration::from_millis(2_500), "{why}"),
            }
            last = began;
            tokio::time::sleep(pause).await;
        }
        posted
    };
    let ((), often, seldom) = tokio::join!(purged, post(0, Duration::from_millis(1)), post(1, Duration::from_millis(900)));
    assert!(often > seldom && seldom > 2, "{often} {seldom}");
    assert_eq!(lab.number("count").await, (often + seldom).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_answer_go_on_while_subjects_are_purged() {
    gateways_go_on(Lab::on(ClickHouse::shared().url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_of_shards_go_on_while_subjects_are_purged() {
    gateways_go_on(Lab::on_shards(ClickHouse::shared_shards())).await;
}

/// Gateways and purges whose statements are held up for longer than a purge waits for gateways, or cut off, at random; purges that end in the
/// middle. Sent again, with other times, every event counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_held_up_or_cut_off_while_subjects_are_purged_every_event_counts_once() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let database = new_database();
    let ways = [Way::default(), Way::default(), Way::default()];
    let to = |way: Way| {
        let database = database.clone();
        async move { Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &database, Topology::Single)) }
    };
    let labs = futures::future::join_all(ways.iter().map(|way| to(way.clone()))).await;
    let [first, second, purging] = &labs[..] else { panic!("three") };
    for lab in [first, second] {
        lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    }
    ways.iter().zip(seed..).for_each(|(way, seed)| way.trouble(seed));
    let (has_purged, came) = (AtomicBool::new(false), AtomicUsize::new(0));
    let sent = |n: usize, month: usize| event(&format!("e{n}"), "t", "s", &format!("2026-{month:02}-04T05:06:07Z"), json!({}));
    let posted = async |poster: usize| {
        let mut rng = fastrand::Rng::with_seed(seed ^ poster as u64);
        while !has_purged.load(Ordering::SeqCst) {
            // A new one, or one that has come: stored by now, or claimed, or purged, or on its way by the other gateway.
            let n = if rng.bool() { came.fetch_add(1, Ordering::SeqCst) } else { rng.usize(0..came.load(Ordering::SeqCst).max(1)) };
            let of = if rng.bool() { first } else { second };
            let _ = tokio::time::timeout(Duration::from_secs(8), of.post(&sent(n, rng.usize(1..9)))).await;
        }
    };
    let purged = async {
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..6 {
            let within = Duration::from_millis(rng.u64(500..12_000));
            let _ = tokio::time::timeout(within, purging.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60))).await;
        }
        has_purged.store(true, Ordering::SeqCst);
    };
    tokio::join!(purged, futures::future::join_all((0..6).map(posted)));
    ways.iter().for_each(Way::calm);
    let came = came.into_inner();
    assert!(came > 5, "{came} events came");
    let post_all = async |month: usize| {
        let all: Value = (0..came).map(|n| sent(n, month)).collect();
        let_in(second, &all).await;
    };
    eventually("the purges are taken for ended", async || {
        purging.warehouse.mend_fence().await.unwrap();
        (!first.warehouse.fence().await.unwrap().is_purging).then_some(())
    })
    .await;
    post_all(10).await;
    for lab in [first, second] {
        assert_eq!(lab.number("count").await, came.to_string(), "seed {seed}");
    }
    let keys = format!("SELECT count() FROM (SELECT DISTINCT id, subject, time FROM {})", first.warehouse.table("events"));
    assert_eq!(first.warehouse.query(&keys).one::<u64>().await.unwrap(), came as u64, "one identity, one key; seed {seed}");
    // A purge takes all, whatever was left over.
    eventually("the purge ends", async || purging.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.ok()).await;
    assert_eq!(first.number("count").await, "0", "seed {seed}");
    post_all(11).await;
    assert_eq!(first.number("count").await, came.to_string(), "seed {seed}");
}

/// Of two operators for a moment, say: each ends, or is told to begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_of_two_processes_at_a_time_leave_tables_that_take_events() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let purge_until_done = async |purging: &Lab| {
        while purging.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.is_err() {
            // Not both at the same time again.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..9_000))).await;
        }
    };
    let others = [by(&Way::default(), &lab).await, by(&Way::default(), &lab).await];
    tokio::join!(purge_until_done(&others[0]), purge_until_done(&others[1]));
    let_in(&lab, &sent(TIME)).await;
    assert_eq!(lab.number("count").await, "1");
    assert!(!lab.warehouse.fence().await.unwrap().is_purging);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_nothing_says_nothing() {
    let lab = Lab::new();
    lab.warehouse.ensure_bootstrap().await.unwrap();
    let before = lab.warehouse.fence().await.unwrap();
    lab.warehouse.purge(NAMESPACE, &[], Duration::from_secs(60)).await.unwrap();
    assert_eq!(lab.warehouse.fence().await.unwrap(), before);
}

/// Until then what was claimed and not stored would be claimed again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_was_given_up_is_taken_for_ended_by_the_operator() {
    let purging_way = Way::default();
    let lab = Lab::new();
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let purging = by(&purging_way, &lab).await;
    let (removes, _remove) = purging_way.hold(Asked::Removal);
    tokio::select! {
        () = purge(&purging) => panic!("it is held up"),
        came = removes => came.unwrap(),
    }
    assert!(lab.warehouse.fence().await.unwrap().is_purging);
    Reconciler::new(lab.warehouse.clone()).meter(&meter).await.unwrap();
    assert!(!lab.warehouse.fence().await.unwrap().is_purging);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn landing_tables_that_do_not_know_the_fence_are_mended_when_an_operator_begins() {
    let lab = Lab::new();
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab.post(&event("first", "t", "s", TIME, json!({}))).await.unwrap();
    let landing = Landings::NEW.table(kubemeter::warehouse::schema::Landing::of(NAMESPACE, "t"));
    let column = lab.warehouse.fence().await.unwrap().column();
    let topology = lab.warehouse.topology();
    for table in std::collections::BTreeSet::from([topology.stored(&landing), landing]) {
        lab.warehouse.run_ddl(&format!("ALTER TABLE {} DROP COLUMN {column}", lab.warehouse.table(&table))).await.unwrap();
    }
    let refused = lab.post(&sent(TIME)).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    Reconciler::new(lab.warehouse.clone()).meter(&meter).await.unwrap();
    // Another one: what was claimed goes another way.
    lab.post(&json!([sent(TIME), event("other", "t", "s", TIME, json!({}))])).await.unwrap();
    assert_eq!(lab.number("count").await, "3");
}

/// As a build without fences made it: the first process of this build gives it one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_fences_gets_one() {
    let old = Lab::new();
    let meter = old.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    old.post(&event("first", "t", "s", TIME, json!({}))).await.unwrap();
    let (landing, column) =
        (Landings::NEW.table(kubemeter::warehouse::schema::Landing::of(NAMESPACE, "t")), old.warehouse.fence().await.unwrap().column());
    let topology = old.warehouse.topology();
    let mut all = vec![format!("ALTER TABLE {} MODIFY COMMENT ''", old.warehouse.table("identities"))];
    for table in std::collections::BTreeSet::from([topology.stored(&landing), landing]) {
        all.push(format!("ALTER TABLE {} DROP COLUMN {column}", old.warehouse.table(&table)));
    }
    for table in ["completed_events", "completed"] {
        all.extend(topology.drop(old.warehouse.database(), table));
    }
    old.warehouse.run_all_ddl(&all).await.unwrap();
    let lab = Lab::with(&old.options);
    // A gateway alone: an operator would mend it, too.
    lab.catalog.put_meter(&meter);
    lab.post(&sent(TIME)).await.unwrap();
    assert_eq!(lab.number("count").await, "2");
    purge(&lab).await;
    assert_eq!(lab.number("count").await, "0");
    lab.post(&sent(LATER)).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}
