//! Serves a router on a listener, with TLS or without: bounded connections, no patience for slow clients, a graceful stop.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::middleware;
use axum::response::Response;
use http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use super::tls::Tls;
use crate::limits;

/// How long a client may take for its headers, and how long an idle connection stays.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may take for its TLS handshake.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take nothing of its answer.
pub(super) const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// How long connections stay open when the service stops, each answer asking its client to close: one that was closed
/// under a client that is just sending would fail a request.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long requests in flight may take to finish then. Kubernetes kills 30 s after it asked.
const FINISH_WITHIN: Duration = Duration::from_secs(23);
/// How often it is looked whether all clients have left.
const LEFT: Duration = Duration::from_millis(20);
/// Wait after a failed accept: out of file handles, most likely, and others will close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is done, then lets clients leave and finishes the requests in flight, within 25 s.
pub async fn serve(listener: TcpListener, router: Router, tls: Option<Arc<Tls>>, shutdown: impl Future<Output = ()>) {
    let leaving = Arc::new(AtomicBool::new(false));
    let router = router.layer(middleware::map_response_with_state(Arc::clone(&leaving), ask_to_close));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_header_size(limits::HEAD_BYTES).max_buf_size(limits::READ_BYTES);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let stop = async {
        shutdown.await;
        leaving.store(true, Ordering::Relaxed);
        let all_left = async {
            while connections.available_permits() < limits::CONNECTIONS - 1 {
                tokio::time::sleep(LEFT).await;
            }
        };
        // What came meanwhile, before the loop hears of the stop, is served too.
        let _ = tokio::time::timeout(LEAVE_WITHIN, all_left).await;
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(why) => {
                tracing::warn!(error = %why, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small and whole: waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let connection = Connection { http: http.clone(), router: router.clone(), watcher: graceful.watcher() };
        // What is shown is what is known at the connection's beginning.
        let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.now()));
        tokio::spawn(async move {
            if let Err(why) = connection.accept(stream, acceptor).await {
                tracing::debug!(error = %why, "a connection broke off");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(FINISH_WITHIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = FINISH_WITHIN.as_secs(), "requests in flight did not finish in time and are cut off");
    }
}

/// What a new connection is served by.
struct Connection {
    http: http1::Builder,
    router: Router,
    watcher: Watcher,
}

impl Connection {
    async fn accept(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), axum::BoxError> {
        let stream = Impatient::new(stream);
        let Some(acceptor) = acceptor else { return self.serve(stream).await };
        let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
        let late = |_| format!("no TLS handshake within {} s", HANDSHAKE_WITHIN.as_secs());
        self.serve(shaken.map_err(late)??).await
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), axum::BoxError> {
        let connection = self.http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        Ok(self.watcher.watch(connection).await?)
    }
}

async fn ask_to_close(State(leaving): State<Arc<AtomicBool>>, mut response: Response) -> Response {
    if leaving.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A connection that fails when the other side takes nothing for [`WRITE_WITHIN`]: else an answer that nobody reads
/// would hold its memory for ever.
pub(super) struct Impatient<T> {
    stream: T,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<T> Impatient<T> {
    pub(super) fn new(stream: T) -> Self {
        Self { stream, deadline: Box::pin(tokio::time::sleep(WRITE_WITHIN)), waiting: false }
    }

    /// Passes progress on; starts or asks the clock when there is none.
    fn patiently(&mut self, polled: Poll<std::io::Result<usize>>, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if polled.is_ready() {
            self.waiting = false;
            return polled;
        }
        if !self.waiting {
            self.waiting = true;
            self.deadline.as_mut().reset(Instant::now() + WRITE_WITHIN);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Impatient<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Impatient<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patiently(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.patiently(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
