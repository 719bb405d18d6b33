//! Load that goes on until it is told to stop: every batch is sent again until it is acknowledged.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::Result;
use crate::client::Connection;
use crate::events::{Batch, Generator};
use crate::setup::Setup;

/// How long a refused batch waits.
const PAUSE: Duration = Duration::from_millis(100);

/// New events for the gateway from some connections.
pub struct Posts<'a> {
    setup: &'a Setup,
    connections: usize,
    /// Events a batch.
    size: usize,
    generator: RefCell<Generator>,
    stopped: Cell<bool>,
    acknowledged: Cell<u64>,
    thousandths: Cell<i128>,
    refused: Cell<u64>,
}

impl<'a> Posts<'a> {
    /// `stream`: another for each of a seed.
    pub fn new(setup: &'a Setup, (connections, size): (usize, usize), seed: u64, stream: u64) -> Self {
        Self {
            setup,
            connections,
            size,
            generator: RefCell::new(Generator::new(seed, stream)),
            stopped: Cell::new(false),
            acknowledged: Cell::default(),
            thousandths: Cell::default(),
            refused: Cell::default(),
        }
    }

    /// Posts while work goes on, and until what was begun is acknowledged.
    pub async fn during<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let work = async {
            let done = work.await;
            self.stopped.set(true);
            done
        };
        let posts = futures::future::try_join_all((0..self.connections).map(|_| self.post()));
        let (done, _) = futures::future::try_join(work, posts).await?;
        Ok(done)
    }

    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.get()
    }

    /// Their sum, in thousandths.
    pub fn thousandths(&self) -> i128 {
        self.thousandths.get()
    }

    /// How often a batch was told to come again.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    async fn post(&self) -> Result<()> {
        let mut connection = self.setup.gateway().await?;
        while !self.stopped.get() {
            let batch = self.generator.borrow_mut().batch(self.size)?;
            while !self.once(&mut connection, &batch).await? {
                self.refused.set(self.refused.get() + 1);
                tokio::time::sleep(PAUSE).await;
            }
            self.acknowledged.set(self.acknowledged.get() + batch.events as u64);
            self.thousandths.set(self.thousandths.get() + batch.thousandths);
        }
        Ok(())
    }

    /// Whether a batch was acknowledged.
    async fn once(&self, connection: &mut Connection, batch: &Batch) -> Result<bool> {
        let Ok((status, answer)) = connection.send(Method::POST, "/events", "application/json", batch.json.clone()).await else {
            *connection = self.setup.gateway().await?;
            return Ok(false);
        };
        match status {
            StatusCode::ACCEPTED if answer.starts_with(format!("{{\"accepted\":{},", batch.events).as_bytes()) => Ok(true),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Ok(false),
            _ => Err(format!("a batch was answered {status}: {}", String::from_utf8_lossy(&answer)).into()),
        }
    }
}
