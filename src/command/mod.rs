//! The commands and their options. Every option has an environment variable: `KUBEMETER_…`, or what OpenTelemetry calls it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::limits;
use crate::warehouse::{Cluster, Topology, Warehouse, WarehouseOptions};

pub mod check;
pub mod clickhouse;
pub mod dev;
pub mod gateway;
pub mod operator;
pub mod stop;
#[cfg(test)]
mod tests;

/// Exact usage metering for SaaS on Kubernetes, kept in ClickHouse.
#[derive(Parser, Debug)]
#[command(name = "kubemeter", version, about)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
    /// How logs are written.
    #[arg(long, global = true, env = "KUBEMETER_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which logs are written, as `info` or `kubemeter=debug,kube=warn`.
    #[arg(long, global = true, env = "KUBEMETER_LOG", default_value = "info")]
    pub log: String,
}

/// How logs are written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to run.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the controllers: Meters and Customers become ClickHouse tables and views.
    Operator(OperatorArgs),
    /// Run the HTTP service: ingest, usage, cancel.
    Gateway(GatewayArgs),
    /// Run everything with no cluster: embedded ClickHouse, manifests from a folder, the HTTP service.
    Dev(DevArgs),
    /// Run the embedded ClickHouse alone.
    Clickhouse(ClickhouseArgs),
    /// Check an installation: send an event twice, see that it counts once, take it back.
    Check(check::CheckArgs),
    /// Print the custom resource definitions.
    Crds,
}

impl Command {
    /// Where traces go, if anywhere.
    pub fn otlp_endpoint(&self) -> Option<&str> {
        match self {
            Self::Gateway(args) => args.otlp_endpoint.as_deref(),
            Self::Dev(args) => args.otlp_endpoint.as_deref(),
            _ => None,
        }
    }
}

/// Which ClickHouse.
#[derive(Args, Clone, Debug)]
pub struct ClickhouseOptions {
    /// HTTP interface of ClickHouse.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_URL")]
    pub clickhouse_url: String,
    /// As whom, and where in it.
    #[command(flatten)]
    pub account: ClickhouseAccount,
}

/// As whom ClickHouse is used, and where in it.
#[derive(Args, Clone, Debug)]
pub struct ClickhouseAccount {
    /// Database of Kubemeter's tables; made when missing.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_DATABASE", default_value = "kubemeter")]
    pub clickhouse_database: String,
    /// User.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_USER", default_value = "default")]
    pub clickhouse_user: String,
    /// File with the user's password.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_PASSWORD_FILE")]
    pub clickhouse_password_file: Option<PathBuf>,
    /// Keep the tables on the shards of this cluster, one of the server's `remote_servers`; see docs/scaling.md.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_CLUSTER")]
    pub clickhouse_cluster: Option<String>,
    /// How many shards the cluster has. It can't be changed later; default: as many as --clickhouse-nodes.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_SHARDS", requires = "clickhouse_cluster")]
    pub clickhouse_shards: Option<usize>,
    /// How many replicas each shard has; with several, --clickhouse-nodes must name all servers.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_REPLICAS", requires = "clickhouse_cluster", default_value_t = 1)]
    pub clickhouse_replicas: usize,
    /// HTTP interfaces of all servers of the cluster, with commas between: each is sent the DDL. Default: ClickHouse is
    /// asked to do that (ON CLUSTER), which needs a Keeper.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_NODES", requires = "clickhouse_cluster", value_delimiter = ',')]
    pub clickhouse_nodes: Vec<String>,
}

impl ClickhouseAccount {
    fn topology(&self) -> Result<Topology, String> {
        let Some(name) = &self.clickhouse_cluster else { return Ok(Topology::Single) };
        if self.clickhouse_nodes.iter().any(|url| url.contains('@')) {
            return Err(
                "--clickhouse-nodes has a user or password in it: give them by --clickhouse-user and --clickhouse-password-file".to_owned()
            );
        }
        Cluster::replicated(name.clone(), self.clickhouse_shards, self.clickhouse_replicas, self.clickhouse_nodes.clone())
            .map(Topology::Cluster)
    }
}

impl ClickhouseOptions {
    /// A client for that ClickHouse. It need not answer yet.
    ///
    /// # Errors
    /// When the URL has credentials in it, or the password file can't be read.
    pub async fn warehouse(&self) -> Result<Warehouse, String> {
        // URLs are logged and told.
        if self.clickhouse_url.contains('@') {
            return Err(
                "--clickhouse-url has a user or password in it: give them by --clickhouse-user and --clickhouse-password-file".to_owned()
            );
        }
        let topology = self.account.topology()?;
        let password = match &self.account.clickhouse_password_file {
            None => String::new(),
            Some(file) => {
                tokio::fs::read_to_string(file).await.map_err(|why| format!("can't read the password file {}: {why}", file.display()))?
            }
        };
        Ok(Warehouse::new(&WarehouseOptions {
            url: self.clickhouse_url.clone(),
            database: self.account.clickhouse_database.clone(),
            user: self.account.clickhouse_user.clone(),
            password: password.trim_end().to_owned(),
            topology,
        }))
    }
}

/// Options of `operator`.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// Which ClickHouse.
    #[command(flatten)]
    pub clickhouse: ClickhouseOptions,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "KUBEMETER_OPERATOR_LISTEN", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Only one replica works at a time.
    #[arg(long, env = "KUBEMETER_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// Namespace of the lease; default: the pod's own, else `default`.
    #[arg(long, env = "KUBEMETER_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Watch one namespace only; default: all.
    #[arg(long, env = "KUBEMETER_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
}

/// Options of `gateway`.
#[derive(Args, Clone, Debug)]
pub struct GatewayArgs {
    /// Which ClickHouse.
    #[command(flatten)]
    pub clickhouse: ClickhouseOptions,
    /// Where the HTTP service listens.
    #[arg(long, env = "KUBEMETER_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// File of the certificate by which the service is reached over TLS, with those between it and its CA, in PEM; without
    /// it: plain HTTP. Read again when it changes.
    #[arg(long, env = "KUBEMETER_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// File of the certificate's private key, in PEM.
    #[arg(long, env = "KUBEMETER_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Namespace of callers that name none and have none.
    #[arg(long, env = "KUBEMETER_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Refuse events whose subject no Customer has, with `unknown_customer`.
    #[arg(long, env = "KUBEMETER_KNOWN_CUSTOMERS_ONLY", default_value_t = false)]
    pub known_customers_only: bool,
    /// Watch one namespace only; default: all.
    #[arg(long, env = "KUBEMETER_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Audience of the Kubernetes tokens that callers send; tokens for the API server itself are taken too.
    #[arg(long, env = "KUBEMETER_AUDIENCE", default_value = "kubemeter", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub audience: String,
    /// File of API keys for callers outside the cluster, a line each: NAME SHA256 NAMESPACE ACTIONS. Read again when it
    /// changes.
    #[arg(long, env = "KUBEMETER_API_KEYS")]
    pub api_keys: Option<PathBuf>,
    /// While the Kubernetes API server can't be reached, callers that it let in go on for this long after it last said yes,
    /// and never longer than their token says to be good. 0: for a minute, as otherwise.
    #[arg(long, env = "KUBEMETER_AUTH_STALE_SECONDS", default_value_t = limits::REVIEW_STALE.as_secs(), value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub auth_stale_seconds: u64,
    /// How the names begin of the ClusterRoles that a refused caller is told of, as `kubemeter` in `kubemeter:ingester`.
    #[arg(long, env = "KUBEMETER_ROLE_PREFIX", default_value = "kubemeter")]
    pub role_prefix: String,
    /// Collector that traces are sent to, by OTLP over HTTP, as `http://collector:4318`; default: none are made.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Ask nobody for a token: whoever reaches the gateway may do everything.
    #[arg(long, env = "KUBEMETER_INSECURE_NO_AUTH", default_value_t = false)]
    pub insecure_no_auth: bool,
}

/// Options of `dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Folder of Meter and Customer manifests, watched; `/meters` and `/customers` write there.
    #[arg(long, env = "KUBEMETER_MANIFESTS", default_value = "examples")]
    pub manifests: PathBuf,
    /// Folder for ClickHouse's data.
    #[arg(long, env = "KUBEMETER_DATA_DIR", default_value = ".kubemeter")]
    pub data_dir: PathBuf,
    /// Where the HTTP service listens.
    #[arg(long, env = "KUBEMETER_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Use this ClickHouse server instead of the embedded engine.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_URL")]
    pub clickhouse_url: Option<String>,
    /// As whom that server is used, and where in it.
    #[command(flatten)]
    pub account: ClickhouseAccount,
    /// The engine's library file; default: where `make setup` put it.
    #[arg(long, env = "KUBEMETER_ENGINE")]
    pub engine: Option<PathBuf>,
    /// Namespace of manifests and callers that name none.
    #[arg(long, env = "KUBEMETER_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Collector that traces are sent to, by OTLP over HTTP, as `http://collector:4318`; default: none are made.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// End when standard input ends: a parent that was killed leaves nothing behind.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
}

/// Options of `clickhouse`.
#[derive(Args, Clone, Debug)]
pub struct ClickhouseArgs {
    /// Folder for ClickHouse's data.
    #[arg(long, env = "KUBEMETER_DATA_DIR", default_value = ".kubemeter")]
    pub data_dir: PathBuf,
    /// Where ClickHouse's HTTP interface listens; port 0: any free one, printed.
    #[arg(long, env = "KUBEMETER_CLICKHOUSE_LISTEN", default_value = "127.0.0.1:8123")]
    pub listen: SocketAddr,
    /// The engine's library file; default: where `make setup` put it.
    #[arg(long, env = "KUBEMETER_ENGINE")]
    pub engine: Option<PathBuf>,
    /// End when standard input ends: a parent that was killed leaves no engine behind.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
}
