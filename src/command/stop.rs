//! When a command is to end.

use std::io::Read;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels, or, with `stop_with_stdin`, the end of standard input: so a parent
/// that was killed leaves no child behind. The second signal ends the process at once.
///
/// # Errors
/// When signals can't be received.
pub fn token(stop_with_stdin: bool) -> Result<CancellationToken, String> {
    let handler = |kind| signal(kind).map_err(|why| format!("can't be stopped by signals: {why}"));
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = end_of_input(), if stop_with_stdin => {}
        }
        token.cancel();
        let code = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        std::process::exit(code);
    });
    Ok(stop)
}

/// Returns when standard input is closed. On a thread of its own that is left behind: a read can't be interrupted.
async fn end_of_input() {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
        drop(ended);
    });
    let _ = end.await;
}
