//! JSON that keeps numbers as they are written, and the places in it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    /// A number, `true` or `false`.
    Literal(String),
    Text(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Member(String),
    Index(usize),
}

/// The path to a value.
pub type Path = Vec<Segment>;

/// A path of members.
pub fn members(names: &[&str]) -> Path {
    names.iter().map(|name| Segment::Member((*name).to_owned())).collect()
}

/// A path as a Meter has it.
pub fn written(path: &[Segment]) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Index(index) => format!("[{index}]"),
        Segment::Member(name) if name.bytes().all(|b| b.is_ascii_alphanumeric()) => format!(".{name}"),
        Segment::Member(name) => format!("['{name}']"),
    };
    format!("${}", path.iter().map(segment).collect::<String>())
}

impl Json {
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub fn literal(text: impl ToString) -> Self {
        Self::Literal(text.to_string())
    }

    pub fn write(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Literal(text) => text.clone(),
            Self::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
            Self::List(items) => format!("[{}]", items.iter().map(Self::write).collect::<Vec<_>>().join(",")),
            Self::Map(members) => {
                let member = |(name, value): &(String, Self)| format!("{}:{}", Self::text(name).write(), value.write());
                format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
            }
        }
    }

    pub fn read(raw: &RawValue) -> Self {
        let text = raw.get();
        let again = "a raw value can be read";
        match text.as_bytes()[0] {
            b'{' => {
                let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).expect(again);
                Self::Map(members.iter().map(|(name, value)| (name.clone(), Self::read(value))).collect())
            }
            b'[' => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(text).expect(again);
                Self::List(items.iter().map(|item| Self::read(item)).collect())
            }
            b'"' => Self::Text(serde_json::from_str(text).expect(again)),
            b'n' => Self::Null,
            _ => Self::Literal(text.to_owned()),
        }
    }

    /// Its scalars, each under its path. An empty list or map is one; `null` is none.
    pub fn leaves(&self) -> BTreeMap<Path, Self> {
        let mut leaves = BTreeMap::new();
        self.walk(&mut Vec::new(), &mut leaves);
        leaves
    }

    fn walk(&self, at: &mut Path, leaves: &mut BTreeMap<Path, Self>) {
        let mut step = |segment, value: &Self, at: &mut Path| {
            at.push(segment);
            value.walk(at, leaves);
            at.pop();
        };
        match self {
            Self::Null => {}
            Self::List(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(index, item)| step(Segment::Index(index), item, at))
            }
            Self::Map(members) if !members.is_empty() => {
                members.iter().for_each(|(name, value)| step(Segment::Member(name.clone()), value, at));
            }
            // The whole document is no scalar, also when it is empty.
            _ if at.is_empty() => {}
            scalar => drop(leaves.insert(at.clone(), scalar.clone())),
        }
    }

    /// A scalar as groups and unique counts know it.
    pub fn scalar_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            other => other.write(),
        }
    }
}
