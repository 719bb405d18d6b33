//! The processes that are measured, and what the machine says of them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use kubemeter::warehouse::schema::Landing;
use tempfile::TempDir;

use crate::client::Connection;
use crate::events::{METER, NAMESPACE, TYPE};
use crate::{Result, progress};

/// How long a process may take until it is ready.
const READY: Duration = Duration::from_secs(90);
/// How long is waited for merges to end before something is measured.
const QUIET: Duration = Duration::from_secs(180);

const MANIFEST: &str = "\
apiVersion: kubemeter.io/v1alpha1
kind: Meter
metadata:
  name: bench
spec:
  eventType: api.request
  aggregation: Sum
  valueProperty: $.duration_ms
  groupBy:
    method: $.method
    path: $.path
  unit: ms
";

/// A ClickHouse and a gateway with one Meter that is ready.
pub struct Setup {
    // In the order in which they end: the gateway before its ClickHouse, the folder last.
    pub gateway: Process,
    pub clickhouse: Process,
    /// Landing table of the events.
    pub landing: String,
    /// Table of the Meter.
    pub table: String,
    _folder: TempDir,
}

/// A process that ends with this program, also when this one is killed: its standard input ends then.
pub struct Process {
    child: Child,
    pub url: String,
}

impl Setup {
    /// Starts both and waits until the Meter answers.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kubemeter-bench-").tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("manifests"))?;
        std::fs::write(path("manifests").join("meter.yaml"), MANIFEST)?;
        let kubemeter = executable()?;
        let clickhouse = Process::start(
            Command::new(&kubemeter).arg("clickhouse").arg("--data-dir").arg(path("clickhouse")).args(["--listen", "127.0.0.1:0"]),
            "listening on ",
        )?;
        let gateway = Process::start(
            Command::new(&kubemeter)
                .arg("dev")
                .args(["--clickhouse-url", &clickhouse.url, "--listen", "127.0.0.1:0", "--namespace", NAMESPACE])
                .arg("--data-dir")
                .arg(path("dev"))
                .arg("--manifests")
                .arg(path("manifests")),
            "API ",
        )?;
        let mut setup =
            Self { gateway, clickhouse, landing: Landing::of(NAMESPACE, TYPE).to_string(), table: String::new(), _folder: folder };
        setup.await_meter().await?;
        let mut direct = setup.clickhouse().await?;
        setup.table = setup.run(&mut direct, "SELECT name FROM system.tables WHERE database = 'kubemeter' AND startsWith(name, 'meter_') AND engine = 'ReplacingMergeTree'").await?;
        Ok(setup)
    }

    async fn await_meter(&self) -> Result<()> {
        let mut gateway = self.gateway().await?;
        let began = Instant::now();
        loop {
            let path = format!("/meters/{METER}");
            let answer = gateway.expect(StatusCode::OK, Method::GET, &path, "application/json", Bytes::new()).await?;
            let meter: serde_json::Value = serde_json::from_slice(&answer)?;
            if meter["status"]["ready"] == true {
                return Ok(());
            }
            if began.elapsed() > READY {
                return Err(format!("the meter did not get ready: {meter}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A connection to the gateway.
    pub async fn gateway(&self) -> Result<Connection> {
        Connection::open(&self.gateway.url).await
    }

    /// A connection straight to ClickHouse.
    pub async fn clickhouse(&self) -> Result<Connection> {
        Connection::open(&self.clickhouse.url).await
    }

    /// Runs a statement on a connection to ClickHouse; the answer without its last line end.
    pub async fn run(&self, direct: &mut Connection, sql: &str) -> Result<String> {
        let answer = direct.expect(StatusCode::OK, Method::POST, "/", "text/plain", sql.to_owned().into()).await?;
        Ok(String::from_utf8(answer.to_vec())?.trim_end().to_owned())
    }

    /// What the engine says that it is.
    pub async fn engine_version(&self) -> Result<String> {
        let mut direct = self.clickhouse().await?;
        self.run(&mut direct, "SELECT version()").await
    }

    /// Waits until no merge runs: every figure starts from rest. Nothing is merged by force.
    pub async fn quiet(&self) -> Result<()> {
        let mut direct = self.clickhouse().await?;
        let began = Instant::now();
        let mut at_rest = 0;
        while at_rest < 5 {
            let merges = self.run(&mut direct, "SELECT count() FROM system.merges").await?;
            at_rest = if merges == "0" { at_rest + 1 } else { 0 };
            if began.elapsed() > QUIET {
                progress(format_args!("merges are still running after {} s; going on", QUIET.as_secs()));
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Process {
    /// Starts a program and waits for the line in which `before` comes before its URL.
    fn start(command: &mut Command, before: &'static str) -> Result<Self> {
        // Warnings and worse: a log line a request would be measured too.
        command.args(["--stop-with-stdin", "--log", "warn"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut process = Self { child, url: String::new() };
        let (found, url) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                let rest = line.split_once(before).map(|(_, rest)| rest.trim_start());
                if let Some(url) = rest.and_then(|rest| rest.split_whitespace().next()).filter(|url| url.starts_with("http://")) {
                    // Only the first one is waited for.
                    let _ = found.send(url.to_owned());
                }
            }
        });
        process.url = url.recv_timeout(READY).map_err(|_| format!("{command:?} did not get ready; it says why above"))?;
        Ok(process)
    }

    /// CPU seconds used so far, in user and system mode.
    pub fn cpu(&self) -> Result<f64> {
        cpu(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// CPU seconds of this program.
pub fn own_cpu() -> Result<f64> {
    cpu("self")
}

/// CPU seconds of all processes together.
pub fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = stat.lines().next().unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let [user, nice, system, _, _, irq, softirq, steal, ..] = fields[..] else { return Err("/proc has another form".into()) };
    Ok((user + nice + system + irq + softirq + steal) / TICKS)
}

/// Clock ticks a second as `/proc` counts them: 100 on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

fn cpu(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may have blanks in it.
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("/proc has another form")?.1.split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).ok_or("/proc has another form")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// `target/PROFILE/kubemeter` beside this program's `target/PROFILE/examples/bench`.
fn executable() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let built = own.parent().and_then(Path::parent).map(|folder| folder.join("kubemeter")).filter(|file| file.exists());
    Ok(built.ok_or("kubemeter is not built: run `make bench`")?)
}
