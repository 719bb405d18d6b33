//! Changes that come over the API, written into the manifests.

use std::path::PathBuf;

use kube::core::DynamicObject;

use super::memory::{Key, kind};
use super::{Error as FolderError, Folder, State, check, files, memory, read};
use crate::meter::InvalidField;
use crate::metering::Error;
use crate::yaml;

impl Folder {
    /// All objects of a kind and namespace, by name.
    pub(crate) fn objects(&self, kind: &str, namespace: &str) -> Vec<DynamicObject> {
        let state = self.lock();
        let here = state.memory.live.iter().filter(|((k, ns, _), _)| k == kind && ns == namespace);
        here.map(|(_, kept)| kept.object.clone()).collect()
    }

    /// One object.
    pub(crate) fn object(&self, key: &Key) -> Result<DynamicObject, Error> {
        find(&self.lock(), key)
    }

    /// Writes a new object as a file of its own.
    pub(crate) fn create(&self, object: &DynamicObject) -> Result<DynamicObject, Error> {
        accept(object)?;
        let key = memory::key(object);
        let mut state = self.lock();
        if find(&state, &key).is_ok() {
            return Err(Error::Conflict(format!("{} {:?} exists already in namespace {}", key.0, key.2, key.1)));
        }
        let file = format!("{}-{}-{}.yaml", key.0.to_lowercase(), key.1, key.2);
        let mut text = self.text(&file).or_else(|why| if is_missing(&why) { Ok(String::new()) } else { Err(failed(&why)) })?;
        if !text.is_empty() {
            end_line(&mut text);
            text.push_str("---\n");
        }
        text.push_str(&yaml::to_string(object).map_err(|why| Error::Internal(why.to_string()))?);
        self.write_and_read(&mut state, &file, &text)?;
        find(&state, &key)
    }

    /// Puts another spec into an object's document; the rest of the file stays as it is, letter by letter.
    pub(crate) fn replace(&self, object: &DynamicObject) -> Result<DynamicObject, Error> {
        accept(object)?;
        let key = memory::key(object);
        let mut state = self.lock();
        let current = find(&state, &key)?;
        if object.metadata.resource_version.is_some() && object.metadata.resource_version != current.metadata.resource_version {
            return Err(Error::Conflict(format!(
                "{} {:?} has changed: its resourceVersion is {}; fetch it and apply your change to that",
                key.0,
                key.2,
                current.metadata.resource_version.as_deref().unwrap_or_default()
            )));
        }
        self.edit(&mut state, &key, |document| {
            let mut content: yaml::Mapping = document.parse()?;
            content.insert("spec".into(), yaml::to_value(&object.data.get("spec"))?);
            let marker = if document.preamble().is_empty() && document.lines_before > 0 { "---\n" } else { "" };
            Ok(format!("{marker}{}{}", document.preamble(), yaml::to_string(&content)?))
        })?;
        find(&state, &key)
    }

    /// Removes an object's document, and its file when nothing else is in it.
    pub(crate) fn delete(&self, key: &Key) -> Result<(), Error> {
        let mut state = self.lock();
        find(&state, key)?;
        self.edit(&mut state, key, |_| Ok(String::new()))
    }

    /// Changes the text of one document of a file.
    fn edit(&self, state: &mut State, key: &Key, change: impl Fn(&yaml::Document<'_>) -> Result<String, yaml::Error>) -> Result<(), Error> {
        let file = state.memory.live.get(key).map(|kept| kept.file.clone()).unwrap_or_default();
        let text = self.text(&file).map_err(|why| failed(&why))?;
        let documents = yaml::documents(&text);
        let (kind, namespace, name) = key;
        let place = read::find(&documents, kind, namespace, name, &self.0.namespace)
            .ok_or_else(|| Error::Conflict(format!("{file} has changed and can't be read now: mend it first")))?;
        let mut next = String::with_capacity(text.len());
        for (index, document) in documents.iter().enumerate() {
            if index != place {
                next.push_str(document.text);
                continue;
            }
            next.push_str(&change(document).map_err(|why| Error::Internal(format!("{file}: {why}")))?);
            if index + 1 < documents.len() && !next.is_empty() {
                end_line(&mut next);
            }
        }
        self.write_and_read(state, &file, &next)
    }

    /// Writes a file, or removes it when nothing is left in it, and takes over what it says.
    fn write_and_read(&self, state: &mut State, file: &str, text: &str) -> Result<(), Error> {
        let path = self.path(file);
        if yaml::documents(text).iter().all(yaml::Document::is_empty) {
            std::fs::remove_file(&path).map_err(|why| failed(&FolderError::Write { file: path, why }))?;
        } else {
            files::write(&path, text.as_bytes()).map_err(|why| failed(&why))?;
        }
        self.rescan_locked(state).map_err(|why| failed(&why))
    }

    fn text(&self, file: &str) -> Result<String, FolderError> {
        let path = self.path(file);
        std::fs::read_to_string(&path).map_err(|why| FolderError::Read { file: path, why })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.folder.join(file)
    }
}

fn find(state: &State, key: &Key) -> Result<DynamicObject, Error> {
    let kept = state.memory.live.get(key);
    kept.map(|kept| kept.object.clone()).ok_or_else(|| Error::NotFound(format!("no {} {:?} in namespace {}", key.0, key.2, key.1)))
}

/// Refuses what the API server would refuse, in its form.
fn accept(object: &DynamicObject) -> Result<(), Error> {
    let wrong = check::object(object);
    if wrong.is_empty() {
        return Ok(());
    }
    let causes = wrong.into_iter().map(|InvalidField { field, message }| (field, message)).collect::<Vec<_>>();
    let all = causes.iter().map(|(field, message)| format!("{field}: {message}")).collect::<Vec<_>>().join("; ");
    let name = object.metadata.name.as_deref().unwrap_or_default();
    Err(Error::Upstream {
        status: 422,
        reason: "Invalid".to_owned(),
        message: format!("{} {name:?} is invalid: {all}", kind(object)),
        causes,
    })
}

fn end_line(text: &mut String) {
    if !text.ends_with('\n') {
        text.push('\n');
    }
}

fn is_missing(why: &FolderError) -> bool {
    matches!(why, FolderError::Read { why, .. } if why.kind() == std::io::ErrorKind::NotFound)
}

fn failed(why: &FolderError) -> Error {
    Error::Internal(why.to_string())
}
