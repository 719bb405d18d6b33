//! The server over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::fake::Fake;
use super::*;
use crate::http::serve;
use crate::http::serve::{Impatient, WRITE_WITHIN};
use crate::limits;

async fn started(fake: &Arc<Fake>) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, router(Arc::clone(fake), options()), None, async { drop(stopped.await) }));
    (address, stop, server)
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_takes_nothing_new() {
    let fake = Arc::new(Fake { delay: Duration::from_millis(300), ..Fake::default() });
    let (address, stop, server) = started(&fake).await;
    let _idle = TcpStream::connect(address).await.unwrap();
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"GET /meters HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while fake.last().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// What a client sends just as the service is told to stop is answered, on a connection that was idle, too.
#[tokio::test]
async fn a_stop_closes_no_connection_under_a_client_that_is_sending() {
    let (address, stop, server) = started(&Arc::new(Fake::default())).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let ask = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut some = [0; 1_024];
    idle.write_all(ask).await.unwrap();
    assert!(idle.read(&mut some).await.unwrap() > 0);
    stop.send(()).unwrap();
    // Time enough for the server to hear of it, were it to close at once.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    idle.write_all(ask).await.unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
    server.await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let (address, _stop, _server) = started(&Arc::new(Fake::default())).await;
    let ask = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut some = [0; 1_024];
    let mut open = Vec::new();
    for _ in 0..limits::CONNECTIONS {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(ask).await.unwrap();
        assert!(client.read(&mut some).await.unwrap() > 0, "served");
        open.push(client);
    }
    // The kernel takes the connection, and what is sent on it.
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(ask).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(500), late.read(&mut some)).await;
    assert!(answer.is_err(), "one more than the limit is served: {answer:?}");
    drop(open.pop());
    let answer = tokio::time::timeout(Duration::from_secs(30), late.read(&mut some)).await.expect("it waits for ever");
    assert!(String::from_utf8_lossy(&some[..answer.unwrap()]).starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_does_not_hold_up_a_stop_for_ever() {
    let fake = Arc::new(Fake { delay: Duration::from_secs(50), ..Fake::default() });
    let (address, stop, server) = started(&fake).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"GET /meters HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while fake.last().is_empty() {
        tokio::task::yield_now().await;
    }
    let before = tokio::time::Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert_eq!(before.elapsed().as_secs(), 25);
}

#[tokio::test(start_paused = true)]
async fn headers_that_do_not_come_close_the_connection() {
    let (address, _stop, _server) = started(&Arc::new(Fake::default())).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /meters HTTP/1.1\r\nhost:").await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(300), slow.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "it stays open");
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let fake = Arc::new(Fake::default());
    let (address, _stop, _server) = started(&fake).await;
    let asked = async |headers: String| {
        let mut client = TcpStream::connect(address).await.unwrap();
        // It may close before it has read all.
        let _ = client.write_all(format!("GET /meters HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n").as_bytes()).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    let (long, many) = (|bytes| format!("a: {}\r\n", "x".repeat(bytes)), |count| "a: x\r\n".repeat(count));
    assert_eq!(asked(long(limits::TOKEN_BYTES)).await, "HTTP/1.1 200 OK");
    assert_eq!(asked(many(90)).await, "HTTP/1.1 200 OK");
    // hyper's own bound is 100.
    assert_eq!(asked(many(200)).await, "HTTP/1.1 431 Request Header Fields Too Large");
    assert_eq!(asked(long(limits::HEAD_BYTES)).await, "HTTP/1.1 431 Request Header Fields Too Large");
    assert_eq!(fake.calls.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_is_given_up_and_a_slow_one_is_not() {
    let (mut reader, stream) = tokio::io::duplex(4);
    let mut server = Impatient::new(stream);
    let slow = tokio::spawn(async move {
        let mut some = [0; 4];
        for _ in 0..4 {
            tokio::time::sleep(WRITE_WITHIN / 2).await;
            reader.read_exact(&mut some).await.unwrap();
        }
        reader
    });
    server.write_all(&[b'x'; 16]).await.unwrap();
    let _reader = slow.await.unwrap();
    server.write_all(&[b'x'; 4]).await.unwrap();
    let before = tokio::time::Instant::now();
    let stuck = tokio::time::timeout(WRITE_WITHIN * 10, server.write_all(b"x")).await.expect("it waits for ever");
    assert_eq!(stuck.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(before.elapsed(), WRITE_WITHIN);
}
