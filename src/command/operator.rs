//! `kubemeter operator`.

/// Runs until it is told to stop.
///
/// # Errors
/// One line that says what could not be done, and why.
pub async fn run(_args: super::OperatorArgs) -> Result<(), String> {
    Err("not built yet".to_owned())
}
