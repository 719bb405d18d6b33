//! Meters and Customers through the gateway's registry, on a real API server.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use kubemeter::api::{Aggregation, Customer, CustomerSpec, Meter, MeterSpec};
use kubemeter::metering::{ActsAs, Caller, Error, Page};
use kubemeter::registry::{KubeRegistry, Registry};

use crate::cluster::{admin, install_crds};
use crate::support::ControlPlane;

async fn start() -> (KubeRegistry, Caller) {
    let plane = ControlPlane::shared();
    install_crds(&plane.client().await).await;
    let caller = Caller::trusted(plane.namespace().await);
    (KubeRegistry::new(admin().await).unwrap(), caller)
}

fn meter(name: &str, event_type: &str) -> Meter {
    let spec = MeterSpec {
        description: None,
        event_type: event_type.to_owned(),
        aggregation: Aggregation::Count,
        value_property: None,
        group_by: BTreeMap::new(),
        unit: None,
        retention: None,
        deletion_policy: Default::default(),
    };
    Meter::new(name, spec)
}

#[tokio::test]
async fn objects_are_made_read_changed_and_deleted() {
    let (registry, caller) = start().await;
    let mut made = meter("calls", "a");
    made.annotations_mut().insert("team".into(), "shop".into());
    let made = registry.create(&caller, made).await.unwrap();
    assert_eq!((made.spec.event_type.as_str(), made.namespace()), ("a", Some(caller.namespace.clone())));
    assert!(matches!(registry.create(&caller, meter("calls", "b")).await, Err(Error::Conflict(_))));

    // Without a resourceVersion the newest is replaced, and what is not spec stays.
    let replaced = registry.replace(&caller, meter("calls", "b")).await.unwrap();
    assert_eq!((replaced.spec.event_type.as_str(), replaced.annotations().get("team")), ("b", Some(&"shop".to_owned())));

    // With one, only that version is.
    let mut stale = meter("calls", "c");
    stale.metadata.resource_version = made.resource_version();
    assert!(matches!(registry.replace(&caller, stale.clone()).await, Err(Error::Conflict(_))));
    stale.metadata.resource_version = replaced.resource_version();
    assert_eq!(registry.replace(&caller, stale).await.unwrap().spec.event_type, "c");
    assert_eq!(registry.get::<Meter>(&caller, "calls").await.unwrap().spec.event_type, "c");

    registry.delete::<Meter>(&caller, "calls").await.unwrap();
    assert!(matches!(registry.get::<Meter>(&caller, "calls").await, Err(Error::NotFound(_))));
    assert!(matches!(registry.delete::<Meter>(&caller, "calls").await, Err(Error::NotFound(_))));
    assert!(matches!(registry.replace(&caller, meter("calls", "d")).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_listing_has_pages() {
    let (registry, caller) = start().await;
    for n in 0..25 {
        registry.create(&caller, Customer::new(&format!("c{n:02}"), CustomerSpec::default())).await.unwrap();
    }
    let (mut names, mut sizes, mut token) = (Vec::new(), Vec::new(), None);
    loop {
        let page = registry.list::<Customer>(&caller, Page { limit: Some(10), token }).await.unwrap();
        sizes.push(page.items.len());
        names.extend(page.items.iter().map(ResourceExt::name_any));
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [10, 10, 5]);
    assert_eq!(names, (0..25).map(|n| format!("c{n:02}")).collect::<Vec<_>>());
    let nonsense = registry.list::<Customer>(&caller, Page { limit: Some(10), token: Some("nonsense".into()) }).await;
    assert!(matches!(nonsense, Err(Error::Upstream { status: 400, .. })), "{nonsense:?}");
}

#[tokio::test]
async fn the_api_servers_causes_come_through() {
    let (registry, caller) = start().await;
    let mut bad = meter("bad", "a");
    bad.spec.value_property = Some("$.a".into());
    bad.spec.retention = Some("soon".into());
    let Err(Error::Upstream { status, reason, causes, .. }) = registry.create(&caller, bad).await else {
        panic!("a spec that breaks two rules was taken");
    };
    assert_eq!((status, reason.as_str()), (422, "Invalid"));
    let fields: Vec<_> = causes.iter().map(|(field, _)| field.as_str()).collect();
    assert!(fields.contains(&"spec.retention") && fields.contains(&"spec.valueProperty"), "{causes:?}");
    assert!(causes.iter().any(|(_, message)| message.contains("days such as 400d")), "{causes:?}");
}

#[tokio::test]
async fn the_callers_token_decides() {
    let (registry, own) = start().await;
    let plane = ControlPlane::shared();
    let client = plane.client().await;
    let token = plane.service_account(&own.namespace, "shop", None).await;
    let caller = Caller { acts_as: ActsAs::Token(token), ..own.clone() };

    let refused = registry.get::<Meter>(&caller, "calls").await;
    assert!(matches!(&refused, Err(Error::Upstream { status: 403, reason, .. }) if reason == "Forbidden"), "{refused:?}");
    let unknown = Caller { acts_as: ActsAs::Token("nobody's".into()), ..own.clone() };
    let refused = registry.get::<Meter>(&unknown, "calls").await;
    assert!(matches!(refused, Err(Error::Upstream { status: 401, .. })), "{refused:?}");
    let broken = Caller { acts_as: ActsAs::Token("a\nb".into()), ..own.clone() };
    assert!(matches!(registry.get::<Meter>(&broken, "calls").await, Err(Error::Invalid { code: "invalid_token", .. })));

    let named = |name: &str| ObjectMeta { name: Some(name.into()), ..Default::default() };
    let rule = PolicyRule {
        api_groups: Some(vec!["kubemeter.io".into()]),
        resources: Some(vec!["meters".into()]),
        verbs: vec!["create".into(), "get".into()],
        ..Default::default()
    };
    let roles: Api<Role> = Api::namespaced(client.clone(), &own.namespace);
    roles.create(&PostParams::default(), &Role { metadata: named("meters"), rules: Some(vec![rule]) }).await.unwrap();
    let binding = RoleBinding {
        metadata: named("meters"),
        role_ref: RoleRef { api_group: Some("rbac.authorization.k8s.io".into()), kind: "Role".into(), name: "meters".into() },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: "shop".into(),
            namespace: Some(own.namespace.clone()),
            ..Default::default()
        }]),
    };
    let bindings: Api<RoleBinding> = Api::namespaced(client, &own.namespace);
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    // The authorizer learns of a binding by a watch.
    crate::support::eventually("the role's rights", async || registry.create(&caller, meter("calls", "a")).await.ok()).await;
    let refused = registry.delete::<Meter>(&caller, "calls").await;
    assert!(matches!(refused, Err(Error::Upstream { status: 403, .. })), "{refused:?}");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_unavailable() {
    let mut config = admin().await;
    config.cluster_url = "https://127.0.0.1:1".parse().unwrap();
    let registry = KubeRegistry::new(config).unwrap();
    let caller = Caller { namespace: "default".into(), acts_as: ActsAs::Token("t".into()), name: None };
    let away = registry.get::<Meter>(&caller, "calls").await;
    assert!(matches!(&away, Err(Error::Unavailable { message, .. }) if message.contains("refused")), "{away:?}");
}
