//! The embedded ClickHouse: the engine's library, run in a process of its own.
//!
//! `kubemeter clickhouse` is that process ([`serve`]); `dev` and the tests start it as a child ([`EngineProcess`]), so that
//! a crash of the engine is not a crash of the gateway and its memory can be told apart.

mod config;
mod library;
mod lock;
mod process;
mod serve;
#[cfg(target_os = "linux")]
mod writes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use library::{ENGINE_VERSION, find};
pub use lock::FolderLock;
pub use process::{EngineOptions, EngineProcess};
pub use serve::serve;

/// How long the engine may take until it answers. It takes 0.3 s when warm; a cold disk has 600 MB to read first.
const START: Duration = Duration::from_secs(60);

/// Why the engine can't run. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No library file.
    #[error("no ClickHouse engine at {}: run `make setup`, or name the library with --engine FILE", .0.display())]
    Missing(PathBuf),
    /// Neither a home nor a cache folder to look for the engine in.
    #[error("no folder to look for the ClickHouse engine in: set HOME or KUBEMETER_CACHE, or name the library with --engine FILE")]
    NoCache,
    /// The file is no engine.
    #[error("{} is no ClickHouse engine of version {ENGINE_VERSION}: {why}; run `make setup` to fetch it again", file.display())]
    Unusable {
        /// The library file.
        file: PathBuf,
        /// The loader's words.
        why: String,
    },
    /// Another process has the data folder.
    #[error("the data folder {} is in use by another kubemeter: stop that one, or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    /// The data folder can't be used.
    #[error("can't write to the data folder {}: {why}", folder.display())]
    Folder {
        /// The data folder.
        folder: PathBuf,
        /// The system's words.
        why: std::io::Error,
    },
    /// The address can't be listened on.
    #[error("can't listen on {address}: {why}; choose another address with --listen, port 0 for any free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        why: std::io::Error,
    },
    /// The engine ended, or did not answer, or not as it should.
    #[error("ClickHouse {0}")]
    Engine(String),
}
