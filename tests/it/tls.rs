//! A gateway that speaks TLS, called by `kubemeter check`, while its certificate is replaced.

use std::process::{Command, Stdio};

use kube::api::{Api, PostParams};
use kubemeter::api::Meter;
use serde_json::json;

use crate::cluster::install_crds;
use crate::rights::Program;
use crate::support::{ClickHouse, ControlPlane, eventually};

#[tokio::test]
async fn a_check_trusts_the_certificate_of_now_and_no_other() {
    let (plane, clickhouse) = (ControlPlane::shared(), ClickHouse::start_own());
    let client = plane.client().await;
    install_crds(&client).await;
    let (namespace, folder) = (plane.namespace().await, tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // A certificate that is its own CA, as `ca.crt` of a self-signed issuer is.
    let issue = |ca: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        for (name, content) in [(ca, made.cert.pem()), ("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())] {
            std::fs::write(path(name), content).unwrap();
        }
    };
    issue("first");
    let watch = ["--watch-namespace", &namespace];
    let _operator =
        Program::start("operator", plane, clickhouse.url(), &[&watch[..], &["--leader-election=false"]].concat(), Stdio::null());
    let (cert, key) = (path("tls.crt"), path("tls.key"));
    let options = ["--insecure-no-auth", "--namespace", &namespace, "--tls-cert", &cert, "--tls-key", &key];
    let gateway = Program::start("gateway", plane, clickhouse.url(), &[&watch[..], &options].concat(), Stdio::null());
    let meter = json!({"apiVersion": "kubemeter.io/v1alpha1", "kind": "Meter", "metadata": {"name": "checks"},
        "spec": {"eventType": "check", "aggregation": "Count"}});
    let meters: Api<Meter> = Api::namespaced(client, &namespace);
    meters.create(&PostParams::default(), &serde_json::from_value(meter).unwrap()).await.unwrap();

    // On a thread of its own: it takes a while, and blocks.
    let check = async |scheme: &str, ca: Option<&str>, seconds: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        command.args(["check", "--url", &format!("{scheme}://{}", gateway.address), "--namespace", &namespace]);
        command.args(["--meter", "checks", "--event-type", "check", "--timeout-seconds", seconds]);
        command.args(ca.into_iter().flat_map(|ca| ["--ca-file".to_owned(), path(ca)]));
        let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    };
    let said = check("https", Some("first"), "60").await.unwrap();
    assert!(said.contains("meter checks counted it once"), "{said}");
    let unknown = check("https", None, "0").await.unwrap_err();
    assert!(unknown.contains("invalid peer certificate"), "{unknown}");
    check("http", None, "0").await.unwrap_err();

    issue("second");
    eventually("the new certificate is shown", async || check("https", Some("second"), "0").await.ok()).await;
    let old = check("https", Some("first"), "0").await.unwrap_err();
    assert!(old.contains("invalid peer certificate"), "{old}");
    let none = check("https", Some("tls.key"), "0").await.unwrap_err();
    assert!(none.contains("holds no certificate in PEM"), "{none}");
}

#[test]
fn a_certificate_without_its_key_is_refused_at_the_start() {
    let output = Command::new(env!("CARGO_BIN_EXE_kubemeter"))
        .args(["gateway", "--clickhouse-url", "http://127.0.0.1:1", "--tls-cert", "/tls.crt"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--tls-key <TLS_KEY>"), "{said}");
}
