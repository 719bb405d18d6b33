//! A way to ClickHouse for tests in which whoever takes it ends at some statement: it tells when that comes, and lets nothing through from
//! there on, so that nobody notices before the end.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// Where somebody ends, by the number of the statement since the way was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// ClickHouse never gets it.
    Before(usize),
    /// ClickHouse gets it, and does it while nobody waits for it any more.
    During(usize),
    /// ClickHouse has done it, its answer comes to nobody.
    After(usize),
}

impl End {
    /// Before and after each, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).flat_map(|number| [Self::Before(number), Self::After(number)])
    }
}

/// The way. It is open at first.
#[derive(Clone, Default)]
pub struct Halt {
    gate: Arc<Mutex<Gate>>,
    /// How often it was opened.
    opened: watch::Sender<usize>,
}

#[derive(Default)]
enum Gate {
    #[default]
    Open,
    /// With the statements that came, and whom to tell.
    Ajar(End, usize, oneshot::Sender<()>),
    Shut,
}

/// What becomes of something that is sent to ClickHouse.
#[derive(PartialEq, Eq)]
enum Fate {
    Passes,
    /// Its answer does not.
    Answerless,
    /// Nothing comes after it.
    Last,
    Stops,
}

impl Halt {
    /// Where it begins.
    pub async fn to(&self, url: &str) -> String {
        let to = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let from = format!("http://{}", listener.local_addr().unwrap());
        let halt = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(halt.clone().pass(client, server));
            }
        });
        from
    }

    /// Opens it until then. What this gives comes when it is shut.
    pub fn open_until(&self, end: End) -> oneshot::Receiver<()> {
        let (shuts, is_shut) = oneshot::channel();
        self.turn(Gate::Ajar(end, 0, shuts));
        is_shut
    }

    /// Opens it for good. What was stopped never goes on.
    pub fn open(&self) {
        self.turn(Gate::Open);
    }

    /// Work in this process that ends there. None: it did.
    pub async fn cut<T>(&self, end: End, work: impl Future<Output = T>) -> Option<T> {
        let is_shut = self.open_until(end);
        let done = tokio::select! {
            done = work => Some(done),
            _ = is_shut => None,
        };
        self.open();
        done
    }

    /// How many statements work in this process has.
    pub async fn count(&self, work: impl Future) -> usize {
        let _is_shut = self.open_until(End::Before(usize::MAX));
        work.await;
        match &*self.gate.lock().unwrap() {
            Gate::Ajar(_, came, _) => *came,
            Gate::Open | Gate::Shut => 0,
        }
    }

    fn turn(&self, gate: Gate) {
        *self.gate.lock().unwrap() = gate;
        self.opened.send_modify(|times| *times += 1);
    }

    fn shut(&self) {
        // Who gave up waiting needs not be told.
        if let Gate::Ajar(_, _, shuts) = std::mem::replace(&mut *self.gate.lock().unwrap(), Gate::Shut) {
            let _ = shuts.send(());
        }
    }

    fn fate(&self, begins: bool) -> Fate {
        let mut gate = self.gate.lock().unwrap();
        let (end, number) = match &mut *gate {
            Gate::Open => return Fate::Passes,
            Gate::Shut => return Fate::Stops,
            Gate::Ajar(_, _, _) if !begins => return Fate::Passes,
            Gate::Ajar(end, came, _) => {
                *came += 1;
                (*end, *came - 1)
            }
        };
        drop(gate);
        match end {
            End::Before(at) if at == number => {
                self.shut();
                Fate::Stops
            }
            End::During(at) if at == number => Fate::Last,
            End::After(at) if at == number => Fate::Answerless,
            _ => Fate::Passes,
        }
    }

    async fn pass(self, mut client: TcpStream, mut server: TcpStream) {
        let mut opened = self.opened.subscribe();
        let (mut asked, mut answered) = (vec![0; 64 * 1_024], vec![0; 64 * 1_024]);
        let mut is_answerless = false;
        loop {
            tokio::select! {
                read = client.read(&mut asked) => {
                    let Ok(count @ 1..) = read else { return };
                    opened.mark_unchanged();
                    let fate = self.fate(asked.starts_with(b"POST ") || asked.starts_with(b"GET "));
                    if fate == Fate::Stops {
                        break;
                    }
                    if server.write_all(&asked[..count]).await.is_err() {
                        return;
                    }
                    if fate == Fate::Last {
                        self.shut();
                        break;
                    }
                    is_answerless |= fate == Fate::Answerless;
                }
                read = server.read(&mut answered) => {
                    let Ok(count @ 1..) = read else { return };
                    if is_answerless {
                        opened.mark_unchanged();
                        self.shut();
                        break;
                    }
                    if client.write_all(&answered[..count]).await.is_err() {
                        return;
                    }
                }
            }
        }
        // Until nobody is there any more.
        let _ = opened.changed().await;
    }
}
