//! Batches that are posted until told to stop, whatever happens meanwhile, and what came of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::future::join_all;
use kubemeter::metering::{Error, UsageQuery};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::lab::{Lab, event, total};
use crate::support::eventually;

/// Events of a batch.
pub const BATCH: usize = 20;

/// One batch of events; those of an odd number leave their time to the gateway.
pub fn batch(number: u64) -> Value {
    let events = (0..BATCH).map(|n| {
        let time = format!("2026-{:02}-04T05:06:07Z", 1 + (number + n as u64) % 12);
        let mut event =
            event(&format!("{number}-{n}"), "t", &format!("s{}", n % 5), &time, json!({"v": "0.5", "batch": number.to_string()}));
        if number % 2 == 1 {
            event.as_object_mut().unwrap().remove("time");
        }
        event
    });
    events.collect()
}

/// Events of each batch that the Meter `count` has, which groups by `$.batch`.
pub async fn counted(lab: &Lab) -> BTreeMap<u64, u64> {
    let usage = lab.usage("count", UsageQuery { group_by: ["batch".to_owned()].into(), ..total() }).await;
    usage.data.iter().map(|row| (row.group_by["batch"].parse().unwrap(), row.value.parse().unwrap())).collect()
}

/// Posts under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<Mutex<Vec<u64>>>,
    failed: Arc<Mutex<Vec<u64>>>,
    posts: Vec<JoinHandle<()>>,
}

impl Load {
    /// Posts by so many at a time.
    pub fn start(lab: &Arc<Lab>, posts: usize) -> Self {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (good, failed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let posts = (0..posts).map(|_| {
            let (lab, stop, next, good, failed) =
                (Arc::clone(lab), Arc::clone(&stop), Arc::clone(&next), Arc::clone(&good), Arc::clone(&failed));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    match lab.post(&batch(number)).await {
                        Ok(answer) => {
                            assert_eq!(answer.accepted, BATCH);
                            good.lock().await.push(number);
                        }
                        Err(Error::Unavailable { .. } | Error::Overloaded { .. }) => failed.lock().await.push(number),
                        Err(other) => panic!("{other:?}"),
                    }
                }
            })
        });
        Self { posts: posts.collect(), stop, good, failed }
    }

    /// How many were answered Ok so far.
    pub async fn answered(&self) -> usize {
        self.good.lock().await.len()
    }

    /// Waits until so many more are answered Ok.
    pub async fn more_good(&self, least: usize) {
        let before = self.answered().await;
        eventually("posts are answered", async || (self.answered().await >= before + least).then_some(())).await;
    }

    /// Waits until one more is refused.
    pub async fn one_refused(&self) {
        let before = self.failed.lock().await.len();
        eventually("posts are refused", async || (self.failed.lock().await.len() > before).then_some(())).await;
    }

    /// Ends them: the numbers of those answered Ok, and of those refused.
    pub async fn end(self) -> (Vec<u64>, Vec<u64>) {
        self.stop.store(true, Ordering::SeqCst);
        join_all(self.posts).await.into_iter().for_each(|post| post.unwrap());
        (self.good.lock().await.clone(), self.failed.lock().await.clone())
    }
}
