//! The repository that was opened, as its `config` tells: who writes looks at it again before each object.
//!
//! Invariant: nothing is written where another repository, or none, stands; and what `config` says of recipients is never
//! older than the last object that was written.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use backup_core::error::Result;
use bytes::Bytes;
use tokio::sync::Mutex;

use super::config::Config;
use super::crypto::Key;
use crate::place;

/// See the module.
pub(super) struct Opened {
    /// Shared with the repository; replaced when somebody changed the recipients.
    config: Arc<Mutex<Config>>,
    /// Its object as it was found last.
    last: SyncMutex<Bytes>,
    index_key: Key,
}

impl Opened {
    /// The repository whose `config` is, and was read from, `object`.
    pub(super) fn new(config: Arc<Mutex<Config>>, object: Bytes, index_key: Key) -> Self {
        Self { config, last: SyncMutex::new(object), index_key }
    }

    /// Whether the recipients are, one of them at least, among those that `config` names.
    pub(super) async fn names(&self, recipients: &[String]) -> bool {
        self.config.lock().await.names(recipients)
    }

    /// Takes the `config` that stands in the store now.
    ///
    /// # Errors
    /// [`NoRepository`](backup_core::ErrorKind::NoRepository) when it is that of another repository;
    /// [`Damaged`](backup_core::ErrorKind::Damaged) when nobody who has the keys wrote it.
    pub(super) async fn confirm(&self, object: Bytes, describe: &str) -> Result<()> {
        if *self.last.lock().unwrap_or_else(PoisonError::into_inner) == object {
            return Ok(());
        }
        let found = Config::parse(&object)?;
        let mut config = self.config.lock().await;
        if found.repository_id != config.repository_id {
            return Err(place::another(describe));
        }
        found.check_mac(&self.index_key)?;
        *config = found;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = object;
        Ok(())
    }
}
