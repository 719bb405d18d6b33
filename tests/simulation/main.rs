//! Kubemeter against a model of itself, through histories made from seeds. `docs/simulation.md` says what is covered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod calendar;
mod effects;
mod events;
mod faults;
mod generate;
mod history;
mod json;
mod known;
mod meanwhile;
mod model;
mod number;
mod objects;
mod observe;
mod process;
mod proxy;
mod run;
mod send;
mod shrink;
mod storm;
mod usage;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use effects::Effects;
use history::History;
use run::Seen;

/// Seeds that every run has: together they have every kind of effect, most of them several times, and a stall that is long.
const FIXED: &[u64] = &[53, 65, 76];
/// Steps of a history.
const STEPS: usize = 20;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_lived_as_the_model_says() {
    let fresh = fastrand::u64(0..1_000_000_000);
    let steps = number("KUBEMETER_SIMULATION_STEPS").map_or(STEPS, |steps| steps as usize);
    let shrink_for = Duration::from_secs(number("KUBEMETER_SIMULATION_SHRINK_SECONDS").unwrap_or(0));
    let (mut effects, mut faults, mut across, mut judged) = (Effects::new(), 0, 0, 0);
    let (seeds, progress): (Vec<u64>, bool) = match (number("KUBEMETER_SIMULATION_SEED"), number("KUBEMETER_SIMULATION_SEEDS")) {
        (None, None) => (FIXED.iter().copied().chain([fresh]).collect(), false),
        (first, count) => {
            let first = first.unwrap_or(fresh);
            ((first..first + count.unwrap_or(1)).collect(), true)
        }
    };
    for seed in seeds {
        let (start, at) = (Instant::now(), AtomicUsize::new(0));
        let history = History::generate(seed, steps);
        let lived = run::live(&history, &at, progress).await;
        if let Err(why) = lived.clone() {
            let step = at.load(Ordering::SeqCst);
            let again = format!("again: make simulate SEED={seed} STEPS={steps}");
            eprintln!("seed {seed} fails at step {step}: {why}\n{again}");
            let (history, why) = shrink::shrink(history, step, why, shrink_for).await;
            let left: Vec<usize> = history.steps.iter().map(|(number, _)| *number).collect();
            panic!("seed {seed} fails at step {step}; of its steps {left:?} are enough: {why}\n{again}");
        }
        let seen = lived.unwrap_or_default();
        eprintln!("seed {seed}: {steps} steps in {:.1} s: {}", start.elapsed().as_secs_f32(), words(&seen));
        if FIXED.contains(&seed) {
            faults += seen.faults;
            across += seen.across;
            judged += seen.judged.answers;
            seen.effects.into_iter().for_each(|(kind, count)| *effects.entry(kind).or_default() += count);
        }
    }
    if !progress && steps == STEPS {
        eprintln!("the fixed histories: {}", effects::words(&effects));
        let none: Vec<_> = effects::IMPORTANT.iter().filter(|kind| !effects.contains_key(*kind)).collect();
        assert!(none.is_empty(), "the fixed histories have none of {none:?}, only {}", effects::words(&effects));
        assert!(
            faults > 0 && across > 0 && judged > 0,
            "{faults} faults, {across} posts across one, {judged} answers judged: none may be 0"
        );
    }
}

fn words(seen: &Seen) -> String {
    let Seen { faults, across, effects, judged } = seen;
    let meanwhile =
        format!("{} answers judged meanwhile, {} open, {} refused, {} rows open", judged.answers, judged.open, judged.refused, judged.rows);
    format!("faults {faults}; {across} posts acknowledged across a restart; {}; {meanwhile}", effects::words(effects))
}

/// More statements than an edit has.
const STATEMENTS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_killed_between_any_two_statements_of_an_edit_changes_no_number() {
    let (at, history) = (AtomicUsize::new(0), known::killed(STATEMENTS));
    let seen = run::live(&history, &at, false).await.unwrap_or_else(|why| panic!("at step {}: {why}", at.load(Ordering::SeqCst)));
    let killed = seen.faults;
    eprintln!("the operator was killed {killed} times");
    assert!(killed > 20, "an edit has more statements than {killed}");
    assert!((killed as u64) < STATEMENTS, "an edit has more statements than {STATEMENTS}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_wrong_once_does_not_again() {
    let mut wrong = Vec::new();
    for (name, history) in known::all() {
        let at = AtomicUsize::new(0);
        match run::live(&history, &at, false).await {
            Err(why) => wrong.push(format!("{name}: at step {}: {why}", at.load(Ordering::SeqCst))),
            Ok(seen) => eprintln!("{name}: {}", words(&seen)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
