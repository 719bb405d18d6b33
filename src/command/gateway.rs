//! `kubemeter gateway`.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{ClickhouseOptions, GatewayArgs};
use crate::auth::{Auth, Cached, Keys, KubeReviewer, Times};
use crate::catalog::Catalog;
use crate::catalog_watch::watch_catalog;
use crate::cluster;
use crate::http::{self, HttpOptions, Tls};
use crate::registry::{KubeRegistry, Registry};
use crate::service::Service;
use crate::telemetry::Metrics;

/// What the HTTP service works with.
pub struct GatewayParts<R: Registry> {
    /// Where Meters and Customers are kept.
    pub registry: R,
    /// What is known of them.
    pub catalog: Catalog,
    /// Which ClickHouse.
    pub clickhouse: ClickhouseOptions,
    /// Namespace of callers that name none and have none.
    pub namespace: String,
    /// Who is let in.
    pub auth: Auth,
    /// Refuse events whose subject no Customer has.
    pub known_customers_only: bool,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// The certificate; None: plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

/// Serves until `stop`.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn serve<R: Registry>(listener: tokio::net::TcpListener, parts: GatewayParts<R>, stop: CancellationToken) -> Result<(), String> {
    let metrics = parts.metrics;
    let warehouse = parts.clickhouse.warehouse().await?;
    let service = Service::new(parts.registry, parts.catalog, warehouse, Arc::clone(&metrics), parts.namespace, parts.known_customers_only);
    let router = http::router(Arc::new(service), HttpOptions::new(metrics, parts.auth));
    http::serve(listener, router, parts.tls, stop.cancelled_owned()).await;
    Ok(())
}

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(args: GatewayArgs) -> Result<(), String> {
    let stop = super::stop::token(false)?;
    let config = cluster::config("gateway").await?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|why| format!("can't listen on {}: {why}; choose another address with --listen or KUBEMETER_LISTEN", args.listen))?;
    let keys = keys(&args)?;
    let tls = tls(&args)?;
    let client = cluster::client(config.clone())?;
    let auth = auth(&args, client.clone(), keys.clone())?;
    let catalog = Catalog::default();
    let registry = KubeRegistry::new(config)?;
    // Watched until the last request is answered, and without end while the API server is away.
    let served = CancellationToken::new();
    let metrics = metrics()?;
    let watch = watch_catalog(client, args.watch_namespace, catalog.clone(), Arc::clone(&metrics), served.clone());
    let parts = GatewayParts {
        registry,
        catalog,
        clickhouse: args.clickhouse,
        namespace: args.namespace,
        auth,
        known_customers_only: args.known_customers_only,
        metrics,
        tls: tls.clone(),
    };
    tracing::info!(listen = %args.listen, tls = tls.is_some(), "gateway starts");
    let serve = async {
        let result = serve(listener, parts, stop).await;
        served.cancel();
        result
    };
    let read_keys = async {
        if let Some(keys) = keys {
            keys.watch(served.clone()).await;
        }
    };
    let read_certificate = async {
        if let Some(tls) = tls {
            tls.watch(served.clone()).await;
        }
    };
    tokio::join!(serve, watch, read_keys, read_certificate).0
}

/// All figures, at zero.
pub(super) fn metrics() -> Result<Arc<Metrics>, String> {
    Metrics::new().map(Arc::new).map_err(|why| format!("metrics can't be set up: {why}"))
}

fn tls(args: &GatewayArgs) -> Result<Option<Arc<Tls>>, String> {
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    Tls::open(cert, key).map(|tls| Some(Arc::new(tls))).map_err(|why| why.to_string())
}

fn keys(args: &GatewayArgs) -> Result<Option<Arc<Keys>>, String> {
    let Some(path) = &args.api_keys else { return Ok(None) };
    let keys = Keys::open(path).map_err(|why| why.to_string())?;
    tracing::info!(keys = keys.count(), "API keys are taken");
    Ok(Some(Arc::new(keys)))
}

fn auth(args: &GatewayArgs, client: kube::Client, keys: Option<Arc<Keys>>) -> Result<Auth, String> {
    if args.insecure_no_auth && args.api_keys.is_some() {
        return Err("--api-keys and --insecure-no-auth contradict each other: with the latter nobody needs a key".to_owned());
    }
    if args.insecure_no_auth {
        tracing::warn!(
            "AUTHENTICATION IS OFF (--insecure-no-auth): whoever reaches this gateway can bring, read and cancel the usage of every \
             namespace, and has the gateway's own rights on Meters and Customers"
        );
        return Ok(Auth::off());
    }
    let times = Times { stale: Duration::from_secs(args.auth_stale_seconds), ..Times::default() };
    let reviews = Cached::new(KubeReviewer::new(client, args.audience.clone()), times)?;
    Ok(Auth::on(reviews, keys, args.audience.clone(), args.role_prefix.clone()))
}
