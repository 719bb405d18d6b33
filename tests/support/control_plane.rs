//! A real Kubernetes API server with etcd and controller-manager, from `tests/rig/control_plane.py`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::child::Running;

/// A control plane: the cluster that `KUBEMETER_TEST_KUBECONFIG` names, else one of its own that ends on drop.
pub struct ControlPlane {
    /// A file with the rights of an administrator.
    pub kubeconfig: PathBuf,
    /// Of the API server.
    pub url: String,
    own: Option<Running>,
}

impl ControlPlane {
    /// Starts one, which takes some 3 s. Most tests need no more than a namespace of [`ControlPlane::shared`].
    pub fn start() -> Self {
        if let Some(path) = std::env::var_os("KUBEMETER_TEST_KUBECONFIG") {
            let config = Kubeconfig::read_from(&path).expect("KUBEMETER_TEST_KUBECONFIG is a kubeconfig");
            let cluster = config.clusters.into_iter().find_map(|named| named.cluster);
            let url = cluster.and_then(|cluster| cluster.server).expect("a kubeconfig names a server");
            return Self { kubeconfig: path.into(), url, own: None };
        }
        Self::start_own()
    }

    /// Starts one whatever the environment says, for a test that takes all its namespaces.
    pub fn start_own() -> Self {
        Self::run(&[])
    }

    /// Starts one of its own whose API server logs every call into a file, a JSON object a line.
    pub fn start_audited(log: &Path) -> Self {
        Self::run(&["--audit-log".as_ref(), log.as_ref()])
    }

    fn run(arguments: &[&OsStr]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rig/control_plane.py");
        // A missing binary ends the script with a line that says `make setup-kubernetes`, which is then the panic's.
        let (running, ready) =
            Running::start(Command::new("python3").arg(script).args(arguments), |line| serde_json::from_str::<Value>(line).ok());
        let field = |name: &str| ready[name].as_str().expect("the script prints it").to_owned();
        Self { kubeconfig: field("kubeconfig").into(), url: field("url"), own: Some(running) }
    }

    /// One that is not this value's to end, or has ended already.
    pub fn of(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, url: String::new(), own: None }
    }

    /// The one that all tests of this process share. It ends with the process, at the end of its stdin.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A client with the rights of an administrator.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("it is a kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("it names a cluster")).expect("it has usable credentials")
    }

    /// Makes a namespace that no other test has, and tells its name.
    pub async fn namespace(&self) -> String {
        let metadata = ObjectMeta { generate_name: Some("test-".into()), ..Default::default() };
        let namespace = Namespace { metadata, ..Default::default() };
        let api = Api::all(self.client().await);
        let made = api.create(&PostParams::default(), &namespace).await.expect("an administrator may");
        made.metadata.name.expect("the API server names it")
    }

    /// Makes a service account and a token of it for `audience` (`None`: the API server itself).
    pub async fn service_account(&self, namespace: &str, name: &str, audience: Option<&str>) -> String {
        let api: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let metadata = ObjectMeta { name: Some(name.into()), ..Default::default() };
        let account = ServiceAccount { metadata, ..Default::default() };
        api.create(&PostParams::default(), &account).await.expect("an administrator may");
        self.token(namespace, name, audience).await
    }

    /// Gives a service account exactly these rights in a namespace: (verbs, resources of kubemeter.io, names or none).
    /// Returns when the API server goes by them.
    pub async fn grant(&self, namespace: &str, name: &str, rules: &[(&[&str], &[&str], &[&str])]) {
        let client = self.client().await;
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let rule = |(verbs, resources, names): &(&[&str], &[&str], &[&str])| PolicyRule {
            api_groups: Some(vec!["kubemeter.io".into()]),
            verbs: texts(verbs),
            resources: Some(texts(resources)),
            resource_names: (!names.is_empty()).then(|| texts(names)),
            ..Default::default()
        };
        let metadata = ObjectMeta { name: Some(name.into()), ..Default::default() };
        let role = Role { metadata: metadata.clone(), rules: Some(rules.iter().map(rule).collect()) };
        Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &role).await.expect("an administrator may");
        let role_ref = RoleRef { api_group: Some("rbac.authorization.k8s.io".into()), kind: "Role".into(), name: name.into() };
        let subject = Subject { kind: "ServiceAccount".into(), name: name.into(), namespace: Some(namespace.into()), ..Default::default() };
        let binding = RoleBinding { metadata, role_ref, subjects: Some(vec![subject]) };
        Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &binding).await.expect("an administrator may");

        let user = format!("system:serviceaccount:{namespace}:{name}");
        for (verbs, resources, names) in rules {
            for (verb, resource) in verbs.iter().flat_map(|verb| resources.iter().map(move |resource| (verb, resource))) {
                let name = names.first().copied();
                super::eventually("the role's rights", async || self.may(&user, verb, resource, namespace, name).await.then_some(())).await;
            }
        }
    }

    /// Whether a user may do something with a resource (or `resource/subresource`) of kubemeter.io. `kubectl auth can-i`
    /// knows only resources that can be listed.
    pub async fn may(&self, user: &str, verb: &str, resource: &str, namespace: &str, name: Option<&str>) -> bool {
        let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(r, s)| (r, Some(s.to_owned())));
        let attributes = ResourceAttributes {
            namespace: Some(namespace.into()),
            verb: Some(verb.into()),
            group: Some("kubemeter.io".into()),
            resource: Some(resource.into()),
            subresource,
            name: name.map(str::to_owned),
            ..Default::default()
        };
        let spec = SubjectAccessReviewSpec { user: Some(user.into()), resource_attributes: Some(attributes), ..Default::default() };
        let review = SubjectAccessReview { spec, ..Default::default() };
        let answer = Api::all(self.client().await).create(&PostParams::default(), &review).await.expect("an administrator may");
        answer.status.expect("it is answered").allowed
    }

    /// Makes a token of a service account for `audience` (`None`: the API server itself).
    pub async fn token(&self, namespace: &str, name: &str, audience: Option<&str>) -> String {
        let api: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let spec = TokenRequestSpec { audiences: audience.map(|name| vec![name.into()]), ..Default::default() };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let answer = api.create_token_request(name, &PostParams::default(), &request).await;
        let status = answer.expect("the account is there").status;
        status.and_then(|status| status.token).expect("a token was asked for")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(running) = &mut self.own {
            running.stop();
        }
    }
}
