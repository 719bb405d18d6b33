//! A way for TCP that can be cut, stalled or closed at a byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Which bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Requests,
    Answers,
}

/// How much passes before.
#[derive(Clone, Copy, Debug)]
pub enum After {
    Bytes(u64),
    /// Requests or answers, of those that come at once.
    Messages(u64),
}

/// What happens when the counted byte is about to pass.
pub enum Event {
    /// Its connection ends there.
    Cut,
    /// Nothing passes any more, until it is healed.
    Stall,
    /// Something is done, then its connection ends.
    Call(Box<dyn FnOnce() + Send>),
}

struct Armed {
    direction: Direction,
    left: After,
    event: Event,
}

struct Shared {
    armed: Mutex<Vec<Armed>>,
    stalled: watch::Sender<bool>,
}

/// The way from a process to ClickHouse.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { armed: Mutex::default(), stalled: watch::Sender::new(false) });
        let for_all = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, to, Arc::clone(&for_all)));
            }
        });
        Self { address, shared, accepting }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Arms an event for when so much more has passed.
    pub fn arm(&self, direction: Direction, after: After, event: Event) {
        self.shared.lock().push(Armed { direction, left: after, event });
    }

    /// Whether something has not happened yet.
    pub fn is_armed(&self) -> bool {
        !self.shared.lock().is_empty()
    }

    /// Forgets what has not happened; what was stalled goes on. Tells how many had not happened.
    pub fn heal(&self) -> usize {
        let waiting = std::mem::take(&mut *self.shared.lock()).len();
        self.unstall();
        waiting
    }

    /// What was stalled goes on.
    pub fn unstall(&self) {
        self.shared.stalled.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes; an event that is due, and how many bytes pass before it.
    fn count(&self, direction: Direction, bytes: usize) -> Option<(usize, Event)> {
        let mut armed = self.lock();
        let mut due = None;
        for (index, waiting) in armed.iter_mut().enumerate().filter(|(_, waiting)| waiting.direction == direction) {
            match &mut waiting.left {
                After::Messages(0) if due.is_none() => due = Some((index, 0)),
                After::Bytes(left) if *left < bytes as u64 && due.is_none() => due = Some((index, *left as usize)),
                After::Messages(left) => *left = left.saturating_sub(1),
                After::Bytes(left) => *left = left.saturating_sub(bytes as u64),
            }
        }
        due.map(|(index, left)| (left, armed.swap_remove(index).event))
    }
}

async fn pass(client: TcpStream, to: SocketAddr, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // When one way ends, so does the other: the peer sees its connection end.
    tokio::select! {
        () = pump(from_client, to_server, Direction::Requests, &shared) => {}
        () = pump(from_server, to_client, Direction::Answers, &shared) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, shared: &Shared) {
    let mut buffer = vec![0; 16 * 1_024];
    let mut stalled = shared.stalled.subscribe();
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        let (mut passed, due) = match shared.count(direction, read) {
            None => (read, None),
            Some((left, event)) => (left, Some(event)),
        };
        if to.write_all(&buffer[..passed]).await.is_err() {
            return;
        }
        match due {
            None => {}
            Some(Event::Stall) => {
                shared.stalled.send_replace(true);
                if stalled.wait_for(|stalled| !stalled).await.is_err() {
                    return;
                }
                if to.write_all(&buffer[std::mem::replace(&mut passed, read)..read]).await.is_err() {
                    return;
                }
            }
            Some(Event::Cut) => return,
            Some(Event::Call(call)) => {
                tokio::task::block_in_place(call);
                return;
            }
        }
    }
}
