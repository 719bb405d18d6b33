//! The chart's rights: operator and gateway run as its pod runs them, with tokens of its service account, and walk the
//! whole way of a Meter. Then they start without any right and are granted what they are refused: that is each rule of
//! the chart, and nothing else.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, CustomResourceExt, ResourceExt};
use kubemeter::api::{Customer, Meter};
use kubemeter::controller::leader::LEASE;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::chart::{CHART, Release, kubectl};
use crate::support::{ClickHouse, ControlPlane, eventually, free_address};

/// Between two looks at what was logged.
const POLL: Duration = Duration::from_millis(50);

/// Group, resource and verb.
type Right = (String, String, String);

/// The two containers of the chart's pod, as processes.
struct Pod {
    /// Of the gateway.
    address: String,
    /// What the kubelet would ask.
    liveness: Vec<String>,
    readiness: Vec<String>,
    children: Vec<Child>,
    log: NamedTempFile,
    /// What the gateway answered to calls that were not as expected.
    refusals: Mutex<String>,
    _home: TempDir,
}

impl Pod {
    /// With args and environment of the Deployment, and a kubeconfig in place of the mounted token.
    async fn start(release: &Release<'_>) -> Self {
        let manifest = release.manifest();
        let deployment = manifest.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let spec = &deployment["spec"]["template"]["spec"];
        let token = release.plane.token(release.namespace, spec["serviceAccountName"].as_str().unwrap(), None).await;
        let text = std::fs::read_to_string(&release.plane.kubeconfig).unwrap();
        let mut config: Value = serde_yaml::from_str(&text).unwrap();
        config["users"][0]["user"] = json!({ "token": token });
        config["contexts"][0]["context"]["namespace"] = json!(release.namespace);
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();

        let (log, address, operator) = (NamedTempFile::new().unwrap(), free_address(), free_address());
        let containers = spec["containers"].as_array().unwrap();
        let probes = |kind: &str| {
            let path = |container: &Value| {
                let listen = if container["name"] == "gateway" { &address } else { &operator };
                Some(format!("http://{listen}{}", container[kind]["httpGet"]["path"].as_str()?))
            };
            containers.iter().filter_map(path).collect::<Vec<_>>()
        };
        let (liveness, readiness) = (probes("livenessProbe"), probes("readinessProbe"));
        let start = |container: &Value| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
            command.env_clear().env("KUBECONFIG", &kubeconfig).env("HOSTNAME", "usage-1").stdin(Stdio::null());
            command.args(container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()));
            for variable in container["env"].as_array().unwrap() {
                command.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
            }
            command.env("KUBEMETER_LISTEN", &address).env("KUBEMETER_OPERATOR_LISTEN", &operator);
            // Both append to one file.
            let log = std::fs::OpenOptions::new().append(true).open(log.path()).unwrap();
            command.stderr(log).spawn().unwrap()
        };
        let children: Vec<_> = containers.iter().map(start).collect();
        assert_eq!(children.len(), 2);
        Self { address, liveness, readiness, children, log, refusals: Mutex::default(), _home: home }
    }

    /// All that was logged, and answered by mistake.
    fn said(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap() + &self.refusals.lock().unwrap()
    }

    /// The rights that it was refused so far, from the API server's words.
    fn refused(&self) -> BTreeSet<Right> {
        let said = self.said().replace('\\', "");
        let after_each = said.split(" cannot ").skip(1);
        after_each
            .filter_map(|text| {
                let (verb, rest) = text.split_once(" resource \"")?;
                let (resource, rest) = rest.split_once("\" in API group \"")?;
                Some((rest.split_once('"')?.0.to_owned(), resource.to_owned(), verb.to_owned()))
            })
            .collect()
    }

    /// An outage of ClickHouse takes the gateway out of the Service, and restarts nobody.
    async fn outlives(&self, clickhouse: &mut ClickHouse) {
        assert_eq!((self.liveness.len(), self.readiness.len()), (2, 1));
        let status = async |url: &String| Some(reqwest::get(url).await.ok()?.status().as_u16());
        clickhouse.kill();
        eventually("the gateway is not ready", async || (status(&self.readiness[0]).await? == 503).then_some(())).await;
        for url in &self.liveness {
            assert_eq!(status(url).await, Some(200), "{url}");
        }
        clickhouse.restart();
        eventually("the gateway is ready again", async || (status(&self.readiness[0]).await? == 200).then_some(())).await;
    }

    /// Returns when it is refused something.
    async fn refusal(&self) -> BTreeSet<Right> {
        loop {
            let refused = self.refused();
            if !refused.is_empty() {
                return refused;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGTERM, so that the lease is released.
    async fn stop(mut self) {
        for child in &mut self.children {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
            let ended = eventually("its end", async || child.try_wait().unwrap()).await;
            assert!(ended.success(), "{ended}");
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Somebody who uses Kubemeter in a namespace.
struct User<'a> {
    pod: &'a Pod,
    client: Client,
    namespace: String,
    token: Option<String>,
}

impl<'a> User<'a> {
    fn new(pod: &'a Pod, client: &Client, (namespace, token): (String, Option<String>)) -> Self {
        Self { pod, client: client.clone(), namespace, token }
    }

    fn without_token(&self) -> Self {
        Self::new(self.pod, &self.client, (self.namespace.clone(), None))
    }

    /// Asks until the status is the expected one and `good` finds what it wants.
    async fn ask<T>(&self, method: Method, path: &str, body: Value, expected: u16, good: impl Fn(&Value) -> Option<T>) -> T {
        let sign = if path.contains('?') { '&' } else { '?' };
        let url = format!("http://{}{path}{sign}namespace={}", self.pod.address, self.namespace);
        let url = if path == "/readyz" { format!("http://{}/readyz", self.pod.address) } else { url };
        let http = reqwest::Client::new();
        eventually(&format!("{method} {path} answers {expected}"), async || {
            let mut request = http.request(method.clone(), &url).json(&body);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let answer = request.send().await.ok()?;
            let status = answer.status().as_u16();
            let text = answer.text().await.ok()?;
            if status != expected {
                self.pod.refusals.lock().unwrap().push_str(&text);
                return None;
            }
            good(&serde_json::from_str(&text).unwrap_or_default())
        })
        .await
    }

    async fn done(&self, method: Method, path: &str, body: Value, expected: u16) {
        self.ask(method, path, body, expected, |_| Some(())).await;
    }

    async fn event(&self, kind: &str, data: Value) {
        let event = json!({"specversion": "1.0", "id": kind, "source": "test", "type": kind, "subject": "acme-prod", "data": data});
        self.done(Method::POST, "/events", event, 202).await;
    }

    async fn status(&self, path: &str, reason: &str) {
        self.ask(Method::GET, path, Value::Null, 200, |object| (object["status"]["reason"] == reason).then_some(())).await;
    }

    async fn usage(&self, value: &str) {
        let path = "/usage/calls?customer=acme";
        self.ask(Method::GET, path, Value::Null, 200, |usage| (usage["data"][0]["value"] == value).then_some(())).await;
    }

    /// Everything that operator and gateway do with the Kubernetes API.
    async fn walk(&self) {
        let meter = |more: Value| {
            let mut meter =
                json!({"meterId": "calls", "eventType": "call", "aggregation": "Sum", "valueProperty": "$.n", "deletionPolicy": "Delete"});
            meter.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            meter
        };
        self.done(Method::GET, "/readyz", Value::Null, 200).await;
        let count = json!({"meterId": "calls", "eventType": "call", "aggregation": "Count", "deletionPolicy": "Delete"});
        self.done(Method::POST, "/meters", count, 201).await;
        self.status("/meters/calls", "Provisioned").await;
        self.ask(Method::GET, "/meters", Value::Null, 200, |list| list["items"].as_array()?.first().map(drop)).await;
        self.event("ONBOARDING_REQUEST", json!({"tenantId": "acme"})).await;
        self.done(Method::PUT, "/customers/acme", json!({"subjects": ["acme-prod"]}), 200).await;
        self.ask(Method::GET, "/customers/acme", Value::Null, 200, |object| object["status"]["ready"].as_bool()?.then_some(())).await;
        self.ask(Method::GET, "/customers", Value::Null, 200, |list| list["items"].as_array()?.first().map(drop)).await;
        self.event("call", json!({"n": "2.5"})).await;
        self.usage("1").await;
        self.done(Method::PUT, "/meters/calls", meter(json!({})), 200).await;
        self.usage("2.5").await;

        // The same Event once more is a patch of the first.
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        eventually("an Event is told, and told again", async || {
            self.done(Method::PUT, "/meters/calls", meter(json!({"eventType": "a\u{85}b"})), 200).await;
            self.status("/meters/calls", "InvalidSpec").await;
            self.done(Method::PUT, "/meters/calls", meter(json!({})), 200).await;
            self.status("/meters/calls", "Provisioned").await;
            events.list(&ListParams::default()).await.unwrap().items.iter().any(|event| event.series.is_some()).then_some(())
        })
        .await;

        self.done(Method::DELETE, "/meters/calls", Value::Null, 202).await;
        self.done(Method::GET, "/meters/calls", Value::Null, 404).await;
        self.event("OFFBOARDING_REQUEST", json!({"tenantId": "acme"})).await;
        self.done(Method::GET, "/customers/acme", Value::Null, 404).await;
    }
}

/// The roles of a release's programs.
struct Roles {
    wide: Api<ClusterRole>,
    wide_name: String,
    wide_rules: Vec<PolicyRule>,
    reviews_rules: Vec<PolicyRule>,
    lease: Api<Role>,
    lease_rules: Vec<PolicyRule>,
}

impl Roles {
    async fn read(client: &Client, namespace: &str, with_reviews: bool) -> Self {
        let (wide, lease) = (Api::<ClusterRole>::all(client.clone()), Api::<Role>::namespaced(client.clone(), namespace));
        let wide_name = format!("{namespace}:usage-kubemeter");
        let wide_rules = wide.get(&wide_name).await.unwrap().rules.unwrap();
        let lease_rules = lease.get("usage-kubemeter-lease").await.unwrap().rules.unwrap();
        let reviews = wide.get_opt(&format!("{wide_name}:reviews")).await.unwrap();
        assert_eq!(reviews.is_some(), with_reviews, "only where callers are asked for tokens");
        let reviews_rules = reviews.and_then(|role| role.rules).unwrap_or_default();
        Self { wide, wide_name, wide_rules, reviews_rules, lease, lease_rules }
    }

    fn all(&self) -> BTreeSet<Right> {
        self.wide_rules.iter().chain(&self.reviews_rules).chain(&self.lease_rules).flat_map(rights).collect()
    }

    /// Leaves of the chart's rules what is in `rights`.
    async fn allow(&self, allowed: &BTreeSet<Right>) {
        let of = |rules: &[PolicyRule]| {
            let some = |rule: &PolicyRule| {
                let kept = rights(rule).into_iter().filter(|right| allowed.contains(right));
                let one = |(group, resource, verb)| json!({"apiGroups": [group], "resources": [resource], "verbs": [verb], "resourceNames": rule.resource_names});
                kept.map(one).collect::<Vec<_>>()
            };
            Patch::Merge(json!({"rules": rules.iter().flat_map(some).collect::<Vec<_>>()}))
        };
        self.wide.patch(&self.wide_name, &PatchParams::default(), &of(&self.wide_rules)).await.unwrap();
        if !self.reviews_rules.is_empty() {
            let name = format!("{}:reviews", self.wide_name);
            self.wide.patch(&name, &PatchParams::default(), &of(&self.reviews_rules)).await.unwrap();
        }
        self.lease.patch("usage-kubemeter-lease", &PatchParams::default(), &of(&self.lease_rules)).await.unwrap();
    }

    /// Grants what the pod is refused, for ever.
    async fn grant(&self, pod: &Pod, granted: &mut BTreeSet<Right>) -> std::convert::Infallible {
        loop {
            let refused = pod.refused();
            let unknown: Vec<_> = refused.difference(&self.all()).cloned().collect();
            assert!(unknown.is_empty(), "the chart does not grant {unknown:?}");
            if !refused.is_subset(granted) {
                granted.extend(refused);
                self.allow(granted).await;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn rights(rule: &PolicyRule) -> Vec<Right> {
    let (groups, resources) = (rule.api_groups.as_deref().unwrap(), rule.resources.as_deref().unwrap());
    let verbs = |group: &String, resource: &String| {
        rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())).collect::<Vec<_>>()
    };
    groups.iter().flat_map(|group| resources.iter().flat_map(move |resource| verbs(group, resource))).collect()
}

#[tokio::test]
async fn each_right_is_needed_and_none_is_missing() {
    let plane = ControlPlane::start();
    let (client, mut clickhouse) = (plane.client().await, ClickHouse::start_own());
    let namespace = plane.namespace().await;
    let release = Release { plane: &plane, namespace: &namespace };
    let url = format!("clickhouse.url={}", clickhouse.url());
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for tokenless in [false, true] {
        let switch = format!("auth.enabled={},rbac.tokenlessCallers={tokenless}", !tokenless);
        release.helm("install", &[CHART, "--set", "image.repository=kubemeter", "--set", &url, "--set", &switch]);
        let roles = Roles::read(&client, &namespace, !tokenless).await;
        let account = async || {
            let namespace = plane.namespace().await;
            let mut token = None;
            if !tokenless {
                // Kubernetes' own role `edit`, which the chart's aggregate.
                token = Some(plane.service_account(&namespace, "ann", None).await);
                let ann = format!("{namespace}:ann");
                kubectl(&plane, &namespace, &["create", "rolebinding", "ann", "--clusterrole=edit", &format!("--serviceaccount={ann}")])
                    .unwrap();
                let user = format!("system:serviceaccount:{ann}");
                for (verb, resource) in [("create", "meters"), ("create", "usageevents"), ("get", "meters/usage")] {
                    let can = async || plane.may(&user, verb, resource, &namespace, None).await.then_some(());
                    eventually("edit has the chart's rights", can).await;
                }
            }
            (namespace, token)
        };

        // With all of the chart's rights nothing is refused.
        let pod = Pod::start(&release).await;
        let someone = User::new(&pod, &client, account().await);
        tokio::select! {
            () = someone.walk() => {}
            refused = pod.refusal() => panic!("the chart does not grant {refused:?}"),
        }
        let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
        let holder = leases.get(LEASE).await.unwrap().spec.unwrap().holder_identity.unwrap();
        assert!(holder.starts_with("usage-1_"), "{holder}");
        let said = pod.said();
        assert!(pod.refused().is_empty() && !said.to_lowercase().contains("forbidden"), "{said}");
        assert_eq!(said.contains("AUTHENTICATION IS OFF"), tokenless, "it is said loudly, and only where it is true");
        if !tokenless {
            someone
                .without_token()
                .done(Method::POST, "/meters", json!({"meterId": "m", "eventType": "e", "aggregation": "Count"}), 401)
                .await;
        }
        drop(someone);
        pod.outlives(&mut clickhouse).await;
        pod.stop().await;

        // Without any, each is asked for.
        leases.delete(LEASE, &DeleteParams::default()).await.unwrap();
        let mut granted = BTreeSet::new();
        roles.allow(&granted).await;
        let pod = Pod::start(&release).await;
        let someone = User::new(&pod, &client, account().await);
        tokio::select! {
            () = someone.walk() => {}
            never = roles.grant(&pod, &mut granted) => match never {},
        }
        drop(someone);
        let needless: Vec<_> = roles.all().difference(&granted).cloned().collect();
        assert!(needless.is_empty(), "nobody asked for {needless:?}");
        pod.stop().await;

        // The CRDs, and with them all Meters, outlive the release, and the next takes them over.
        release.helm("uninstall", &[]);
        for name in [Meter::crd().name_any(), Customer::crd().name_any()] {
            assert_eq!(crds.get(&name).await.unwrap().metadata.deletion_timestamp, None);
        }
    }
}
