//! A file's text → its objects, and what is wrong in it. Pure.

use kube::core::DynamicObject;
use kube::core::ObjectMeta;
use serde::Deserialize;

use super::check;
use crate::api::{Customer, GROUP, Meter, VERSION};
use crate::registry::Kind;
use crate::yaml::{self, Document};

/// What people should hear of a manifest. One line each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Problem {
    /// It is none of ours.
    Ignored(String),
    /// It is meant for us and can't be used.
    Wrong(String),
}

/// What was found in a file.
pub(super) struct ReadFile {
    pub name: String,
    /// Objects with the number of their document, from 1.
    pub objects: Vec<(usize, DynamicObject)>,
    pub problems: Vec<Problem>,
}

impl ReadFile {
    /// Whether something is in it that could not be read: what is missing from it may still be meant.
    pub(super) fn is_broken(&self) -> bool {
        self.problems.iter().any(|problem| matches!(problem, Problem::Wrong(_)))
    }
}

/// What says whether a document is ours, and which object it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
struct HeadMeta {
    #[serde(default)]
    name: String,
    namespace: Option<String>,
}

/// Reads a file.
pub(super) fn file(name: String, text: Result<String, String>, default_namespace: &str) -> ReadFile {
    let mut read = ReadFile { name, objects: Vec::new(), problems: Vec::new() };
    let text = match text {
        Ok(text) => text,
        Err(why) => {
            read.problems.push(Problem::Wrong(format!("{} can't be read: {why}", read.name)));
            return read;
        }
    };
    for (index, document) in yaml::documents(&text).iter().filter(|document| !document.is_empty()).enumerate() {
        let number = index + 1;
        let place = format!("{}, document {number}", read.name);
        match object(document, default_namespace) {
            Ok(object) => read.objects.push((number, object)),
            Err(Problem::Ignored(what)) => read.problems.push(Problem::Ignored(format!("{place}: {what}"))),
            Err(Problem::Wrong(why)) => read.problems.push(Problem::Wrong(format!("{place}: {why}"))),
        }
    }
    read
}

fn object(document: &Document<'_>, default_namespace: &str) -> Result<DynamicObject, Problem> {
    let head: Head = parse(document)?;
    let ours = format!("{GROUP}/{VERSION}");
    match (head.api_version.as_str(), head.kind.as_str()) {
        (version, "Meter") if version == ours => checked(parse::<Meter>(document)?, default_namespace),
        (version, "Customer") if version == ours => checked(parse::<Customer>(document)?, default_namespace),
        ("", "") => Err(Problem::Wrong("no apiVersion and kind: no Kubernetes manifest".to_owned())),
        (version, kind) => Err(Problem::Ignored(format!("{kind} of {version} ignored: only Meter and Customer of {ours} are used here"))),
    }
}

/// The place of an object in a file's documents, if it is there.
pub(super) fn find(documents: &[Document<'_>], kind: &str, namespace: &str, name: &str, default_namespace: &str) -> Option<usize> {
    documents.iter().position(|document| {
        document.parse::<Head>().is_ok_and(|head| {
            head.kind == kind
                && head.api_version == format!("{GROUP}/{VERSION}")
                && head.metadata.name == name
                && head.metadata.namespace.as_deref().unwrap_or(default_namespace) == namespace
        })
    })
}

fn parse<T: serde::de::DeserializeOwned>(document: &Document<'_>) -> Result<T, Problem> {
    document.parse().map_err(|why| Problem::Wrong(why.to_string().replace('\n', " ")))
}

fn checked<K: Kind>(mut object: K, default_namespace: &str) -> Result<DynamicObject, Problem> {
    object.meta_mut().namespace.get_or_insert_with(|| default_namespace.to_owned());
    let object = untyped(&object).map_err(Problem::Wrong)?;
    let wrong = check::object(&object);
    if wrong.is_empty() {
        return Ok(object);
    }
    Err(Problem::Wrong(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
}

/// An object with what a manifest may say of it, and no more: the rest is the API server's, here the memory's.
pub(crate) fn untyped<K: Kind>(object: &K) -> Result<DynamicObject, String> {
    let json = serde_json::to_value(object).map_err(|why| why.to_string())?;
    let mut object: DynamicObject = serde_json::from_value(json).map_err(|why| why.to_string())?;
    if let Some(data) = object.data.as_object_mut() {
        data.retain(|key, _| key == "spec");
    }
    object.metadata = ObjectMeta {
        name: object.metadata.name.take(),
        namespace: object.metadata.namespace.take(),
        labels: object.metadata.labels.take(),
        annotations: object.metadata.annotations.take(),
        ..ObjectMeta::default()
    };
    Ok(object)
}
