//! YAML, in one place: the only caller of `serde_yaml`, whose author has stopped.

use serde::Serialize;
use serde::de::DeserializeOwned;
pub use serde_yaml::{Mapping, Value};

/// Why a text is no YAML, or not of the wanted shape; says the line.
pub type Error = serde_yaml::Error;

/// Writes a value as a YAML document.
///
/// # Errors
/// When the value has no YAML form.
pub fn to_string(value: &impl Serialize) -> Result<String, Error> {
    serde_yaml::to_string(value)
}

/// A value as a tree.
///
/// # Errors
/// When the value has no YAML form.
pub fn to_value(value: &impl Serialize) -> Result<Value, Error> {
    serde_yaml::to_value(value)
}

/// Reads one document.
///
/// # Errors
/// When the text is no YAML or not of the type's shape.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_yaml::from_str(text)
}

/// One document of a file, as text. The texts of a file's documents, put together, are the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Everything from its `---` line, if it has one, to the next.
    pub text: &'a str,
    /// Lines of the file before it.
    pub lines_before: usize,
}

impl Document<'_> {
    /// Whether there is nothing but comments in it.
    pub fn is_empty(&self) -> bool {
        self.text.lines().all(|line| !has_content(line))
    }

    /// Reads it; errors speak of the file's lines.
    ///
    /// # Errors
    /// As [`from_str`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_str(&format!("{}{}", "\n".repeat(self.lines_before), self.text))
    }

    /// The lines before its content: the `---`, comments, blank lines.
    pub fn preamble(&self) -> &str {
        let length = self.text.split_inclusive('\n').take_while(|line| !has_content(line)).map(str::len).sum();
        &self.text[..length]
    }
}

/// Splits a file at its `---` lines. They can't be part of a value: YAML lets no value have one.
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut at, mut lines_before) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) && at > start {
            found.push(Document { text: &text[start..at], lines_before });
            (start, lines_before) = (at, number);
        }
        at += line.len();
    }
    if at > start {
        found.push(Document { text: &text[start..], lines_before });
    }
    found
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Whether a line is more than a marker, a directive, a comment or blank.
fn has_content(line: &str) -> bool {
    let rest = if is_marker(line) { &line[3..] } else { line };
    let rest = rest.trim();
    !(rest.is_empty() || rest == "..." || rest.starts_with('#') || line.starts_with('%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_and_put_together_again() {
        let text = "# head\n---\na: 1\n--- # second\nb: |\n  --- in a value\n---\n# nothing\n---\r\nc: 3";
        let found = documents(text);
        assert_eq!(found.iter().map(|d| d.text).collect::<String>(), text);
        let content: Vec<_> = found.iter().filter(|d| !d.is_empty()).collect();
        assert_eq!(content.len(), 3);
        assert_eq!(content[1].parse::<Value>().unwrap()["b"], Value::from("--- in a value\n"));
        assert_eq!(content[1].preamble(), "--- # second\n");
        assert_eq!(content[2].lines_before, 8);
    }

    #[test]
    fn errors_speak_of_the_files_lines() {
        let found = documents("a: 1\n---\n\nb: [\n");
        let why = found[1].parse::<Value>().unwrap_err().to_string();
        assert!(why.contains("line 5") || why.contains("line 4"), "{why}");
    }

    #[test]
    fn a_marker_with_content_is_content() {
        let found = documents("--- {a: 1}\n");
        assert!(!found[0].is_empty());
        assert_eq!(found[0].preamble(), "");
        assert!(documents("").is_empty());
    }
}
