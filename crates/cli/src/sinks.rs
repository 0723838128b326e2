//! Opening the place where snapshots are kept, behind a trait so that tests can keep them in memory.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::plan::{RepositoryConfig, SinkConfig};
use backup_core::sink::Sink;
use backup_core::{PlanName, Result, SourceName};

use storage as backend;
pub use storage::{Created, QuickLog, RecipientInfo, Repository, RunLock, Unlock, keys, local_places};

/// What makes and opens sinks. `folder` is where relative paths of the plan start.
#[async_trait]
pub trait Sinks: std::fmt::Debug + Send + Sync {
    /// Whether making and opening it would understand where it lies. Nothing is looked at.
    ///
    /// # Errors
    /// [`Plan`](backup_core::ErrorKind::Plan).
    fn check(&self, sink: &SinkConfig, folder: &Path) -> Result<()> {
        let (_, _) = (sink, folder);
        Ok(())
    }

    /// Makes the sink, unless it is there already.
    async fn create(&self, sink: &SinkConfig, folder: &Path) -> Result<Created>;

    /// Opens it.
    ///
    /// # Errors
    /// [`NoRepository`](backup_core::ErrorKind::NoRepository), [`WrongKey`](backup_core::ErrorKind::WrongKey).
    async fn open(&self, sink: &SinkConfig, folder: &Path, unlock: &Unlock) -> Result<Arc<dyn Sink>>;

    /// The short way to the logs of a repository, where there is one; see [`QuickLog::open`].
    ///
    /// # Errors
    /// Those of opening a repository.
    fn quick_log(&self, sink: &SinkConfig, folder: &Path) -> Result<Option<QuickLog>> {
        let (_, _) = (sink, folder);
        Ok(None)
    }

    /// Keeps others on this machine from backing up `sources` of `plan` at the same time, as long as the answer lives.
    ///
    /// # Errors
    /// [`Busy`](backup_core::ErrorKind::Busy) when somebody does.
    fn lock(
        &self,
        sink: &SinkConfig,
        folder: &Path,
        plan: &PlanName,
        sources: &[&SourceName],
    ) -> Result<Option<RunLock>> {
        let (_, _, _, _) = (sink, folder, plan, sources);
        Ok(None)
    }

    /// Opens a repository to change its keys.
    async fn repository(&self, config: &RepositoryConfig, folder: &Path, unlock: &Unlock) -> Result<Repository>;
}

/// The sinks of the crate `storage`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored;

#[async_trait]
impl Sinks for Stored {
    fn check(&self, sink: &SinkConfig, folder: &Path) -> Result<()> {
        backend::check(sink, folder)
    }

    async fn create(&self, sink: &SinkConfig, folder: &Path) -> Result<Created> {
        backend::create(sink, folder).await
    }

    async fn open(&self, sink: &SinkConfig, folder: &Path, unlock: &Unlock) -> Result<Arc<dyn Sink>> {
        backend::open(sink, folder, unlock).await
    }

    fn quick_log(&self, sink: &SinkConfig, folder: &Path) -> Result<Option<QuickLog>> {
        match sink {
            SinkConfig::Repository(config) => QuickLog::open(config, folder),
            SinkConfig::Directory(_) => Ok(None),
        }
    }

    fn lock(
        &self,
        sink: &SinkConfig,
        folder: &Path,
        plan: &PlanName,
        sources: &[&SourceName],
    ) -> Result<Option<RunLock>> {
        RunLock::take(sink, folder, plan, sources).map(Some)
    }

    async fn repository(&self, config: &RepositoryConfig, folder: &Path, unlock: &Unlock) -> Result<Repository> {
        backend::open_repository(config, folder, unlock).await
    }
}
