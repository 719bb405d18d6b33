//! The certificate by which the gateway shows who it is: two files, read again when they change.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::limits;

/// How often the files are looked at. Not by notification: a Secret's file changes by a symbolic link two folders up.
const LOOK: Duration = Duration::from_secs(5);

/// Why a certificate and its key are not taken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {}: {why}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, without anything of a key.
        why: String,
    },
    /// Each is good, but not with the other.
    #[error("the certificate {} and the key {} can't be used: {why}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: rustls::Error,
    },
}

/// Certificate and key, as they are in their files.
type Files = (Vec<u8>, Vec<u8>);

/// The certificate and key that new connections get.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    /// What was read at first.
    opened: Files,
    now: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads a chain of certificates and the key of its first, both in PEM.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let opened = (read(cert)?, read(key)?);
        let config = config(cert, key, &opened)?;
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), opened, now: Mutex::new(config) })
    }

    pub(super) fn now(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again whenever they change, until `stop`. A pair that is not good is told once and changes nothing.
    pub async fn watch(&self, stop: CancellationToken) {
        let mut last = Some(self.opened.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let files = self.read();
            let found = files.as_ref().ok().cloned();
            // While a Secret is replaced, one file may be of before and one of after: not until two looks agree.
            if found == last || found != self.read().ok() {
                continue;
            }
            last = found;
            match files.and_then(|files| config(&self.cert, &self.key, &files)) {
                Ok(config) => {
                    *self.now.lock().unwrap_or_else(PoisonError::into_inner) = config;
                    tracing::info!(cert = %self.cert.display(), "the certificate has changed");
                }
                Err(why) => tracing::error!("{why}; new connections go on with the certificate of before"),
            }
        }
    }

    fn read(&self) -> Result<Files, TlsError> {
        Ok((read(&self.cert)?, read(&self.key)?))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut content = Vec::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(limits::TLS_FILE_BYTES + 1).read_to_end(&mut content));
    file.map_err(|why| TlsError::Read { path: path.to_owned(), why })?;
    if content.len() as u64 > limits::TLS_FILE_BYTES {
        return Err(TlsError::Content { path: path.to_owned(), why: format!("is longer than {} bytes", limits::TLS_FILE_BYTES) });
    }
    Ok(content)
}

fn config(cert: &Path, key: &Path, (chain, secret): &Files) -> Result<Arc<ServerConfig>, TlsError> {
    let content = |path: &Path, why: &str| TlsError::Content { path: path.to_owned(), why: why.to_owned() };
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| content(cert, "holds no certificate in PEM"))?;
    // What the parser says may repeat what it read.
    let secret = PrivateKeyDer::from_pem_slice(secret).map_err(|_| content(key, "holds no private key in PEM"))?;
    let pair = |why| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), why };
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions().map_err(pair)?.with_no_client_auth().with_single_cert(chain, secret).map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
