//! Makes a failing history smaller: leaves steps out as long as it still fails, for a bounded time.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::history::History;
use super::run;

/// The smallest failing history that was found in the time, and how it fails.
pub async fn shrink(mut history: History, failed_at: usize, mut why: String, within: Duration) -> (History, String) {
    let until = Instant::now() + within;
    // What comes after the failure has no part in it.
    history.steps.retain(|(number, _)| *number <= failed_at);
    let mut size = history.steps.len() / 2;
    while size > 0 && Instant::now() < until {
        let mut from = 0;
        // The last step is the one that fails.
        while from + 1 < history.steps.len() && Instant::now() < until {
            let to = (from + size).min(history.steps.len() - 1);
            let mut smaller = history.clone();
            smaller.steps.drain(from..to);
            match run::live(&smaller, &AtomicUsize::new(0), false).await {
                Ok(_) => from = to,
                Err(still) => (history, why) = (smaller, still),
            }
            let left = history.steps.len();
            eprintln!("seed {}: {left} steps are enough", history.seed);
        }
        size /= 2;
    }
    (history, why)
}
