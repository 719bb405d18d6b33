//! INSERTs that are begun beside the claims: when there are any, and that none takes rows where they would be lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubemeter::api::Aggregation;
use kubemeter::warehouse::{Cluster, IdentityPart, Topology, WarehouseOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::lab::{Lab, NAMESPACE, event, new_database, options, shards_of, spec};
use crate::support::{ClickHouse, eventually};

const TIME: &str = "2026-03-04T05:06:07Z";
const LATER: &str = "2026-05-04T05:06:07Z";

/// What no INSERT is begun without, nor a lease.
const BEGINS_WITH: &str = "max_query_size";

/// What a gateway asks of ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Landing,
    Claims,
    Look,
    /// Which table the look is at: asked at the same time.
    Table,
    /// Which keys identities have: not asked of new ones by a gateway that has read what is claimed.
    Keys,
    /// To remove claims.
    Removal,
    /// To remove something else.
    OtherRemoval,
    /// What runs, to wait for it.
    Running,
}

/// Tells that something came, and waits until it may go on.
type Hold = (oneshot::Sender<()>, oneshot::Receiver<()>);

/// A way to ClickHouse that tells what passes, and holds something up until something else is done.
#[derive(Clone, Default)]
struct Way {
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Taken by the next of its kind: that passes when the other end of both was used.
    held: Arc<Mutex<Option<(Asked, Hold)>>>,
    /// A setting that ClickHouse doesn't know here, as where its user may not set it.
    refuses: Arc<Mutex<Option<&'static str>>>,
}

impl Way {
    fn that_refuses(setting: &'static str) -> Self {
        Self { refuses: Arc::new(Mutex::new(Some(setting))), ..Self::default() }
    }

    /// Where it begins.
    async fn to(&self, url: &str) -> String {
        let to = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let from = format!("http://{}", listener.local_addr().unwrap());
        let way = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(way.clone().pass(client, server));
            }
        });
        from
    }

    async fn pass(self, client: TcpStream, server: TcpStream) {
        let ((mut client, mut answers), (mut server_answers, mut server)) = (client.into_split(), server.into_split());
        let back = tokio::spawn(async move { copy(&mut server_answers, &mut answers).await });
        let mut buffer = vec![0; 64 * 1_024];
        while let Ok(read @ 1..) = client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..read]);
            let asked = match text.lines().next().unwrap_or_default() {
                line if line.contains("INSERT+INTO") && line.contains("landing_") => Some(Asked::Landing),
                line if line.contains("INSERT+INTO") && line.contains("identities") => Some(Asked::Claims),
                _ if text.contains("AS least") => Some(Asked::Look),
                _ if text.contains("SHOW CREATE") && text.contains("identities") => Some(Asked::Table),
                _ if text.contains("AS time_ms, _block_number AS block") => Some(Asked::Keys),
                _ if text.contains("ALTER TABLE") && text.contains("identities") => Some(Asked::Removal),
                _ if text.contains("ALTER TABLE") => Some(Asked::OtherRemoval),
                _ if text.contains("DISTINCT initial_query_id") => Some(Asked::Running),
                _ => None,
            };
            self.asked.lock().unwrap().extend(asked);
            let held = self.held.lock().unwrap().take_if(|(of, _)| asked == Some(*of));
            if let Some((_, (came, go))) = held {
                came.send(()).unwrap();
                go.await.unwrap();
            }
            let mut bytes = buffer[..read].to_vec();
            if let Some(refused) = *self.refuses.lock().unwrap()
                && let Some(at) = text.find(refused)
            {
                bytes[at] = b'x';
            }
            if server.write_all(&bytes).await.is_err() {
                break;
            }
        }
        back.abort();
    }

    fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }

    /// Holds the next of a kind up until it is told to go on, and tells when it came.
    fn hold(&self, of: Asked) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((came, comes), (go, goes)) = (oneshot::channel(), oneshot::channel());
        *self.held.lock().unwrap() = Some((of, (came, goes)));
        (comes, go)
    }

    /// Whether a purge asks again and again what runs: three times in turn it asks twice, where nothing does.
    fn has_purge_that_waits(&self) -> bool {
        let asked = self.asked.lock().unwrap();
        let of_purge = asked.iter().rev().filter(|asked| matches!(asked, Asked::Running | Asked::Removal | Asked::OtherRemoval));
        of_purge.take_while(|asked| **asked == Asked::Running).count() > 8
    }

    /// Whether an INSERT was begun before the look after the claims.
    fn has_begun(&self) -> bool {
        let asked = self.asked.lock().unwrap();
        let place = |of| asked.iter().position(|asked| *asked == of).unwrap_or_else(|| panic!("{of:?} is not among {asked:?}"));
        place(Asked::Landing) < place(Asked::Look)
    }
}

/// A lab whose gateway reaches ClickHouse by a way, and begins INSERTs by now.
async fn lab(way: &Way) -> Lab {
    let database = new_database();
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &database, Topology::Single));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    until_read(&lab, way, || way.has_begun()).await;
    lab
}

/// Waits until a gateway has read what is claimed, and something more is so. While it reads it lists parts, too, as the look after
/// claims does: after an INSERT, perhaps.
async fn until_read(lab: &Lab, way: &Way, is_so: impl Fn() -> bool) {
    let number = AtomicUsize::new(0);
    eventually("what is claimed is read", async || {
        way.forget();
        let id = format!("before {}", number.fetch_add(1, Ordering::SeqCst));
        lab.post(&event(&id, "t", "s", TIME, json!({}))).await.unwrap();
        let has_read = !way.asked.lock().unwrap().contains(&Asked::Keys);
        (has_read && is_so()).then_some(())
    })
    .await;
}

/// A lab whose ClickHouse gets INSERTs as a whole.
async fn without_begun(way: &Way, database: &str) -> Lab {
    assert!(way.refuses.lock().unwrap().is_some());
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, database, Topology::Single));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_do_not_go_to_a_database_that_was_dropped_when_their_insert_had_begun() {
    for is_alike in [false, true] {
        let (way, direct) = (Way::default(), Lab::new());
        let lab = lab(&way).await;
        let claimed = lab.warehouse.query(&format!("SELECT max(_block_number) FROM {}", lab.warehouse.table("identities")));
        // The claims of the INSERT get the number in the new database that is the next one in the old.
        let others = if is_alike { claimed.one::<u64>().await.unwrap() } else { 1 };
        let (comes, go) = way.hold(Asked::Claims);
        let dropping = async {
            comes.await.unwrap();
            // ClickHouse has begun it: it would write its rows to the tables that are dropped now, and confirm that, once another
            // gateway has made all anew.
            let running = "SELECT count() > 0 FROM system.processes WHERE query_id LIKE 'kubemeter-insert%' AND elapsed > 0.3 AND query LIKE {query:String}";
            let query = format!("%{}%", lab.warehouse.database());
            eventually("an INSERT has begun", async || {
                direct.warehouse.query(running).bind("query", &query).one::<bool>().await.unwrap().then_some(())
            })
            .await;
            direct.warehouse.run_ddl(&format!("DROP DATABASE `{}`", lab.warehouse.database())).await.unwrap();
            let other = Lab::in_database(ClickHouse::shared().url(), lab.warehouse.database());
            for number in 0..others {
                // The same as were sent before: the parts look the same, too.
                other.post(&event(&format!("before {number}"), "t", "s", TIME, json!({}))).await.unwrap();
            }
            go.send(()).unwrap();
        };
        let sent = event("e", "t", "s", TIME, json!({}));
        let (posted, ()) = tokio::join!(lab.post(&sent), dropping);
        assert_eq!(posted.unwrap().accepted, 1);
        let stored: u64 = lab.warehouse.query(&format!("SELECT count() FROM {}", lab.warehouse.table("events"))).one().await.unwrap();
        assert_eq!(stored, others + 1, "all were acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_stored_whose_claim_has_gone() {
    for is_new_database in [false, true] {
        let way = Way::default();
        let lab = lab(&way).await;
        let sent = json!(["s", "other"].map(|subject| event(subject, "t", subject, TIME, json!({}))));
        let (comes, go) = way.hold(Asked::Look);
        let losing = async {
            comes.await.unwrap();
            if is_new_database {
                lab.warehouse.run_ddl(&format!("DROP DATABASE `{}`", lab.warehouse.database())).await.unwrap();
                let other = Lab::in_database(ClickHouse::shared().url(), lab.warehouse.database());
                other.post(&event("first", "t", "s", TIME, json!({}))).await.unwrap();
            } else {
                // As a purge does it, which waits for INSERTs that were begun, and not for others.
                lab.warehouse
                    .run_ddl(&format!("ALTER TABLE {} DELETE WHERE subject = 's'", lab.warehouse.table("identities")))
                    .await
                    .unwrap();
            }
            go.send(()).unwrap();
        };
        let (posted, ()) = tokio::join!(lab.post(&sent), losing);
        posted.unwrap_err();
        lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
        let before: u64 = lab.number("count").await.parse().unwrap();
        let later = ["s", "other"].map(|subject| event(subject, "t", subject, LATER, json!({})));
        lab.post(&json!(later)).await.unwrap();
        assert_eq!(lab.number("count").await, (before + 2).to_string());
    }
}

/// The table of identities is replaced in the moment in which a gateway knows which one it is and not yet what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_in_a_table_that_took_the_place_are_not_taken_for_ones_own() {
    let way = Way::default();
    let lab = lab(&way).await;
    let (table, copy) = (lab.warehouse.table("identities"), lab.warehouse.table("copy"));
    // With parts of the same numbers.
    lab.warehouse.run_ddl(&format!("SYSTEM STOP MERGES {table}")).await.unwrap();
    for sql in [format!("CREATE TABLE {copy} AS {table}"), format!("ALTER TABLE {copy} ATTACH PARTITION tuple() FROM {table}")] {
        lab.warehouse.run_ddl(&sql).await.unwrap();
    }
    way.forget();
    let (comes, go) = way.hold(Asked::Look);
    let replacing = async {
        comes.await.unwrap();
        eventually("the table is asked for", async || way.asked.lock().unwrap().contains(&Asked::Table).then_some(())).await;
        let claim = format!("INSERT INTO {copy} (id, namespace, type, subject, time) VALUES (1, 'n', 't', 'another', now64())");
        for sql in [claim, format!("EXCHANGE TABLES {copy} AND {table}")] {
            lab.warehouse.run_ddl(&sql).await.unwrap();
        }
        let last = "SELECT max(_part) FROM";
        let lasts = [&table, &copy].map(|of| lab.warehouse.query(&format!("{last} {of}")).one::<String>());
        let [one, other] = futures::future::try_join_all(lasts).await.unwrap().try_into().unwrap();
        assert_eq!(one, other, "the test is none without parts that look alike");
        go.send(()).unwrap();
    };
    let sent = event("e", "t", "s", TIME, json!({}));
    let (posted, ()) = tokio::join!(lab.post(&sent), replacing);
    posted.unwrap_err();
    let stored = format!("SELECT count() FROM {} WHERE event_id = 'e'", lab.warehouse.table("events"));
    assert_eq!(lab.warehouse.query(&stored).one::<u64>().await.unwrap(), 0, "nothing is stored without its claim");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_insert_is_begun_after_claims_that_failed() {
    let way = Way::default();
    let lab = lab(&way).await;
    let post = async |id: &str| {
        way.forget();
        lab.post(&event(id, "t", "s", TIME, json!({}))).await
    };
    let identities = lab.warehouse.table("identities");
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
    post("e1").await.unwrap_err();
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} DROP CONSTRAINT broken")).await.unwrap();
    post("e1").await.unwrap();
    assert!(!way.has_begun(), "what had no place for claims has none for an INSERT that waits");
    post("e2").await.unwrap();
    assert!(way.has_begun(), "claims were made again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clickhouse_that_refuses_inserts_whose_rows_come_later_gets_them_as_a_whole() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    assert!(!lab.warehouse.learn_to_begin().await.unwrap());
    for id in 0..3 {
        assert_eq!(lab.post(&event(&id.to_string(), "t", "s", TIME, json!({}))).await.unwrap().accepted, 1);
    }
    assert_eq!(lab.number("count").await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_clickhouse_could_not_begin_inserts_tries_again() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    until_read(&lab, &way, || !way.has_begun()).await;
    *way.refuses.lock().unwrap() = None;
    until_read(&lab, &way, || way.has_begun()).await;
}

/// As the operator purges the Customer of subject `s`.
async fn purge(lab: &Lab) {
    lab.warehouse.purge(NAMESPACE, &["s"], Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_after_its_claim_was_purged_is_claimed_again() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    let sent = |time| event("e", "t", "s", time, json!({}));
    let (comes, go) = way.hold(Asked::Landing);
    let purging = async {
        comes.await.unwrap();
        purge(&lab).await;
        go.send(()).unwrap();
    };
    let first = sent(TIME);
    let (posted, ()) = tokio::join!(lab.post(&first), purging);
    assert_eq!(posted.unwrap().accepted, 1);
    lab.post(&sent(LATER)).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_claimed_and_not_stored_is_completed_for_the_claim_that_is_first_by_then() {
    let way = Way::that_refuses(BEGINS_WITH);
    let lab = without_begun(&way, &new_database()).await;
    let other = Lab::in_database(ClickHouse::shared().url(), lab.warehouse.database());
    let sent = |time| event("e", "t", "s", time, json!({}));
    lab.post(&sent(TIME)).await.unwrap();
    lab.warehouse.run_ddl(&format!("ALTER TABLE {} DELETE WHERE event_id = 'e'", lab.warehouse.table("events"))).await.unwrap();
    let (comes, go) = way.hold(Asked::Claims);
    let purging = async {
        comes.await.unwrap();
        purge(&lab).await;
        other.post(&sent(LATER)).await.unwrap();
        go.send(()).unwrap();
    };
    let again = sent("2026-06-04T05:06:07Z");
    let (posted, ()) = tokio::join!(lab.post(&again), purging);
    posted.unwrap();
    lab.meter("all", spec("t", Aggregation::Count, None, &[])).await;
    for meter in ["count", "all"] {
        assert_eq!(lab.number(meter).await, "1", "{meter}");
    }
}

/// Whether a statement runs in a lab's database that a purge waits for.
async fn has_running(lab: &Lab) -> bool {
    let sql = "SELECT count() > 0 FROM system.processes WHERE startsWith(query_id, 'kubemeter-insert') AND position(query, {database:String}) > 0";
    lab.warehouse.query(sql).bind("database", lab.warehouse.database()).one().await.unwrap()
}

/// Posts events of subject `s`, holds something of them up, and purges the subject: what is claimed by then must be stored before the purge
/// takes claims away. Sent again with another time they count once.
async fn purge_waits(lab: &Lab, way: &Way, of: Asked, sent: impl Fn(&str) -> Value) {
    let purging_way = Way::default();
    let mut to = WarehouseOptions { url: purging_way.to(&lab.options.url).await, ..lab.options.clone() };
    if let Topology::Cluster(cluster) = &lab.options.topology {
        let nodes = futures::future::join_all(cluster.nodes().iter().map(|node| purging_way.to(node))).await;
        to.topology = Topology::Cluster(Cluster::new(cluster.name().to_owned(), None, nodes).unwrap());
    }
    let purging = Lab::with(&to);
    let (comes, go) = way.hold(of);
    let has_purged = AtomicBool::new(false);
    let purged = async {
        comes.await.unwrap();
        assert!(has_running(lab).await, "what is claimed by now runs");
        purge(&purging).await;
        has_purged.store(true, Ordering::SeqCst);
    };
    let waited = async {
        let waits = async || {
            let has_purged = has_purged.load(Ordering::SeqCst);
            (has_purged || purging_way.has_purge_that_waits()).then_some(!has_purged)
        };
        let waits = eventually("the purge waits, or doesn't", waits).await;
        go.send(()).unwrap();
        waits
    };
    let first = sent(TIME);
    let (posted, (), waited) = tokio::join!(lab.post(&first), purged, waited);
    assert!(waited, "a purge waits for what is claimed and not stored");
    posted.unwrap();
    lab.post(&sent(LATER)).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_for_a_round_of_many_types() {
    let way = Way::default();
    let lab = lab(&way).await;
    let types = ["t", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];
    let sent = |types: &[&str], subject: &str, time: &str| -> Value {
        types.iter().map(|of| event(&format!("{of} of {subject}"), of, subject, time, json!({}))).collect()
    };
    // Of so many, whose tables there are by now, none is begun beside its claim.
    lab.post(&sent(&types[1..], "other", TIME)).await.unwrap();
    purge_waits(&lab, &way, Asked::Landing, |time| sent(&types, "s", time)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_for_what_is_completed() {
    let way = Way::default();
    let lab = lab(&way).await;
    let sent = |time: &str| event("e", "t", "s", time, json!({}));
    lab.post(&sent(TIME)).await.unwrap();
    lab.warehouse.run_ddl(&format!("ALTER TABLE {} DELETE WHERE event_id = 'e'", lab.warehouse.table("events"))).await.unwrap();
    purge_waits(&lab, &way, Asked::Claims, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_shards_waits_for_what_is_claimed() {
    let (way, shards) = (Way::default(), ClickHouse::shared_shards());
    let lab = Lab::with(&options(&way.to(shards[0].url()).await, &new_database(), shards_of(shards)));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    purge_waits(&lab, &way, Asked::Landing, |time| event("e", "t", "s", time, json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_for_what_was_purged_and_comes_again() {
    let way = Way::default();
    let lab = lab(&way).await;
    let sent = |time: &str| event("e", "t", "s", time, json!({}));
    lab.post(&sent(TIME)).await.unwrap();
    purge(&lab).await;
    // The gateway's filter remembers it.
    purge_waits(&lab, &way, Asked::Landing, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_waits_where_no_insert_is_begun_with_its_rows() {
    let way = Way::that_refuses("max_insert_block_size");
    let lab = without_begun(&way, &new_database()).await;
    until_read(&lab, &way, || true).await;
    purge_waits(&lab, &way, Asked::Landing, |time| event("e", "t", "s", time, json!({}))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_runs_until_it_is_dropped() {
    let lab = Lab::on(ClickHouse::shared().url());
    lab.warehouse.ensure_bootstrap().await.unwrap();
    lab.warehouse.allow_leases();
    assert!(!has_running(&lab).await);
    let lease = lab.warehouse.lease().await;
    assert!(has_running(&lab).await && lab.warehouse.holds(lease.as_ref()).await);
    assert!(!lab.warehouse.holds(None).await);
    drop(lease);
    eventually("the lease has ended", async || (!has_running(&lab).await).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_nothing_to_do_finds_that_the_table_was_replaced_by_a_copy() {
    let way = Way::default();
    let lab = lab(&way).await;
    let (table, copy) = (lab.warehouse.table("identities"), lab.warehouse.table("copy"));
    for sql in [
        format!("CREATE TABLE {copy} AS {table}"),
        format!("ALTER TABLE {copy} ATTACH PARTITION tuple() FROM {table}"),
        format!("EXCHANGE TABLES {copy} AND {table}"),
    ] {
        lab.warehouse.run_ddl(&sql).await.unwrap();
    }
    way.forget();
    eventually("the table is asked for", async || way.asked.lock().unwrap().contains(&Asked::Table).then_some(())).await;
    lab.post(&event("e", "t", "s", TIME, json!({}))).await.unwrap();
    assert!(way.asked.lock().unwrap().contains(&Asked::Keys), "what it had read is of another table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_leaves_claims_that_came_since() {
    let (way, purging_way) = (Way::that_refuses(BEGINS_WITH), Way::default());
    let database = new_database();
    let lab = without_begun(&way, &database).await;
    let sent = |time| event("e", "t", "s", time, json!({}));
    let purging = Lab::with(&options(&purging_way.to(ClickHouse::shared().url()).await, &database, Topology::Single));
    let other = Lab::in_database(ClickHouse::shared().url(), &database);
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
        other.post(&sent(LATER)).await.unwrap();
        land.send(()).unwrap();
    };
    let (posted, ()) = tokio::join!(posted, purged);
    posted.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

/// What is claimed is told by the parts of one table as ClickHouse itself tells it, and without reading them.
#[tokio::test]
async fn the_parts_of_identities_are_those_that_the_server_has() {
    let lab = Lab::on(ClickHouse::shared().url());
    let warehouse = &lab.warehouse;
    warehouse.ensure_bootstrap().await.unwrap();
    let table = warehouse.table("identities");
    let listed = async || {
        let (is_of, mut parts) = warehouse.identity_parts().await.unwrap();
        parts.sort_by_key(|part| part.first_block);
        let least = format!("SELECT _part, min(id) FROM {table} WHERE NOT ignore(subject) GROUP BY _part");
        let least: BTreeMap<String, u128> = warehouse.query(&least).rows::<(String, u128)>().await.unwrap().into_iter().collect();
        let sql = "SELECT name, rows, min_block_number, max_block_number, toInt64(data_version) FROM system.parts WHERE active \
                   AND database = {database:String} AND table = 'identities' ORDER BY min_block_number";
        let query = warehouse.query(sql).bind("database", warehouse.database());
        let server = query.rows::<(String, u64, i64, i64, i64)>().await.unwrap().into_iter();
        let server = server.map(|(name, rows, first_block, last_block, data_version)| {
            let least = least[&name];
            IdentityPart { name, rows, least, first_block, last_block, data_version }
        });
        assert_eq!(parts, server.collect::<Vec<_>>());
        (is_of, parts)
    };
    let (empty, none) = listed().await;
    assert!(none.is_empty());
    warehouse.run_ddl(&format!("SYSTEM STOP MERGES {table}")).await.unwrap();
    // So many that to read them would be an error.
    let claim = |first: u32| {
        format!(
            "INSERT INTO {table} (id, namespace, type, subject, time) SELECT {first} + number, 'n', 't', 's', now64() FROM numbers(60000)"
        )
    };
    for first in [200_000, 100_000, 7] {
        warehouse.run_ddl(&claim(first)).await.unwrap();
    }
    let parts = listed().await.1;
    assert_eq!(parts.iter().map(|part| (part.rows, part.least)).collect::<Vec<_>>(), [(60_000, 200_000), (60_000, 100_000), (60_000, 7)]);
    warehouse.run_ddl(&format!("SYSTEM START MERGES {table}")).await.unwrap();
    warehouse.run_ddl(&format!("OPTIMIZE TABLE {table} FINAL")).await.unwrap();
    assert_eq!(listed().await.1[0].data_version, 1);
    warehouse.run_ddl(&format!("ALTER TABLE {table} DELETE WHERE id IN (7, 100000)")).await.unwrap();
    let (after, parts) = listed().await;
    assert!(!warehouse.is_removing_claims().await.unwrap());
    let [part] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!((part.rows, part.least, part.first_block, part.last_block), (179_998, 8, 1, 3));
    assert!(part.data_version > 3 && empty.is_same(&after));

    warehouse.run_ddl(&format!("SYSTEM STOP MERGES {table}")).await.unwrap();
    let removal = format!("ALTER TABLE {table} DELETE WHERE id = 8 SETTINGS mutations_sync = 0");
    warehouse.run_ddl(&removal).await.unwrap();
    assert!(warehouse.is_removing_claims().await.unwrap());

    let other = warehouse.table("other");
    warehouse.run_ddl(&format!("CREATE TABLE {other} AS {table}")).await.unwrap();
    warehouse.run_ddl(&format!("EXCHANGE TABLES {table} AND {other}")).await.unwrap();
    assert!(!listed().await.0.is_same(&after));
}
