//! Files: read all, write one whole.

use std::io::Write;
use std::path::Path;

use super::Error;
use crate::limits;

/// All manifests of a folder by name, in order; a file that can't be read is there with the reason.
pub(super) fn read_all(folder: &Path) -> Result<Vec<(String, Result<String, String>)>, Error> {
    let missing = |why| Error::Missing { folder: folder.to_owned(), why };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(missing)? {
        let entry = entry.map_err(missing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Editors keep their own copies under names that start with a dot.
        if name.starts_with('.') || !(name.ends_with(".yaml") || name.ends_with(".yml")) {
            continue;
        }
        match read(&entry.path()) {
            // It went between the listing and the reading.
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            text => files.push((name, text.map_err(|why| why.to_string()))),
        }
        if files.len() > limits::MANIFEST_FILES {
            return Err(Error::TooMany(folder.to_owned()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(file: &Path) -> std::io::Result<String> {
    let about = std::fs::metadata(file)?;
    if !about.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    if about.len() > limits::MANIFEST_BYTES {
        return Err(std::io::Error::other(format!("it has {} bytes; at most {} are read", about.len(), limits::MANIFEST_BYTES)));
    }
    std::fs::read_to_string(file)
}

/// Writes a file so that a reader sees the old or the new content whole, also after a power cut.
pub(super) fn write(file: &Path, content: &[u8]) -> Result<(), Error> {
    // A link stays a link: what it points to is written.
    let target = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let result = || {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temporary = target.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4()));
        let written = || {
            let mut handle = std::fs::File::create(&temporary)?;
            handle.write_all(content)?;
            if let Ok(about) = std::fs::metadata(&target) {
                handle.set_permissions(about.permissions())?;
            }
            handle.sync_all()?;
            std::fs::rename(&temporary, &target)
        };
        written().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    };
    result().map_err(|why| Error::Write { file: file.to_owned(), why })
}
