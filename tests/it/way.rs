//! A way to ClickHouse on which a test holds up what a gateway or a purge asks, and labs that take it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubemeter::api::Aggregation;
use kubemeter::warehouse::Topology;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::lab::{Lab, event, new_database, options, spec};
use crate::support::{ClickHouse, eventually};

pub const TIME: &str = "2026-03-04T05:06:07Z";
pub const LATER: &str = "2026-05-04T05:06:07Z";

/// What no INSERT is begun without.
pub const BEGINS_WITH: &str = "max_query_size";

/// What a gateway asks of ClickHouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Landing,
    /// To store what was claimed and not stored.
    Completed,
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
    /// To copy a month (`yyyymm`) of stored events.
    Copy(u32),
    /// How many events a Meter's table has.
    Count,
    /// To cancel events in `events`, or to let them count again.
    Turn,
}

/// Tells that something came, and waits until it may go on.
type Hold = (oneshot::Sender<()>, oneshot::Receiver<()>);

/// A way to ClickHouse that tells what passes, and holds something up until something else is done.
#[derive(Clone, Default)]
pub struct Way {
    pub asked: Arc<Mutex<Vec<Asked>>>,
    /// Taken by the next of its kind: that passes when the other end of both was used.
    held: Arc<Mutex<Option<(Asked, Hold)>>>,
    /// A setting that ClickHouse doesn't know here, as where its user may not set it.
    pub refuses: Arc<Mutex<Option<&'static str>>>,
    /// Whether answers to INSERTs of events get lost, and the connection with them.
    pub loses_answers: Arc<AtomicBool>,
    /// How often ClickHouse said something.
    pub answers: Arc<AtomicUsize>,
    /// What passes is held up or cut off at random, if it is something that is told.
    troubled: Arc<Mutex<Option<fastrand::Rng>>>,
}

impl Way {
    pub fn that_refuses(setting: &'static str) -> Self {
        Self { refuses: Arc::new(Mutex::new(Some(setting))), ..Self::default() }
    }

    /// From now on until [`calm`](Self::calm).
    pub fn trouble(&self, seed: u64) {
        *self.troubled.lock().unwrap() = Some(fastrand::Rng::with_seed(seed));
    }

    pub fn calm(&self) {
        *self.troubled.lock().unwrap() = None;
    }

    /// What becomes of something that is asked: how long it is held up, and whether it is cut off then.
    fn fate(&self) -> (Duration, bool) {
        let mut troubled = self.troubled.lock().unwrap();
        let Some(rng) = troubled.as_mut() else { return (Duration::ZERO, false) };
        let pause = if rng.u8(0..20) == 0 { rng.u64(0..7_000) } else { 0 };
        (Duration::from_millis(pause), rng.u8(0..40) == 0)
    }

    /// Where it begins.
    pub async fn to(&self, url: &str) -> String {
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
        let (is_lost, is_landing) = (self.loses_answers.clone(), Arc::new(AtomicBool::new(false)));
        let asks_landing = Arc::clone(&is_landing);
        let said = Arc::clone(&self.answers);
        let back = tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1_024];
            while let Ok(read @ 1..) = server_answers.read(&mut buffer).await {
                said.fetch_add(1, Ordering::SeqCst);
                let loses = is_landing.load(Ordering::SeqCst) && is_lost.load(Ordering::SeqCst);
                if loses || answers.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        });
        let mut buffer = vec![0; 64 * 1_024];
        while let Ok(read @ 1..) = client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..read]);
            let asked = match text.lines().next().unwrap_or_default() {
                line if line.contains("INSERT+INTO") && line.contains("landing_") => Some(Asked::Landing),
                line if line.contains("INSERT+INTO") && line.contains("completed") => Some(Asked::Completed),
                line if line.contains("INSERT+INTO") && line.contains("identities") => Some(Asked::Claims),
                line if line.contains("query_id=kubemeter-backfill") => Some(Asked::Copy(month_of(&text))),
                line if line.contains("query_id=kubemeter-insert-turned") => Some(Asked::Turn),
                _ if text.contains("INSERT INTO") && text.contains("SELECT DISTINCT id") => Some(Asked::Claims),
                _ if text.contains("AS least") => Some(Asked::Look),
                _ if text.contains("SHOW CREATE") && text.contains("identities") => Some(Asked::Table),
                _ if text.contains("AS time_ms, _block_number AS block") => Some(Asked::Keys),
                _ if text.contains("ALTER TABLE") && text.contains("DELETE") && text.contains("_block_number") => Some(Asked::Removal),
                _ if text.contains("ALTER TABLE") && text.contains("DELETE") => Some(Asked::OtherRemoval),
                _ if text.contains("DISTINCT initial_query_id") => Some(Asked::Running),
                _ if text.contains("SELECT toInt64(count()), toInt64(countIf") => Some(Asked::Count),
                _ => None,
            };
            self.asked.lock().unwrap().extend(asked);
            // What has no such beginning goes on with what came before.
            if text.starts_with("POST") {
                asks_landing.store(asked == Some(Asked::Landing), Ordering::SeqCst);
            }
            let held = self.held.lock().unwrap().take_if(|(of, _)| asked == Some(*of));
            if let Some((_, (came, go))) = held {
                came.send(()).unwrap();
                go.await.unwrap();
            }
            if asked.is_some() {
                let (pause, is_cut) = self.fate();
                tokio::time::sleep(pause).await;
                if is_cut {
                    break;
                }
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

    pub fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }

    /// Holds the next of a kind up until it is told to go on, and tells when it came.
    pub fn hold(&self, of: Asked) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((came, comes), (go, goes)) = (oneshot::channel(), oneshot::channel());
        *self.held.lock().unwrap() = Some((of, (came, goes)));
        (comes, go)
    }

    /// Whether a purge asks again and again what runs: three times in turn it asks twice, where nothing does.
    pub fn has_purge_that_waits(&self) -> bool {
        let asked = self.asked.lock().unwrap();
        let of_purge = asked.iter().rev().filter(|asked| matches!(asked, Asked::Running | Asked::Removal | Asked::OtherRemoval));
        of_purge.take_while(|asked| **asked == Asked::Running).count() > 8
    }

    /// Whether an INSERT was begun before the look after the claims.
    pub fn has_begun(&self) -> bool {
        let asked = self.asked.lock().unwrap();
        let place = |of| asked.iter().position(|asked| *asked == of).unwrap_or_else(|| panic!("{of:?} is not among {asked:?}"));
        place(Asked::Landing) < place(Asked::Look)
    }
}

/// A lab whose gateway reaches ClickHouse by a way, and begins INSERTs by now.
pub async fn lab(way: &Way) -> Lab {
    let database = new_database();
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, &database, Topology::Single));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    until_read(&lab, way, || way.has_begun()).await;
    lab
}

/// Waits until a gateway has read what is claimed, and something more is so. While it reads it lists parts, too, as the look after
/// claims does: after an INSERT, perhaps.
pub async fn until_read(lab: &Lab, way: &Way, is_so: impl Fn() -> bool) {
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
pub async fn without_begun(way: &Way, database: &str) -> Lab {
    assert!(way.refuses.lock().unwrap().is_some());
    let lab = Lab::with(&options(&way.to(ClickHouse::shared().url()).await, database, Topology::Single));
    lab.meter("count", spec("t", Aggregation::Count, None, &[])).await;
    lab
}

/// The month that a request binds.
fn month_of(request: &str) -> u32 {
    let (_, month) = request.split_once("param_month\"").unwrap_or_else(|| panic!("no month in {request}"));
    month.trim_start()[..6].parse().unwrap()
}
