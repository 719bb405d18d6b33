//! From JSON text to [`Leaves`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::jsonpath::{push_index, push_member};
use super::{Leaves, Scalar};
use crate::limits;
use crate::metering::RejectCode;

/// Why a text is no `data`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// It is something else than a JSON object.
    #[error("must be a JSON object, but is {0}")]
    NotObject(&'static str),
    /// It is no JSON, or has a text in it that is no Unicode; serde_json's words.
    #[error("is not well-formed JSON: {0}")]
    NotJson(String),
    /// More than [`limits::DATA_LEAVES`] values.
    #[error("has more than {} values: leave out what is not counted", limits::DATA_LEAVES)]
    TooManyValues,
    /// Deeper than [`limits::DATA_DEPTH`].
    #[error("is nested deeper than {} levels: send it flatter", limits::DATA_DEPTH)]
    TooDeep,
}

impl DataError {
    /// The code to refuse the event with.
    pub const fn code(&self) -> RejectCode {
        match self {
            Self::NotObject(_) | Self::NotJson(_) => RejectCode::InvalidEvent,
            Self::TooManyValues | Self::TooDeep => RejectCode::TooLarge,
        }
    }
}

impl From<serde_json::Error> for DataError {
    fn from(error: serde_json::Error) -> Self {
        Self::NotJson(error.to_string())
    }
}

impl Leaves {
    /// Reads an event's `data`: a JSON object, or `null` for none. Numbers keep their digits as sent.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn from_json(data: &str) -> Result<Self, DataError> {
        Self::read(data, &mut Scratch::default())
    }

    /// The same, in memory that was used for other data before.
    pub(super) fn read<'a>(data: &'a str, scratch: &mut Scratch<'a>) -> Result<Self, DataError> {
        let data = data.trim_matches([' ', '\t', '\n', '\r']);
        if data == "null" {
            return Ok(Self::new());
        }
        if !data.starts_with('{') {
            serde_json::from_str::<&RawValue>(data)?;
            return Err(DataError::NotObject(kind(data)));
        }
        scratch.key.clear();
        scratch.key.push('$');
        scratch.siblings.clear();
        let mut walk = Walk { leaves: Self::with_capacity(data.len() + 64), scratch };
        walk.container(data, 1)?;
        Ok(walk.leaves)
    }
}

/// What a JSON text is, for people.
pub(super) fn kind(json: &str) -> &'static str {
    match json.bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A string that borrows from the text where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Memory of a walk, for one after the other.
#[derive(Default)]
pub(super) struct Scratch<'a> {
    /// Canonical path of the value in hand.
    key: String,
    /// Members or elements of all containers on the way to it that are still to be walked: one allocation for all levels.
    siblings: Vec<(Cow<'a, str>, &'a str)>,
}

struct Walk<'s, 'a> {
    leaves: Leaves,
    scratch: &'s mut Scratch<'a>,
}

impl<'a> Walk<'_, 'a> {
    fn value(&mut self, json: &'a str, depth: usize) -> Result<(), DataError> {
        match json.as_bytes() {
            [b'{' | b'[', ..] => self.container(json, depth + 1),
            [b'n', ..] => Ok(()),
            // What has no escapes is its own text: the quotes' content.
            [b'"', text @ .., b'"'] if !text.contains(&b'\\') => self.push(Scalar::Text(&json[1..json.len() - 1])),
            [b'"', ..] => self.push(Scalar::Text(&serde_json::from_str::<Text<'_>>(json)?.0)),
            _ => self.push(Scalar::Literal(json)),
        }
    }

    fn push(&mut self, value: Scalar<'_>) -> Result<(), DataError> {
        if self.leaves.len() == limits::DATA_LEAVES {
            return Err(DataError::TooManyValues);
        }
        self.leaves.push(&self.scratch.key, value);
        Ok(())
    }

    fn container(&mut self, json: &'a str, depth: usize) -> Result<(), DataError> {
        if depth > limits::DATA_DEPTH {
            return Err(DataError::TooDeep);
        }
        let (first, key) = (self.scratch.siblings.len(), self.scratch.key.len());
        let mut level = serde_json::Deserializer::from_str(json);
        Level(&mut self.scratch.siblings).deserialize(&mut level)?;
        level.end()?;

        let is_object = json.starts_with('{');
        if is_object {
            null_overwritten(&mut self.scratch.siblings[first..]);
        }
        if self.scratch.siblings.len() == first && depth == 1 {
            // The whole data is empty: it has no path, and no values.
            return Ok(());
        }
        if self.scratch.siblings.len() == first {
            return self.push(Scalar::Literal(if is_object { "{}" } else { "[]" }));
        }
        for at in first..self.scratch.siblings.len() {
            let (name, json) = std::mem::take(&mut self.scratch.siblings[at]);
            if is_object {
                push_member(&mut self.scratch.key, &name);
            } else {
                push_index(&mut self.scratch.key, at - first);
            }
            self.value(json, depth)?;
            self.scratch.key.truncate(key);
        }
        self.scratch.siblings.truncate(first);
        Ok(())
    }
}

/// Of members of the same name the last one counts: the others become `null`, which is no value.
fn null_overwritten(members: &mut [(Cow<'_, str>, &str)]) {
    /// Up to so many names, comparing each with each is quicker than hashing them.
    const FEW: usize = 16;
    if members.len() <= FEW {
        for at in 0..members.len() {
            if members[at + 1..].iter().any(|(later, _)| *later == members[at].0) {
                members[at].1 = "null";
            }
        }
    } else {
        let mut later = HashSet::with_capacity(members.len());
        for (name, json) in members.iter_mut().rev() {
            if !later.insert(&**name) {
                *json = "null";
            }
        }
    }
}

/// Reads one level of a container: its members or elements as text.
struct Level<'l, 'a>(&'l mut Vec<(Cow<'a, str>, &'a str)>);

impl<'de> DeserializeSeed<'de> for Level<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Text(name), json)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            self.0.push((name, json.get()));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(json) = seq.next_element::<&'de RawValue>()? {
            self.0.push((Cow::Borrowed(""), json.get()));
        }
        Ok(())
    }
}
