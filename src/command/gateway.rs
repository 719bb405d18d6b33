//! `kubemeter gateway`.

use tokio_util::sync::CancellationToken;

use super::ClickhouseOptions;
use crate::catalog::Catalog;
use crate::registry::Registry;

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
    /// Refuse events whose subject no Customer has.
    pub known_customers_only: bool,
}

/// Serves until `stop`.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn serve<R: Registry>(
    _listener: tokio::net::TcpListener,
    _parts: GatewayParts<R>,
    stop: CancellationToken,
) -> Result<(), String> {
    stop.cancelled().await;
    Ok(())
}

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(_args: super::GatewayArgs) -> Result<(), String> {
    Err("not built yet".to_owned())
}
