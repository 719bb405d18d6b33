//! An event's `data` as it is stored: every scalar value under its canonical path.

use super::Decimal;

/// The scalars of a JSON document in document order, each under the key of its [`super::JsonPath`].
///
/// Held in the form in which it goes to ClickHouse: RowBinary of `Map(String, String)`, so that storing costs one copy.
/// A value's first character says what it is: `"` before a string's unescaped text, otherwise the JSON literal as it
/// was sent (`-1.50`, `true`). Empty containers are `{}` and `[]`; `null` is left out: it is a missing value.
/// Of equal keys the last counts, as in most JSON readers; only it is kept.
///
/// A decimal that was sent with an exponent has its plain text beside it under [`plain_key`], so that SQL reads all
/// decimals alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaves {
    /// Values.
    count: usize,
    /// Plain texts beside them.
    plain: usize,
    entries: Vec<u8>,
}

/// One scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// A JSON string, unescaped.
    Text(&'a str),
    /// A number, `true`, `false`, `{}` or `[]`, as sent.
    Literal(&'a str),
}

impl<'a> Scalar<'a> {
    /// The text by which a group-by or a unique count knows the value: a string as it is, another scalar as its JSON text.
    pub const fn text(self) -> &'a str {
        match self {
            Self::Text(text) | Self::Literal(text) => text,
        }
    }
}

impl Default for Leaves {
    fn default() -> Self {
        Self::new()
    }
}

impl Leaves {
    /// No values.
    pub const fn new() -> Self {
        Self { count: 0, plain: 0, entries: Vec::new() }
    }

    /// No values yet, and room for so many bytes of them.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { count: 0, plain: 0, entries: Vec::with_capacity(bytes) }
    }

    /// Gives back memory that is far more than the values took: a row waits with what it holds, and weighs what it takes.
    pub(super) fn give_back(&mut self) {
        if self.entries.capacity() > 2 * self.entries.len() {
            self.entries.shrink_to_fit();
        }
    }

    /// Bytes of the values with their paths.
    pub const fn bytes(&self) -> usize {
        self.entries.len()
    }

    /// Appends a value. The caller sees to it that no key comes twice.
    pub fn push(&mut self, key: &str, value: Scalar<'_>) {
        self.count += 1;
        self.put(key, value);
        if let Some(plain) = plain(value.text()) {
            self.plain += 1;
            self.put(&plain_key(key), Scalar::Literal(&plain));
        }
    }

    fn put(&mut self, key: &str, value: Scalar<'_>) {
        put_bytes(&mut self.entries, key.as_bytes());
        match value {
            Scalar::Literal(text) => put_bytes(&mut self.entries, text.as_bytes()),
            Scalar::Text(text) => {
                put_varint(&mut self.entries, text.len() + 1);
                self.entries.push(b'"');
                self.entries.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Takes what ClickHouse stored: keys and values as [`Self::push`] wrote them.
    pub fn from_stored(keys: &[String], values: &[String]) -> Self {
        let mut leaves = Self::new();
        keys.iter().zip(values).filter(|(key, _)| !is_plain(key)).for_each(|(key, value)| leaves.push(key, scalar(value)));
        leaves
    }

    /// How many values.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no value.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All values in document order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Scalar<'_>)> {
        let mut rest = self.entries.as_slice();
        let entries = std::iter::from_fn(move || Some((take_text(&mut rest)?, scalar(take_text(&mut rest)?))));
        entries.filter(|(key, _)| !is_plain(key))
    }

    /// The value at a path.
    pub fn get(&self, path: &super::JsonPath) -> Option<Scalar<'_>> {
        let mut rest = self.entries.as_slice();
        let value = loop {
            let (key, value) = (take(&mut rest)?, take(&mut rest)?);
            if key == path.key().as_bytes() {
                break value;
            }
        };
        std::str::from_utf8(value).ok().map(scalar)
    }

    /// Appends RowBinary of `Map(String, String)`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.count + self.plain);
        out.extend_from_slice(&self.entries);
    }

    /// Bytes that [`Self::encode`] adds, about.
    pub const fn encoded_len(&self) -> usize {
        self.entries.len() + 10
    }
}

/// Under which key the plain text of a value stands, if it has one. No path begins so.
pub fn plain_key(key: &str) -> String {
    format!("={key}")
}

fn is_plain(key: &str) -> bool {
    key.starts_with('=')
}

/// A decimal that has an exponent, written without.
fn plain(text: &str) -> Option<String> {
    let is_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let has_exponent = is_number && text.bytes().any(|byte| byte == b'e' || byte == b'E');
    has_exponent.then(|| Decimal::parse(text).ok()).flatten().map(|decimal| decimal.to_string())
}

fn scalar(stored: &str) -> Scalar<'_> {
    stored.strip_prefix('"').map_or(Scalar::Literal(stored), Scalar::Text)
}

/// Appends a LEB128 length, as RowBinary has it.
pub fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and bytes: RowBinary of `String`.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Takes a `String` that `push` wrote; None at the end.
fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take(rest)?).ok()
}

/// The same, as bytes.
fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
        shift += 7;
    }
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let mut leaves = Leaves::new();
        let long = "x".repeat(300);
        let values = [
            ("$.a", Scalar::Literal("1.50")),
            ("$.b", Scalar::Text("")),
            ("$['\"']", Scalar::Text("\"q")),
            ("$.long", Scalar::Text(&long)),
        ];
        for (key, value) in values {
            leaves.push(key, value);
        }
        assert_eq!(leaves.iter().collect::<Vec<_>>(), values);
        assert_eq!(leaves.len(), 4);
    }

    #[test]
    fn a_decimal_with_an_exponent_has_its_plain_text_beside_it() {
        let mut leaves = Leaves::new();
        let values = [
            ("$.a", Scalar::Literal("1.5e3")),
            ("$.b", Scalar::Text("-2E-1")),
            ("$.c", Scalar::Literal("1e400")),
            ("$.d", Scalar::Text("1e")),
        ];
        for (key, value) in values {
            leaves.push(key, value);
        }
        assert_eq!(leaves.iter().collect::<Vec<_>>(), values);
        let mut row_binary = Vec::new();
        leaves.encode(&mut row_binary);
        let text = String::from_utf8_lossy(&row_binary);
        assert!(
            text.contains("=$.a\u{4}1500") && text.contains("=$.b\u{4}-0.2") && !text.contains("=$.c") && !text.contains("=$.d"),
            "{text:?}"
        );
        let (keys, stored) = (["$.a", "=$.a"].map(str::to_owned), ["1.5e3", "1500"].map(str::to_owned));
        assert_eq!(Leaves::from_stored(&keys, &stored).iter().collect::<Vec<_>>(), [("$.a", Scalar::Literal("1.5e3"))]);
    }
}
