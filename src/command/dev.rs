//! `kubemeter dev`.

use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::gateway::{self, GatewayParts};
use super::{ClickhouseOptions, DevArgs};
use crate::auth::Auth;
use crate::catalog::Catalog;
use crate::engine::{self, EngineOptions, EngineProcess, FolderLock};
use crate::folder::{self, Folder};
use crate::reconcile::{Balancer, Reconciler};
use crate::registry::folder::FolderRegistry;

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(args: DevArgs) -> Result<(), String> {
    let stop = super::stop::token(args.stop_with_stdin)?;
    if args.clickhouse_url.is_none() && args.account.clickhouse_cluster.is_some() {
        return Err("--clickhouse-cluster needs --clickhouse-url: the embedded engine is one server".to_owned());
    }
    // Everything that may be refused comes before the engine, which takes longest.
    let listener = TcpListener::bind(args.listen).await.map_err(|why| engine::Error::Listen { address: args.listen, why }.to_string())?;
    let address = listener.local_addr().map_err(|why| why.to_string())?;
    let _lock = FolderLock::take(&args.data_dir).map_err(|why| why.to_string())?;
    let folder = Folder::open(&args.manifests, &args.data_dir, &args.namespace).map_err(|why| why.to_string())?;

    let engine = match &args.clickhouse_url {
        Some(_) => None,
        None => tokio::select! {
            () = stop.cancelled() => return Ok(()),
            engine = start_engine(&args) => Some(engine?),
        },
    };
    let clickhouse = ClickhouseOptions {
        clickhouse_url: engine.as_ref().map(|engine| engine.url().to_owned()).or(args.clickhouse_url).unwrap_or_default(),
        account: args.account,
    };
    let reconciler = Reconciler::connect(&clickhouse).await?;
    let catalog = Catalog::default();
    greet(address, &args.manifests, &args.data_dir, &folder, &clickhouse);

    // The folder's work goes on until the last request is answered.
    let served = CancellationToken::new();
    let work = folder::run(folder.clone(), reconciler.clone(), catalog.clone(), served.clone());
    let work = async {
        tokio::select! {
            () = work => {}
            () = Balancer::new(reconciler).run() => {}
        }
    };
    let registry = FolderRegistry::new(folder);
    let parts = GatewayParts {
        registry,
        catalog,
        clickhouse,
        namespace: args.namespace,
        auth: Auth::off(),
        known_customers_only: false,
        metrics: gateway::metrics()?,
        tls: None,
    };
    let serve = async {
        let result = gateway::serve(listener, parts, stop.clone()).await;
        served.cancel();
        result
    };
    let (result, ()) = tokio::join!(serve, work);
    if let Some(engine) = engine {
        engine.stop().await;
    }
    result
}

async fn start_engine(args: &DevArgs) -> Result<EngineProcess, String> {
    let options = EngineOptions {
        executable: std::env::current_exe().map_err(|why| format!("can't find the kubemeter executable: {why}"))?,
        library: engine::find(args.engine.as_deref()).map_err(|why| why.to_string())?,
        data_dir: args.data_dir.join("clickhouse"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    EngineProcess::spawn(options).await.map_err(|why| why.to_string())
}

fn greet(address: SocketAddr, manifests: &Path, data_dir: &Path, folder: &Folder, clickhouse: &ClickhouseOptions) {
    let all = folder.snapshot();
    let left_out = match folder.problems() {
        0 => String::new(),
        problems => format!("; {problems} left out, see above"),
    };
    println!("Kubemeter is up; Ctrl-C ends it.");
    println!("  API         http://{address}  (try: curl http://{address}/meters)");
    println!(
        "  Manifests   {}: {}, {}{left_out}; an edit takes effect at once",
        manifests.display(),
        count(all.meters.len(), "meter"),
        count(all.customers.len(), "customer")
    );
    println!("  Data        {}", data_dir.display());
    println!(
        "  ClickHouse  {0}  (try: curl '{0}/?database={1}' -d 'SHOW TABLES')",
        clickhouse.clickhouse_url, clickhouse.account.clickhouse_database
    );
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
