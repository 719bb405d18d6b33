//! Quoting, in one place. Values from requests are bound as parameters; only DDL, which can't have parameters, quotes.

use std::fmt::Write as _;

/// Quotes an identifier for ClickHouse: backticks, with backslash escapes.
pub fn identifier(name: &str) -> String {
    quoted(name, '`')
}

/// Quotes a string literal for ClickHouse DDL.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// ClickHouse knows the same backslash escapes in both kinds of quotes. Whatever is not plain printable ASCII is
/// written as `\xHH` of its UTF-8 bytes, so that the statement's text is ASCII whatever the name.
fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for byte in text.bytes() {
        match byte {
            b'\\' | b'\'' | b'`' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            0x20..=0x7e => out.push(char::from(byte)),
            // Writing to a String can't fail.
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push(quote);
    out
}

/// The comment of a table, in what `SHOW CREATE` says of it. Ours are JSON of names that have no quote and no backslash.
pub(super) fn comment_of(create: &str) -> Option<&str> {
    create.rsplit_once("COMMENT '").map(|(_, comment)| comment.trim_end().trim_end_matches('\''))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_quotation_early() {
        assert_eq!(literal(r"it's \ `x`"), r"'it\'s \\ \`x\`'");
        assert_eq!(identifier("a`b"), r"`a\`b`");
        assert_eq!(literal("\0\n€"), r"'\x00\x0a\xe2\x82\xac'");
    }
}
