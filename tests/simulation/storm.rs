//! Storms: what is sent at once while things fail, and what may be answered meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::Method;
use serde_json::json;

use super::faults::{Fault, Storm, Table, What};
use super::history::{GATEWAYS, Part, Post};
use super::meanwhile::{Asked, Span, Spoken, Versions, judge};
use super::model::{Event, Key, Outcome, Reject, Space, Version};
use super::objects::{answers_with, spec};
use super::proxy;
use super::run::{Life, compare};
use super::usage::Query;
use super::world::{Answer, Request, World};
use super::{observe, send};
use crate::support::eventually;

/// Most questions during a storm.
const QUESTIONS: usize = 40;

/// Lives through a storm, and sends again whatever was not answered.
pub async fn run(life: &mut Life, storm: &Storm) -> Result<(), String> {
    let (start, clocks) = (Timestamp::now().as_millisecond(), life.world.clocks());
    let patience = Duration::from_millis(storm.patience_ms);
    let requests: Vec<Request> = storm.posts.iter().map(send::request).collect();
    let again: Vec<Request> = storm.again.iter().map(send::request).collect();
    let (cancel, revert) = (cancel_request(storm), revert_request(&life.spaces[storm.space], storm));
    let done = AtomicBool::new(false);
    let asked = Mutex::new(Vec::new());
    let began = Instant::now();
    let mut rng = life.rng.fork();

    let full = Mutex::new(arm(life, storm).await);
    let mended = Mutex::new(None);
    let mut other = life.aside();
    let (world, model) = (&life.world, &life.spaces[storm.space]);
    let once = async |gateway: usize, request: &Request| {
        let answer = tokio::time::timeout(patience, world.ask(gateway, request)).await;
        let answer = answer.ok().and_then(Result::ok).filter(|answer| !matches!(answer.status, 429 | 500 | 502 | 503 | 504));
        (answer, Instant::now())
    };
    let posts = (0..).zip(storm.posts.iter().zip(&requests)).map(|(number, (post, request))| async move {
        tokio::time::sleep(Duration::from_millis(storm.stagger_ms * number)).await;
        once(post.gateway, request).await
    });
    let posts = futures::future::join_all(posts);
    let cancelled = async {
        match &cancel {
            None => None,
            Some(request) => answered(once(0, request).await),
        }
    };
    let reverted = async {
        match &revert {
            None => None,
            Some((_, request)) => answered(once(1, request).await),
        }
    };
    let edited = async {
        if let Some((name, meter)) = &storm.edit {
            world.put("Meter", storm.space, name, &spec(meter)).await;
            // What is to happen to the operator happens before the edit is done, or never.
            let until = Instant::now() + patience;
            while world.proxy(Part::Operator).is_armed()
                && Instant::now() < until
                && !world.object("Meter", storm.space, name).await.is_some_and(|object| answers_with(&object, meter))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let work = async {
        let answers = tokio::join!(posts, cancelled, reverted, edited);
        done.store(true, Ordering::SeqCst);
        answers
    };
    let unstall = async {
        tokio::time::sleep(Duration::from_millis(storm.stall_ms / 2)).await;
        if let Some((part, offset)) = storm.clock {
            world.set_clock(part, offset);
        }
        tokio::time::sleep(Duration::from_millis(storm.stall_ms / 2)).await;
        (0..GATEWAYS).map(Part::Gateway).chain([Part::Operator]).for_each(|part| world.proxy(part).unstall());
        if storm.mends && (world.start_dead().await | free(world, &full).await) {
            *mended.lock().expect("no panic") = Some(Instant::now());
        }
    };
    let questions = async {
        let meters: Vec<&String> = model.meters.keys().collect();
        for number in 0..QUESTIONS {
            if done.load(Ordering::SeqCst) || meters.is_empty() {
                return;
            }
            let query = during(observe::question(&mut rng, model, meters[number % meters.len()]), storm);
            let began = Instant::now();
            let answer = tokio::time::timeout(patience, world.ask(number % GATEWAYS, &observe::request(storm.space, &query))).await;
            if let Ok(Ok(answer)) = answer {
                asked.lock().expect("no panic").push(Asked { query, span: Span { began, ended: Instant::now() }, answer });
            }
        }
    };
    let storming = async {
        let ((posts, cancelled, reverted, ()), (), ()) = tokio::join!(work, unstall, questions);
        (posts, cancelled, reverted, calm(life, &full).await)
    };
    let beside = async {
        match &storm.beside {
            None => Ok(Vec::new()),
            Some(step) => other.act(step).await,
        }
    };
    let ((posts, cancelled, reverted, idle), beside) = tokio::join!(storming, beside);

    let mut asked = asked.into_inner().expect("no panic");
    // What nobody was told of may count, once, or not: before it is sent again.
    for meter in model.meters.keys() {
        let (query, began) = (during(observe::question(&mut rng, model, meter), storm), Instant::now());
        let answer = world.answered(asked.len() % GATEWAYS, &observe::request(storm.space, &query)).await;
        if answer.status >= 500 {
            return Err(format!("{query:?} was answered {answer:?} though nothing fails any more"));
        }
        asked.push(Asked { query, span: Span { began, ended: Instant::now() }, answer });
    }
    let before = life.spaces[storm.space].clone();
    life.take_back(storm.space, other);
    beside.map_err(|why| format!("beside the storm: {why}"))?;
    if let Some(at) = mended.into_inner().expect("no panic") {
        let under_way =
            (0..).zip(&posts).filter(|(number, (_, ended))| began + Duration::from_millis(storm.stagger_ms * number) < at && at < *ended);
        life.seen.across += under_way.filter(|(_, (answer, _))| answer.is_some()).count();
    }
    let spans: Vec<_> = posts.iter().map(|(answer, ended)| (answer.is_some(), Span { began, ended: *ended })).collect();
    life.seen.faults += storm.faults.len().saturating_sub(idle);
    let answers = send_again(life, storm, &again, posts).await;
    let (behind, ahead) = life.world.clocks();
    let arrival = (start + clocks.0.min(behind), Timestamp::now().as_millisecond() + clocks.1.max(ahead));
    let versions = take(life, storm, arrival, &answers)?;
    let spoken = Spoken { cancelled: cancelled.as_ref().map(|(_, at)| *at), reverted: reverted.as_ref().map(|(_, at)| *at) };
    let (cancelled, reverted) = (cancelled.map(|(answer, _)| answer), reverted.map(|(answer, _)| answer));
    if cancel.is_some() && cancelled.is_none() {
        quiet(life).await;
    }
    if cancel.is_some() && cancelled.is_none() && storm.undo {
        undo(life, storm.space).await?;
    } else if let Some(request) = &cancel {
        let answer = again_until_answered(life, 1, request, cancelled).await;
        if answer.status != 200 {
            return Err(format!("a cancellation was answered {answer:?}"));
        }
        cancelled_after(life, storm, &before, &versions).await?;
    }
    if let Some((index, request)) = &revert {
        let answer = again_until_answered(life, 0, request, reverted).await;
        if answer.status != 200 {
            return Err(format!("a revert was answered {answer:?}"));
        }
        life.spaces[storm.space].revert(*index);
    }
    if let Some((name, meter)) = &storm.edit {
        life.settle_meter(storm.space, name, meter).await;
    }
    life.seen.judged += judge(storm, &before, &versions, &spans, &spoken, asked)?;
    Ok(())
}

/// A question whose answer can be judged, and tells of which edit it is. Events without a time get one that is open for as long as the
/// storm goes on: they may be of several short windows.
fn during(query: Query, storm: &Storm) -> Query {
    let timeless = storm.posts.iter().chain(&storm.again).flat_map(|post| &post.events).any(|event| event.time.is_none());
    let size = query.size.filter(|size| !(timeless && matches!(*size, "MINUTE" | "HOUR")));
    Query { size, zone: size.and(query.zone), csv: false, ..query }
}

async fn again_until_answered(life: &Life, gateway: usize, request: &Request, answer: Option<Answer>) -> Answer {
    match answer {
        Some(answer) => answer,
        None => life.world.answered(gateway, request).await,
    }
}

/// An answer of success, and when it came.
fn answered((answer, at): (Option<Answer>, Instant)) -> Option<(Answer, Instant)> {
    answer.map(|answer| (answer, at))
}

/// Sees to it that nothing comes any more of a cancellation that was not answered: neither by the gateway that had it, nor by what that
/// has sent.
async fn quiet(life: &Life) {
    life.world.restart(Part::Gateway(0), true);
    life.world.revive().await;
    let running = "SELECT count() FROM system.processes WHERE startsWith(query, 'INSERT')";
    eventually("no INSERT runs", async || (life.world.sql(running).await.ok()?.trim() == "0").then_some(())).await;
}

/// Reverts whatever came of a cancellation that was not answered.
async fn undo(life: &mut Life, space: usize) -> Result<(), String> {
    let known = life.spaces[space].cancellations.len();
    life.cancelled(space, &BTreeSet::new()).await?;
    for index in known..life.spaces[space].cancellations.len() {
        let path = format!("/usage/cancellations/{}/revert", life.spaces[space].cancellations[index].id);
        let answer = life.world.answered(1, &Request { method: Method::POST, ..Request::get(space, &path) }).await;
        if answer.status != 200 {
            return Err(format!("a revert was answered {answer:?}"));
        }
        life.spaces[space].revert(index);
    }
    Ok(())
}

/// The cancellation that the storm reverts.
fn revert_request(model: &Space, storm: &Storm) -> Option<(usize, Request)> {
    let index = model.cancellations.len().checked_sub(storm.revert? + 1)?;
    let path = format!("/usage/cancellations/{}/revert", model.cancellations[index].id);
    Some((index, Request { method: Method::POST, ..Request::get(storm.space, &path) }))
}

fn cancel_request(storm: &Storm) -> Option<Request> {
    let events: Vec<_> = storm.cancel.iter().map(|(source, id)| json!({"source": source, "id": id})).collect();
    (!events.is_empty()).then(|| Request::json(Method::DELETE, storm.space, "/usage", &json!({"events": events})))
}

/// Arms the faults; gives the tables whose disk is full.
async fn arm(life: &Life, storm: &Storm) -> Vec<String> {
    let mut full = Vec::new();
    for fault in &storm.faults {
        match fault {
            Fault::Way { of, direction, after, what } => {
                let event = match what {
                    What::Cut => proxy::Event::Cut,
                    What::Stall => proxy::Event::Stall,
                    What::Kill(part) => proxy::Event::Call(life.world.killer(*part)),
                };
                life.world.proxy(*of).arm(*direction, *after, event);
            }
            Fault::Full { table } => {
                let sql = "SELECT name FROM system.tables WHERE database = 'kubemeter' AND engine LIKE '%MergeTree' ORDER BY name";
                let tables = life.world.sql(sql).await.expect("ClickHouse answers");
                let tables: Vec<&str> = tables.lines().collect();
                let chosen = match table {
                    Table::Number(number) => tables.get(number % tables.len().max(1)),
                    Table::Named(begin) => tables.iter().find(|name| name.starts_with(begin)),
                };
                if let Some(name) = chosen {
                    let sql =
                        format!("ALTER TABLE kubemeter.`{name}` MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000");
                    life.world.sql(&sql).await.unwrap_or_else(|why| panic!("{sql}: {why}"));
                    full.push((*name).to_owned());
                }
            }
        }
    }
    full
}

/// Ends all faults; tells how many did not come to pass.
async fn calm(life: &Life, full: &Mutex<Vec<String>>) -> usize {
    let idle = life.world.revive().await;
    free(&life.world, full).await;
    let left = full.lock().expect("no panic").clone();
    for table in left {
        let there = life.world.sql(&format!("EXISTS kubemeter.`{table}`")).await;
        assert!(there.is_ok_and(|there| there.trim() == "0"), "{table} is there, and its disk can't be freed");
    }
    idle
}

/// Frees the disks of full tables; tells whether there was one. What can't be freed now stays in the list: ClickHouse may be away, the
/// table dropped.
async fn free(world: &World, full: &Mutex<Vec<String>>) -> bool {
    let (tables, mut freed) = (full.lock().expect("no panic").clone(), false);
    for table in tables {
        let sql = format!("ALTER TABLE kubemeter.`{table}` RESET SETTING min_free_disk_bytes_to_perform_insert");
        if world.sql(&sql).await.is_ok() {
            full.lock().expect("no panic").retain(|other| *other != table);
            freed = true;
        }
    }
    freed
}

/// Sends again what was not answered, perhaps changed, also by way of the other gateway.
async fn send_again(life: &Life, storm: &Storm, again: &[Request], posts: Vec<(Option<Answer>, Instant)>) -> Vec<Told> {
    let tries = storm.again.iter().zip(again).zip(posts).map(|((post, request), (answer, _))| async move {
        match answer {
            Some(answer) => Told { answer, again: false },
            None => Told { answer: life.world.answered((post.gateway + request.body.len()) % GATEWAYS, request).await, again: true },
        }
    });
    futures::future::join_all(tries).await
}

/// What a post was answered in the end.
struct Told {
    answer: Answer,
    /// Not at once.
    again: bool,
}

/// Lets the model know of the storm's events.
fn take(life: &mut Life, storm: &Storm, arrival: (i64, i64), told: &[Told]) -> Result<Versions, String> {
    let model = &mut life.spaces[storm.space];
    let mut sent: BTreeMap<Key, Vec<Version>> = BTreeMap::new();
    let tried_again = storm.again.iter().zip(told).filter(|(_, told)| told.again).map(|(post, _)| post);
    for event in storm.posts.iter().chain(tried_again).flat_map(send::read) {
        let version =
            model.judge(&event, arrival).unwrap_or_else(|codes| panic!("{event:?} is {codes:?}, but storms have good events only"));
        sent.entry(event.key()).or_default().push(version);
    }
    for (post, told) in storm.posts.iter().zip(told) {
        refused(model, storm, post, told, &sent, arrival)?;
    }
    let versions: Versions = sent.into_iter().map(|(key, sent)| (key, mixed(&sent))).collect();
    for (key, versions) in &versions {
        model.store(key.clone(), versions.clone());
    }
    Ok(versions)
}

/// Of sendings of one identity at the same time one decides type, subject and time, and one of this type the data.
fn mixed(sent: &[Version]) -> Vec<Version> {
    let mut all = Vec::new();
    for key in sent {
        for data in sent.iter().filter(|data| data.kind == key.kind) {
            let version = Version { leaves: data.leaves.clone(), ..key.clone() };
            if !all.contains(&version) {
                all.push(version);
            }
        }
    }
    all
}

/// A post of good events is taken as a whole; only one that has the identity of one of another type, which was not stored
/// yet, may be refused.
fn refused(model: &mut Space, storm: &Storm, post: &Post, told: &Told, sent: &Versions, arrival: (i64, i64)) -> Result<(), String> {
    let answer = told.answer.json();
    let code = BTreeSet::from(["invalid_event"]);
    let contested =
        |event: &Event| !model.events.contains_key(&event.key()) && sent[&event.key()].iter().any(|other| other.kind != event.kind);
    let events = send::read(post);
    let mut outcome = Outcome { accepted: events.len(), rejected: BTreeMap::new() };
    for rejected in answer["rejected"].as_array().into_iter().flatten() {
        let index = rejected["index"].as_u64().unwrap_or(u64::MAX) as usize;
        if events.get(index).is_some_and(contested) {
            outcome.accepted -= 1;
            outcome.rejected.insert(index, code.clone());
        }
    }
    let kept = |event: &Event| Reject { event: event.clone(), codes: code.clone(), arrival, id: None };
    let perhaps: Vec<_> = events.iter().filter(|event| contested(event)).map(kept).collect();
    model.perhaps.extend(perhaps);
    if !told.again {
        model.rejects.extend(outcome.rejected.keys().map(|index| kept(&events[*index])));
    }
    compare(&told.answer, &outcome).map_err(|why| format!("{why} ({} posts at once)", storm.posts.len()))
}

/// Lets the model know what the storm's cancellation took: all that counted before, and of what came at the same time any.
async fn cancelled_after(life: &mut Life, storm: &Storm, before: &Space, versions: &Versions) -> Result<(), String> {
    let named: BTreeSet<Key> = storm.cancel.iter().cloned().collect();
    let sure = named.iter().filter(|key| before.events.get(*key).is_some_and(|stored| stored.counts())).cloned().collect();
    let known = life.spaces[storm.space].cancellations.len();
    life.cancelled(storm.space, &sure).await?;
    let model = &mut life.spaces[storm.space];
    let new: Vec<_> = (known..model.cancellations.len()).map(Some).chain([None]).collect();
    for key in named.iter().filter(|key| versions.contains_key(*key) && !before.events.contains_key(*key)) {
        model.events.get_mut(key).expect("it was sent").states = new.clone();
    }
    Ok(())
}
