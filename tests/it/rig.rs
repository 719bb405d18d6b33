//! The rig itself: what the other tests build on is real.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};

use crate::lab::new_database;
use crate::support::{CLUSTER, ClickHouse, ControlPlane, eventually};

#[tokio::test]
async fn a_service_account_token_is_for_its_audience_only() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace().await;
    let token = plane.service_account(&namespace, "shop", Some("kubemeter")).await;

    let reviews: Api<TokenReview> = Api::all(plane.client().await);
    for (audience, accepted) in [("kubemeter", true), ("another", false)] {
        let spec = TokenReviewSpec { token: token.clone(), audiences: Some(vec![audience.into()]) };
        let review = TokenReview { spec, ..Default::default() };
        let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
        assert_eq!(status.authenticated.unwrap_or_default(), accepted, "{audience}: {status:?}");
        if accepted {
            let user = status.user.unwrap().username.unwrap();
            assert_eq!(user, format!("system:serviceaccount:{namespace}:shop"));
        }
    }
}

#[tokio::test]
async fn controllers_run_namespaces_get_their_account_and_end() {
    let plane = ControlPlane::shared();
    let namespace = plane.namespace().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client().await, &namespace);
    eventually("the default service account", async || accounts.get_opt("default").await.unwrap()).await;

    let namespaces: Api<Namespace> = Api::all(plane.client().await);
    namespaces.delete(&namespace, &DeleteParams::default()).await.unwrap();
    eventually("the end of the namespace", async || namespaces.get_opt(&namespace).await.unwrap().is_none().then_some(())).await;
}

#[tokio::test]
async fn a_killed_clickhouse_serves_its_confirmed_rows_again() {
    let mut clickhouse = ClickHouse::start_own();
    let url = clickhouse.url().to_owned();
    let ask = async |sql: &'static str| {
        let answer = reqwest::Client::new().post(&url).body(sql).send().await?.error_for_status()?;
        answer.text().await
    };
    ask("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n").await.unwrap();
    ask("INSERT INTO kept SELECT number FROM numbers(1000)").await.unwrap();

    clickhouse.kill();
    ask("SELECT 1").await.unwrap_err();
    clickhouse.restart();
    assert_eq!(ask("SELECT count() FROM kept").await.unwrap().trim(), "1000");

    clickhouse.stop();
    clickhouse.restart();
    assert_eq!(ask("SELECT count() FROM kept").await.unwrap().trim(), "1000");
}

#[tokio::test]
async fn a_statement_that_a_shard_gives_up_ends_no_other_shard() {
    let mut shards = ClickHouse::start_shards();
    let database = new_database();
    for shard in &shards {
        for sql in [
            format!("CREATE DATABASE {database}"),
            format!("CREATE TABLE {database}.stored (n UInt64) ENGINE = MergeTree ORDER BY n AS SELECT number FROM numbers(100000)"),
            format!("CREATE TABLE {database}.all AS {database}.stored ENGINE = Distributed({CLUSTER}, {database}, stored)"),
        ] {
            let answer = reqwest::Client::new().post(shard.url()).body(sql).send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        }
    }
    // The first gives up when it has more rows than that, while others are on their way.
    let sql = format!("SELECT n, toString(n) FROM {database}.all SETTINGS max_result_rows = 1000, result_overflow_mode = 'throw'");
    let client = reqwest::Client::new();
    let give_up = async |_| {
        for _ in 0..200 {
            let answer = client.post(shards[0].url()).body(sql.clone()).send().await.unwrap();
            let says = answer.text().await.unwrap();
            assert!(says.contains("TOO_MANY_ROWS_OR_BYTES"), "{says}");
        }
    };
    futures::future::join_all((0..8).map(give_up)).await;
    assert!(shards.iter_mut().all(ClickHouse::runs));
}
