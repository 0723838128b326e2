//! What an earlier snapshot holds of a source, for the run that continues from it.
//!
//! Invariant: it is complete there, and within one run it never changes.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::manifest::SourceRecord;
use crate::names::{ArtifactName, SnapshotId, SourceName};
use crate::reader::{ArtifactReader, BackupReader};
use crate::sink::SnapshotReader;

/// A source as an earlier snapshot has it. See [`BackupWriter::earlier`](super::BackupWriter::earlier).
#[derive(Clone)]
pub struct EarlierSource(BackupReader);

impl EarlierSource {
    pub(super) fn new(snapshot: Arc<dyn SnapshotReader>, source: SourceName) -> Result<Self> {
        BackupReader::new(snapshot, source).map(Self)
    }

    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &SnapshotId {
        &self.0.manifest().id
    }

    /// What its manifest says of the source.
    #[must_use]
    pub fn record(&self) -> &SourceRecord {
        self.0.record()
    }

    /// Opens a stream that was written as a memo; its end is reported only when its length and SHA-256 are right.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) when there is no stream of this name. Reading fails with
    /// [`WrongKey`](crate::ErrorKind::WrongKey) when it was not written as a memo and this machine cannot read backups.
    pub async fn memo(&self, name: &ArtifactName) -> Result<ArtifactReader> {
        self.0.stream(name).await
    }
}

impl fmt::Debug for EarlierSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlierSource").field("snapshot", self.snapshot()).finish_non_exhaustive()
    }
}
