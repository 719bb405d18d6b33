//! The engine as a child process that is kept running.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Error, START};

/// Pause before an engine that died is started again; doubled each time it dies without having answered.
const RESTART: Duration = Duration::from_millis(500);
/// Longest such pause.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// How long the engine may take to end in order. It takes 0.05 s idle, and waits for inserts that run.
const STOP: Duration = Duration::from_secs(10);

/// How to start an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The `kubemeter` executable.
    pub executable: PathBuf,
    /// The library file, found already.
    pub library: PathBuf,
    /// Folder for ClickHouse's data.
    pub data_dir: PathBuf,
    /// Where it listens; port 0: a free one, kept from then on.
    pub listen: SocketAddr,
}

/// A running engine. Dropping it ends the engine too, only not in order.
#[derive(Debug)]
pub struct EngineProcess {
    url: String,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl EngineProcess {
    /// Starts the engine as a child of this process, waits until it answers, and starts it again whenever it dies.
    ///
    /// # Errors
    /// When it can't be started; the child's own words are on standard error.
    pub async fn spawn(options: EngineOptions) -> Result<Self, Error> {
        let (child, listen) = start(&options).await?;
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(child, EngineOptions { listen, ..options }, stop.clone()));
        Ok(Self { url: format!("http://{listen}"), stop, keeper })
    }

    /// Base URL of its HTTP interface; the same after a restart.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends the engine in order.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.keeper).await;
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Restarts the child until it is told to stop.
async fn keep(mut child: Child, options: EngineOptions, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return end(child).await,
            status = child.wait() => {
                let status = status.map_or_else(|why| why.to_string(), |status| status.to_string());
                tracing::error!("ClickHouse ended by itself ({status}); starting it again");
            }
        }
        let mut pause = RESTART;
        child = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let started = tokio::select! {
                () = stop.cancelled() => return,
                started = start(&options) => started,
            };
            match started {
                Ok((child, _)) => break child,
                Err(why) => {
                    pause = (pause * 2).min(RESTART_MAX);
                    tracing::error!("{why}; trying again in {} s", pause.as_secs_f32());
                }
            }
        };
        tracing::info!("ClickHouse answers again");
    }
}

async fn start(options: &EngineOptions) -> Result<(Child, SocketAddr), Error> {
    let mut child = Command::new(&options.executable)
        .arg("clickhouse")
        .arg("--stop-with-stdin")
        .arg("--data-dir")
        .arg(&options.data_dir)
        .arg("--listen")
        .arg(options.listen.to_string())
        .arg("--engine")
        .arg(&options.library)
        // Its end tells the child that this process is gone, even after a SIGKILL.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal goes to the whole group: the gateway must be able to finish its inserts first.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| Error::Engine(format!("can't be started: {}: {why}", options.executable.display())))?;
    let (Some(output), Some(words)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::Engine("has no output".to_owned()));
    };
    let words = tokio::spawn(pass_on(words));
    let mut lines = BufReader::new(output).lines();
    let address = async {
        while let Some(line) = lines.next_line().await.ok().flatten() {
            if let Some(address) = line.strip_prefix("listening on http://").and_then(|address| address.parse().ok()) {
                return Some(address);
            }
        }
        None
    };
    match tokio::time::timeout(START, address).await {
        Ok(Some(address)) => {
            // Whatever else it prints must not fill the pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            Ok((child, address))
        }
        Ok(None) => {
            let _ = words.await;
            Err(Error::Engine("could not be started; it says why above".to_owned()))
        }
        Err(_) => Err(Error::Engine(format!("did not answer within {} s", START.as_secs()))),
    }
}

/// Passes on what the engine says, but for where it logs to: that is in the data folder, as documented.
async fn pass_on(words: ChildStderr) {
    let mut lines = BufReader::new(words).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if !line.starts_with("Logging ") {
            eprintln!("{line}");
        }
    }
}

async fn end(mut child: Child) {
    drop(child.stdin.take());
    if tokio::time::timeout(STOP, child.wait()).await.is_err() {
        tracing::warn!("ClickHouse did not end within {} s; killing it", STOP.as_secs());
        let _ = child.kill().await;
    }
}
