//! What an API server adds to manifests, and remembers: uid, generation, resourceVersion, creation, deletion, status.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use serde::{Deserialize, Serialize};

use super::read::{Problem, ReadFile};
use super::{Error, files};

/// (kind, namespace, name).
pub(super) type Key = (String, String, String);

/// The objects, as `objects.json` keeps them.
#[derive(Default)]
pub(super) struct Memory {
    /// Counts changes; an object's resourceVersion is the count at its last one.
    revision: u64,
    /// Objects that are in the folder.
    pub live: BTreeMap<Key, Kept>,
    /// Objects that left it and that ClickHouse must still forget. Kept by uid: the same name may live again already.
    pub going: Vec<DynamicObject>,
}

/// An object and where it stands.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(super) struct Kept {
    pub file: String,
    pub object: DynamicObject,
}

/// `objects.json`.
#[derive(Serialize, Deserialize, Default)]
struct OnDisk {
    revision: u64,
    live: Vec<Kept>,
    going: Vec<DynamicObject>,
}

impl Memory {
    /// Reads the memory; a missing file is an empty one.
    pub(super) fn load(file: &Path) -> Result<Self, Error> {
        let disk: OnDisk = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|why| Error::Memory { file: file.to_owned(), why: why.to_string() })?,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => OnDisk::default(),
            Err(why) => return Err(Error::Read { file: file.to_owned(), why }),
        };
        let live = disk.live.into_iter().map(|kept| (key(&kept.object), kept)).collect();
        Ok(Self { revision: disk.revision, live, going: disk.going })
    }

    /// Writes the memory whole.
    pub(super) fn save(&self, file: &Path) -> Result<(), Error> {
        let disk = OnDisk { revision: self.revision, live: self.live.values().cloned().collect(), going: self.going.clone() };
        let text = serde_json::to_vec_pretty(&disk).map_err(|why| Error::Memory { file: file.to_owned(), why: why.to_string() })?;
        files::write(file, &text)
    }

    /// Takes over what the folder says now. Returns whether an object changed, and all that is wrong in the folder.
    pub(super) fn take_over(&mut self, read: Vec<ReadFile>, now: Timestamp) -> (bool, BTreeSet<Problem>) {
        let mut problems = BTreeSet::new();
        let mut found: BTreeMap<Key, (String, usize, DynamicObject)> = BTreeMap::new();
        let mut broken = BTreeSet::new();
        for file in read {
            if file.is_broken() {
                broken.insert(file.name.clone());
            }
            problems.extend(file.problems);
            for (number, object) in file.objects {
                let key = key(&object);
                if let Some((first, its_number, _)) = found.get(&key) {
                    let (kind, namespace, name) = &key;
                    problems.insert(Problem::Wrong(format!(
                        "{}, document {number}: {kind} {name} of namespace {namespace} is in {first}, document {its_number}, already; this one is left out",
                        file.name
                    )));
                } else {
                    found.insert(key, (file.name.clone(), number, object));
                }
            }
        }
        let revision = self.revision;
        // In a file that can't be read in full, a missing object is more likely mistyped than removed: it stays as it was.
        let gone: Vec<Key> = self
            .live
            .iter()
            .filter(|(key, kept)| !found.contains_key(*key) && !broken.contains(&kept.file))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some(Kept { mut object, .. }) = self.live.remove(&key) {
                self.revision += 1;
                object.metadata.deletion_timestamp = Some(Time(now));
                self.going.push(object);
            }
        }
        for (key, (file, _, object)) in found {
            self.put(key, file, object, now);
        }
        (self.revision != revision, problems)
    }

    /// Adds an object or takes over its changes.
    fn put(&mut self, key: Key, file: String, object: DynamicObject, now: Timestamp) {
        let Some(kept) = self.live.get_mut(&key) else {
            let mut object = object;
            self.revision += 1;
            object.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
            object.metadata.generation = Some(1);
            object.metadata.resource_version = Some(self.revision.to_string());
            object.metadata.creation_timestamp = Some(Time(now));
            self.live.insert(key, Kept { file, object });
            return;
        };
        let (meta, new) = (&mut kept.object.metadata, object.metadata);
        let edited = kept.object.data.get("spec") != object.data.get("spec");
        if edited || kept.file != file || meta.labels != new.labels || meta.annotations != new.annotations {
            self.revision += 1;
            meta.resource_version = Some(self.revision.to_string());
            (meta.labels, meta.annotations, kept.file) = (new.labels, new.annotations, file);
        }
        if edited {
            meta.generation = Some(meta.generation.unwrap_or(0) + 1);
            kept.object.data["spec"] = object.data.get("spec").cloned().unwrap_or_default();
        }
    }

    /// The object with a uid, in the folder or on its way out.
    pub(super) fn by_uid(&mut self, uid: &str) -> Option<&mut DynamicObject> {
        let live = self.live.values_mut().map(|kept| &mut kept.object);
        live.chain(self.going.iter_mut()).find(|object| object.metadata.uid.as_deref() == Some(uid))
    }
}

/// What an object is known by.
pub(super) fn key(object: &DynamicObject) -> Key {
    let meta = &object.metadata;
    (kind(object).to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// An object's kind.
pub(super) fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("", |types| types.kind.as_str())
}
