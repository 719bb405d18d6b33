//! The JSON around an event, read in one pass: every attribute as it came, judged later.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::flatten::{Data, ReadData, Scratch, Text};
use crate::limits;

/// What may stand at the top of a CloudEvent or an EventBridge event.
#[derive(Default)]
pub(super) struct Envelope<'a> {
    pub(super) specversion: Attribute<'a>,
    pub(super) id: Attribute<'a>,
    pub(super) source: Attribute<'a>,
    pub(super) event_type: Attribute<'a>,
    pub(super) subject: Attribute<'a>,
    pub(super) time: Attribute<'a>,
    pub(super) datacontenttype: Attribute<'a>,
    pub(super) data: Option<Data>,
    pub(super) data_base64: Attribute<'a>,
    /// EventBridge's type.
    pub(super) detail_type: Attribute<'a>,
    /// EventBridge's data.
    pub(super) detail: Option<Data>,
    /// An attribute that came twice.
    pub(super) twice: Option<Cow<'a, str>>,
}

/// An attribute's value.
#[derive(Default)]
pub(super) enum Attribute<'a> {
    #[default]
    Absent,
    /// The same as absent, says CloudEvents' JSON format.
    Null,
    Text(Cow<'a, str>),
    /// Not text: what it is.
    Other(&'static str),
}

impl Attribute<'_> {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads a JSON value where an event is expected into an empty envelope, where it stands: envelopes are large. An error is what
/// else the value is. The members of its `data` go to the other.
pub(super) struct Fill<'e, 'a>(pub(super) &'e mut Envelope<'a>, pub(super) &'e mut Scratch<'a>);

impl<'de> DeserializeSeed<'de> for Fill<'_, 'de> {
    type Value = Result<(), &'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_, 'de> {
    type Value = Result<(), &'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.1.clear();
        self.0.read(map, self.1).map(Ok)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("an array"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Err("a string"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Err("a boolean"))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Err("null"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }
}

impl<'de> Deserialize<'de> for Attribute<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AttributeVisitor;
        impl<'de> Visitor<'de> for AttributeVisitor {
            type Value = Attribute<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an attribute")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Attribute::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Attribute::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Attribute::Null)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Attribute::Other("an object"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Attribute::Other("an array"))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Attribute::Other("a boolean"))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Attribute::Other("a number"))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Attribute::Other("a number"))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Attribute::Other("a number"))
            }
        }
        deserializer.deserialize_any(AttributeVisitor)
    }
}

impl<'a> Envelope<'a> {
    fn read<A: MapAccess<'a>>(&mut self, mut map: A, scratch: &mut Scratch<'a>) -> Result<(), A::Error> {
        let mut extensions: Vec<Cow<'a, str>> = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            let slot = match &*name {
                "specversion" => &mut self.specversion,
                "id" => &mut self.id,
                "source" => &mut self.source,
                "type" => &mut self.event_type,
                "subject" => &mut self.subject,
                "time" => &mut self.time,
                "datacontenttype" => &mut self.datacontenttype,
                "data_base64" => &mut self.data_base64,
                "detail-type" => &mut self.detail_type,
                "data" | "detail" => {
                    let slot = if &*name == "data" { &mut self.data } else { &mut self.detail };
                    if slot.replace(map.next_value_seed(ReadData(scratch))?).is_some() {
                        self.twice = Some(name);
                    }
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    if extensions.len() < limits::EVENT_MEMBERS {
                        extensions.push(name);
                    }
                    continue;
                }
            };
            if !matches!(slot, Attribute::Absent) {
                self.twice = Some(name);
            }
            *slot = map.next_value()?;
        }
        extensions.sort_unstable();
        if let Some(pair) = extensions.windows(2).find(|pair| pair[0] == pair[1]) {
            self.twice = Some(pair[0].clone());
        }
        Ok(())
    }
}
