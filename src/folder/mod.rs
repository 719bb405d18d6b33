//! A folder of manifests in the place of the Kubernetes API: what `dev` works on.
//!
//! ```text
//! *.yaml ─► read      text → objects and problems (pure)
//!           memory    what an API server adds: uid, generation, resourceVersion, deletion; kept in objects.json
//!           worker    each object to the reconciler, its status back, the catalog kept current
//! API    ─► edit      one document of one file is written, replaced, removed
//! ```

mod check;
mod edit;
mod files;
mod memory;
mod plan;
mod read;
mod watch;
mod worker;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use serde::Serialize;

use crate::api::{Customer, Meter};
use crate::registry::Kind;

use memory::Memory;
use read::Problem;
pub(crate) use read::untyped;
pub use worker::run;

/// Why the folder can't be used. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such folder.
    #[error("no manifests folder {}: {why}; name one with --manifests DIR", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The system's words.
        why: std::io::Error,
    },
    /// Too many files.
    #[error("the manifests folder {} has more than {} files", .0.display(), crate::limits::MANIFEST_FILES)]
    TooMany(PathBuf),
    /// A file can't be read.
    #[error("can't read {}: {why}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's words.
        why: std::io::Error,
    },
    /// A file can't be written.
    #[error("can't write {}: {why}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// The system's words.
        why: std::io::Error,
    },
    /// `objects.json` is not ours.
    #[error(
        "{} is damaged ({why}): it says which ClickHouse tables belong to which meter; put back a copy, or start with a new --data-dir",
        file.display()
    )]
    Memory {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        why: String,
    },
}

/// The folder. Cheap to clone, shared by the watch, the worker and the API.
#[derive(Clone)]
pub struct Folder(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    memory_file: PathBuf,
    namespace: String,
    /// Also what makes edits and readings of the folder take turns. Files are small and local: I/O under it is short.
    state: Mutex<State>,
    changed: tokio::sync::watch::Sender<()>,
}

struct State {
    memory: Memory,
    /// What was said of the manifests already: a problem is told once, not at every change of another file.
    told: BTreeSet<Problem>,
}

/// Everything there is, typed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Meters in the folder.
    pub meters: Vec<Meter>,
    /// Customers in the folder.
    pub customers: Vec<Customer>,
    /// Meters that were removed and are not yet forgotten by ClickHouse.
    pub going_meters: Vec<Meter>,
    /// The same for Customers.
    pub going_customers: Vec<Customer>,
}

impl Folder {
    /// Opens a folder: reads the manifests and what `data_dir` remembers of them. Manifests that can't be used are told
    /// as log lines, and the rest goes on. `namespace` is that of manifests that name none.
    ///
    /// # Errors
    /// When there is no such folder or `data_dir/objects.json` can't be read or written.
    pub fn open(folder: &Path, data_dir: &Path, namespace: &str) -> Result<Self, Error> {
        let missing = |why| Error::Missing { folder: folder.to_owned(), why };
        std::fs::read_dir(folder).map_err(missing)?;
        let folder = std::path::absolute(folder).map_err(missing)?;
        let memory_file = data_dir.join("objects.json");
        let state = State { memory: Memory::load(&memory_file)?, told: BTreeSet::new() };
        let (changed, _) = tokio::sync::watch::channel(());
        let folder = Self(Arc::new(Inner { folder, memory_file, namespace: namespace.to_owned(), state: Mutex::new(state), changed }));
        folder.rescan()?;
        Ok(folder)
    }

    /// Reads all manifests again and takes over what changed.
    ///
    /// # Errors
    /// When the folder is gone (everything then stays as it was) or the memory can't be written.
    pub fn rescan(&self) -> Result<(), Error> {
        self.rescan_locked(&mut self.lock())
    }

    fn rescan_locked(&self, state: &mut State) -> Result<(), Error> {
        let files = files::read_all(&self.0.folder)?;
        let read = files.into_iter().map(|(name, text)| read::file(name, text, &self.0.namespace)).collect();
        let (changed, problems) = state.memory.take_over(read, Timestamp::now());
        for problem in problems.difference(&state.told) {
            match problem {
                Problem::Ignored(line) => tracing::warn!("{line}"),
                Problem::Wrong(line) => tracing::error!("{line}"),
            }
        }
        state.told = problems;
        if changed {
            state.memory.save(&self.0.memory_file)?;
            self.0.changed.send_replace(());
        }
        Ok(())
    }

    /// Everything there is.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let (live, going) = (&state.memory.live, &state.memory.going);
        let objects = || live.values().map(|kept| &kept.object);
        Snapshot {
            meters: typed(objects()),
            customers: typed(objects()),
            going_meters: typed(going.iter()),
            going_customers: typed(going.iter()),
        }
    }

    /// Documents that can't be used, as they were told.
    pub fn problems(&self) -> usize {
        self.lock().told.iter().filter(|problem| matches!(problem, Problem::Wrong(_))).count()
    }

    /// Tells of each change of the objects, but for their status.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Keeps the status of the object with this uid, if it is still there. Returns the object.
    ///
    /// # Errors
    /// When the memory can't be written.
    pub fn set_status<K: Kind>(&self, uid: &str, status: &impl Serialize) -> Result<Option<K>, Error> {
        let mut state = self.lock();
        let status = serde_json::to_value(status).unwrap_or_default();
        let Some(object) = state.memory.by_uid(uid) else { return Ok(None) };
        let before = object.data.get("status") == Some(&status);
        object.data["status"] = status;
        let object = object.clone().try_parse().ok();
        if !before {
            state.memory.save(&self.0.memory_file)?;
        }
        Ok(object)
    }

    /// Lets go of a removed object for good: ClickHouse has forgotten it.
    ///
    /// # Errors
    /// When the memory can't be written.
    pub fn forgotten(&self, uid: &str) -> Result<(), Error> {
        let mut state = self.lock();
        state.memory.going.retain(|object| object.metadata.uid.as_deref() != Some(uid));
        state.memory.save(&self.0.memory_file)?;
        self.0.changed.send_replace(());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that a holder panicked; every change of the memory is made whole before it is seen.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The objects of one kind, in their type.
fn typed<'a, K: Kind>(objects: impl Iterator<Item = &'a DynamicObject>) -> Vec<K> {
    // They came from that type, so they are of its shape.
    objects.filter(|object| memory::kind(object) == K::kind(&())).filter_map(|object| object.clone().try_parse().ok()).collect()
}

#[cfg(test)]
mod tests;
