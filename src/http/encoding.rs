//! Decompresses bodies, to their last byte. A gzip body may have several members (RFC 1952, 2.2), as `cat a.gz b.gz` makes them, and a
//! zstd body several frames: all of them are the body, and what follows and is none makes it unreadable.

use std::io;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures::TryStreamExt as _;
use http::{HeaderValue, StatusCode, header};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Bytes that are decompressed at a time.
const CHUNK: usize = 32 * 1_024;

/// Makes a request's body what it was before `Content-Encoding`.
///
/// # Errors
/// The answer to one that is of another encoding than these.
pub(super) async fn decompress(request: Request) -> Result<Request, Response> {
    let (mut parts, body) = request.into_parts();
    let Some(encoding) = parts.headers.remove(header::CONTENT_ENCODING) else {
        return Ok(Request::from_parts(parts, body));
    };
    let packed = |body: Body| StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let body = match encoding.as_bytes().to_ascii_lowercase().as_slice() {
        b"identity" => return Ok(Request::from_parts(parts, body)),
        b"gzip" => {
            let mut decoder = GzipDecoder::new(packed(body));
            decoder.multiple_members(true);
            unpacked(decoder)
        }
        b"zstd" => {
            let mut decoder = ZstdDecoder::new(packed(body));
            decoder.multiple_members(true);
            unpacked(decoder)
        }
        _ => {
            let known = [(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd"))];
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, known).into_response());
        }
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Request::from_parts(parts, body))
}

fn unpacked(decoder: impl AsyncRead + Send + 'static) -> Body {
    Body::from_stream(ReaderStream::with_capacity(decoder, CHUNK))
}
