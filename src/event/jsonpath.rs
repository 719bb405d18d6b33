//! The JSONPath subset of Meters: `$.a.b`, `$['a']`, `$.a[0]`.

use std::fmt::{self, Write as _};

use crate::limits;

/// A checked path to one value in an event's `data`.
///
/// Its canonical text is the key under which the value stands in the stored map ([`super::Leaves`]): `$.a['x y'][0]`
/// however it was written. Two paths are equal when they name the same place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JsonPath(String);

/// Why a text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a path like $.a.b, $['a'] or $.a[0]: {why} at byte {at}")]
pub struct InvalidPath {
    path: String,
    why: &'static str,
    at: usize,
}

impl JsonPath {
    /// Parses a path.
    ///
    /// # Errors
    /// When the text is longer than [`limits::PATH_BYTES`] or outside the subset.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let fail = |why, at| InvalidPath { path: text.chars().take(80).collect(), why, at };
        if text.len() > limits::PATH_BYTES {
            return Err(fail("it is too long", limits::PATH_BYTES));
        }
        let mut rest = text.strip_prefix('$').ok_or_else(|| fail("it must start with $", 0))?;
        let mut key = String::from("$");
        while !rest.is_empty() {
            let at = text.len() - rest.len();
            rest = if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                let (name, after) = after.split_at(end);
                if !is_plain(name) {
                    return Err(fail("a name after . is letters, digits and _, not starting with a digit; others go in ['…']", at));
                }
                push_member(&mut key, name);
                after
            } else if let Some(after) = rest.strip_prefix("['") {
                let (name, after) = quoted(after)
                    .ok_or_else(|| fail("['…'] must be closed, not empty, without control characters, and escape only \\' and \\\\", at))?;
                push_member(&mut key, &name);
                after
            } else if let Some(after) = rest.strip_prefix('[') {
                let (index, after) = after.split_once(']').ok_or_else(|| fail("[ without ]", at))?;
                let digits = index.len() <= 4 && !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
                let index = index.parse::<u16>().ok().filter(|_| digits).ok_or_else(|| fail("an index is 0 to 9999", at))?;
                push_index(&mut key, usize::from(index));
                after
            } else {
                return Err(fail("expected . or [", at));
            };
        }
        if key == "$" { Err(fail("it names the whole data, not a value in it", 0)) } else { Ok(Self(key)) }
    }

    /// The canonical text.
    pub fn key(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Appends a member's name to a canonical path.
pub(super) fn push_member(key: &mut String, name: &str) {
    if is_plain(name) {
        key.push('.');
        key.push_str(name);
    } else {
        key.push_str("['");
        for c in name.chars() {
            if matches!(c, '\'' | '\\') {
                key.push('\\');
            }
            key.push(c);
        }
        key.push_str("']");
    }
}

/// Appends an array index to a canonical path.
pub(super) fn push_index(key: &mut String, index: usize) {
    // Writing to a String can't fail.
    let _ = write!(key, "[{index}]");
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_plain(name: &str) -> bool {
    // Bytes are quicker than chars here, and this runs for every value of every event.
    name.bytes().all(|b| is_name(char::from(b))) && name.starts_with(|c: char| !c.is_ascii_digit())
}

/// Reads up to the closing `']`, undoing escapes.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => {
                let after = text[at + 1..].strip_prefix(']')?;
                return (!name.is_empty()).then_some((name, after));
            }
            '\\' => match chars.next()?.1 {
                c @ ('\'' | '\\') => name.push(c),
                _ => return None,
            },
            c if c.is_control() => return None,
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_has_one_key() {
        for (text, key) in [
            ("$.a.b", "$.a.b"),
            ("$['a']['b']", "$.a.b"),
            ("$.a[0]", "$.a[0]"),
            ("$.a[007]", "$.a[7]"),
            ("$['x y']", "$['x y']"),
            (r"$['it\'s']", r"$['it\'s']"),
            ("$['ä']", "$['ä']"),
        ] {
            assert_eq!(JsonPath::parse(text).map(|p| p.key().to_owned()), Ok(key.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_outside_the_subset_is_refused() {
        for text in
            ["", "$", "a", "$.", "$..a", "$.a-b", "$.1", "$[*]", "$.*", "$[-1]", "$['a", "$['']", r"$['\n']", "$.a[12345]", "$.a b", "$[0"]
        {
            assert!(JsonPath::parse(text).is_err(), "{text}");
        }
        assert!(JsonPath::parse(&format!("$.{}", "a".repeat(300))).is_err());
    }
}
