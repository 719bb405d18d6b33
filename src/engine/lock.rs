//! A folder is used by one process at a time.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;

/// A process that was killed takes its engine with it, but not in the same instant.
const PATIENCE: Duration = Duration::from_secs(5);

/// Held while a process uses a folder; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock(#[allow(dead_code)] File);

impl FolderLock {
    /// Makes the folder when it is missing and locks it. Blocks for up to five seconds.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it, [`Error::Folder`] when it can't be written.
    pub fn take(folder: &Path) -> Result<Self, Error> {
        let refused = |why| Error::Folder { folder: folder.to_owned(), why };
        std::fs::create_dir_all(folder).map_err(refused)?;
        let file = File::create(folder.join("kubemeter.lock")).map_err(refused)?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(why)) => return Err(refused(why)),
                Err(TryLockError::WouldBlock) if began.elapsed() > PATIENCE => return Err(Error::InUse(folder.to_owned())),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}
