//! From [`Leaves`] back to JSON text, for people who list stored events.

use indexmap::IndexMap;

use super::{Leaves, Scalar};

/// Greatest array index that is rebuilt: an event of the greatest size can't hold more elements.
const INDEX_MAX: usize = crate::limits::EVENT_BYTES;

impl Leaves {
    /// The JSON object of which these are the values. Reading it with [`Self::from_json`] gives the same values again;
    /// gaps in arrays, left by `null`s, are `null`.
    ///
    /// Of values that can't stand in one document (made by [`Self::push`], not by reading JSON) the first one stays.
    pub fn to_json(&self) -> String {
        let mut root = Node::Object(IndexMap::new());
        for (key, value) in self.iter() {
            root.insert(key.strip_prefix('$').unwrap_or(key), value);
        }
        let mut json = String::new();
        root.write(&mut json);
        json
    }
}

/// A JSON string literal.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

enum Node<'a> {
    /// Nothing there yet; written as `null`.
    Gap,
    Leaf(Scalar<'a>),
    Object(IndexMap<String, Node<'a>>),
    Array(Vec<Node<'a>>),
}

enum Step {
    Member(String),
    Index(usize),
}

impl<'a> Node<'a> {
    fn insert(&mut self, path: &str, value: Scalar<'a>) {
        let Some((step, rest)) = next_step(path) else {
            if matches!(self, Self::Gap) {
                *self = Self::Leaf(value);
            }
            return;
        };
        if matches!(self, Self::Gap) {
            *self = match step {
                Step::Member(_) => Self::Object(IndexMap::new()),
                Step::Index(_) => Self::Array(Vec::new()),
            };
        }
        match (self, step) {
            (Self::Object(members), Step::Member(name)) => members.entry(name).or_insert(Node::Gap).insert(rest, value),
            (Self::Array(elements), Step::Index(index)) if index <= INDEX_MAX => {
                if elements.len() <= index {
                    elements.resize_with(index + 1, || Node::Gap);
                }
                elements[index].insert(rest, value);
            }
            _ => {}
        }
    }

    fn write(&self, json: &mut String) {
        match self {
            Self::Gap => json.push_str("null"),
            Self::Leaf(Scalar::Literal(literal)) => json.push_str(literal),
            Self::Leaf(Scalar::Text(text)) => json.push_str(&quote(text)),
            Self::Object(members) => {
                json.push('{');
                for (at, (name, node)) in members.iter().enumerate() {
                    json.push_str(if at == 0 { "" } else { "," });
                    json.push_str(&quote(name));
                    json.push(':');
                    node.write(json);
                }
                json.push('}');
            }
            Self::Array(elements) => {
                json.push('[');
                for (at, node) in elements.iter().enumerate() {
                    json.push_str(if at == 0 { "" } else { "," });
                    node.write(json);
                }
                json.push(']');
            }
        }
    }
}

/// Takes one step of a canonical path; unlike [`super::JsonPath::parse`] any name that JSON can have. None at the end.
fn next_step(path: &str) -> Option<(Step, &str)> {
    if let Some(rest) = path.strip_prefix('.') {
        let (name, rest) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
        return Some((Step::Member(name.to_owned()), rest));
    }
    if let Some(rest) = path.strip_prefix("['") {
        let (mut name, mut chars) = (String::new(), rest.chars());
        loop {
            match chars.next()? {
                '\'' => return Some((Step::Member(name), chars.as_str().strip_prefix(']')?)),
                '\\' => name.push(chars.next()?),
                c => name.push(c),
            }
        }
    }
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((Step::Index(index.parse().ok()?), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::JsonPath;
    use crate::event::flatten::DataError;
    use crate::limits;
    use crate::metering::RejectCode;

    fn flat(json: &str) -> Vec<(String, String)> {
        let leaves = Leaves::from_json(json).unwrap();
        leaves
            .iter()
            .map(|(key, value)| {
                let value = match value {
                    Scalar::Text(text) => format!("\"{text}"),
                    Scalar::Literal(literal) => literal.to_owned(),
                };
                (key.to_owned(), value)
            })
            .collect()
    }

    #[test]
    fn every_value_stands_under_its_path() {
        for (json, expected) in [
            ("null", &[] as &[(&str, &str)]),
            (" { } ", &[]),
            (r#"{"a":null,"b":[null]}"#, &[]),
            (
                r#"{"n":1.50,"e":-1E+2,"t":true,"s":"x","o":{},"l":[ ]}"#,
                &[("$.n", "1.50"), ("$.e", "-1E+2"), ("$.t", "true"), ("$.s", "\"x"), ("$.o", "{}"), ("$.l", "[]")],
            ),
            (r#"{"a":{"b":[1,{"c":"d"},null,[2]]}}"#, &[("$.a.b[0]", "1"), ("$.a.b[1].c", "\"d"), ("$.a.b[3][0]", "2")]),
            (r#"{"big":12345678901234567890.123456789}"#, &[("$.big", "12345678901234567890.123456789")]),
            (
                r#"{"":1,"it's":2,"a\\b":3,"a.b":4,"\u0061":5}"#,
                &[("$['']", "1"), (r"$['it\'s']", "2"), (r"$['a\\b']", "3"), ("$['a.b']", "4"), ("$.a", "5")],
            ),
            (r#"{"s":"a\"\\\n\u00e9\ud83d\ude00"}"#, &[("$.s", "\"a\"\\\né😀")]),
        ] {
            let expected: Vec<_> = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(flat(json), expected, "{json}");
        }
    }

    #[test]
    fn of_equal_names_the_last_counts_as_a_whole() {
        assert_eq!(flat(r#"{"a":{"b":1,"c":2},"a":{"b":3}}"#), [("$.a.b".to_owned(), "3".to_owned())]);
        assert_eq!(flat(r#"{"a":1,"\u0061":"x"}"#), [("$.a".to_owned(), "\"x".to_owned())]);
        assert_eq!(flat(r#"{"a":1,"a":null}"#), []);
        let many: String = (0..100).map(|n| format!("\"k{}\":{n},", n % 50)).collect();
        let values = flat(&format!("{{{many}\"end\":0}}"));
        assert_eq!(values.len(), 51);
        assert!(values.contains(&("$.k7".to_owned(), "57".to_owned())));
    }

    #[test]
    fn what_is_no_data_is_refused() {
        for json in [
            "",
            "1",
            "\"x\"",
            "[]",
            "true",
            "{",
            "{\"a\":}",
            "{\"a\":1,}",
            "{} {}",
            "{\"a\":01}",
            r#"{"a":"\ud800"}"#,
            r#"{"\udc00":1}"#,
            "{}x",
        ] {
            assert_eq!(Leaves::from_json(json).unwrap_err().code(), RejectCode::InvalidEvent, "{json}");
        }
    }

    #[test]
    fn bounds_hold() {
        let wide = |n: usize| format!("{{\"a\":[{}]}}", vec!["1"; n].join(","));
        assert_eq!(Leaves::from_json(&wide(limits::DATA_LEAVES)).unwrap().len(), limits::DATA_LEAVES);
        assert_eq!(Leaves::from_json(&wide(limits::DATA_LEAVES + 1)), Err(DataError::TooManyValues));
        let long = |name: usize| format!(r#"{{"{}":[{}]}}"#, "k".repeat(name), vec!["1e1"; limits::DATA_LEAVES].join(","));
        assert!(Leaves::from_json(&long(limits::PATH_BYTES / 2)).is_ok());
        for name in [3 * limits::PATH_BYTES, limits::EVENT_BYTES / 2, limits::EVENT_BYTES] {
            assert_eq!(Leaves::from_json(&long(name)), Err(DataError::TooLong), "{name}");
        }
        let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(limits::EVENT_BYTES - 100));
        assert!(Leaves::from_json(&text).is_ok(), "one value may be as large as an event");
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
        assert_eq!(Leaves::from_json(&deep(limits::DATA_DEPTH)).unwrap().len(), 1);
        assert_eq!(Leaves::from_json(&deep(limits::DATA_DEPTH + 1)), Err(DataError::TooDeep));
        assert_eq!(Leaves::from_json(&deep(100_000)), Err(DataError::TooDeep));
        let far = format!("{{\"a\":[{}7]}}", "null,".repeat(12_000));
        assert_eq!(flat(&far), [("$.a[12000]".to_owned(), "7".to_owned())]);
    }

    #[test]
    fn values_become_a_document_again() {
        for (json, expected) in [
            ("{}", "{}"),
            (r#"{"a":{"b":[null,1.50,{"c":"d\n"},null]},"z":{},"y":[]}"#, r#"{"a":{"b":[null,1.50,{"c":"d\n"}]},"z":{},"y":[]}"#),
            (r#"{"it's":{"\\":1},"":[[0]],"\u0001":true}"#, r#"{"it's":{"\\":1},"":[[0]],"\u0001":true}"#),
        ] {
            assert_eq!(Leaves::from_json(json).unwrap().to_json(), expected);
        }
        let mut odd = Leaves::new();
        for (key, value) in [("$.a", "1"), ("$.a.b", "2"), ("$[0]", "3"), ("$.c[99999999999]", "4"), ("$.a", "5"), ("?", "6")] {
            odd.push(key, Scalar::Literal(value));
        }
        assert_eq!(odd.to_json(), r#"{"a":1,"c":[]}"#);
    }

    /// A document as text: names repeat often, numbers are such that `serde_json::Value` keeps their text.
    fn document() -> impl Strategy<Value = String> {
        let text = prop_oneof!["[ab.'\\\\\"\n é😀]{0,3}".prop_map(|s| quote(&s)), Just(r#""\u0061\ud83d\ude00""#.to_owned())];
        let name = prop_oneof![
            5 => "[ab]".prop_map(|s| quote(&s)),
            1 => Just(r#""\u0061""#.to_owned()),
            1 => "[ab.'\\\\\\[\\]0 \n]{0,2}".prop_map(|s| quote(&s)),
        ];
        let scalar = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            text
        ];
        let object = |value: BoxedStrategy<String>, names: BoxedStrategy<String>, most: usize| {
            prop::collection::vec((names, value), 0..most).prop_map(|members| {
                let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{name} : {value}")).collect();
                format!("{{{}}}", members.join(" ,\n"))
            })
        };
        let name = name.boxed();
        let names = name.clone();
        let value = scalar.prop_recursive(4, 40, 6, move |inner| {
            let array = prop::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[ {} ]", all.join(", ")));
            prop_oneof![array, object(inner, names.clone(), 5)]
        });
        object(value.boxed(), name, 30)
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop_oneof![Just(".a"), Just(".b"), Just("['a']"), Just("[0]"), Just("[1]"), Just("['.']"), Just(r"['\'']")],
            1..4,
        )
        .prop_map(|steps| format!("${}", steps.concat()))
    }

    /// What a path finds, read from its text and the parsed document without any of the code under test.
    fn walk(document: &serde_json::Value, path: &str) -> Option<String> {
        let steps =
            path.replace("['a']", ".a").replace("['.']", "/DOT").replace(r"['\'']", "/QUOTE").replace(['.', '['], "/").replace(']', "");
        let found = steps[1..].split('/').skip(1).try_fold(document, |at, step| match at {
            serde_json::Value::Array(all) => all.get(step.parse::<usize>().ok()?),
            serde_json::Value::Object(all) if step.parse::<usize>().is_err() => all.get(match step {
                "DOT" => ".",
                "QUOTE" => "'",
                name => name,
            }),
            _ => None,
        })?;
        match found {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(format!("\"{text}")),
            serde_json::Value::Array(all) if !all.is_empty() => None,
            serde_json::Value::Object(all) if !all.is_empty() => None,
            other => Some(other.to_string()),
        }
    }

    proptest! {
        #[test]
        fn a_path_finds_what_a_walk_finds(json in document(), path in path()) {
            let value = serde_json::from_str(&json).unwrap();
            let leaves = Leaves::from_json(&json).unwrap();
            let found = leaves.get(&JsonPath::parse(&path).unwrap()).map(|scalar| match scalar {
                Scalar::Text(text) => format!("\"{text}"),
                Scalar::Literal(literal) => literal.to_owned(),
            });
            prop_assert_eq!(found, walk(&value, &path), "{} in {}", path, json);
        }

        #[test]
        fn there_and_back_is_the_same(json in document()) {
            let leaves = Leaves::from_json(&json).unwrap();
            let again = Leaves::from_json(&leaves.to_json()).unwrap();
            prop_assert_eq!(again.iter().collect::<Vec<_>>(), leaves.iter().collect::<Vec<_>>());
        }

        #[test]
        fn any_text_is_judged(text in r#"[{}\[\]",:a0 \\u\-.e]{0,40}"#) {
            let is_json = serde_json::from_str::<serde_json::Value>(&text);
            if let Ok(leaves) = Leaves::from_json(&text) {
                // JSON that a Value can't hold is a number beyond a double's range.
                prop_assert!(is_json.is_ok_and(|v| v.is_object() || v.is_null()) || leaves.iter().any(|(_, v)| v.text().contains('e')), "{}", text);
            }
        }
    }
}
