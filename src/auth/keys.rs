//! API keys for callers outside the cluster: a file with a line for each, read again when it changes.
//!
//! ```text
//! # name       SHA-256 of the key, in hex            namespace  actions
//! partner-eu   9f86d081884c7d659a2feaa0c55ad015a3b…  shop       ingest,usage
//! ```
//! A key is found by its hash, so that no comparison tells how much of it was right. There is no salt and no slow hash:
//! a key is a long random text that nobody guesses, and shorter ones are refused.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::right::Action;
use crate::api::is_namespace;
use crate::limits;

/// How often the file is looked at. Not by notification: a Secret's file changes by a symbolic link two folders up.
const LOOK: Duration = Duration::from_secs(5);

/// Why a file of keys is not taken.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It can't be read.
    #[error("can't read the API keys file {}: {why}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A line is wrong.
    #[error("API keys file {}, line {line}: {why}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1; 0: the whole.
        line: usize,
        /// What is wrong, without anything of the line that may be secret.
        why: String,
    },
}

/// One key's entry.
#[derive(Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// For people.
    pub name: String,
    /// Where it is good for something.
    pub namespace: String,
    actions: Vec<KeyAction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyAction {
    Ingest,
    Usage,
    List,
    Cancel,
}

const ACTIONS: [(&str, KeyAction); 4] =
    [("ingest", KeyAction::Ingest), ("usage", KeyAction::Usage), ("list", KeyAction::List), ("cancel", KeyAction::Cancel)];

impl KeyAction {
    fn word(self) -> &'static str {
        ACTIONS.iter().find(|(_, action)| *action == self).map_or("", |(word, _)| word)
    }
}

impl ApiKey {
    /// Errors: why not.
    pub(super) fn allow(&self, namespace: &str, action: Action<'_>) -> Result<(), String> {
        let needed = match action {
            // The registry says that a key is nobody to Kubernetes.
            Action::Proxy => return Ok(()),
            Action::Ingest => KeyAction::Ingest,
            Action::List => KeyAction::List,
            Action::Cancel | Action::Revert => KeyAction::Cancel,
            Action::Usage(_) => KeyAction::Usage,
        };
        if namespace != self.namespace {
            return Err(format!(
                "the API key {} is for namespace {} and not for {namespace}; another line of the API keys file can allow it",
                self.name, self.namespace
            ));
        }
        if self.actions.contains(&needed) {
            return Ok(());
        }
        Err(format!("the API key {} may not {}; to allow it, add that word to its line in the API keys file", self.name, needed.word()))
    }
}

type ByHash = HashMap<[u8; 32], Arc<ApiKey>>;

/// The keys that are known now.
pub struct Keys {
    path: PathBuf,
    now: Mutex<Arc<ByHash>>,
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let keys = parse(path, &read(path)?)?;
        Ok(Self { path: path.to_owned(), now: Mutex::new(Arc::new(keys)) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known().len()
    }

    fn known(&self) -> Arc<ByHash> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose key it is.
    pub(super) fn find(&self, key: &[u8]) -> Option<Arc<ApiKey>> {
        let long = limits::API_KEY_BYTES.contains(&key.len());
        long.then(|| self.known().get::<[u8; 32]>(&Sha256::digest(key).into()).cloned()).flatten()
    }

    /// Reads the file again whenever it changes, until `stop`. One that is not good changes nothing.
    pub async fn watch(&self, stop: CancellationToken) {
        let mut last = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let text = read(&self.path).map_err(|why| why.to_string());
            if last.as_ref() == Some(&text) {
                continue;
            }
            match text.as_ref().map_err(Clone::clone).and_then(|text| parse(&self.path, text).map_err(|why| why.to_string())) {
                Ok(keys) if keys == *self.known() => {}
                Ok(keys) => {
                    tracing::info!(keys = keys.len(), "the API keys have changed");
                    *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                }
                Err(why) => tracing::error!("{why}; the API keys of before stay in force, also those that were taken out"),
            }
            last = Some(text);
        }
    }
}

fn read(path: &Path) -> Result<String, KeysError> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(limits::API_KEYS_BYTES + 1).read_to_string(&mut text));
    file.map_err(|why| KeysError::Read { path: path.to_owned(), why })?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<ByHash, KeysError> {
    let wrong = |line, why| KeysError::Line { path: path.to_owned(), line, why };
    if text.len() as u64 > limits::API_KEYS_BYTES {
        return Err(wrong(0, format!("the file is longer than {} bytes", limits::API_KEYS_BYTES)));
    }
    let (mut keys, mut names) = (ByHash::new(), HashSet::new());
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let (hash, key) = entry(line).map_err(|why| wrong(index + 1, why))?;
        if !names.insert(key.name.clone()) {
            return Err(wrong(index + 1, format!("there is another key named {}", key.name)));
        }
        if keys.insert(hash, Arc::new(key)).is_some() {
            return Err(wrong(index + 1, "its key has a line already: a key is for one namespace, make another".to_owned()));
        }
    }
    Ok(keys)
}

fn entry(line: &str) -> Result<([u8; 32], ApiKey), String> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [name, hash, namespace, actions] = fields.as_slice() else {
        return Err(format!("has {} fields; write NAME SHA256 NAMESPACE ACTIONS", fields.len()));
    };
    if !is_namespace(name) {
        return Err("the name is none: write 1 to 63 of a-z, 0-9 and -".to_owned());
    }
    // What stands here may be the key itself, by mistake: it is not repeated.
    let hash = digest(hash).ok_or("the second field is no SHA-256: write 64 hex digits, as `printf %s \"$KEY\" | sha256sum` does")?;
    let weak = [&b""[..], b"\n", b"password", b"secret", b"changeme", b"test"];
    if weak.iter().any(|weak| Sha256::digest(weak)[..] == hash) {
        return Err("this is the hash of no random key: make one by `openssl rand -hex 32`".to_owned());
    }
    if !is_namespace(namespace) {
        return Err("the namespace is none: write 1 to 63 of a-z, 0-9 and -".to_owned());
    }
    let action = |word: &str| ACTIONS.iter().find(|(known, _)| *known == word).map(|(_, action)| *action);
    let actions = actions.split(',').map(action).collect::<Option<Vec<_>>>();
    let actions = actions.ok_or("the actions are unknown: write some of ingest,usage,list,cancel")?;
    Ok((hash, ApiKey { name: (*name).to_owned(), namespace: (*namespace).to_owned(), actions }))
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    let bytes = pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()).collect::<Option<Vec<_>>>()?;
    bytes.try_into().ok()
}
