//! The Helm chart: what it renders and what it refuses, and its life on a real API server. There are no nodes: no pod runs.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kubemeter::api::{self, Meter};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::cluster::install_crds;
use crate::support::{ControlPlane, eventually, tool};

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/kubemeter");

/// The versions of helm that the chart is for.
const HELMS: [&str; 2] = ["helm", "helm3"];

/// What a tool says on stdout, or, when it fails, on stderr.
pub fn run(tool_name: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(tool(tool_name));
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout) + &text(&output.stderr)) } else { Err(text(&output.stderr)) }
}

/// What kubectl says in a namespace, with the rights of an administrator.
pub fn kubectl(plane: &ControlPlane, namespace: &str, arguments: &[&str]) -> Result<String, String> {
    run("kubectl", &[&["--kubeconfig", plane.kubeconfig.to_str().unwrap(), "--namespace", namespace], arguments].concat(), "")
}

/// A release of the chart on a control plane.
pub struct Release<'a> {
    pub plane: &'a ControlPlane,
    pub namespace: &'a str,
}

impl Release<'_> {
    /// Runs `helm VERB usage …`.
    pub fn helm(&self, verb: &str, more: &[&str]) -> String {
        let kubeconfig = self.plane.kubeconfig.to_str().unwrap();
        let place = ["--kubeconfig", kubeconfig, "--namespace", self.namespace];
        run("helm", &[verb.split(' ').collect(), vec!["usage"], more.to_vec(), place.to_vec()].concat(), "").unwrap()
    }

    /// The objects that it consists of now.
    pub fn manifest(&self) -> Vec<Value> {
        documents(&self.helm("get manifest", &[]))
    }
}

/// The objects in a text of YAML documents.
pub fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap()).filter(|object| !object.is_null()).collect()
}

/// The files of values that every change of the chart is rendered with.
fn value_sets() -> Vec<PathBuf> {
    let files: Vec<_> = std::fs::read_dir(format!("{CHART}/ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    files
}

/// A namespace that takes no pod with more than the least privileges.
async fn restricted_namespace(plane: &ControlPlane) -> String {
    let namespace = plane.namespace().await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"});
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    Api::<Namespace>::all(plane.client().await).patch(&namespace, &PatchParams::default(), &patch).await.unwrap();
    namespace
}

#[test]
fn its_files_agree_with_the_rest() {
    let read = |name: &str| std::fs::read_to_string(format!("{CHART}/{name}")).unwrap();
    for (file, text) in api::crds().unwrap() {
        assert!(read(&format!("files/crds/{file}")) == text, "{file} in the chart is not what the Rust types say: run `make crds`");
    }
    let chart: Value = serde_yaml::from_str(&read("Chart.yaml")).unwrap();
    assert_eq!(
        (chart["appVersion"].as_str(), chart["version"].as_str()),
        (Some(env!("CARGO_PKG_VERSION")), Some(env!("CARGO_PKG_VERSION")))
    );

    fn keys(value: &Value, path: &str, found: &mut Vec<String>) {
        match value.as_object().filter(|map| !map.is_empty() && !path.ends_with("resources")) {
            Some(map) => {
                map.iter().for_each(|(key, value)| keys(value, &format!("{path}{}{key}", if path.is_empty() { "" } else { "." }), found))
            }
            None => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    keys(&serde_yaml::from_str(&read("values.yaml")).unwrap(), "", &mut found);
    let readme = read("README.md");
    let mut documented: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key.to_owned()).collect();
    documented.sort();
    assert_eq!(found, documented, "the table in the chart's README has each value");
}

#[test]
fn it_is_linted() {
    for helm in HELMS {
        run(helm, &["lint", "--strict", CHART], "").unwrap();
        for values in value_sets() {
            run(helm, &["lint", "--strict", CHART, "--values", values.to_str().unwrap()], "").unwrap();
        }
    }
}

#[test]
fn both_versions_of_helm_render_the_same() {
    for values in value_sets() {
        let [four, three] = HELMS.map(|helm| {
            let text = run(helm, &["template", "usage", CHART, "--values", values.to_str().unwrap()], "").unwrap();
            documents(&text)
        });
        assert!(!four.is_empty() && four == three, "{}", values.display());
    }
}

#[test]
fn wrong_values_are_refused_with_a_message() {
    let render = |helm: &str, more: &[&str]| {
        let least = format!("{CHART}/ci/least-values.yaml");
        run(helm, &[&["template", "usage", CHART, "--values", &least], more].concat(), "")
    };
    HELMS.iter().for_each(|helm| drop(render(helm, &[]).unwrap()));
    for (set, words) in [
        ("replicas=two", "/replicas': got string, want integer"),
        ("replicas=0", "/replicas': minimum: got 0, want 1"),
        ("replica=3", "'replica' not allowed"),
        ("clickhouse.pasword=x", "'pasword' not allowed"),
        ("clickhouse.url=clickhouse:8123", "/clickhouse/url': 'clickhouse:8123' does not match"),
        ("clickhouse.url=http://user:secret@clickhouse:8123", "/clickhouse/url'"),
        ("clickhouse.url=", "clickhouse.url is missing: give the URL"),
        ("clickhouse.database=a-b", "/clickhouse/database'"),
        ("image.repository=", "image.repository is missing: run `make image`"),
        ("clickhouse.bundled.enabled=true", "leave clickhouse.url and clickhouse.existingSecret empty"),
        ("clickhouse.cluster.nodes={a:8123}", "/clickhouse/cluster/nodes/0': 'a:8123' does not match"),
        ("clickhouse.cluster.shards=2", "clickhouse.cluster.name is missing: say which cluster"),
        ("clickhouse.cluster.name=usage", "needs clickhouse.cluster.nodes"),
        (
            "clickhouse.cluster.name=usage,clickhouse.cluster.shards=1,clickhouse.cluster.replicas=2",
            "replicas needs clickhouse.cluster.nodes",
        ),
        (
            "clickhouse.url=,clickhouse.bundled.enabled=true,clickhouse.bundled.image.repository=x,clickhouse.cluster.name=usage,clickhouse.cluster.shards=2",
            "the bundled one is one server",
        ),
        ("clickhouse.bundled.storage=much", "/clickhouse/bundled/storage'"),
        ("autoscaling.targetCPU=0", "/autoscaling/targetCPU': minimum"),
        ("networkPolicy.callers=all", "/networkPolicy/callers': got string, want array"),
        ("image.digest=sha256:12", "/image/digest'"),
        ("watchNamespace=a_b", "/watchNamespace'"),
        ("auth.enabled=no", "/auth/enabled': got string, want boolean"),
        ("auth.audience=", "/auth/audience': minLength"),
        ("auth.staleSeconds=-1", "/auth/staleSeconds': minimum"),
        ("auth.apiKeys.secret=keys", "'secret' not allowed"),
        ("auth.apiKeys.existingSecret=Keys", "/auth/apiKeys/existingSecret'"),
        ("rbac.tokenlessCallers=true", "rbac.tokenlessCallers is for auth.enabled=false"),
        ("gateway.tls.secretName=Gateway", "/gateway/tls/secretName'"),
        ("gateway.tls.certificate=x", "'certificate' not allowed"),
        ("traces.otlpEndpoint=collector:4317", "/traces/otlpEndpoint'"),
        ("traces.sampler=some", "/traces/sampler': value must be one of"),
        ("monitoring.serviceMonitor.interval=often", "/monitoring/serviceMonitor/interval'"),
        ("log.format=xml", "/log/format': value must be one of 'text', 'json'"),
        ("service.port=70000", "/service/port': maximum"),
        ("rbac.create=perhaps", "/rbac/create': got string, want boolean"),
    ] {
        for helm in HELMS {
            let refused = render(helm, &["--set", set]).expect_err(set);
            // The words of helm 3 are others; it names the value.
            let value = set.split('=').next().and_then(|path| path.rsplit('.').next()).unwrap();
            let says = refused.contains(words) || (helm == "helm3" && refused.contains(value));
            assert!(says, "{helm}, {set}: {refused:?} does not say {words:?}");
        }
    }
}

#[test]
fn what_is_switched_on_is_there() {
    let kinds = |values: &str| {
        let text = run("helm", &["template", "usage", CHART, "--values", &format!("{CHART}/ci/{values}-values.yaml")], "").unwrap();
        documents(&text)
    };
    let of = |objects: &[Value], kind: &str| objects.iter().filter(|object| object["kind"] == kind).cloned().collect::<Vec<_>>();
    let least = kinds("least");
    for kind in ["StatefulSet", "HorizontalPodAutoscaler", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ConfigMap"] {
        assert_eq!(of(&least, kind), Vec::<Value>::new());
    }
    assert_eq!(of(&least, "Deployment")[0]["spec"]["replicas"], 2);

    // Two would set the number of pods in turn.
    let grown = kinds("grown");
    assert_eq!(of(&grown, "Deployment")[0]["spec"].get("replicas"), None);
    assert_eq!(of(&grown, "HorizontalPodAutoscaler")[0]["spec"]["minReplicas"], 3);
    let ingress = &of(&grown, "NetworkPolicy")[0]["spec"]["ingress"];
    assert_eq!(ingress.as_array().unwrap().iter().map(|rule| rule["from"].as_array().unwrap().len()).collect::<Vec<_>>(), [2, 1]);

    // Operator and gateway must be told the same of the cluster.
    let sharded = &of(&kinds("sharded"), "Deployment")[0]["spec"]["template"]["spec"]["containers"];
    for container in sharded.as_array().unwrap() {
        let env = container["env"].as_array().unwrap();
        for (name, value) in [("CLUSTER", "usage"), ("NODES", "http://clickhouse-0:8123,http://clickhouse-1:8123"), ("SHARDS", "2")] {
            assert!(env.contains(&json!({"name": format!("KUBEMETER_CLICKHOUSE_{name}"), "value": value})), "{env:?}");
        }
    }

    let replicated = &of(&kinds("replicated"), "Deployment")[0]["spec"]["template"]["spec"]["containers"];
    for container in replicated.as_array().unwrap() {
        let env = container["env"].as_array().unwrap();
        assert!(env.contains(&json!({"name": "KUBEMETER_CLICKHOUSE_REPLICAS", "value": "2"})), "{env:?}");
    }

    // Everything that reaches the gateway follows when it speaks TLS.
    let tls = kinds("seen");
    let container = &of(&tls, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    let probes = ["readinessProbe", "livenessProbe"].map(|probe| container[probe]["httpGet"].clone());
    assert!(probes.iter().all(|probe| (&probe["scheme"], &probe["port"]) == (&json!("HTTPS"), &json!("https"))), "{probes:?}");
    let port = &of(&tls, "Service")[0]["spec"]["ports"][0];
    assert_eq!((&port["name"], &port["targetPort"], &container["ports"][0]["name"]), (&json!("https"), &json!("https"), &json!("https")));
    assert_eq!(of(&tls, "NetworkPolicy")[0]["spec"]["ingress"][1]["ports"][0]["port"], "https");
    let test = &of(&tls, "Pod")[0]["spec"];
    assert_eq!(test["containers"][0]["env"][0]["value"], "https://usage-kubemeter.default.svc:8080");
    let ca = test["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "ca").unwrap();
    assert_eq!((&ca["secret"]["secretName"], &ca["secret"]["items"][0]["key"]), (&json!("company-ca"), &json!("root.pem")));

    // What is scraped is both containers of the release's pods, by the names that a port and the certificate have.
    let services = of(&tls, "Service");
    let metrics = services.iter().find(|service| service["metadata"]["name"] == "usage-kubemeter-metrics").unwrap();
    let monitor = &of(&tls, "ServiceMonitor")[0];
    let chosen = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let chooses = |service: &Value| chosen.iter().all(|(label, value)| service["metadata"]["labels"][label] == *value);
    assert_eq!(services.iter().map(chooses).collect::<Vec<_>>().iter().filter(|is| **is).count(), 1, "{chosen:?}");
    assert!(chooses(metrics));
    assert_eq!(metrics["spec"]["selector"], of(&tls, "Deployment")[0]["spec"]["selector"]["matchLabels"]);
    let names = |list: &Value, key: &str| list.as_array().unwrap().iter().map(|port| port[key].clone()).collect::<Vec<_>>();
    assert_eq!(names(&metrics["spec"]["ports"], "name"), names(&monitor["spec"]["endpoints"], "port"));
    assert_eq!(monitor["spec"]["endpoints"][0]["tlsConfig"]["serverName"], "usage-kubemeter.default.svc");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let alerts: Value = serde_yaml::from_str(&std::fs::read_to_string(format!("{CHART}/files/alerts.yaml")).unwrap()).unwrap();
    assert_eq!(of(&tls, "PrometheusRule")[0]["spec"], alerts);
    let dashboard: Value = serde_json::from_str(of(&tls, "ConfigMap")[0]["data"]["kubemeter.json"].as_str().unwrap()).unwrap();
    assert_eq!(dashboard["title"], "Kubemeter");
    let env = container["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.tracing:4318"})), "{env:?}");

    // Nobody but the release's gateways and operators reaches a ClickHouse without password, and it reaches nobody.
    let bundled = kinds("bundled");
    let policy = &of(&bundled, "NetworkPolicy")[0]["spec"];
    assert_eq!((policy["ingress"].as_array().unwrap().len(), policy.get("egress"), &policy["policyTypes"][1]), (1, None, &json!("Egress")));
    let deployment = &of(&bundled, "Deployment")[0]["spec"];
    assert_eq!(policy["ingress"][0]["from"][0]["podSelector"], deployment["selector"]);
    let set = &of(&bundled, "StatefulSet")[0]["spec"];
    assert_eq!(policy["podSelector"], set["selector"]);
    assert_ne!(set["selector"], deployment["selector"]);
}

/// Copies the chart of the commit before its last change into `folder`. In a clone without history: the chart as it is.
fn chart_before(folder: &std::path::Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let commits = String::from_utf8(git(&["log", "--format=%H", "-2", "--", "charts/kubemeter"])).unwrap();
    let Some(commit) = commits.lines().nth(1) else { return CHART.to_owned() };
    let archive = folder.join("chart.tar");
    std::fs::write(&archive, git(&["archive", commit, "charts/kubemeter"])).unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder).status().unwrap();
    assert!(unpacked.success());
    folder.join("charts/kubemeter").to_str().unwrap().to_owned()
}

#[tokio::test]
async fn it_upgrades_the_chart_of_the_commit_before() {
    let plane = ControlPlane::shared();
    install_crds(&plane.client().await).await;
    let namespace = restricted_namespace(plane).await;
    let release = Release { plane, namespace: &namespace };
    let folder = tempfile::tempdir().unwrap();
    let before = chart_before(folder.path());
    let watch = format!("watchNamespace={namespace}");
    let values =
        ["--set", "crds.install=false", "--set", &watch, "--set", "image.repository=one", "--set", "clickhouse.url=http://clickhouse:8123"];
    release.helm("install", &[&[before.as_str()], &values[..]].concat());
    let old = release.manifest();
    release.helm("upgrade", &[&[CHART], &values[..]].concat());
    let new = release.manifest();
    let workload = |objects: &[Value]| objects.iter().find(|object| object["kind"] == "Deployment").cloned().unwrap();
    assert_eq!(workload(&old)["spec"]["selector"], workload(&new)["spec"]["selector"]);
    release.helm("rollback", &["1"]);
    assert_eq!(release.manifest(), old);
    release.helm("uninstall", &[]);
}

#[tokio::test]
async fn every_manifest_is_taken_by_the_api_server() {
    let plane = ControlPlane::shared();
    install_crds(&plane.client().await).await; // `helm test` makes a Meter
    let monitoring = include_str!("monitoring-crds.yaml");
    for command in [&["apply", "--server-side", "-f", "-"][..], &["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"]] {
        run("kubectl", &[&["--kubeconfig", plane.kubeconfig.to_str().unwrap()], command].concat(), monitoring).unwrap();
    }
    let namespace = restricted_namespace(plane).await;
    // A pod is taken only when its service account is there, which a dry run doesn't make.
    for account in ["usage-kubemeter-test", "metering-test"] {
        plane.service_account(&namespace, account, None).await;
    }
    let shop = Namespace { metadata: ObjectMeta { name: Some("shop".into()), ..Default::default() }, ..Default::default() };
    let _ = Api::all(plane.client().await).create(&PostParams::default(), &shop).await;
    for values in value_sets() {
        let values = values.to_str().unwrap();
        let text = run("helm", &["template", "usage", CHART, "--values", values, "--namespace", &namespace], "").unwrap();
        let kubeconfig = plane.kubeconfig.to_str().unwrap();
        let apply = ["--kubeconfig", kubeconfig, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
        let said = run("kubectl", &apply, &text).unwrap_or_else(|why| panic!("{values}: {why}"));
        assert!(!said.contains("Warning"), "{values}: {said}");

        let rendered = documents(&text);
        assert_eq!(said.lines().count(), rendered.len(), "{said}");
        let crds = rendered.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition");
        for mut crd in crds {
            assert_eq!(crd["metadata"]["annotations"], json!({"helm.sh/resource-policy": "keep"}));
            let own = ["annotations", "labels"].map(|key| crd["metadata"].as_object_mut().unwrap().remove(key));
            assert!(own.iter().all(Option::is_some));
            let file = format!("{}.yaml", crd["spec"]["names"]["plural"].as_str().unwrap());
            let (_, original) = api::crds().unwrap().into_iter().find(|(name, _)| *name == file).unwrap();
            assert_eq!(crd, serde_yaml::from_str::<Value>(&original).unwrap());
        }
    }
}

#[tokio::test]
async fn it_is_installed_upgraded_rolled_back_and_uninstalled() {
    let plane = ControlPlane::shared();
    let client = plane.client().await;
    install_crds(&client).await;
    let namespace = restricted_namespace(plane).await;
    let release = Release { plane, namespace: &namespace };
    let least = format!("{CHART}/ci/least-values.yaml");
    let watch = format!("watchNamespace={namespace}");
    let values = ["--values", &least, "--set", "crds.install=false", "--set", &watch];
    let notes = release.helm("install", &[&[CHART], &values[..]].concat());
    assert!(notes.contains(&format!("kubectl --namespace {namespace} rollout status deployment/usage-kubemeter")), "{notes}");

    let meters: Api<Meter> = Api::namespaced(client.clone(), &namespace);
    let meter: Meter = serde_json::from_value(json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter",
        "metadata": {"name": "calls"}, "spec": {"eventType": "call", "aggregation": "Count"}}))
    .unwrap();
    let meter = meters.create(&PostParams::default(), &meter).await.unwrap();

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let replicas = async || deployments.get("usage-kubemeter").await.unwrap().spec.unwrap().replicas;
    assert_eq!(replicas().await, Some(2));
    pods_have_the_least_privileges(&client, &deployments, &namespace).await;
    release.helm("upgrade", &[&[CHART], &values[..], &["--set", "replicas=3"]].concat());
    assert_eq!(replicas().await, Some(3));
    release.helm("rollback", &["1"]);
    assert_eq!(replicas().await, Some(2));
    users_may_what_their_roles_say(plane, &namespace).await;
    workloads_may_what_their_roles_say(plane, &namespace).await;

    let made = release.manifest();
    assert!(made.len() >= 11, "{made:?}");
    release.helm("uninstall", &[]);
    for object in made {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        eventually(&format!("the end of {kind} {name}"), async || {
            kubectl(plane, &namespace, &["get", kind, name]).is_err_and(|why| why.contains("NotFound")).then_some(())
        })
        .await;
    }
    assert_eq!(meters.get("calls").await.unwrap().metadata.uid, meter.metadata.uid, "the Meter stays");
}

/// The pod as the Deployment would make it is taken where the restricted standard is enforced, and another is not.
async fn pods_have_the_least_privileges(client: &kube::Client, deployments: &Api<Deployment>, namespace: &str) {
    let template = deployments.get("usage-kubemeter").await.unwrap().spec.unwrap().template;
    let metadata = ObjectMeta { name: Some("one".into()), labels: template.metadata.unwrap().labels, ..Default::default() };
    let mut pod = Pod { metadata, spec: template.spec, ..Default::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let dry_run = PostParams { dry_run: true, ..Default::default() };
    pods.create(&dry_run, &pod).await.unwrap();
    pod.spec.as_mut().unwrap().security_context = None;
    let refused = pods.create(&dry_run, &pod).await.unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

/// Kubernetes' own roles view, edit and admin cover Meters and Customers.
async fn users_may_what_their_roles_say(plane: &ControlPlane, namespace: &str) {
    let kubectl = |arguments: &[&str]| kubectl(plane, namespace, arguments);
    for (role, may, may_not) in
        [("view", "watch", "create"), ("edit", "delete", "deletecollection"), ("admin", "deletecollection", "escalate")]
    {
        kubectl(&["create", "rolebinding", role, &format!("--clusterrole={role}"), &format!("--user={role}")]).unwrap();
        for resource in ["meters.kubemeter.io", "customers.kubemeter.io"] {
            let can = |verb: &str| kubectl(&["auth", "can-i", verb, resource, &format!("--as={role}")]).is_ok();
            eventually(&format!("{role} may {may} {resource}"), async || (can(may) && can("get")).then_some(())).await;
            assert!(!can(may_not), "{role} may {may_not} {resource}");
        }
        // What the gateway asks for.
        let reads = [("get", "meters/usage"), ("list", "usageevents")];
        let writes = [("create", "usageevents"), ("update", "usageevents"), ("delete", "usageevents")];
        for (right, expected) in reads.map(|right| (right, true)).into_iter().chain(writes.map(|right| (right, role != "view"))) {
            assert_eq!(plane.may(role, right.0, right.1, namespace, None).await, expected, "{role}: {right:?}");
        }
    }
}

/// The two ready roles have one right each. The command of a refusal grants it.
async fn workloads_may_what_their_roles_say(plane: &ControlPlane, namespace: &str) {
    let kubectl = |arguments: &[&str]| kubectl(plane, namespace, arguments);
    let all = [("create", "usageevents"), ("list", "usageevents"), ("delete", "usageevents"), ("get", "meters/usage")];
    for (role, its) in [("ingester", all[0]), ("usage-reader", all[3])] {
        let cluster_role = format!("--clusterrole={namespace}:usage-kubemeter:{role}");
        kubectl(&["create", "rolebinding", role, &cluster_role, &format!("--serviceaccount={namespace}:{role}")]).unwrap();
        let user = format!("system:serviceaccount:{namespace}:{role}");
        let can = async |(verb, resource)| plane.may(&user, verb, resource, namespace, None).await;
        eventually(&format!("the right of {role}"), async || can(its).await.then_some(())).await;
        for right in all {
            assert_eq!(can(right).await, right == its, "{role}: {right:?}");
        }
    }
}
