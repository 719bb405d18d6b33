//! Rows that may not be the only ones of their key: what is read of a Meter's table is what `FINAL` over all of it gives.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubemeter::api::Aggregation;
use kubemeter::meter::Definition;
use kubemeter::metering::{UsageQuery, WindowSize};
use kubemeter::reconcile::{Balancer, Reconciler};
use kubemeter::warehouse::counted::{Balanced, Reading, balanced, counted};
use kubemeter::warehouse::row::{AGAIN, ARRIVAL_MARK, CONTRA, written_again};
use kubemeter::warehouse::select::{self, Source, UsageRecord};
use kubemeter::warehouse::{Others, Topology};
use serde_json::{Value, json};

use crate::lab::{Lab, NAMESPACE, active, event, spec, total};
use crate::support::eventually;

const TIME: &str = "2026-03-04T05:06:07Z";

/// Asserts of every Meter's table that no key has two first rows, that each contra row has its first sending, and that it is read as
/// `FINAL` would, balanced or not.
pub async fn assert_read_as_final(lab: &Lab) {
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    for (table, comment) in lab.warehouse.tables_with_prefix("meter_").await.unwrap() {
        if !comment.starts_with('{') {
            continue;
        }
        let name = lab.warehouse.table(&table);
        let twice =
            format!("SELECT count() FROM (SELECT id FROM {name} WHERE endsWith(_partition_id, '-0') GROUP BY id HAVING count() > 1)");
        assert_eq!(lab.warehouse.query(&twice).one::<u64>().await.unwrap(), 0, "{table}: a key has two first rows");
        let by_kind = counted(lab.warehouse.database(), &table, &Reading::ByKind, &[], &[]);
        let of = async |from: &str| {
            let sql =
                format!("SELECT count(), groupBitXor(cityHash64(toString(tuple(*)))) FROM (SELECT * EXCEPT(version, copied) FROM {from})");
            lab.warehouse.query(&sql).one::<(u64, u64)>().await.unwrap()
        };
        let counts = of(&format!("{name} FINAL")).await;
        assert_eq!(of(&by_kind).await, counts, "{table}: what is read is not what counts");
        assert_balanced(lab, &table).await;
        lab.warehouse.balance(&table).await.unwrap();
        assert_balanced(lab, &table).await;
        for from in [&by_kind, &format!("{name} FINAL")] {
            assert_eq!(of(from).await, counts, "{table}: contra rows count");
        }
    }
}

/// Asserts that of each key what is added less what is taken off is what counts.
async fn assert_balanced(lab: &Lab, table: &str) {
    let name = lab.warehouse.table(table);
    let columns = "* EXCEPT(version, copied, is_deleted)";
    let alone = format!(
        "SELECT count() FROM (SELECT {columns} FROM {name} WHERE version = {CONTRA} EXCEPT DISTINCT SELECT {columns} FROM {name} \
         WHERE version BETWEEN 1 AND {ARRIVAL_MARK} - 1)"
    );
    assert_eq!(lab.warehouse.query(&alone).one::<u64>().await.unwrap(), 0, "{table}: a contra row has no first sending");
    let Balanced { added, taken, .. } = balanced(lab.warehouse.database(), table, true, &[], &[]);
    let signed = |sign: i8, from: &String| {
        format!("SELECT subject, time, id, {sign} AS sign, cityHash64(toString(tuple({columns}))) AS row FROM {from}")
    };
    let parts: Vec<_> = added.iter().map(|from| signed(1, from)).chain(taken.iter().map(|from| signed(-1, from))).collect();
    let left = format!("SELECT subject, time, id, row FROM ({}) GROUP BY ALL HAVING sum(sign) != 0", parts.join(" UNION ALL "));
    let counts = format!("SELECT subject, time, id, cityHash64(toString(tuple({columns}))) AS row FROM {name} FINAL");
    let differ = format!("SELECT count() FROM (({left} EXCEPT DISTINCT {counts}) UNION ALL ({counts} EXCEPT DISTINCT {left}))");
    assert_eq!(lab.warehouse.query(&differ).one::<u64>().await.unwrap(), 0, "{table}: what is balanced is not what counts");
    // What is taken for balanced has nothing to look up.
    let refused = balanced(lab.warehouse.database(), table, false, &[], &[]).refused.unwrap();
    let is_balanced = lab.warehouse.query(&format!("SELECT toUInt8(1) {refused}")).rows::<u8>().await.is_ok();
    let missing = lab.warehouse.query(&format!("SELECT count() FROM {}", taken[1])).one::<u64>().await.unwrap();
    assert!(!is_balanced || missing == 0, "{table}: {missing} keys lack their contra rows unseen");
    let once = format!("SELECT count() FROM ({} ) GROUP BY subject, time, id HAVING sum(sign) NOT IN (0, 1)", parts.join(" UNION ALL "));
    assert_eq!(lab.warehouse.query(&once).rows::<u64>().await.unwrap(), [0; 0], "{table}: a key is there more than once, or less than not");
}

fn batch(number: u64) -> Value {
    json!((0..100).map(|n| event(&format!("{number}-{n}"), "t", "s", TIME, json!({"v": 1}))).collect::<Vec<_>>())
}

/// A question reads what was sent and what was written again; what is written again in between may be in none or both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_sees_each_event_once_while_it_is_written_again() {
    const BATCHES: u64 = 60;
    let lab = Arc::new(Lab::new());
    lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    for number in 0..BATCHES {
        lab.post(&batch(number)).await.unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let asking = [(); 3].map(|()| {
        let (lab, done) = (Arc::clone(&lab), Arc::clone(&done));
        tokio::spawn(async move {
            let mut asked = 0;
            while !done.load(Ordering::SeqCst) {
                assert_eq!(lab.number("sum").await, (BATCHES * 100).to_string());
                asked += 1;
            }
            asked
        })
    });
    // One that can't know that all of them are everywhere.
    let gateway = lab.another_gateway();
    for number in 0..BATCHES {
        Lab::post_to(&gateway, &batch(number)).await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    for asked in asking {
        assert!(asked.await.unwrap() > 10, "too few questions to show anything");
    }
    assert_read_as_final(&lab).await;
}

/// What a gateway was told is in all tables need not be written again, but anything else.
#[tokio::test]
async fn what_its_gateway_wrote_whole_is_not_written_again() {
    let lab = Lab::new();
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let table = lab.warehouse.table(&meter.status.unwrap().active.unwrap().table);
    let rows = async || lab.warehouse.query(&format!("SELECT count() FROM {table}")).one::<u64>().await.unwrap();
    let mut batches = 0;
    eventually("the gateway has read what is claimed, and remembers its rounds", async || {
        lab.post(&batch(batches)).await.unwrap();
        batches += 1;
        let before = rows().await;
        lab.post(&batch(batches - 1)).await.unwrap();
        (rows().await == before).then_some(())
    })
    .await;
    let known = batches - 1;
    let before = rows().await;
    Lab::post_to(&lab.another_gateway(), &batch(known)).await.unwrap();
    assert_eq!(rows().await, before + 100, "another gateway can't know");
    lab.post(&batch(known)).await.unwrap();
    assert_eq!(rows().await, before + 200, "the row in `events` is no first sending any more");

    for broken in [&lab.warehouse.table("events"), &table] {
        lab.warehouse.run_ddl(&format!("ALTER TABLE {broken} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
        lab.post(&batch(batches)).await.unwrap_err();
        lab.warehouse.run_ddl(&format!("ALTER TABLE {broken} DROP CONSTRAINT broken")).await.unwrap();
        lab.post(&batch(batches)).await.unwrap();
        batches += 1;
        assert_eq!(lab.number("sum").await, (batches * 100).to_string(), "{broken} was broken in the first try");
    }
    assert_read_as_final(&lab).await;
}

#[tokio::test]
async fn what_comes_again_with_another_type_is_written_again_as_it_was_stored() {
    let lab = Lab::new();
    let meter = lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab.post(&event("e", "t", "s", TIME, json!({}))).await.unwrap();
    // As if its INSERT had been cut off between the two tables.
    let table = lab.warehouse.topology().stored(&meter.status.unwrap().active.unwrap().table);
    lab.warehouse.run_ddl(&format!("TRUNCATE TABLE {}", lab.warehouse.table(&table))).await.unwrap();
    assert_eq!(lab.number("count").await, "0");
    let told = Lab::post_to(&lab.another_gateway(), &event("e", "other", "s", TIME, json!({}))).await.unwrap();
    assert_eq!(told.accepted, 1);
    assert_eq!(lab.number("count").await, "1");
}

#[tokio::test]
async fn an_event_that_cannot_be_stored_does_not_fill_the_disk_with_its_claims() {
    let lab = Lab::new();
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    let (events, identities) = (lab.warehouse.table("events"), lab.warehouse.table("identities"));
    lab.warehouse.run_ddl(&format!("ALTER TABLE {events} ADD CONSTRAINT broken CHECK subject != 's'")).await.unwrap();
    let sent = event("e", "t", "s", TIME, json!({}));
    for _ in 0..20 {
        lab.post(&sent).await.unwrap_err();
    }
    let claims: u64 = lab.warehouse.query(&format!("SELECT count() FROM {identities} WHERE subject = 's'")).one().await.unwrap();
    // Once more, perhaps, when the gateway has read what was claimed before.
    assert!(claims <= 2, "{claims} claims");
    lab.warehouse.run_ddl(&format!("ALTER TABLE {events} DROP CONSTRAINT broken")).await.unwrap();
    lab.post(&sent).await.unwrap();
    assert_eq!(lab.number("count").await, "1");
}

/// Every mixture of rows that one key may have, in random parts, against what the versions say.
#[tokio::test]
async fn of_every_mixture_of_rows_the_one_with_the_greatest_version_counts() {
    const KEYS: u64 = 2_000;
    let lab = Lab::new();
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let name = meter.status.unwrap().active.unwrap().table;
    let table = lab.warehouse.table(&name);
    let mut rng = fastrand::Rng::with_seed(7);
    // Rows by INSERT, as VALUES.
    let mut inserts = vec![Vec::new(); 12];
    let (mut expected, mut again_in_march) = (0, 0);
    for key in 0..KEYS {
        let mut counts: Option<(u64, u64, bool)> = None;
        let mut row = |rng: &mut fastrand::Rng, version: u64, value: u64, copied: u8, deleted: bool| {
            let text = format!(
                "('s{}', '2026-0{}-04 00:00:00', {key}, {value}, {version}, {copied}, {})",
                key % 7,
                1 + key % 3,
                u8::from(deleted)
            );
            inserts[rng.usize(0..12)].push(text);
            again_in_march += u64::from(key % 3 == 2 && version >= ARRIVAL_MARK);
            if counts.is_none_or(|(greatest, ..)| version > greatest) {
                counts = Some((version, value, deleted));
            }
        };
        let (first, value) = (ARRIVAL_MARK - 1_000 - key, rng.u64(0..1_000));
        let (is_sent, copies, again) = (rng.bool(), rng.usize(0..3), rng.usize(0..6));
        if is_sent {
            row(&mut rng, first, value, 0, false);
        }
        // A copy of what came by the view, too, says that it may not be alone.
        let copied = if is_sent { written_again(first) } else { first };
        (0..copies).for_each(|_| row(&mut rng, copied, value, 1, false));
        for _ in 3..again {
            let (version, value) = (ARRIVAL_MARK + rng.u64(AGAIN..2 * AGAIN), rng.u64(0..1_000));
            let (copied, deleted) = (rng.u8(0..2), rng.bool());
            row(&mut rng, version, value, copied, deleted);
        }
        expected += counts.filter(|(.., deleted)| !deleted).map_or(0, |(_, value, _)| value);
    }
    for rows in inserts {
        let sql = format!("INSERT INTO {table} (subject, time, id, value, version, copied, is_deleted) VALUES {}", rows.join(", "));
        lab.warehouse.run_ddl(&sql).await.unwrap();
    }
    assert_eq!(lab.number("sum").await, expected.to_string());
    assert_read_as_final(&lab).await;
    let mut of_each = 0;
    for subject in 0..7 {
        let of_one = UsageQuery { subjects: vec![format!("s{subject}")], ..total() };
        of_each += lab.usage("sum", of_one).await.data[0].value.parse::<u64>().unwrap();
    }
    assert_eq!(of_each, expected);
    // How many keys a question has to remember: of its months, merged or not.
    let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let rows = async |from, to| lab.warehouse.count_rows(&name, from, to).await.unwrap().iter().map(|month| month.again).sum::<u64>();
    assert!(0 < rows(time("2026-03-31T00:00:00Z"), time("2026-03-31T00:00:01Z")).await);
    assert!(rows(time("2026-03-31T00:00:00Z"), None).await <= again_in_march);
    assert!(rows(None, None).await > again_in_march);
    assert_eq!(rows(time("2026-04-01T00:00:00Z"), None).await, 0);
}

/// Without being told, once for what came since, and again when a purge was in the way.
#[tokio::test]
async fn the_operator_balances_sums_soon() {
    let lab = Lab::new();
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    let table = active(&lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await);
    let again = async |number| {
        lab.post(&batch(number)).await.unwrap();
        Lab::post_to(&lab.another_gateway(), &batch(number)).await.unwrap();
    };
    let name = lab.warehouse.table(&table);
    let contra = async || lab.warehouse.query(&format!("SELECT count() FROM {name} WHERE version = {CONTRA}")).one::<u64>().await.unwrap();
    let unbalanced = async || lab.warehouse.unbalanced().await.unwrap().remove(&table);
    // Gives how many tables were balanced, a while later each time.
    let later = Cell::new(Instant::now());
    let turn = async |balancer: &mut Balancer| {
        later.set(later.get() + Duration::from_secs(3_600));
        balancer.look(later.get()).await.unwrap();
        let mut done = 0;
        while balancer.done().await.is_some() {
            done += 1;
        }
        done
    };

    again(0).await;
    assert_eq!(unbalanced().await.unwrap(), [Others { month: 202_603, again: 100, contra: 0 }]);
    // A table that nobody answers from, as far as a reconciler knows.
    assert_eq!(turn(&mut Balancer::new(Reconciler::new(lab.warehouse.clone()))).await, 0);
    let mut balancer = Balancer::new(lab.reconciler.clone());
    let (said, identities) = (said(&lab).await, lab.warehouse.table("identities"));
    let purging = said.replace('}', ",\"purging\":true}");
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} MODIFY COMMENT '{purging}'")).await.unwrap();
    assert_eq!((turn(&mut balancer).await, contra().await), (1, 0), "a purge is in the way");
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} MODIFY COMMENT '{said}'")).await.unwrap();
    balancer.look(Instant::now()).await.unwrap();
    assert_eq!(balancer.done().await, None, "it is tried again a while later");
    assert_eq!((turn(&mut balancer).await, contra().await, unbalanced().await), (1, 100, None));

    // What stays, for a key has two rows that are not merged, is not looked at again until something comes.
    lab.warehouse.run_ddl(&format!("SYSTEM STOP MERGES {name}")).await.unwrap();
    let twice =
        format!("INSERT INTO {name} SELECT * REPLACE (version + {AGAIN} AS version) FROM {name} WHERE version >= {ARRIVAL_MARK} LIMIT 1");
    lab.warehouse.run_ddl(&twice).await.unwrap();
    assert_eq!([turn(&mut balancer).await, turn(&mut balancer).await, turn(&mut balancer).await], [1, 0, 0]);
    assert!(unbalanced().await.is_some());
    again(1).await;
    assert_eq!((turn(&mut balancer).await, contra().await), (1, 200));

    again(2).await;
    tokio::select! {
        () = Balancer::new(lab.reconciler.clone()).run() => {}
        () = eventually("sums are balanced", async || (contra().await == 300).then_some(())) => {}
    }
    assert_read_as_final(&lab).await;
}

/// What the fence says.
async fn said(lab: &Lab) -> String {
    let sql = "SELECT comment FROM system.tables WHERE database = {database:String} AND name = 'identities'";
    lab.warehouse.query(sql).bind("database", lab.warehouse.database()).one().await.unwrap()
}

/// Where nothing was written again no key is looked at, and sums are balanced where something was. Whichever way a question takes, it
/// finds what `FINAL` finds.
#[tokio::test]
async fn each_way_to_read_a_table_finds_the_same() {
    const ROWS: u64 = 240_000;
    let mut lab = Lab::new();
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    lab.customer("pair", &["s1", "s7"]).await;
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[("path", "$.path")])).await;
    let active = meter.status.unwrap().active.unwrap();
    let table = lab.warehouse.table(&active.table);
    let of = |aggregation, value| Definition::parse(&spec("t", aggregation, value, &[("path", "$.path")])).unwrap();
    let definition = of(Aggregation::Sum, Some("$.v"));
    let rows = |version: &str, copied: &str, deleted: u8, condition: &str| {
        format!(
            "INSERT INTO {table} (subject, time, id, value, group_path, version, copied, is_deleted) SELECT concat('s', toString(number % 40)), \
             toDateTime64('2026-03-01 00:00:00', 3, 'UTC') + number % 60 * 86400, number, number % 1000, concat('/', toString(number % 3)), \
             {ARRIVAL_MARK} - 1 - number{version}, {copied}, {deleted} FROM numbers({ROWS}) WHERE {condition}"
        )
    };
    let question = |group_by: &[&str], window_size| UsageQuery {
        from: Some("2026-03-01T00:00:00Z".parse().unwrap()),
        to: Some("2026-05-01T00:00:00Z".parse().unwrap()),
        window_size,
        group_by: group_by.iter().map(|name| (*name).to_owned()).collect(),
        ..total()
    };
    let of_customers = question(&["customer"], None);
    let records_of = async |definition: &Definition, reading: &Reading, query: &UsageQuery| {
        let source = Source {
            database: lab.warehouse.database(),
            namespace: NAMESPACE,
            table: &active.table,
            definition,
            reading,
            let_go: None,
            subjects: None,
        };
        let statement = select::usage(&source, query, 7);
        lab.warehouse.query(&statement.sql).bind_all(statement.params).rows::<UsageRecord>().await
    };
    let records = async |reading: &Reading, query: &UsageQuery| records_of(&definition, reading, query).await;
    let same = async |readings: &[Reading]| {
        for query in [
            &of_customers,
            &question(&["customer", "path"], Some(WindowSize::Day)),
            &question(&["customer", "subject"], Some(WindowSize::Week)),
            &question(&["subject"], None),
            &question(&["path"], Some(WindowSize::Day)),
            &question(&[], Some(WindowSize::Month)),
            &question(&[], None),
        ] {
            for definition in [&definition, &of(Aggregation::Average, Some("$.v")), &of(Aggregation::Count, None)] {
                let expected = records_of(definition, &Reading::Final, query).await.unwrap();
                assert!(!expected.is_empty());
                for reading in readings {
                    let found = records_of(definition, reading, query).await.unwrap();
                    assert_eq!(found, expected, "{reading:?} {:?} {:?}", query.group_by, definition.measure);
                }
            }
        }
    };
    let reading = async || lab.warehouse.reading_for(&active.table, &definition, &of_customers).await.unwrap();
    let contra = async || lab.warehouse.query(&format!("SELECT count() FROM {table} WHERE version = {CONTRA}")).one::<u64>().await.unwrap();
    let balance = async || lab.warehouse.balance(&active.table).await.unwrap();

    // Every tenth was copied, of these some twice.
    lab.warehouse.run_ddl(&rows("", "0", 0, "number % 10 != 3")).await.unwrap();
    lab.warehouse.run_ddl(&rows("", "1", 0, "number % 10 = 3")).await.unwrap();
    lab.warehouse.run_ddl(&rows("", "1", 0, "number % 100 = 3")).await.unwrap();
    balance().await;
    assert_eq!((reading().await, contra().await), (Reading::FirstsAlone, 0));
    same(&[Reading::FirstsAlone, Reading::ByKind, Reading::Balanced, Reading::NearlyBalanced]).await;

    // Few keys are looked up. Of one subject all are cancelled: it is not in the answer, nor is its customer.
    let again = format!(" + {AGAIN}");
    lab.warehouse.run_ddl(&rows(&again, "0", 0, "number % 4001 = 0")).await.unwrap();
    lab.warehouse.run_ddl(&rows(&format!(" + {}", 2 * AGAIN), "0", 1, "number % 4001 = 7")).await.unwrap();
    assert_eq!((reading().await, contra().await), (Reading::NearlyBalanced, 0));
    same(&[Reading::ByKind, Reading::NearlyBalanced]).await;
    let unbalanced = async || {
        let refused = records(&Reading::Balanced, &of_customers).await.unwrap_err();
        assert!(refused.to_string().contains("without a contra row"), "{refused}");
    };
    unbalanced().await;
    balance().await;
    let few = contra().await;
    assert_eq!((reading().await, few), (Reading::Balanced, 60 + 60));
    same(&[Reading::ByKind, Reading::Balanced, Reading::NearlyBalanced]).await;
    // As many rows in April as those written again, but one of them twice.
    let one = format!("SELECT id FROM {table} WHERE version = {CONTRA} ORDER BY time DESC, id LIMIT 1");
    lab.warehouse.run_ddl(&format!("INSERT INTO {table} SELECT * FROM {table} WHERE version = {CONTRA} AND id IN ({one})")).await.unwrap();
    lab.warehouse.run_ddl(&rows(&again, "0", 0, "number = 1234")).await.unwrap();
    assert_eq!((reading().await, contra().await), (Reading::Balanced, few + 1));
    unbalanced().await;
    assert_read_as_final(&lab).await;
    same(&[Reading::NearlyBalanced]).await;
    lab.warehouse.run_ddl(&rows(&format!(" + {}", 2 * AGAIN), "0", 1, "number % 40 = 13")).await.unwrap();
    // Some twice, and some that were completed: with nothing sent before.
    lab.warehouse.run_ddl(&rows(&format!("{again} + 5 * {ROWS}"), "0", 0, "number % 4001 = 0 AND number < 100000")).await.unwrap();
    lab.warehouse
        .run_ddl(
            &rows(&again, "0", 0, "number % 100 = 1")
                .replace("time, number, ", "time, ")
                .replace("86400, number,", &format!("86400, number + {ROWS},")),
        )
        .await
        .unwrap();
    assert_eq!(reading().await, Reading::ByKind, "these are many to look up");
    let known = records(&Reading::Final, &of_customers).await.unwrap();
    assert_eq!(known.len(), 38);
    same(&[Reading::ByKind, Reading::NearlyBalanced]).await;
    unbalanced().await;
    let before = contra().await;
    let refused = records(&Reading::FirstsAlone, &of_customers).await.unwrap_err();
    assert!(refused.to_string().contains("there are rows written again"), "{refused}");

    // No contra row while a purge runs.
    let (said, identities) = (said(&lab).await, lab.warehouse.table("identities"));
    let purging = said.replace('}', ",\"purging\":true}");
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} MODIFY COMMENT '{purging}'")).await.unwrap();
    assert!(!balance().await, "a purge is in the way");
    assert_eq!(contra().await, before);
    lab.warehouse.run_ddl(&format!("ALTER TABLE {identities} MODIFY COMMENT '{said}'")).await.unwrap();

    // Nor while something is still being removed.
    let mutate = format!("ALTER TABLE {table} DELETE WHERE subject = 'none' SETTINGS mutations_sync = 0");
    for sql in [&format!("SYSTEM STOP MERGES {table}"), &mutate] {
        lab.warehouse.run_ddl(sql).await.unwrap();
    }
    assert!(!balance().await, "something is being removed");
    assert_eq!(contra().await, before);
    lab.warehouse.run_ddl(&format!("SYSTEM START MERGES {table}")).await.unwrap();
    let removing = "SELECT count() FROM system.mutations WHERE database = {database:String} AND NOT is_done";
    eventually("what is removed is gone", async || {
        let left = lab.warehouse.query(removing).bind("database", lab.warehouse.database()).one::<u64>().await.unwrap();
        (left == 0).then_some(())
    })
    .await;

    // Two at once, and once more.
    tokio::join!(balance(), balance());
    let written = contra().await;
    let keys =
        async || lab.warehouse.query(&format!("SELECT uniqExact(id) FROM {table} WHERE version = {CONTRA}")).one::<u64>().await.unwrap();
    assert_eq!(keys().await, 6_000 + 60 + 60 - 4 + 1);
    balance().await;
    assert_eq!(contra().await, written);
    same(&[Reading::ByKind, Reading::NearlyBalanced]).await;
    assert_eq!(records(&Reading::NearlyBalanced, &of_customers).await.unwrap(), known);
    let asked = lab.usage("sum", of_customers.clone()).await.data;
    let told: Vec<_> = asked.into_iter().map(|row| (row.customer.unwrap(), row.value)).collect();
    assert_eq!(told, known.iter().map(|record| (record.customer.clone(), record.value.clone())).collect::<Vec<_>>());
    assert_read_as_final(&lab).await;

    // As builds before this one read it.
    let old = "NOT endsWith(_partition_id, '-0') AND NOT endsWith(_partition_id, '-2')";
    let before = format!(
        "SELECT toUInt64(assumeNotNull(sum(value))), count() FROM (SELECT * FROM (SELECT * FROM {table} WHERE endsWith(_partition_id, '-0') UNION ALL \
         SELECT * FROM {table} FINAL WHERE endsWith(_partition_id, '-2')) WHERE id NOT IN (SELECT id FROM {table} WHERE {old}) UNION ALL \
         SELECT * FROM {table} FINAL WHERE {old} SETTINGS do_not_merge_across_partitions_select_final = 1)"
    );
    let all = format!("SELECT toUInt64(assumeNotNull(sum(value))), count() FROM {table} FINAL");
    let of_all = async |sql: &str| lab.warehouse.query(sql).one::<(u64, u64)>().await.unwrap();
    assert_eq!(of_all(&before).await, of_all(&all).await);

    // A table of theirs gets no contra rows: it has no partition for them.
    let theirs = lab.warehouse.table("theirs");
    let create = format!(
        "CREATE TABLE {theirs} AS {table} ENGINE = ReplacingMergeTree(version, is_deleted) \
         PARTITION BY (toYYYYMM(time), multiIf(version >= {ARRIVAL_MARK}, 1, copied, 2, 0)) ORDER BY (subject, time, id)"
    );
    lab.warehouse.run_ddl(&create).await.unwrap();
    lab.warehouse.run_ddl(&format!("INSERT INTO {theirs} SELECT * FROM {table} WHERE version != {CONTRA}")).await.unwrap();
    lab.warehouse.balance("theirs").await.unwrap();
    assert_eq!(of_all(&format!("SELECT countIf(version = {CONTRA}), toUInt64(count() > 0) FROM {theirs}")).await, (0, 1));

    // A contra row without its first sending is no answer.
    let gone = format!(
        "ALTER TABLE {table} DELETE WHERE subject = 's13' AND version BETWEEN 1 AND {ARRIVAL_MARK} - 1 SETTINGS mutations_sync = 2"
    );
    lab.warehouse.run_ddl(&gone).await.unwrap();
    let refused = records(&Reading::NearlyBalanced, &of_customers).await.unwrap_err();
    assert!(refused.to_string().contains("more is taken off than there is"), "{refused}");
    let later = UsageQuery { from: of_customers.to, to: None, ..of_customers.clone() };
    let reading = lab.warehouse.reading_for(&active.table, &definition, &later).await.unwrap();
    assert_eq!(reading, Reading::FirstsAlone, "nothing is of these months");
}

/// What is taken off goes with what was added.
#[tokio::test]
async fn a_purge_leaves_no_contra_row_of_what_it_removes() {
    let lab = Lab::new();
    if *lab.warehouse.topology() != Topology::Single {
        return;
    }
    let meter = lab.meter("sum", spec("t", Aggregation::Sum, Some("$.v"), &[])).await;
    let name = meter.status.unwrap().active.unwrap().table;
    let events: Vec<_> = (0..20).map(|n| event(&n.to_string(), "t", &format!("s{}", n % 2), TIME, json!({"v": 1 + n % 2}))).collect();
    lab.post(&json!(events)).await.unwrap();
    // One that can't know that all of them are everywhere.
    Lab::post_to(&lab.another_gateway(), &json!(events)).await.unwrap();
    lab.warehouse.balance(&name).await.unwrap();
    let table = lab.warehouse.table(&name);
    let contra = async || {
        let sql = format!("SELECT subject, count() FROM {table} WHERE version = {CONTRA} GROUP BY subject ORDER BY subject");
        lab.warehouse.query(&sql).rows::<(String, u64)>().await.unwrap()
    };
    assert_eq!(contra().await, [("s0".to_owned(), 10), ("s1".to_owned(), 10)]);
    assert_eq!(lab.number("sum").await, "30");
    lab.warehouse.purge(NAMESPACE, &["s0"], Duration::from_secs(60)).await.unwrap();
    assert_eq!(contra().await, [("s1".to_owned(), 10)]);
    assert_eq!(lab.number("sum").await, "20");
    assert_read_as_final(&lab).await;
}
