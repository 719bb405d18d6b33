//! The processes that are measured, and what the machine says of them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bigdecimal::BigDecimal;
use bytes::Bytes;
use hyper::{Method, StatusCode};
use kubemeter::warehouse::schema::{Landing, Landings};
use tempfile::TempDir;

use crate::client::Connection;
use crate::events::{METER, NAMESPACE, TYPE};
use crate::{Result, progress};

/// How long a process may take until it is ready.
const READY: Duration = Duration::from_secs(90);
/// How long a Meter may take until it answers, all stored events copied.
const PROVISIONED: Duration = Duration::from_secs(900);
/// How long is waited for merges to end before something is measured.
const QUIET: Duration = Duration::from_secs(180);

/// A Meter: Sum of `$.duration_ms` by method and path.
pub fn meter(name: &str, event_type: &str) -> String {
    format!(
        "---\napiVersion: kubemeter.io/v1alpha1\nkind: Meter\nmetadata:\n  name: {name}\nspec:\n  eventType: {event_type}\n  \
         aggregation: Sum\n  valueProperty: $.duration_ms\n  groupBy:\n    method: $.method\n    path: $.path\n  unit: ms\n  deletionPolicy: Delete\n"
    )
}

/// A ClickHouse and a gateway with one Meter that is ready.
pub struct Setup {
    // In the order in which they end: the gateway before its ClickHouse, the folder last.
    pub gateway: Process,
    pub clickhouse: Process,
    /// Landing table of the events.
    pub landing: String,
    /// Table of the Meter.
    pub table: String,
    folder: TempDir,
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
        std::fs::write(path("manifests").join("meter.yaml"), meter(METER, TYPE))?;
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
            Self { gateway, clickhouse, landing: Landings::NEW.table(Landing::of(NAMESPACE, TYPE)), table: String::new(), folder };
        setup.await_meter(METER, |_| ()).await?;
        let mut direct = setup.clickhouse().await?;
        setup.table = setup.run(&mut direct, "SELECT name FROM system.tables WHERE database = 'kubemeter' AND startsWith(name, 'meter_') AND engine = 'ReplacingMergeTree'").await?;
        Ok(setup)
    }

    /// Puts a manifest among those that are watched, or takes it away.
    pub fn manifest(&self, file: &str, text: Option<&str>) -> Result<()> {
        let manifests = self.folder.path().join("manifests");
        let Some(text) = text else { return Ok(std::fs::remove_file(manifests.join(file))?) };
        // As a whole or not at all.
        std::fs::write(self.folder.path().join(file), text)?;
        Ok(std::fs::rename(self.folder.path().join(file), manifests.join(file))?)
    }

    /// Waits until a Meter answers; is told what its status says until then.
    pub async fn await_meter(&self, name: &str, mut told: impl FnMut(&str)) -> Result<()> {
        let mut gateway = self.gateway().await?;
        let began = Instant::now();
        loop {
            let (status, answer) = gateway.send(Method::GET, &format!("/meters/{name}"), "application/json", Bytes::new()).await?;
            let meter: serde_json::Value = serde_json::from_slice(&answer)?;
            if status == StatusCode::OK && meter["status"]["ready"] == true {
                return Ok(());
            }
            told(meter["status"]["message"].as_str().unwrap_or_default());
            if began.elapsed() > PROVISIONED {
                return Err(format!("the meter did not get ready: {meter}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The answer to a question about usage.
    pub async fn usage(&self, question: &str) -> Result<serde_json::Value> {
        let answer = self
            .gateway()
            .await?
            .expect(StatusCode::OK, Method::GET, &format!("/usage/{question}"), "application/json", Bytes::new())
            .await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// A Meter's number over all that is stored.
    pub async fn total(&self, meter: &str) -> Result<BigDecimal> {
        Ok(self.usage(meter).await?["data"][0]["value"].as_str().unwrap_or("0").parse()?)
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

    /// Resident memory in bytes.
    pub fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kib.ok_or("/proc has another form")?.parse::<u64>()? * 1_024)
    }

    /// Stops the process where it is (it does not know), until the answer is dropped.
    pub fn frozen(&self) -> Result<Frozen> {
        let frozen = Frozen(self.child.id().to_string());
        signal("-STOP", &frozen.0)?;
        Ok(frozen)
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

/// A process that is stopped where it is.
pub struct Frozen(String);

impl Drop for Frozen {
    fn drop(&mut self) {
        // Should it fail the process is gone.
        let _ = signal("-CONT", &self.0);
    }
}

fn signal(name: &str, process: &str) -> Result<()> {
    let sent = Command::new("kill").args([name, process]).status()?;
    if sent.success() { Ok(()) } else { Err(format!("kill {name} {process}: {sent}").into()) }
}

/// Bytes free where the data go.
pub fn free_disk() -> Result<u64> {
    let said = Command::new("df").args(["--block-size=1", "--output=avail"]).arg(std::env::temp_dir()).output()?;
    let text = String::from_utf8(said.stdout)?;
    Ok(text.lines().last().ok_or("df says nothing")?.trim().parse()?)
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
