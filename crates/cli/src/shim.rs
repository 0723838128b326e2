//! Stands in for the crate `storage` until it is merged, with exactly its signatures; keys are real, sinks are refused.
#![expect(clippy::unused_async, unreachable_pub, reason = "the signatures are those of the crate `storage`")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::plan::{RepositoryConfig, SinkConfig};
use backup_core::secret::Secret;
use backup_core::sink::Sink;
use backup_core::{Error, ErrorKind, Result};

/// What may open content. Empty: a writing host, which can back up, list and check, and not read.
#[derive(Debug, Default, Clone)]
pub struct Unlock {
    /// Private keys.
    pub identities: Vec<Secret>,
    /// The passphrase.
    pub passphrase: Option<Secret>,
}

/// What `create` did.
#[derive(Debug)]
pub struct Created {
    /// The sink, in a few words.
    pub description: String,
    /// `false` when it was there already.
    pub created: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Who can read a repository.
#[derive(Debug)]
pub struct RecipientInfo {
    /// The public key.
    pub recipient: String,
    /// When it was added.
    pub added: jiff::Timestamp,
    /// Whether its private half lies in the repository, under the passphrase.
    pub passphrase: bool,
}

/// An open repository.
#[derive(Debug)]
pub struct Repository(());

fn missing<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "this build has no storage"))
}

pub async fn create(_: &SinkConfig, _: &Path) -> Result<Created> {
    missing()
}

pub async fn open(_: &SinkConfig, _: &Path, _: &Unlock) -> Result<Arc<dyn Sink>> {
    missing()
}

pub async fn open_repository(_: &RepositoryConfig, _: &Path, _: &Unlock) -> Result<Repository> {
    missing()
}

impl Repository {
    /// Who can read it.
    pub async fn recipients(&self) -> Result<Vec<RecipientInfo>> {
        missing()
    }
    /// Lets a key read.
    pub async fn add_recipient(&self, _: &str) -> Result<u64> {
        missing()
    }
    /// Stops a key from reading.
    pub async fn remove_recipient(&self, _: &str) -> Result<u64> {
        missing()
    }
    /// Writes this machine's writer key.
    pub async fn enroll(&self) -> Result<PathBuf> {
        missing()
    }
}

/// Key pairs.
pub mod keys {
    use std::path::Path;

    use backup_core::secret::Secret;
    use backup_core::{Error, ErrorKind, Result};

    /// A key pair.
    #[derive(Debug)]
    pub struct KeyPair {
        /// The private half: `AGE-SECRET-KEY-1…`.
        pub identity: Secret,
        /// The public half: `age1…`.
        pub recipient: String,
    }

    /// Makes a new one.
    pub fn generate() -> KeyPair {
        use age::secrecy::ExposeSecret;
        let identity = age::x25519::Identity::generate();
        KeyPair {
            recipient: identity.to_public().to_string(),
            identity: Secret::new(identity.to_string().expose_secret()),
        }
    }

    /// Whether it is a public key.
    pub fn check_recipient(text: &str) -> Result<()> {
        text.parse::<age::x25519::Recipient>().map(|_| ()).map_err(|source| {
            Error::new(ErrorKind::Usage, format!("`{text}` is not a public key: {source}"))
                .hint("a public key looks like age1…; `stackward key generate` makes a pair")
        })
    }

    /// The public half of a private key.
    pub fn recipient_of(identity: &Secret) -> Result<String> {
        let parsed: age::x25519::Identity = identity
            .expose()
            .parse()
            .map_err(|source: &str| Error::new(ErrorKind::WrongKey, format!("not a private key: {source}")))?;
        Ok(parsed.to_public().to_string())
    }

    /// Reads a file of private keys.
    pub fn read_identities(path: &Path) -> Result<Vec<Secret>> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("cannot read the key", path, source))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(lines.map(Secret::new).collect())
    }
}
