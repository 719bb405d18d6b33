//! Kubemeter as real processes: a ClickHouse, an operator, gateways, each with its own way to ClickHouse.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::history::{GATEWAYS, Part, SPACES};
use super::process::Process;
use super::proxy::Proxy;
use crate::support::{ClickHouse, Clock, ControlPlane, eventually, free_port};

/// How long a request may take while nothing fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that a fault may end from elsewhere.
type Shared<T> = Arc<Mutex<T>>;

pub struct World {
    pub spaces: Vec<String>,
    pub http: reqwest::Client,
    client: kube::Client,
    clickhouse: Shared<ClickHouse>,
    clickhouse_clock: Shared<Clock>,
    processes: Vec<Shared<Process>>,
    proxies: Vec<Proxy>,
    logs: TempDir,
}

/// What a gateway answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// How often it was asked for.
    pub tries: usize,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// A request to a gateway.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: reqwest::Method,
    pub space: usize,
    /// With what follows `?`, without the namespace.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn get(space: usize, path: &str) -> Self {
        Self { space, path: path.to_owned(), ..Self::default() }
    }

    pub fn json(method: reqwest::Method, space: usize, path: &str, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { method, space, path: path.to_owned(), headers, body: body.to_string().into_bytes() }
    }
}

impl World {
    pub async fn start() -> Self {
        let plane = control_plane();
        let client = plane.client().await;
        install_crds(&client).await;
        let logs = tempfile::tempdir().expect("a temporary folder");
        let clickhouse_clock = Clock::new(logs.path(), "clickhouse");
        let clickhouse = ClickHouse::start_own_with(clickhouse_clock.environment());
        let address = clickhouse.url().trim_start_matches("http://").parse().expect("an address");
        let (mut spaces, mut processes, mut proxies) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SPACES {
            spaces.push(plane.namespace().await);
        }
        for number in 0..=GATEWAYS {
            let proxy = Proxy::start(address).await;
            let command = if number == GATEWAYS { "operator" } else { "gateway" };
            let name = format!("{command}-{number}");
            let (clock, log) = (Clock::new(logs.path(), &name), logs.path().join(format!("{name}.log")));
            processes.push(Process { child: None, command, url: proxy.url(), port: free_port(), clock, log });
            proxies.push(proxy);
        }
        let processes = processes.into_iter().map(|process| Arc::new(Mutex::new(process))).collect();
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let (clickhouse, clickhouse_clock) = (Arc::new(Mutex::new(clickhouse)), Arc::new(Mutex::new(clickhouse_clock)));
        let world = Self { spaces, http, client, clickhouse, clickhouse_clock, processes, proxies, logs };
        world.revive().await;
        world
    }

    /// The way of a gateway or the operator to ClickHouse.
    pub fn proxy(&self, part: Part) -> &Proxy {
        &self.proxies[place(part)]
    }

    /// Ends a part by SIGKILL; what this gives can do so from elsewhere.
    pub fn killer(&self, part: Part) -> Box<dyn FnOnce() + Send> {
        if part == Part::ClickHouse {
            let clickhouse = Arc::clone(&self.clickhouse);
            return Box::new(move || lock(&clickhouse).kill());
        }
        let process = Arc::clone(&self.processes[place(part)]);
        Box::new(move || lock(&process).kill())
    }

    pub fn restart(&self, part: Part, kill: bool) {
        tokio::task::block_in_place(|| {
            if kill {
                self.killer(part)();
            } else if part == Part::ClickHouse {
                lock(&self.clickhouse).stop();
            } else {
                lock(&self.processes[place(part)]).stop();
            }
            if part == Part::ClickHouse {
                lock(&self.clickhouse).restart();
            }
        });
    }

    /// Lets the clock of a part be wrong by so many seconds from now on.
    pub fn set_clock(&self, part: Part, offset: i64) {
        if part == Part::ClickHouse {
            return lock(&self.clickhouse_clock).set(offset);
        }
        lock(&self.processes[place(part)]).clock.set(offset);
    }

    /// Sets a clock, and waits until a process of ours says another time, if that is later: it never says one that is earlier than before.
    pub async fn move_clock(&self, part: Part, offset: i64) {
        if part == Part::ClickHouse {
            return self.set_clock(part, offset);
        }
        let before = lock(&self.processes[place(part)]).clock.offset();
        self.set_clock(part, offset);
        if offset <= before {
            return;
        }
        let url = format!("http://127.0.0.1:{}/readyz", lock(&self.processes[place(part)]).port);
        eventually(&format!("the clock of {part:?} is wrong by {offset} s"), async || {
            let answer = self.http.get(&url).send().await.ok()?;
            let said = jiff::fmt::rfc2822::parse(answer.headers().get("date")?.to_str().ok()?).ok()?.timestamp();
            ((said.as_second() - offset).abs_diff(jiff::Timestamp::now().as_second()) <= 2).then_some(())
        })
        .await;
    }

    /// From and to, how far gateways' clocks are from ours, ms.
    pub fn clocks(&self) -> (i64, i64) {
        let offsets: Vec<i64> = self.processes[..GATEWAYS].iter().map(|process| lock(process).clock.offset() * 1_000).collect();
        (offsets.iter().copied().min().unwrap_or_default(), offsets.iter().copied().max().unwrap_or_default())
    }

    /// Ends all faults, starts what does not run, and waits until everything is ready. Tells how many armed faults had
    /// not come to pass.
    pub async fn revive(&self) -> usize {
        let idle = self.proxies.iter().map(Proxy::heal).sum();
        // The engine may have crashed by itself, on a connection that was cut, and hang on its way out.
        let asked = tokio::time::timeout(Duration::from_secs(10), self.sql("SELECT 1")).await;
        let answers = asked.is_ok_and(|answer| answer.is_ok());
        tokio::task::block_in_place(|| {
            let mut clickhouse = lock(&self.clickhouse);
            if !clickhouse.runs() || !answers {
                clickhouse.kill();
                clickhouse.restart();
            }
            self.processes.iter().for_each(|process| {
                lock(process).ensure();
            });
        });
        for process in &self.processes {
            let url = format!("http://127.0.0.1:{}/readyz", lock(process).port);
            eventually(&format!("{url} is ready"), async || (self.http.get(&url).send().await.ok()?.status() == 200).then_some(())).await;
        }
        idle
    }

    /// Starts what does not run, while others work; tells whether anything did not.
    pub async fn start_dead(&self) -> bool {
        let (clickhouse, processes) = (Arc::clone(&self.clickhouse), self.processes.clone());
        let start = move || {
            let mut clickhouse = lock(&clickhouse);
            let dead = !clickhouse.runs();
            if dead {
                clickhouse.restart();
            }
            drop(clickhouse);
            processes.iter().filter(|process| lock(process).ensure()).count() > 0 || dead
        };
        tokio::task::spawn_blocking(start).await.expect("no panic")
    }

    /// Asks a gateway once.
    pub async fn ask(&self, gateway: usize, request: &Request) -> Result<Answer, String> {
        let port = lock(&self.processes[gateway]).port;
        let sign = if request.path.contains('?') { '&' } else { '?' };
        let url = format!("http://127.0.0.1:{port}{}{sign}namespace={}", request.path, self.spaces[request.space]);
        let mut builder = self.http.request(request.method.clone(), url).body(request.body.clone());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let answer = builder.send().await.map_err(|why| why.to_string())?;
        let status = answer.status().as_u16();
        Ok(Answer { status, body: answer.text().await.map_err(|why| why.to_string())?, tries: 1 })
    }

    /// Asks until there is an answer that is not "not now", which may come for a while after something failed.
    pub async fn answered(&self, gateway: usize, request: &Request) -> Answer {
        let (start, mut tries) = (Instant::now(), 0);
        loop {
            tries += 1;
            let told = match self.ask(gateway, request).await {
                Ok(answer) if !matches!(answer.status, 429 | 503) => return Answer { tries, ..answer },
                told => told,
            };
            assert!(start.elapsed() < PATIENCE, "{request:?} was never answered: {told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a statement in ClickHouse, as an administrator would.
    pub async fn sql(&self, sql: &str) -> Result<String, String> {
        let url = lock(&self.clickhouse).url().to_owned();
        let answer = self.http.post(url).body(sql.to_owned()).send().await.map_err(|why| why.to_string())?;
        let good = answer.status().is_success();
        let text = answer.text().await.map_err(|why| why.to_string())?;
        if good { Ok(text) } else { Err(text) }
    }

    /// Months of Meters' tables in which the operator has balanced something, as far as ClickHouse tells.
    pub async fn balanced_months(&self) -> usize {
        let sql = "SELECT uniqExact(table, partition_id) FROM system.parts WHERE active AND startsWith(table, 'meter_') AND endsWith(partition_id, '-3')";
        self.sql(sql).await.ok().and_then(|months| months.trim().parse().ok()).unwrap_or_default()
    }

    fn api(&self, kind: &str, space: usize) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("kubemeter.io", "v1alpha1", kind));
        Api::namespaced_with(self.client.clone(), &self.spaces[space], &resource)
    }

    pub async fn object(&self, kind: &str, space: usize, name: &str) -> Option<Value> {
        let found = self.api(kind, space).get_opt(name).await.expect("the API server answers");
        found.map(|object| serde_json::to_value(object).expect("it was JSON"))
    }

    /// Makes an object or puts another spec in its place, as `kubectl replace` does.
    pub async fn put(&self, kind: &str, space: usize, name: &str, spec: &Value) {
        let api = self.api(kind, space);
        eventually(&format!("{kind} {name} is written"), async || {
            let object = json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
            let mut object: DynamicObject = serde_json::from_value(object).expect("it is an object");
            let written = match api.get_opt(name).await.expect("the API server answers") {
                None => api.create(&PostParams::default(), &object).await,
                Some(there) => {
                    object.metadata = there.metadata;
                    api.replace(name, &PostParams::default(), &object).await
                }
            };
            match written {
                Ok(_) => Some(()),
                Err(kube::Error::Api(status)) if status.code == 409 => None,
                Err(why) => panic!("{kind} {name}: {why}"),
            }
        })
        .await;
    }

    pub async fn delete(&self, kind: &str, space: usize, name: &str) {
        self.api(kind, space).delete(name, &DeleteParams::default()).await.expect("it is there");
    }

    /// Takes everything of the history out of the cluster, which other histories share.
    pub async fn end(&self) {
        for space in 0..SPACES {
            for kind in ["Meter", "Customer"] {
                let api = self.api(kind, space);
                for object in api.list(&Default::default()).await.map(|list| list.items).unwrap_or_default() {
                    let name = object.metadata.name.unwrap_or_default();
                    let freed = json!({"metadata": {"finalizers": null}});
                    let _ = api.delete(&name, &DeleteParams::default()).await;
                    let _ = api.patch(&name, &PatchParams::default(), &Patch::Merge(&freed)).await;
                }
            }
        }
    }

    /// What objects' statuses say.
    pub async fn objects(&self) -> String {
        let mut said = String::new();
        for (space, kind) in (0..SPACES).flat_map(|space| ["Meter", "Customer"].map(|kind| (space, kind))) {
            let listed = self.api(kind, space).list(&Default::default()).await.map(|list| list.items).unwrap_or_default();
            for object in listed {
                let name = object.metadata.name.unwrap_or_default();
                said.push_str(&format!("--- {kind} {name} in namespace {space}: {}\n", object.data["status"]));
            }
        }
        said
    }

    /// What processes wrote that they never should.
    pub fn complaints(&self) -> Option<String> {
        let texts = self.logs().into_iter();
        texts.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>()).find(|line| line.contains("panicked at"))
    }

    /// The ends of all logs.
    pub fn log_ends(&self) -> String {
        let end = |(name, text): (String, String)| {
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        self.logs().into_iter().map(end).collect()
    }

    fn logs(&self) -> Vec<(String, String)> {
        let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let files = std::fs::read_dir(self.logs.path()).into_iter().flatten().flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
        let logs = files.map(|file| (file.file_name().to_string_lossy().into_owned(), read(&file.path())));
        logs.chain([("clickhouse.log".to_owned(), lock(&self.clickhouse).log())]).collect()
    }
}

fn place(part: Part) -> usize {
    match part {
        Part::Gateway(number) => number,
        Part::Operator => GATEWAYS,
        Part::ClickHouse => panic!("ClickHouse has no way to itself"),
    }
}

/// One for all histories, and for nobody else: operator and gateways watch all its namespaces.
pub fn control_plane() -> &'static ControlPlane {
    static OWN: OnceLock<ControlPlane> = OnceLock::new();
    OWN.get_or_init(ControlPlane::start_own)
}

async fn install_crds(client: &kube::Client) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let install = async || {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        for name in ["meters", "customers"] {
            let file = format!("{}/crds/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(file).expect("crds/ has it");
            let crd = Value::deserialize(serde_yaml::Deserializer::from_str(&text)).expect("it is YAML");
            let name = format!("{name}.kubemeter.io");
            api.patch(&name, &PatchParams::apply("simulation").force(), &Patch::Apply(&crd)).await.expect("an administrator may");
            eventually("the CRD is established", async || {
                let conditions = api.get(&name).await.ok()?.status?.conditions?;
                conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
            })
            .await;
        }
    };
    INSTALLED.get_or_init(install).await;
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
