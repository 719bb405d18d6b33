//! The server over TLS, with certificates that change.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::fake::Fake;
use super::*;
use crate::http::serve::HANDSHAKE_WITHIN;
use crate::http::{Tls, serve};

/// A Secret's volume: files that are links into a folder that is a link, which is replaced by one rename.
struct Volume(tempfile::TempDir);

impl Volume {
    fn new() -> (Self, CertificateDer<'static>) {
        let volume = Self(tempfile::tempdir().unwrap());
        let first = volume.issue(1);
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(format!("..data/{name}"), volume.0.path().join(name)).unwrap();
        }
        (volume, first)
    }

    fn put(&self, version: u32, cert: &str, key: &str) {
        let folder = self.0.path().join(format!("..{version}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("tls.crt"), cert).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        std::os::unix::fs::symlink(&folder, self.0.path().join("..data_tmp")).unwrap();
        fs::rename(self.0.path().join("..data_tmp"), self.0.path().join("..data")).unwrap();
    }

    fn issue(&self, version: u32) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).unwrap();
        self.put(version, &made.cert.pem(), &made.signing_key.serialize_pem());
        made.cert.der().clone()
    }

    fn open(&self) -> Result<Tls, String> {
        Tls::open(&self.0.path().join("tls.crt"), &self.0.path().join("tls.key")).map_err(|why| why.to_string())
    }
}

async fn started(tls: &Arc<Tls>, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(Arc::new(Fake::default()), options());
    tokio::spawn(serve(listener, app, Some(Arc::clone(tls)), stop.clone().cancelled_owned()));
    let tls = Arc::clone(tls);
    let stop = stop.clone();
    tokio::spawn(async move { tls.watch(stop).await });
    address
}

async fn connect(address: SocketAddr, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("gateway").unwrap(), stream).await
}

async fn asked(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 1_024];
    let mut answer = String::new();
    while !answer.ends_with("ok\n") {
        let count = stream.read(&mut some).await.unwrap();
        assert_ne!(count, 0, "{answer}");
        answer += std::str::from_utf8(&some[..count]).unwrap();
    }
    answer
}

/// Lets the time pass after which files are read again.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn new_connections_see_the_new_certificate_and_old_ones_go_on() {
    let (volume, first) = Volume::new();
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let address = started(&Arc::new(volume.open().unwrap()), &stop).await;
    let mut old = connect(address, &first).await.unwrap();
    assert!(asked(&mut old).await.starts_with("HTTP/1.1 200 OK"));

    let second = volume.issue(2);
    later().await;
    assert!(connect(address, &first).await.is_err(), "the old certificate is shown");
    let mut new = connect(address, &second).await.unwrap();
    assert!(asked(&mut new).await.starts_with("HTTP/1.1 200 OK"));
    assert!(asked(&mut old).await.starts_with("HTTP/1.1 200 OK"));

    // A bad pair changes nothing, and a good one after it does.
    volume.put(3, "nothing", "of use");
    later().await;
    connect(address, &second).await.unwrap();
    let fourth = volume.issue(4);
    later().await;
    connect(address, &fourth).await.unwrap();
    assert!(asked(&mut old).await.starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn what_is_no_certificate_with_its_key_is_refused_without_a_word_of_the_key() {
    let (volume, _) = Volume::new();
    let read = |name: &str| fs::read_to_string(volume.0.path().join(name)).unwrap();
    let (cert, key) = (read("tls.crt"), read("tls.key"));
    let other = rcgen::generate_simple_self_signed(vec!["gateway".to_owned()]).unwrap().signing_key.serialize_pem();
    let long = "x".repeat((1 << 20) + 1);
    for (version, (cert, key, words)) in [
        (key.as_str(), key.as_str(), "tls.crt holds no certificate in PEM"),
        (cert.as_str(), cert.as_str(), "tls.key holds no private key in PEM"),
        (&cert, &key.replace('M', "!"), "tls.key holds no private key in PEM"),
        (&cert, other.as_str(), "can't be used"),
        (&long, &key, "is longer than 1048576 bytes"),
    ]
    .into_iter()
    .enumerate()
    {
        volume.put(u32::try_from(version).unwrap() + 2, cert, key);
        let why = volume.open().err().unwrap();
        assert!(why.contains(words), "{why}");
        let told = key.lines().filter(|line| line.len() > 20 && !line.starts_with('-')).any(|line| why.contains(line));
        assert!(!told, "{why}");
    }
    let missing = Tls::open(Path::new("/nowhere/tls.crt"), Path::new("/nowhere/tls.key")).err().unwrap().to_string();
    assert!(missing.starts_with("can't read /nowhere/tls.crt: No such file"), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_given_up() {
    let (volume, _) = Volume::new();
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let address = started(&Arc::new(volume.open().unwrap()), &stop).await;
    let mut stalled = TcpStream::connect(address).await.unwrap();
    // The first bytes of a client's hello, and no more.
    stalled.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    let before = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(HANDSHAKE_WITHIN * 10, stalled.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "it stays open");
    assert_eq!((before.elapsed(), rest.is_empty()), (HANDSHAKE_WITHIN, true));
}
