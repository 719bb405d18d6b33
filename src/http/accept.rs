//! `Accept` (RFC 9110, 12.5.1), as far as two formats need it.

use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;

/// How usage is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`, the default.
    Json,
    /// `text/csv`.
    Csv,
}

/// Picks the format that the client likes best; of equals JSON.
pub fn negotiate(headers: &HeaderMap) -> Result<Format, Problem> {
    let ranges: Vec<(&str, f32)> =
        headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).filter_map(range).collect();
    if ranges.is_empty() {
        return Ok(Format::Json);
    }
    // The most specific range that fits says the quality.
    let quality = |kind: &str, all: &str| {
        let of = |range: &str| ranges.iter().find(|(r, _)| r.eq_ignore_ascii_case(range)).map(|(_, q)| *q);
        of(kind).or_else(|| of(all)).or_else(|| of("*/*")).unwrap_or(0.0)
    };
    match (quality("application/json", "application/*"), quality("text/csv", "text/*")) {
        (json, csv) if csv > json => Ok(Format::Csv),
        (json, _) if json > 0.0 => Ok(Format::Json),
        _ => Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", "Accept: write application/json or text/csv")),
    }
}

fn range(text: &str) -> Option<(&str, f32)> {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().filter(|kind| !kind.is_empty())?;
    let quality = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    // What is no quality counts as 0: not wanted.
    Some((kind, quality.map_or(1.0, |q| q.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_that_is_liked_best_is_taken() {
        for (accept, format) in [
            ("", Some(Format::Json)),
            ("*/*", Some(Format::Json)),
            ("application/*", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("text/CSV; charset=utf-8", Some(Format::Csv)),
            ("text/*", Some(Format::Csv)),
            ("text/csv;q=0.5, application/json", Some(Format::Json)),
            ("text/csv, */*;q=0.1", Some(Format::Csv)),
            ("application/json;q=0, */*", Some(Format::Csv)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("text/csv;q=much", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(negotiate(&headers).ok(), format, "{accept}");
        }
    }
}
