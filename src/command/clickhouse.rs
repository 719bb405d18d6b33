//! `kubemeter clickhouse`.

use crate::engine;

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(args: super::ClickhouseArgs) -> Result<(), String> {
    let library = engine::find(args.engine.as_deref()).map_err(|why| why.to_string())?;
    engine::serve(&library, &args.data_dir, args.listen, args.stop_with_stdin).await.map_err(|why| why.to_string())
}
