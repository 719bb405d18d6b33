//! A real ClickHouse: `kubemeter clickhouse` with the engine that `make setup` has fetched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::child::Running;
use super::relay::relay;

/// A ClickHouse: the one that `KUBEMETER_TEST_CLICKHOUSE_URL` names, else an empty one of its own that ends on drop.
pub struct ClickHouse {
    url: String,
    own: Option<Own>,
}

struct Own {
    running: Running,
    directory: TempDir,
    environment: Environment,
    is_shard: bool,
}

/// Where one logs to, in its folder.
const LOG: &str = "data/clickhouse.log";

/// Variables of a process, besides those of the tests.
pub type Environment = Vec<(&'static str, OsString)>;

/// Name of the cluster of [`ClickHouse::start_shards`].
pub const CLUSTER: &str = "shards";

impl ClickHouse {
    /// Starts one on a free port, which takes some 0.5 s.
    pub fn start() -> Self {
        match std::env::var("KUBEMETER_TEST_CLICKHOUSE_URL") {
            Ok(url) => Self { url, own: None },
            Err(_) => Self::start_own(),
        }
    }

    /// The one that tests share, each in a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: std::sync::OnceLock<ClickHouse> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts one whatever the environment says, for a test that ends it.
    pub fn start_own() -> Self {
        Self::start_own_with(Environment::new())
    }

    /// The same, with an environment of its own.
    pub fn start_own_with(environment: Environment) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder can be made"), environment)
    }

    /// The same, with other things in its `<clickhouse>`.
    pub fn start_own_configured(xml: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder can be made");
        configure(&directory, xml);
        Self::start_in(directory, Environment::new())
    }

    fn start_in(directory: TempDir, environment: Environment) -> Self {
        let (running, url) = run(&directory, &free_address(), &environment);
        Self { url, own: Some(Own { running, directory, environment, is_shard: false }) }
    }

    /// Starts two that know each other as the shards of [`CLUSTER`].
    pub fn start_shards() -> [Self; 2] {
        Self::start_pair(|_, ports| {
            let shards = ports.map(|port| format!("<shard><replica><host>127.0.0.1</host><port>{port}</port></replica></shard>")).concat();
            format!("<remote_servers><{CLUSTER}>{shards}</{CLUSTER}></remote_servers>")
        })
    }

    /// Starts two with other things in their `<clickhouse>`: macros, and clusters of both, given the ports by which each reaches both.
    pub fn start_pair(more: impl Fn(usize, [u16; 2]) -> String) -> [Self; 2] {
        let ports = [free_port(), free_port()];
        let relays = ports.map(relay);
        [0, 1].map(|number| {
            let reached = [0, 1].map(|other| if other == number { ports[other] } else { relays[other] });
            let directory = tempfile::tempdir().expect("a temporary folder can be made");
            configure(&directory, &format!("<tcp_port>{}</tcp_port>{}", ports[number], more(number, reached)));
            let environment = Environment::new();
            let (running, url) = run(&directory, &free_address(), &environment);
            listen_to_shards(&url);
            Self { url, own: Some(Own { running, directory, environment, is_shard: true }) }
        })
    }

    /// The shards that tests share, each in a database of its own.
    pub fn shared_shards() -> &'static [Self; 2] {
        static SHARED: std::sync::OnceLock<[ClickHouse; 2]> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start_shards)
    }

    /// Where it serves HTTP: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it logged, if it is one of its own.
    pub fn log(&self) -> String {
        self.own.as_ref().map_or_else(String::new, |own| read(&own.directory.path().join(LOG)))
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.own().running.runs()
    }

    /// Ends it by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.own().running.kill();
    }

    /// Ends it by SIGTERM and waits until it has ended.
    pub fn stop(&mut self) {
        self.own().running.stop();
    }

    /// Lets every write fail by which a file of its would become larger than so many bytes.
    pub fn limit_files(&mut self, bytes: u64) {
        let process = self.own().running.id().to_string();
        let limit = format!("--fsize={bytes}:{bytes}");
        let done = Command::new("prlimit").args(["--pid", &process, &limit]).status().expect("prlimit runs");
        assert!(done.success(), "the files of process {process} can't be limited");
    }

    /// Starts it again after [`ClickHouse::kill`] or [`ClickHouse::stop`]: same data, same URL.
    pub fn restart(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        let own = self.own();
        (own.running, _) = run(&own.directory, &address, &own.environment);
        if own.is_shard {
            listen_to_shards(&self.url);
        }
    }

    /// Starts another one with no data in its place: same URL.
    pub fn restart_empty(&mut self) {
        self.own().directory = tempfile::tempdir().expect("a temporary folder can be made");
        self.restart();
    }

    fn own(&mut self) -> &mut Own {
        self.own.as_mut().expect("a test that ends its ClickHouse starts it by start_own")
    }
}

/// Puts something into the configuration: ClickHouse reads what is in the folder beside its configuration file, too.
fn configure(directory: &TempDir, xml: &str) {
    let beside = directory.path().join("data/clickhouse.d");
    std::fs::create_dir_all(&beside).expect("a folder can be made");
    std::fs::write(beside.join("more.xml"), format!("<clickhouse>{xml}</clickhouse>")).expect("a file can be written");
}

fn run(directory: &TempDir, listen: &str, environment: &Environment) -> (Running, String) {
    // What ends a process that writes more than it may is left to it.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_kubemeter")]);
    command.args(["clickhouse", "--stop-with-stdin", "--listen", listen, "--data-dir"]).arg(directory.path().join("data"));
    command.envs(environment.iter().cloned());
    let log = directory.path().join(LOG);
    // A crash is told by some hundred lines: where it was, of each thread that had a part in it.
    let last = move || read(&log).lines().filter(|line| line.contains("<Fatal>")).collect::<Vec<_>>().join("\n");
    Running::start_logging(&mut command, |line| line.split_once("listening on ").map(|(_, url)| url.trim().to_owned()), last)
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
}

/// Makes an engine listen on the port by which shards talk to each other: by itself it serves HTTP only.
fn listen_to_shards(url: &str) {
    let statement = "SYSTEM START LISTEN TCP";
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("the engine listens");
    write!(stream, "POST / HTTP/1.0\r\nContent-Length: {}\r\n\r\n{statement}", statement.len()).expect("the engine reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the engine answers");
    assert!(answer.lines().next().is_some_and(|line| line.contains(" 200 ")), "{answer}");
}

/// A port that nobody listens on and nobody else was given, below those that the kernel gives to outgoing connections: between a kill and a
/// restart one of these could take it.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = 20_000 + (RandomState::new().hash_one(()) % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return port;
        }
    }
}

/// Where something can listen on such a port.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}
