//! Sinks: the repository (deduplicating, encrypted, over any object store) and the plain directory.
//!
//! [`open`] turns a plan's sink into a [`Sink`]; [`Repository`] and its format are described in `docs/format.md`.

mod directory;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod keys;
mod location;
mod ordered;
mod place;
mod places;
mod repository;
mod run_lock;
mod summaries;

use std::path::Path;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::{RepositoryConfig, SinkConfig};
use backup_core::secret::SecretRef;
use backup_core::sink::Sink;

pub use directory::Directory;
pub use keys::Unlock;
pub use places::local_places;
pub use repository::logs::quick::QuickLog;
pub use repository::{Created, RecipientInfo, Repository, RepositoryOptions};
pub use run_lock::RunLock;

/// Whether [`create`] and [`open`] would understand the place that the plan names: what `validate` says without looking at
/// a disk or asking a store. `folder` is where relative paths start.
///
/// # Errors
/// [`ErrorKind::Plan`].
pub fn check(sink: &SinkConfig, folder: &Path) -> Result<()> {
    match sink {
        SinkConfig::Repository(config) => location::check(&config.url, folder, &config.requests),
        SinkConfig::Directory(config) => location::folder_of(&config.path, folder).map(drop),
    }
}

/// Makes the place that the plan names, if it is not there. `folder` is where relative paths start.
///
/// # Errors
/// See [`Repository::create`] and [`Directory::create`].
pub async fn create(sink: &SinkConfig, folder: &Path) -> Result<Created> {
    match sink {
        SinkConfig::Repository(config) => {
            let location = location::resolve(&config.url, folder, location::Missing::Create, &config.requests)?;
            let passphrase = config.passphrase.as_ref().map(SecretRef::resolve).transpose()?;
            let options = RepositoryOptions { passphrase, ..options(config, folder)? };
            Repository::create(location.store, &location.describe, &options).await
        }
        SinkConfig::Directory(config) => Directory::create(config, folder).await,
    }
}

/// Opens the place that the plan names. `folder` is where relative paths start.
///
/// # Errors
/// See [`Repository::open`] and [`Directory::open`].
pub async fn open(sink: &SinkConfig, folder: &Path, unlock: &Unlock) -> Result<Arc<dyn Sink>> {
    match sink {
        SinkConfig::Repository(config) => Ok(Arc::new(open_repository(config, folder, unlock).await?)),
        SinkConfig::Directory(config) => Ok(Arc::new(Directory::open(config, folder).await?)),
    }
}

/// Opens a repository, to manage its recipients.
///
/// # Errors
/// See [`Repository::open`].
pub async fn open_repository(config: &RepositoryConfig, folder: &Path, unlock: &Unlock) -> Result<Repository> {
    let location = location::resolve(&config.url, folder, location::Missing::Refuse, &config.requests)?;
    Repository::open(location.store, &location.describe, &options(config, folder)?, unlock).await
}

fn options(config: &RepositoryConfig, folder: &Path) -> Result<RepositoryOptions> {
    for recipient in &config.recipients {
        keys::check_recipient(recipient)?;
    }
    Ok(RepositoryOptions {
        recipients: config.recipients.clone(),
        // Only a creation needs it: who writes later does so without.
        passphrase: None,
        encryption: config.encryption,
        level: i32::from(config.compression_level),
        state: config.state.as_ref().map(|state| folder.join(state)),
    })
}

/// Runs blocking work away from the threads that serve everybody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|source| Error::new(ErrorKind::Internal, "blocking work did not end").caused_by(source))?
}
