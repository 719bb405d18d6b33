//! A history's steps, taken by the product and by the model.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use fastrand::Rng;
use futures::FutureExt as _;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::calendar::text;
use super::effects::{self, Effects};
use super::history::{History, Post, SPACES, Step, Target};
use super::json::{Json, Segment};
use super::meanwhile::Judged;
use super::model::{Cancellation, Event, Meter, Outcome, Space, Span, command_data};
use super::usage::{self, Query};
use super::world::{Answer, Request, World};
use super::{bounds, observe, send, storm};

/// The product and what it ought to know.
pub struct Life {
    pub world: Arc<World>,
    pub spaces: Vec<Space>,
    pub rng: Rng,
    pub seen: Seen,
}

/// What happened in a life.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Those that came to pass.
    pub faults: usize,
    /// Posts that were under way when something was started again or a disk freed, and were acknowledged.
    pub across: usize,
    pub effects: Effects,
    pub judged: Judged,
}

/// Lives a history; tells at which step it is, and what was wrong there, or what happened.
pub async fn live(history: &History, at: &AtomicUsize, progress: bool) -> Result<Seen, String> {
    // Operators and gateways of two lives would see each other's Meters.
    static TURN: Mutex<()> = Mutex::const_new(());
    let _turn = TURN.lock().await;
    // First of all, for what ends or hangs this process with it.
    eprintln!("the history of seed {} begins", history.seed);
    let spaces = vec![Space::default(); SPACES];
    let mut life = Life { world: Arc::new(World::start().await), spaces, rng: Rng::new(), seen: Seen::default() };
    let mut result = Ok(());
    for (number, step) in &history.steps {
        at.store(*number, Ordering::SeqCst);
        let start = Instant::now();
        // Questions depend on the seed and the step alone, whatever steps were left out.
        life.rng = Rng::with_seed(history.seed ^ (*number as u64) << 32);
        let done = AssertUnwindSafe(life.step(step)).catch_unwind().await.unwrap_or_else(|panic| Err(words(&*panic)));
        let done = done.and_then(|()| life.world.complaints().map_or(Ok(()), |line| Err(format!("a process said: {line}"))));
        if progress {
            eprintln!("seed {} step {number}: {} in {} ms", history.seed, name(step), start.elapsed().as_millis());
        }
        if let Err(why) = done {
            result = Err(format!("{why}\n{step:?}\n{}{}", life.world.objects().await, life.world.log_ends()));
            break;
        }
    }
    if result.is_ok() {
        // Only then what is asked now shows whether balanced sums are right.
        let balanced = life.world.balanced_months().await;
        life.seen.effects.extend((balanced > 0).then_some((effects::BALANCED, balanced)));
        result = life.observe_all().await;
    }
    life.world.end().await;
    result.map(|()| life.seen)
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "a panic without a word".to_owned())
}

fn name(step: &Step) -> String {
    format!("{step:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

impl Life {
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let before = self.spaces.clone();
        let touched = self.act(step).await?;
        for space in 0..SPACES {
            match touched.contains(&space) {
                true => self.observe(space).await?,
                false => self.observe_totals(space).await.map_err(|why| format!("in the other namespace: {why}"))?,
            }
        }
        for kind in effects::of(step, &before, &self.spaces) {
            *self.seen.effects.entry(kind).or_default() += 1;
        }
        Ok(())
    }

    /// Takes a step; gives the namespaces that it had to do with.
    pub async fn act(&mut self, step: &Step) -> Result<Vec<usize>, String> {
        let space = match step {
            Step::Post(post) => self.post(post).await.map(|()| post.space)?,
            Step::Usage { space, gateway, id, tenant, meter, value, dimensions, time } => {
                self.usage_command(*space, *gateway, id, tenant, meter, value, dimensions, time.clone()).await.map(|()| *space)?
            }
            Step::Command { space, gateway, id, onboard, tenant } => {
                self.command(*space, *gateway, id, *onboard, tenant).await.map(|()| *space)?
            }
            Step::Cancel { space, gateway, target, dry_run, reason } => {
                self.cancel(*space, *gateway, target, *dry_run, reason).await.map(|()| *space)?
            }
            Step::Revert { space, gateway, back } => self.revert(*space, *gateway, *back).await.map(|()| *space)?,
            Step::Replay { space, gateway, one } => self.replay(*space, *gateway, *one).await.map(|()| *space)?,
            Step::PutMeter { space, name, meter, http, during } => {
                self.put_meter(*space, name, meter, *http, during.as_ref()).await.map(|()| *space)?
            }
            Step::DropMeter { space, name, http } => self.drop_object("Meter", *space, name, *http).await.map(|()| *space)?,
            Step::PutCustomer { space, name, subjects, purge, http } => {
                self.put_customer(*space, name, subjects, *purge, *http).await.map(|()| *space)?
            }
            Step::DropCustomer { space, name, http } => self.drop_object("Customer", *space, name, *http).await.map(|()| *space)?,
            Step::MoveSubject { space, subject, to, release_first, http } => {
                self.move_subject(*space, subject, to, *release_first, *http).await.map(|()| *space)?
            }
            Step::Restart { part, kill } => {
                self.world.restart(*part, *kill);
                self.world.revive().await;
                self.seen.faults += 1;
                self.rng.usize(0..SPACES)
            }
            Step::Clock { part, offset } => {
                self.world.move_clock(*part, *offset).await;
                self.seen.faults += 1;
                self.rng.usize(0..SPACES)
            }
            Step::Storm(storm) => {
                Box::pin(storm::run(self, storm)).await?;
                return Ok(if storm.beside.is_some() { (0..SPACES).collect() } else { vec![storm.space] });
            }
        };
        Ok(vec![space])
    }

    /// The same life for what happens beside a storm.
    pub fn aside(&mut self) -> Self {
        Self { world: Arc::clone(&self.world), spaces: self.spaces.clone(), rng: self.rng.fork(), seen: Seen::default() }
    }

    /// Takes over what happened beside a storm, in all namespaces but the storm's.
    pub fn take_back(&mut self, storm: usize, mut aside: Self) {
        for space in (0..SPACES).filter(|space| *space != storm) {
            std::mem::swap(&mut self.spaces[space], &mut aside.spaces[space]);
        }
    }

    /// At the end also the namespaces that the last step had nothing to do with.
    async fn observe_all(&mut self) -> Result<(), String> {
        for space in 0..SPACES {
            let seen = AssertUnwindSafe(self.observe(space)).catch_unwind().await.unwrap_or_else(|panic| Err(words(&*panic)));
            seen.map_err(|why| format!("{why}\nat the end, in namespace {space}\n{}", self.world.log_ends()))?;
        }
        Ok(())
    }

    /// Compares all that can be seen of a namespace with the model.
    async fn observe(&mut self, space: usize) -> Result<(), String> {
        let (world, rng, model) = (&self.world, &mut self.rng, &mut self.spaces[space]);
        observe::events(world, rng, space, model).await?;
        let listed = observe::cancellations(world, rng, space, model).await?;
        let known: Vec<_> = model.cancellations.iter().rev().map(|known| known.id.clone()).collect();
        if BTreeSet::from_iter(&listed) != BTreeSet::from_iter(&known) || listed.len() != known.len() {
            return Err(format!("GET /usage/cancellations has {listed:?}, not {known:?}"));
        }
        observe::rejects(world, rng, space, model).await?;
        observe::some_events(world, rng, space, model).await?;
        observe::uncounted_events(world, rng, space, model).await?;
        let times = observe::times(model);
        for meter in model.meters.keys() {
            let bill = bounds::bill(rng, meter, &times);
            let (one, two) = (observe::question(rng, model, meter), observe::question(rng, model, meter));
            for query in [total(meter), bill, one, two] {
                observe::usage(world, rng, space, model, &query).await?;
            }
        }
        Ok(())
    }

    /// Compares what Meters count in all with the model, in a namespace that nothing was to happen to.
    async fn observe_totals(&mut self, space: usize) -> Result<(), String> {
        for meter in self.spaces[space].meters.keys() {
            observe::usage(&self.world, &mut self.rng, space, &self.spaces[space], &total(meter)).await?;
        }
        Ok(())
    }

    /// Now, as far as gateways know it.
    pub fn now(&self) -> Span {
        let (now, (behind, ahead)) = (Timestamp::now().as_millisecond(), self.world.clocks());
        (now + behind, now + ahead)
    }

    async fn post(&mut self, post: &Post) -> Result<(), String> {
        let (request, events) = (send::request(post), send::read(post));
        let from = self.now().0;
        let answer = self.world.answered(post.gateway, &request).await;
        let arrival = (from, self.now().1);
        let model = &mut self.spaces[post.space];
        let before = model.rejects.len();
        let outcome = model.post(&events, post.atomic, arrival);
        if answer.tries > 1 {
            model.perhaps.extend_from_slice(&model.rejects[before..]);
        }
        compare(&answer, &outcome)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the step")]
    async fn usage_command(
        &mut self,
        space: usize,
        gateway: usize,
        id: &str,
        tenant: &str,
        meter: &str,
        value: &Json,
        dimensions: &[(String, Json)],
        time: Option<String>,
    ) -> Result<(), String> {
        let model = &mut self.spaces[space];
        // Only what is certain to be taken: a refused command is a case of its own.
        let Some(known) = model.meters.get(meter).filter(|meter| !indexed(meter)) else { return Ok(()) };
        let value = if known.value.is_none() { Json::literal(1) } else { value.clone() };
        let (source, id, subject) = ("control".to_owned(), id.to_owned(), Some(tenant.to_owned()));
        let event = Event { source, id, kind: known.kind.clone(), subject, time, data: command_data(known, &value, dimensions) };
        if model.judge(&event, (0, 0)).is_err() {
            return Ok(());
        }
        let mut detail =
            vec![("value".to_owned(), value), ("tenantId".to_owned(), Json::text(tenant)), ("meterId".to_owned(), Json::text(meter))];
        detail.extend(dimensions.iter().cloned());
        let body =
            send::envelope(&event, if event.id.len().is_multiple_of(2) { "INGEST_USAGE" } else { "ingestUsage" }, &Json::Map(detail));
        let from = self.now().0;
        let answer = self.world.answered(gateway, &events_request(space, body)).await;
        let arrival = (from, self.now().1);
        let outcome = self.spaces[space].post(&[event], false, arrival);
        compare(&answer, &outcome)
    }

    async fn command(&mut self, space: usize, gateway: usize, id: &str, onboard: bool, tenant: &str) -> Result<(), String> {
        let (kind, id) = if onboard { ("onboardingRequest", format!("on-{id}")) } else { ("offboardingRequest", format!("off-{id}")) };
        let event = Event {
            source: "control".to_owned(),
            id,
            kind: kind.to_owned(),
            subject: Some(tenant.to_owned()),
            time: None,
            data: Json::Map(Vec::new()),
        };
        let detail = Json::Map(vec![("tenantId".to_owned(), Json::text(tenant))]);
        let body = send::envelope(&event, kind, &detail);
        let from = self.now().0;
        let answer = self.world.answered(gateway, &events_request(space, body)).await;
        let arrival = (from, self.now().1);
        let done_before = self.spaces[space].events.contains_key(&event.key());
        let known = self.spaces[space].customers.contains_key(tenant);
        if !done_before && onboard && !known {
            self.settle_customer(space, tenant, Vec::new(), false).await;
        }
        if !done_before && !onboard && known {
            self.gone("Customer", space, tenant).await;
            self.spaces[space].drop_customer(tenant);
            // A purge takes it, or comes before it.
            self.spaces[space].optional.insert(event.key());
        }
        let outcome = self.spaces[space].post(&[event], false, arrival);
        compare(&answer, &outcome)
    }

    async fn cancel(
        &mut self,
        space: usize,
        gateway: usize,
        target: &Target,
        dry_run: bool,
        reason: &Option<String>,
    ) -> Result<(), String> {
        let model = &self.spaces[space];
        let (mut body, hit, mut not_found, mut status) = match target {
            Target::Events(keys) => {
                let hit: BTreeSet<_> =
                    keys.iter().filter(|key| model.events.get(*key).is_some_and(|stored| stored.counts())).cloned().collect();
                let named = |(source, id): &(String, String)| json!({"source": source, "id": id});
                let not_found: Vec<Value> = keys.iter().filter(|key| !model.events.contains_key(*key)).map(named).collect();
                (json!({"events": keys.iter().map(named).collect::<Vec<_>>()}), hit, not_found, 200)
            }
            Target::Filter { meter, customer, subject, from, to, groups } => {
                let query = Query {
                    meter: meter.clone(),
                    from: *from,
                    to: *to,
                    customers: customer.iter().cloned().collect(),
                    subjects: subject.iter().cloned().collect(),
                    filters: groups.iter().map(|(name, value)| (name.clone(), BTreeSet::from([value.clone()]))).collect(),
                    ..Query::default()
                };
                let (status, hit) = match model.meters.get(meter) {
                    None => (404, BTreeSet::new()),
                    Some(known) if groups.keys().any(|name| !known.groups.contains_key(name)) => (400, BTreeSet::new()),
                    Some(_) => (200, usage::hit(model, &query)),
                };
                let filter =
                    json!({"customer": customer, "subject": subject, "from": from.map(text), "to": to.map(text), "groupBy": groups});
                (json!({"meterId": meter, "filter": filter}), hit, Vec::new(), status)
            }
        };
        body["dryRun"] = json!(dry_run);
        body["reason"] = json!(reason);
        let answer = self.world.answered(gateway, &Request::json(Method::DELETE, space, "/usage", &body)).await;
        if answer.status != 200 {
            not_found.clear();
            return expect_status(&answer, std::mem::replace(&mut status, 0));
        }
        let told = answer.json();
        if answer.tries == 1 || dry_run {
            let right = status == 200
                && told["cancelled"] == json!(hit.len())
                && told["notFound"] == json!(not_found)
                && told["dryRun"] == json!(dry_run);
            if !right {
                return Err(format!("{body} was answered {answer:?}, not {} cancelled and {not_found:?} not found", hit.len()));
            }
        }
        if dry_run {
            return if told.get("cancellationId") == Some(&Value::Null) {
                Ok(())
            } else {
                Err(format!("a dry run was answered {answer:?}"))
            };
        }
        self.cancelled(space, &hit).await?;
        let listed = self.spaces[space].cancellations.iter().any(|listed| told["cancellationId"] == listed.id.as_str());
        if listed || hit.is_empty() { Ok(()) } else { Err(format!("{body} was answered {answer:?}, which is not listed")) }
    }

    /// Takes note of new cancellations, by one of which each of these events is cancelled now.
    pub async fn cancelled(&mut self, space: usize, hit: &BTreeSet<(String, String)>) -> Result<(), String> {
        let model = &mut self.spaces[space];
        let before: BTreeSet<String> = model.cancellations.iter().map(|known| known.id.clone()).collect();
        let answer = self.world.answered(0, &Request::get(space, "/usage/cancellations?limit=1000")).await;
        let mut new = Vec::new();
        for listed in answer.json()["items"].as_array().into_iter().flatten().rev() {
            let id = listed["cancellationId"].as_str().unwrap_or_default().to_owned();
            if !before.contains(&id) {
                let (reason, cancelled) =
                    (listed["reason"].as_str().map(str::to_owned), listed["cancelled"].as_u64().unwrap_or_default() as usize);
                new.push(Some(model.cancellations.len()));
                model.cancellations.push(Cancellation { id, reason, cancelled, reverted: false });
            }
        }
        if new.is_empty() && !hit.is_empty() {
            return Err(format!("{} events were cancelled, by no cancellation that is listed", hit.len()));
        }
        for key in hit {
            model.events.get_mut(key).expect("it was stored").states = new.clone();
        }
        Ok(())
    }

    async fn revert(&mut self, space: usize, gateway: usize, back: usize) -> Result<(), String> {
        let known = &self.spaces[space].cancellations;
        let index = known.len().checked_sub(back + 1);
        let id = index.map_or_else(|| "01890000-0000-7000-8000-000000000000".to_owned(), |index| known[index].id.clone());
        let request = Request { method: Method::POST, ..Request::get(space, &format!("/usage/cancellations/{id}/revert")) };
        let answer = self.world.answered(gateway, &request).await;
        expect_status(&answer, if index.is_some() { 200 } else { 404 })?;
        if let Some(index) = index {
            self.spaces[space].revert(index);
        }
        Ok(())
    }

    async fn replay(&mut self, space: usize, gateway: usize, one: Option<usize>) -> Result<(), String> {
        let known: Vec<_> = self.spaces[space].rejects.iter().filter_map(|reject| reject.id.clone()).collect();
        let only: Option<BTreeSet<String>> = match one {
            None => None,
            Some(index) if index < known.len() => Some(BTreeSet::from([known[index].clone()])),
            Some(_) => return Ok(()),
        };
        let request = match &only {
            None => Request { method: Method::POST, ..Request::get(space, "/events/rejected/replay") },
            Some(ids) => Request::json(Method::POST, space, "/events/rejected/replay", &json!({"rejectIds": ids})),
        };
        let answer = self.world.answered(gateway, &request).await;
        let outcome = self.spaces[space].replay(only.as_ref());
        let told = answer.json();
        let counts = (told["accepted"].as_u64(), told["rejected"].as_array().map(Vec::len));
        if answer.tries == 1 && counts != (Some(outcome.accepted as u64), Some(outcome.rejected.len())) {
            return Err(format!("a replay was answered {answer:?}, not {outcome:?}"));
        }
        expect_status(&answer, 200)
    }
}

fn total(meter: &str) -> Query {
    Query { meter: meter.to_owned(), ..Query::default() }
}

fn events_request(space: usize, body: String) -> Request {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Request { method: Method::POST, space, path: "/events".to_owned(), headers, body: body.into_bytes() }
}

fn indexed(meter: &Meter) -> bool {
    meter.value.iter().chain(meter.groups.values()).flatten().any(|segment| matches!(segment, Segment::Index(_)))
}

/// Checks a status.
pub fn expect_status(answer: &Answer, status: u16) -> Result<(), String> {
    if answer.status == status { Ok(()) } else { Err(format!("{status} was to be answered, not {answer:?}")) }
}

/// Compares the answer to a post with what the model says.
pub fn compare(answer: &Answer, outcome: &Outcome) -> Result<(), String> {
    let told = answer.json();
    let status = if outcome.accepted == 0 && !outcome.rejected.is_empty() { 400 } else { 202 };
    let rejected = told["rejected"].as_array().cloned().unwrap_or_default();
    let right = |one: &Value| {
        let codes = one["index"].as_u64().and_then(|index| outcome.rejected.get(&(index as usize)));
        codes.is_some_and(|codes| one["code"].as_str().is_some_and(|code| codes.contains(code)))
    };
    let all_right = rejected.len() == outcome.rejected.len() && rejected.iter().all(right);
    if answer.status == status && told["accepted"] == json!(outcome.accepted) && all_right {
        return Ok(());
    }
    Err(format!("a post was answered {answer:?}, not {outcome:?}"))
}
