//! TLS to a server that an engine speaks to: the plan's settings, and a connector that knows no service.
//!
//! Invariant: a server is trusted as the plan says and no further: `full` is the default, and anything less is written
//! there in plain words. A private key is read, used, and named in no error.

mod failure;
mod stream;
mod trust;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, ErrorKind, Result};

pub use failure::explain;
pub use stream::TlsStream;

/// A server that has not shaken hands by then does not speak TLS on this port.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// A file of certificates that is longer is none: the whole system's store has a fifth of it.
const MAX_PEM_BYTES: u64 = 4 * 1024 * 1024;
/// Those of large authorities have some tens of megabytes.
const MAX_REVOKED_BYTES: u64 = 64 * 1024 * 1024;
/// A folder of lists has one or two for each authority.
const MAX_REVOKED_FILES: usize = 256;

/// How a connection is made private, and how far the server must prove who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificates of the authorities to trust, a PEM file; a server's own certificate may stand there, too, and is
    /// then trusted as it is. By default the system's authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Lists of certificates that their authorities have revoked: PEM files, or folders of them. When there is any, each
    /// certificate on the way to the authority must have a list that is in force, and not be on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crl: Vec<PathBuf>,
    /// The certificate that we show to the server, a PEM file, with those of its issuers behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The private key of `cert`, a PEM file that is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have. By default the host that the connection goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// What the server must prove. By default `full`.
    #[serde(default)]
    pub verify: Verification,
}

/// What a server must prove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// That a trusted authority vouches for it, and under the name that we asked for.
    #[default]
    Full,
    /// That a trusted authority vouches for it, under whatever name.
    Ca,
    /// Nothing: whoever answers is believed. What passes is hidden from those who only listen.
    None,
}

impl TlsConfig {
    /// The same, with relative paths starting from `folder`.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        let join = |path: Option<PathBuf>| path.map(|path| folder.join(path));
        let crl = self.crl.iter().map(|path| folder.join(path)).collect();
        Self { ca: join(self.ca), crl, cert: join(self.cert), key: join(self.key), ..self }
    }

    /// Looks, without reading any file, whether the settings fit together.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] for a certificate without its key, or a `ca` or `crl` that nobody would look at.
    pub fn check(&self) -> Result<()> {
        let fault = |message: &'static str| Error::new(ErrorKind::Plan, message);
        if self.cert.is_some() != self.key.is_some() {
            return Err(fault("`cert` and `key` of `tls` need each other").hint("name both files, or neither"));
        }
        if self.verify == Verification::None && self.ca.is_some() {
            return Err(fault("`tls` names a `ca`, and `verify: none` trusts everybody")
                .hint("leave one of them out; `verify: ca` accepts any name of the server"));
        }
        if self.verify == Verification::None && !self.crl.is_empty() {
            return Err(fault("`tls` names a `crl`, and `verify: none` trusts everybody")
                .hint("leave one of them out; `verify: ca` accepts any name of the server"));
        }
        Ok(())
    }
}

/// Makes connections private. Cheap to clone; the files of the plan are read once, when it is made.
#[derive(Clone)]
pub struct TlsConnector {
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsConnector {
    /// Reads the files that `config` names, for connections to `host`: a name or an address. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] for settings, files or a name that cannot be used; the message names the file.
    pub fn new(config: &TlsConfig, host: &str) -> Result<Self> {
        config.check()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trust = trust::Trust::new(config, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::new(ErrorKind::Internal, "the TLS library has no protocol").caused_by(source))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust));
        let client = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => {
                builder.with_client_auth_cert(certificates(cert)?, private_key(key)?).map_err(|source| {
                    Error::new(ErrorKind::Plan, "the client's certificate and key cannot be used")
                        .with("cert", cert.display())
                        .with("key", key.display())
                        .hint("look whether the key belongs to the certificate")
                        .caused_by(source)
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Self { client: Arc::new(client), name: server_name(config, host)? })
    }

    /// Offers this application protocol (ALPN), for servers that insist on one.
    #[must_use]
    pub fn with_protocol(mut self, protocol: &str) -> Self {
        Arc::make_mut(&mut self.client).alpn_protocols = vec![protocol.as_bytes().to_vec()];
        self
    }

    /// Shakes hands over `stream`. Dropping the future drops the stream.
    ///
    /// A server may refuse our certificate only after that (TLS 1.3): then the first read fails, and [`explain`] says why.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] when one side does not trust the other, [`ErrorKind::Unreachable`] when the server
    /// does not speak TLS here, [`ErrorKind::Unsupported`] when it speaks only what is too old.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Result<TlsStream<S>> {
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.client));
        match tokio::time::timeout(HANDSHAKE_LIMIT, connector.connect(self.name.clone(), stream)).await {
            Ok(Ok(stream)) => Ok(TlsStream::new(stream)),
            Ok(Err(source)) => Err(failure::of_handshake(source)),
            Err(_) => Err(failure::no_tls().with("waited_seconds", HANDSHAKE_LIMIT.as_secs())),
        }
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").field("name", &self.name).finish_non_exhaustive()
    }
}

fn server_name(config: &TlsConfig, host: &str) -> Result<ServerName<'static>> {
    let name = config.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|source| {
        Error::new(ErrorKind::Plan, format!("`{name}` cannot be the name in a certificate"))
            .hint("name the server by a host name or an address, or set `server_name` of `tls`")
            .caused_by(source)
    })
}

/// Every certificate of a PEM file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path, MAX_PEM_BYTES)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|source| no_pem("certificate", path).caused_by(source))?;
    if found.is_empty() { Err(no_pem("certificate", path)) } else { Ok(found) }
}

/// Every revocation list of a PEM file, or of the files in a folder; whatever else is in them is not looked at.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let failed = |source: std::io::Error| {
        Error::new(ErrorKind::Plan, format!("the revocation lists in {} cannot be read", path.display()))
            .caused_by(source)
    };
    let mut files = vec![path.to_owned()];
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        let entries = std::fs::read_dir(path).map_err(failed)?.take(MAX_REVOKED_FILES + 1);
        files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)?;
        if files.len() > MAX_REVOKED_FILES {
            let message = format!("{} has more than {MAX_REVOKED_FILES} files", path.display());
            return Err(Error::new(ErrorKind::Plan, message).hint("let it hold the revocation lists alone"));
        }
    }
    let mut lists = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = read(file, MAX_REVOKED_BYTES)?;
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        lists.extend(found.map_err(|source| no_pem("revocation list", file).caused_by(source))?);
    }
    // None at all would switch off what was asked for.
    if lists.is_empty() { Err(no_pem("revocation list", path)) } else { Ok(lists) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = zeroize::Zeroizing::new(read(path, MAX_PEM_BYTES)?);
    // Not its cause: what cannot be parsed may be quoted there.
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let encrypted = String::from_utf8_lossy(&text).contains("ENCRYPTED");
        let error = no_pem("private key", path);
        if encrypted {
            error.hint("it is encrypted: write a copy that is not (`openssl pkey -in KEY -out PLAIN`, mode 0600)")
        } else {
            error
        }
    })
}

fn no_pem(what: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Plan, format!("there is no usable {what} in {}", path.display()))
        .hint(format!("it must hold a {what} in PEM form: -----BEGIN …"))
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source: std::io::Error| {
        Error::new(ErrorKind::Plan, format!("the TLS file {} cannot be read", path.display())).caused_by(source)
    };
    if std::fs::metadata(path).map_err(failed)?.len() > limit {
        return Err(Error::new(ErrorKind::Plan, format!("{} is too long for what it shall hold", path.display())));
    }
    std::fs::read(path).map_err(failed)
}
