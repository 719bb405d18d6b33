//! `kubemeter operator` as a process: on a cluster without CRDs, with them, and its end.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{CustomResourceExt, ResourceExt};
use kubemeter::api::{Customer, CustomerSpec, Meter};
use kubemeter::controller::leader::LEASE;

use crate::support::{ControlPlane, eventually, free_address};

fn operator(listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
    command.args(["operator", "--clickhouse-url", "http://127.0.0.1:1", "--listen", listen]).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn it_waits_for_the_crds_works_and_ends_in_order() {
    let plane = ControlPlane::start();
    let client = plane.client().await;
    let listen = free_address();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = operator(&listen).env("KUBECONFIG", &plane.kubeconfig).stderr(log.reopen().unwrap()).spawn().unwrap();
    let ask = async |path: &str| {
        let answer = reqwest::get(format!("http://{listen}{path}")).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    };

    let (status, body) = eventually("an answer", async || ask("/readyz").await).await;
    assert!(status == 503 && body.contains("kubectl apply -f crds/"), "{status} {body}");
    assert_eq!(ask("/healthz").await.unwrap().0, 200);
    eventually("a line that says what to do", async || {
        std::fs::read_to_string(log.path()).unwrap().contains("kubectl apply -f crds/").then_some(())
    })
    .await;

    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in [Meter::crd(), Customer::crd()] {
        crds.patch(&crd.name_any(), &PatchParams::apply("test"), &Patch::Apply(&crd)).await.unwrap();
    }
    eventually("it leads", async || ask("/metrics").await?.1.contains("\nkubemeter_leading 1\n").then_some(())).await;
    eventually("it is ready", async || (ask("/readyz").await?.0 == 200).then_some(())).await;

    let customers: Api<Customer> = Api::namespaced(client.clone(), "default");
    customers.create(&PostParams::default(), &Customer::new("acme", CustomerSpec::default())).await.unwrap();
    eventually("a status", async || customers.get("acme").await.unwrap().status).await;

    let start = Instant::now();
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let ended = eventually("its end", async || child.try_wait().unwrap()).await;
    assert!(ended.success() && start.elapsed().as_secs() < 25, "{ended} after {:?}", start.elapsed());
    let leases: Api<Lease> = Api::namespaced(client, "default");
    assert_eq!(leases.get(LEASE).await.unwrap().spec.unwrap().holder_identity, None, "released");
}

#[test]
fn what_it_can_not_do_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plane = ControlPlane::shared();
    let says = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    };
    let line = says(operator(&address).env("KUBECONFIG", &plane.kubeconfig));
    assert!(line.contains(&address) && line.contains("--listen"), "{line}");
    let line = says(operator(&address).env("KUBECONFIG", "/nowhere").env("HOME", "/nowhere"));
    assert!(line.contains("set KUBECONFIG"), "{line}");
}
