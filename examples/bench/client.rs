//! One keep-alive HTTP connection: the least that a client can be.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Result;

/// A connection to a server.
pub struct Connection {
    host: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects to `http://HOST:PORT`.
    pub async fn open(url: &str) -> Result<Self> {
        let host = url.strip_prefix("http://").ok_or_else(|| format!("{url} is not http"))?.trim_end_matches('/').to_owned();
        let stream = TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { host, sender })
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&mut self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, content_type)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok((head.status, body.collect().await?.to_bytes()))
    }

    /// Sends a request whose answer must have a status.
    pub async fn expect(&mut self, status: StatusCode, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes> {
        let (got, answer) = self.send(method, path, content_type, body).await?;
        if got == status {
            return Ok(answer);
        }
        let words = String::from_utf8_lossy(&answer);
        Err(format!("{path} was answered {got}: {}", words.chars().take(1_000).collect::<String>()).into())
    }
}

/// A value in a URL's query.
pub fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
