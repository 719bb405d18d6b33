//! Tells when the folder may have changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Folder;

/// An editor saves in several steps (write aside, remove, rename): the folder is read when it was quiet for so long …
const QUIET: Duration = Duration::from_millis(100);
/// … or, when it is never quiet, after so long.
const BUSY: Duration = Duration::from_millis(500);
/// How often it is looked whether the path still names the watched folder: a folder put in its place tells nobody.
const LOOK: Duration = Duration::from_millis(500);

impl Folder {
    /// Reads the folder again whenever something in it changes, until `stop`.
    pub(super) async fn watch(&self, stop: &CancellationToken) {
        let (tell, mut told) = mpsc::channel(1);
        let mut watched: Option<(Identity, RecommendedWatcher)> = None;
        let mut complained = false;
        let mut complain = |why: Option<String>| {
            if let (Some(why), false) = (&why, complained) {
                tracing::warn!("{why}; everything stays as it was until that is mended");
            }
            complained = why.is_some();
        };
        while !stop.is_cancelled() {
            let now = identity(&self.0.folder);
            if watched.as_ref().map(|(which, _)| *which) != now {
                watched = now.and_then(|which| Some((which, watcher(&self.0.folder, tell.clone())?)));
                // Without a watcher (the system has a limit of them) the folder is read at every look.
                complain(self.rescan().err().map(|why| why.to_string()));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                _ = told.recv() => {
                    let latest = Instant::now() + BUSY;
                    while timeout_at(latest.min(Instant::now() + QUIET), told.recv()).await.is_ok() && Instant::now() < latest {}
                    complain(self.rescan().err().map(|why| why.to_string()));
                }
            }
        }
    }
}

/// (device, inode).
type Identity = (u64, u64);

fn identity(folder: &Path) -> Option<Identity> {
    std::fs::metadata(folder).ok().map(|about| (about.dev(), about.ino()))
}

fn watcher(folder: &Path, tell: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    // A full channel has the news already.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = tell.try_send(());
        }
    })
    .ok()?;
    watcher.watch(folder, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
