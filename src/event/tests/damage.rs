//! Arbitrary bytes.

use bytes::Bytes;
use proptest::prelude::*;

use super::{cloudevent, one};
use crate::event::{Form, parse};

/// Every form that a body can have.
fn forms() -> Vec<Form> {
    let attribute = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
    let binary =
        vec![attribute("id", b"%f"), attribute("source", b"\"\\"), attribute("type", b"\xff%ff"), attribute("specversion", b"1.0")];
    vec![Form::Structured, Form::Batch, Form::Json, Form::Ndjson, Form::Binary(binary)]
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for form in forms() {
            let _ = parse(form, Bytes::from(body.clone()));
        }
    }

    /// Good bodies with a few bytes cut out and replaced come much further than noise.
    #[test]
    fn no_damage_makes_it_panic(cut in 0_usize..900, length in 0_usize..8, put in prop::collection::vec(any::<u8>(), 0..4)) {
        let usage = cloudevent(&[r#""type":"INGEST_USAGE""#, r#""data":{"tenantId":"a","meterId":"m","x":[{"y":"\u00e9"}]}"#]);
        let body = format!("[{},{usage},{}]", cloudevent(&[r#""subject":"é\\\ud83d\ude00""#]), cloudevent(&[r#""id":"2""#]));
        let mut body = body.into_bytes();
        let cut = cut.min(body.len());
        let end = (cut + length).min(body.len());
        body.splice(cut..end, put);
        for form in forms() {
            if let Ok(items) = parse(form.clone(), Bytes::from(body.clone())) {
                for item in items {
                    // An element means the same alone as among others.
                    if let (Ok(text), Form::Batch) = (std::str::from_utf8(&item.raw), &form) {
                        prop_assert_eq!(one(Form::Structured, text).parsed.ok(), item.parsed.ok().filter(|_| !text.starts_with('[')));
                    }
                }
            }
        }
    }
}
