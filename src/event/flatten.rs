//! From JSON text to [`Leaves`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
    /// More than [`limits::DATA_BYTES`].
    #[error("has values that take over {} bytes with their paths: shorten the names above them", limits::DATA_BYTES)]
    TooLong,
    /// Deeper than [`limits::DATA_DEPTH`].
    #[error("is nested deeper than {} levels: send it flatter", limits::DATA_DEPTH)]
    TooDeep,
}

impl DataError {
    /// The code to refuse the event with.
    pub const fn code(&self) -> RejectCode {
        match self {
            Self::NotObject(_) | Self::NotJson(_) => RejectCode::InvalidEvent,
            Self::TooManyValues | Self::TooLong | Self::TooDeep => RejectCode::TooLarge,
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
        let (mut json, mut scratch) = (serde_json::Deserializer::from_str(data), Scratch::default());
        let data = ReadData(&mut scratch).deserialize(&mut json)?;
        json.end()?;
        Self::of(&data, &mut scratch)
    }

    /// Of an event's `data` whose members are in `scratch`.
    pub(super) fn of(data: &Data, scratch: &mut Scratch<'_>) -> Result<Self, DataError> {
        let members = match data {
            Data::Null => return Ok(Self::new()),
            Data::Other(kind) => return Err(DataError::NotObject(kind)),
            Data::Members(members) => members.clone(),
        };
        let bytes = scratch.siblings[members.clone()].iter().map(|(name, json)| name.len() + json.len() + 8).sum();
        scratch.key.clear();
        scratch.key.push('$');
        let mut walk = Walk { leaves: Self::with_capacity(bytes), scratch };
        walk.siblings(members, true, 1)?;
        walk.leaves.give_back();
        Ok(walk.leaves)
    }
}

/// An event's `data` as it came, read one level deep.
pub(super) enum Data {
    /// No data.
    Null,
    /// No object: what it is.
    Other(&'static str),
    /// Where in [`Scratch`] its members are.
    Members(Range<usize>),
}

/// Reads `data` and appends its members to those in the memory of a walk.
pub(super) struct ReadData<'s, 'a>(pub(super) &'s mut Scratch<'a>);

impl<'de> DeserializeSeed<'de> for ReadData<'_, 'de> {
    type Value = Data;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Data, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadData<'_, 'de> {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let siblings = &mut self.0.siblings;
        let first = siblings.len();
        while let Some((Text(name), json)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            // How long the event is is not known yet.
            if siblings.len() < limits::EVENT_MEMBERS {
                siblings.push((name, json.get()));
            }
        }
        Ok(Data::Members(first..siblings.len()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Data, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Data::Other("an array"))
    }

    fn visit_unit<E>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Data, E> {
        Ok(Data::Other("a string"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Data, E> {
        Ok(Data::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Data, E> {
        Ok(Data::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Data, E> {
        Ok(Data::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Data, E> {
        Ok(Data::Other("a number"))
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

impl Scratch<'_> {
    /// Forgets the data before.
    pub(super) fn clear(&mut self) {
        self.siblings.clear();
    }
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
        if self.leaves.bytes() + self.scratch.key.len() + value.text().len() > limits::DATA_BYTES {
            return Err(DataError::TooLong);
        }
        self.leaves.push(&self.scratch.key, value);
        Ok(())
    }

    fn container(&mut self, json: &'a str, depth: usize) -> Result<(), DataError> {
        if depth > limits::DATA_DEPTH {
            return Err(DataError::TooDeep);
        }
        let first = self.scratch.siblings.len();
        let mut level = serde_json::Deserializer::from_str(json);
        Level(&mut self.scratch.siblings).deserialize(&mut level)?;
        level.end()?;

        let (is_object, siblings) = (json.starts_with('{'), first..self.scratch.siblings.len());
        if siblings.is_empty() {
            return self.push(Scalar::Literal(if is_object { "{}" } else { "[]" }));
        }
        self.siblings(siblings, is_object, depth)?;
        self.scratch.siblings.truncate(first);
        Ok(())
    }

    /// Walks members or elements of one container, from which deeper ones go on at the end.
    fn siblings(&mut self, siblings: Range<usize>, is_object: bool, depth: usize) -> Result<(), DataError> {
        let (first, key) = (siblings.start, self.scratch.key.len());
        if is_object {
            null_overwritten(&mut self.scratch.siblings[siblings.clone()]);
        }
        for at in siblings {
            let (name, json) = std::mem::take(&mut self.scratch.siblings[at]);
            if is_object {
                push_member(&mut self.scratch.key, &name);
            } else {
                push_index(&mut self.scratch.key, at - first);
            }
            self.value(json, depth)?;
            self.scratch.key.truncate(key);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_no_event_has_room_for_take_no_memory() {
        let object = |members: usize| format!("{{{}}}", vec!["\"\":0"; members].join(","));
        let mut scratch = Scratch::default();
        let (largest, larger) = (object(limits::EVENT_MEMBERS - 1), object(limits::EVENT_MEMBERS * 3));
        assert!(largest.len() <= limits::EVENT_BYTES);
        for (json, kept) in [(&largest, limits::EVENT_MEMBERS - 1), (&larger, limits::EVENT_MEMBERS), (&larger, limits::EVENT_MEMBERS)] {
            let data = ReadData(&mut scratch).deserialize(&mut serde_json::Deserializer::from_str(json)).unwrap();
            assert!(matches!(data, Data::Members(_)));
            assert_eq!(scratch.siblings.len(), kept);
        }
    }
}
