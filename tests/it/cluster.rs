//! The shared control plane with our CRDs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, CustomResourceExt, ResourceExt};
use kubemeter::api::{Customer, Meter};
use kubemeter::cluster::wait_for_crds;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::support::{ControlPlane, eventually};

/// An administrator's configuration.
pub async fn admin() -> Config {
    let kubeconfig = Kubeconfig::read_from(&ControlPlane::shared().kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    config
}

/// Applies the CRDs once and waits until they are served.
pub async fn install_crds(client: &Client) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED
        .get_or_init(async || {
            let api: Api<CustomResourceDefinition> = Api::all(client.clone());
            for crd in [Meter::crd(), Customer::crd()] {
                api.patch(&crd.name_any(), &PatchParams::apply("test").force(), &Patch::Apply(&crd)).await.unwrap();
                eventually("the CRD is established and its schema is sound", async || {
                    let status = api.get(&crd.name_any()).await.unwrap().status?;
                    let conditions = status.conditions.unwrap_or_default();
                    let bad = conditions.iter().find(|c| c.type_ == "NonStructuralSchema" && c.status == "True");
                    assert!(bad.is_none(), "{bad:?}");
                    conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
                })
                .await;
            }
            assert!(wait_for_crds(client, &CancellationToken::new()).await);
        })
        .await;
}
