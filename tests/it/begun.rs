//! INSERTs that are begun beside the claims: when there are any, and that none takes rows where they would be lost.

use std::collections::BTreeMap;

use kubemeter::api::Aggregation;
use kubemeter::warehouse::{Identities, IdentityPart};
use serde_json::json;

use crate::lab::{Lab, event, new_database, spec};
use crate::support::{ClickHouse, eventually};
use crate::way::{Asked, BEGINS_WITH, LATER, TIME, Way, lab, until_read, without_begun};

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
        // It was decided on in the old database: the new one takes what is sent again.
        posted.unwrap_err();
        eventually("it is taken", async || lab.post(&sent).await.ok()).await;
        let stored = format!("SELECT count() FROM {} FINAL", lab.warehouse.table("events"));
        assert_eq!(lab.warehouse.query(&stored).one::<u64>().await.unwrap(), others + 1, "all were acknowledged, once");
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
                // As somebody by hand.
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

/// What is claimed is told by the parts of one table as ClickHouse itself tells it, and without reading them.
#[tokio::test]
async fn the_parts_of_identities_are_those_that_the_server_has() {
    let lab = Lab::on(ClickHouse::shared().url());
    let warehouse = &lab.warehouse;
    warehouse.ensure_bootstrap().await.unwrap();
    let table = warehouse.table("identities");
    let listed = async || {
        let Identities { table: is_of, mut parts, .. } = warehouse.identity_parts().await.unwrap();
        parts.sort_by_key(|part| part.first_block);
        let least = format!("SELECT _part, min(id) FROM {table} WHERE NOT ignore(subject) GROUP BY _part");
        let least: BTreeMap<String, u128> = warehouse.query(&least).rows::<(String, u128)>().await.unwrap().into_iter().collect();
        let sql = "SELECT name, rows, min_block_number, max_block_number FROM system.parts WHERE active \
                   AND database = {database:String} AND table = 'identities' ORDER BY min_block_number";
        let query = warehouse.query(sql).bind("database", warehouse.database());
        let server = query.rows::<(String, u64, i64, i64)>().await.unwrap().into_iter();
        let server = server.map(|(name, rows, first_block, last_block)| {
            let least = least[&name];
            IdentityPart { name, rows, least, first_block, last_block }
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
    assert_eq!(listed().await.1.len(), 1);
    warehouse.run_ddl(&format!("ALTER TABLE {table} DELETE WHERE id IN (7, 100000)")).await.unwrap();
    let (after, parts) = listed().await;
    let [part] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!((part.rows, part.least, part.first_block, part.last_block), (179_998, 8, 1, 3));
    assert!(empty.goes_on(&after));

    let other = warehouse.table("other");
    warehouse.run_ddl(&format!("CREATE TABLE {other} AS {table}")).await.unwrap();
    warehouse.run_ddl(&format!("EXCHANGE TABLES {table} AND {other}")).await.unwrap();
    assert!(!after.goes_on(&listed().await.0));
}
