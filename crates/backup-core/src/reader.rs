//! What a restorer reads from: one source of one snapshot, each stream checked against its manifest to the last byte.
//!
//! Invariant: the end of a stream is reported only after its length and its SHA-256 were compared with the manifest.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::log::SegmentLog;
use crate::manifest::{ArtifactKind, ArtifactRecord, Manifest, SourceRecord};
use crate::names::{ArtifactName, SourceName};
use crate::sink::{EntryReader, Piece, PieceReader, SnapshotReader, StoredEntry};

/// Zero bytes are delivered in pieces of at most this size.
const ZEROES: &[u8] = &[0; 64 * 1024];

/// Reads the artifacts of one source of one snapshot. Cheap to clone.
#[derive(Clone)]
pub struct BackupReader {
    snapshot: Arc<dyn SnapshotReader>,
    source: SourceName,
    log: Option<SegmentLog>,
}

impl BackupReader {
    /// A reader of `source`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the snapshot has no such source, [`ErrorKind::Incomplete`] when that source failed.
    pub fn new(snapshot: Arc<dyn SnapshotReader>, source: SourceName) -> Result<Self> {
        let manifest = snapshot.manifest();
        let Some(record) = manifest.source(&source) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the snapshot {} has no source `{source}`", manifest.id),
            ));
        };
        if !record.is_complete() {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the source `{source}` failed in the snapshot {}", manifest.id),
            )
            .hint("choose an earlier snapshot; `stackward list` shows which are complete"));
        }
        Ok(Self { snapshot, source, log: None })
    }

    /// Gives the source's log to whoever recovers to a moment after the snapshot.
    #[must_use]
    pub fn with_log(mut self, log: Option<SegmentLog>) -> Self {
        self.log = log;
        self
    }

    /// The source's log, when the sink keeps logs.
    #[must_use]
    pub fn log(&self) -> Option<&SegmentLog> {
        self.log.as_ref()
    }

    /// The whole manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.snapshot.manifest()
    }

    /// The source's name.
    #[must_use]
    pub fn source(&self) -> &SourceName {
        &self.source
    }

    /// The source's record.
    ///
    /// # Panics
    /// Never: [`BackupReader::new`] found it.
    #[must_use]
    pub fn record(&self) -> &SourceRecord {
        self.manifest().source(&self.source).expect("found by new")
    }

    /// Opens a stream artifact.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no stream of this name; also when the sink fails.
    pub async fn stream(&self, name: &ArtifactName) -> Result<ArtifactReader> {
        let record = self.find(name, ArtifactKind::Stream)?;
        let pieces = self.snapshot.stream(&self.source, record).await?;
        Ok(ArtifactReader { record: record.clone(), pieces, digest: Sha256::new(), bytes: 0, zeroes: 0, ended: false })
    }

    /// Opens a tree artifact.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no tree of this name; also when the sink fails.
    pub async fn tree(&self, name: &ArtifactName) -> Result<TreeReader> {
        let record = self.find(name, ArtifactKind::Tree)?;
        let entries = self.snapshot.tree(&self.source, record).await?;
        Ok(TreeReader { expected: record.entries, name: name.clone(), entries, seen: 0 })
    }

    /// Reads a whole small stream.
    ///
    /// # Errors
    /// As [`BackupReader::stream`]; also when it is longer than `limit` bytes.
    pub async fn read(&self, name: &ArtifactName, limit: u64) -> Result<Vec<u8>> {
        let mut reader = self.stream(name).await?;
        if reader.record.bytes > limit {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the artifact `{name}` is longer than {limit} bytes"),
            ));
        }
        let mut content = Vec::new();
        while let Some(data) = reader.next().await? {
            content.extend_from_slice(&data);
        }
        Ok(content)
    }

    fn find(&self, name: &ArtifactName, kind: ArtifactKind) -> Result<&ArtifactRecord> {
        self.record().artifact(name).filter(|record| record.kind == kind).ok_or_else(|| {
            let what = if kind == ArtifactKind::Tree { "tree" } else { "stream" };
            Error::new(
                ErrorKind::NotFound,
                format!("`{}` has no {what} `{name}` in {}", self.source, self.manifest().id),
            )
        })
    }
}

impl fmt::Debug for BackupReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupReader").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Reads one stream artifact.
pub struct ArtifactReader {
    record: ArtifactRecord,
    pieces: Box<dyn PieceReader>,
    digest: Sha256,
    bytes: u64,
    zeroes: u64,
    ended: bool,
}

impl ArtifactReader {
    /// The artifact's record.
    #[must_use]
    pub fn record(&self) -> &ArtifactRecord {
        &self.record
    }

    /// The next bytes; `None` after the last, once length and SHA-256 were found to be those of the manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when they are not; also when the sink fails. Not cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let data = if self.zeroes > 0 { Some(self.take_zeroes()) } else { self.next_piece().await? };
        match data {
            Some(data) => {
                self.digest.update(&data);
                self.bytes += data.len() as u64;
                Ok(Some(data))
            }
            None => self.check_end().map(|()| None),
        }
    }

    /// Writes everything to `to` and returns the number of bytes. Flushes, does not shut down.
    ///
    /// # Errors
    /// As [`ArtifactReader::next`]; also when writing fails, or `cx` was cancelled.
    pub async fn copy_to(mut self, cx: &RunContext, mut to: impl AsyncWrite + Unpin) -> Result<u64> {
        let broken = |source| Error::from_io("cannot hand on the data", source);
        while let Some(data) = cx.unless_cancelled(self.next()).await? {
            cx.unless_cancelled(async { to.write_all(&data).await.map_err(broken) }).await?;
            cx.progress(data.len() as u64, 0);
        }
        to.flush().await.map_err(broken)?;
        Ok(self.bytes)
    }

    async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        match self.pieces.next().await? {
            Some(Piece::Data(data)) => Ok(Some(data)),
            Some(Piece::Hole(length)) => {
                self.zeroes = length;
                Ok(Some(self.take_zeroes()))
            }
            None => Ok(None),
        }
    }

    fn take_zeroes(&mut self) -> Bytes {
        let count = usize::try_from(self.zeroes).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
        self.zeroes -= count as u64;
        Bytes::from_static(&ZEROES[..count])
    }

    fn check_end(&mut self) -> Result<()> {
        let name = &self.record.name;
        if self.bytes != self.record.bytes {
            let message = format!("the artifact `{name}` has {} bytes, {} were read", self.record.bytes, self.bytes);
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        let digest = hex::encode(std::mem::take(&mut self.digest).finalize());
        if self.record.sha256.as_ref().is_some_and(|expected| *expected != digest) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the artifact `{name}` does not have the SHA-256 of its manifest"),
            ));
        }
        self.ended = true;
        Ok(())
    }
}

impl fmt::Debug for ArtifactReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArtifactReader")
            .field("name", &self.record.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Reads the entries of one tree artifact.
pub struct TreeReader {
    expected: Option<u64>,
    name: ArtifactName,
    entries: Box<dyn EntryReader>,
    seen: u64,
}

impl TreeReader {
    /// The next entry; `None` after the last, once the count was found to be that of the manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is not; also when the sink fails.
    pub async fn next(&mut self) -> Result<Option<StoredEntry>> {
        let entry = self.entries.next().await?;
        match &entry {
            Some(_) => self.seen += 1,
            None if self.expected.is_some_and(|expected| expected != self.seen) => {
                let message = format!("the tree `{}` has {} entries, not those of its manifest", self.name, self.seen);
                return Err(Error::new(ErrorKind::Damaged, message));
            }
            None => {}
        }
        Ok(entry)
    }
}

impl fmt::Debug for TreeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeReader").field("name", &self.name).field("seen", &self.seen).finish_non_exhaustive()
    }
}
