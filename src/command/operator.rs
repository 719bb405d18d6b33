//! `kubemeter operator`: the two controllers, led by one replica, and its probes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Customer, Meter};
use crate::cluster;
use crate::controller::leader::{self, Standing};
use crate::controller::{self, Options, Setup};
use crate::reconcile::{Balancer, Reconciler};
use crate::telemetry::Metrics;

/// How long reconciles under way may go on after the signal to stop. With the lease's release below 25 s: Kubernetes
/// kills after 30 s.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long probes' answers under way may go on at the end.
const SERVE_GRACE: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(args: super::OperatorArgs) -> Result<(), String> {
    let stop = super::stop::token(false)?;
    let config = cluster::config("operator").await?;
    let probes = Probes::new()?;
    let listener = TcpListener::bind(args.listen).await.map_err(|why| {
        format!("can't listen on {}: {why}; choose another address with --listen or KUBEMETER_OPERATOR_LISTEN", args.listen)
    })?;
    let end = CancellationToken::new();
    let server = axum::serve(listener, router(probes.clone())).with_graceful_shutdown(end.clone().cancelled_owned());
    let server = tokio::spawn(async move { server.await });
    tracing::info!(listen = %args.listen, api_server = %config.cluster_url, "operator starts");

    let result = operate(args, config, &probes, stop).await;
    end.cancel();
    // Probes that are still answered don't hold the end up.
    let _ = tokio::time::timeout(SERVE_GRACE, server).await;
    result
}

async fn operate(args: super::OperatorArgs, config: kube::Config, probes: &Probes, stop: CancellationToken) -> Result<(), String> {
    let client = cluster::client(config.clone())?;
    if !cluster::wait_for_crds(&client, &stop).await {
        return Ok(());
    }
    probes.crds_served.cancel();
    let reconciler = Reconciler::connect(&args.clickhouse).await?;
    let instance = instance();
    let setup = Setup {
        client,
        namespace: args.watch_namespace,
        options: Options::default(),
        metrics: probes.metrics.clone(),
        instance: instance.clone(),
    };
    let work = || async {
        probes.works.cancel();
        probes.metrics.leading.set(1);
        let controllers = async {
            tokio::join!(
                controller::run::<Meter, _>(setup.clone(), reconciler.clone(), probes.meters_listed.clone(), stop.clone()),
                controller::run::<Customer, _>(setup.clone(), reconciler.clone(), probes.customers_listed.clone(), stop.clone()),
            )
        };
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            _ = controllers => {}
            () = Balancer::new(reconciler.clone()).run() => {}
            () = too_late => tracing::warn!("reconciles under way did not end within {} s; the next start does them again", STOP_GRACE.as_secs()),
        }
        probes.metrics.leading.set(0);
    };
    if args.leader_election {
        let namespace = args.lease_namespace.unwrap_or_else(|| config.default_namespace.clone());
        let identity = format!("{instance}_{}", Uuid::new_v4().simple());
        let params = leader::Params::new(namespace, identity);
        leader::lead(config, params, probes.standing.clone(), stop.clone(), work).await.map_err(|why| why.to_string())
    } else {
        work().await;
        Ok(())
    }
}

/// Who we are among the replicas, for people: the pod's name. Bounded, for it becomes part of a field manager's name.
fn instance() -> String {
    let name = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "kubemeter-operator".to_owned());
    name.chars().filter(char::is_ascii).take(63).collect()
}

/// What the probes tell; each token is cancelled when its name has become true.
#[derive(Clone)]
struct Probes {
    metrics: Arc<Metrics>,
    standing: Standing,
    crds_served: CancellationToken,
    works: CancellationToken,
    meters_listed: CancellationToken,
    customers_listed: CancellationToken,
}

impl Probes {
    fn new() -> Result<Self, String> {
        let metrics = Metrics::new().map_err(|why| format!("can't make metrics: {why}"))?;
        let token = CancellationToken::new;
        Ok(Self {
            metrics: Arc::new(metrics),
            standing: Standing::default(),
            crds_served: token(),
            works: token(),
            meters_listed: token(),
            customers_listed: token(),
        })
    }

    /// What is missing; a replica that waits to lead is ready for that.
    fn missing(&self) -> Option<&'static str> {
        if !self.crds_served.is_cancelled() {
            Some("the API server does not serve Meters and Customers: run `kubectl apply -f crds/`")
        } else if self.works.is_cancelled() && !(self.meters_listed.is_cancelled() && self.customers_listed.is_cancelled()) {
            Some("Meters and Customers are being listed")
        } else {
            None
        }
    }
}

fn router(probes: Probes) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).route("/metrics", get(metrics)).with_state(probes)
}

async fn healthz(State(probes): State<Probes>) -> impl IntoResponse {
    answer((!probes.standing.healthy()).then_some("the lease has run out while this replica leads"))
}

async fn readyz(State(probes): State<Probes>) -> impl IntoResponse {
    answer(probes.missing())
}

fn answer(wrong: Option<&str>) -> impl IntoResponse + use<> {
    match wrong {
        None => (StatusCode::OK, Json(serde_json::json!({"status": "ok"}))),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({"status": "unavailable", "message": why}))),
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    match probes.metrics.text() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text)),
        Err(why) => Err((StatusCode::INTERNAL_SERVER_ERROR, why.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn probes_tell_what_is_missing() {
        let probes = Probes::new().unwrap();
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router(probes.clone()).oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(ask("/healthz").await.0, 200);
        let (status, body) = ask("/readyz").await;
        assert!(status == 503 && body.contains("kubectl apply -f crds/"), "{body}");
        probes.crds_served.cancel();
        assert_eq!(ask("/readyz").await.0, 200, "waiting to lead");
        probes.works.cancel();
        assert_eq!(ask("/readyz").await.0, 503, "leads, but has not listed yet");
        probes.meters_listed.cancel();
        probes.customers_listed.cancel();
        assert_eq!(ask("/readyz").await.0, 200);
        assert!(ask("/metrics").await.1.contains("\nkubemeter_leading 0\n"));
    }
}
