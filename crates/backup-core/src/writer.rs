//! What a source writes into: concrete types that enforce the rules whatever the sink.
//!
//! Invariant: nothing here commits. An artifact that was opened and not sealed fails its source, even when the source says it succeeded.

use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::evidence::{Evidence, EvidenceRecord};
use crate::manifest::{ArtifactKind, ArtifactRecord};
use crate::names::ArtifactName;
use crate::sink::{ChunkHint, FileSink, SnapshotWriter, Stored, StreamSink, TreeSink};
use crate::tree::{EntryKind, TreeEntry, TreePath};

/// The size of the pieces that [`ArtifactWriter::copy_from`] reads.
const COPY_BYTES: usize = 1024 * 1024;

/// Writes the artifacts of one source in one snapshot. Artifacts may be written concurrently.
#[derive(Clone)]
pub struct BackupWriter {
    cx: RunContext,
    snapshot: Arc<dyn SnapshotWriter>,
    ledger: Arc<Mutex<Ledger>>,
}

/// Which artifacts were opened, and what became of them.
#[derive(Debug, Default)]
struct Ledger {
    open: Vec<ArtifactName>,
    sealed: Vec<ArtifactRecord>,
}

impl BackupWriter {
    /// For the runner and for conformance suites: a writer for `cx.source()` into `snapshot`.
    #[must_use]
    pub fn new(cx: RunContext, snapshot: Arc<dyn SnapshotWriter>) -> Self {
        Self { cx, snapshot, ledger: Arc::default() }
    }

    /// Begins a stream artifact.
    ///
    /// # Errors
    /// When the name was used before, or the sink fails.
    pub async fn artifact(&self, name: ArtifactName, hint: ChunkHint) -> Result<ArtifactWriter> {
        self.open(&name)?;
        let sink = self.snapshot.stream(self.cx.source(), &name, hint).await?;
        Ok(ArtifactWriter { scope: self.clone(), name, sink, digest: Sha256::new(), bytes: 0 })
    }

    /// Begins a tree artifact.
    ///
    /// # Errors
    /// When the name was used before, or the sink fails.
    pub async fn tree(&self, name: ArtifactName) -> Result<TreeWriter> {
        self.open(&name)?;
        let sink = self.snapshot.tree(self.cx.source(), &name).await?;
        Ok(TreeWriter { scope: self.clone(), name, sink, entries: Arc::default(), last: None })
    }

    /// For the runner and for conformance suites: the sealed artifacts.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when an artifact was left unsealed, or when there is none at all.
    pub fn close(&self) -> Result<Vec<ArtifactRecord>> {
        let ledger = self.ledger()?;
        if let Some(name) = ledger.open.first() {
            return Err(Error::new(ErrorKind::Incomplete, format!("the artifact `{name}` was not sealed")));
        }
        if ledger.sealed.is_empty() {
            return Err(Error::new(ErrorKind::Incomplete, "the source saved nothing"));
        }
        let mut sealed = ledger.sealed.clone();
        sealed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sealed)
    }

    fn ledger(&self) -> Result<std::sync::MutexGuard<'_, Ledger>> {
        self.ledger.lock().map_err(|_| Error::new(ErrorKind::Internal, "a writer panicked"))
    }

    fn open(&self, name: &ArtifactName) -> Result<()> {
        self.cx.check_cancelled()?;
        let mut ledger = self.ledger()?;
        let used = ledger.open.contains(name) || ledger.sealed.iter().any(|record| record.name == *name);
        if used {
            return Err(Error::new(ErrorKind::Internal, format!("the artifact `{name}` was begun twice")));
        }
        ledger.open.push(name.clone());
        Ok(())
    }

    fn seal(&self, record: &ArtifactRecord) -> Result<()> {
        let mut ledger = self.ledger()?;
        ledger.open.retain(|name| *name != record.name);
        ledger.sealed.push(record.clone());
        drop(ledger);
        self.cx.report(&Event::Sealed {
            source: self.cx.source().clone(),
            artifact: record.name.clone(),
            bytes: record.bytes,
            stored_bytes: record.stored_bytes,
        });
        Ok(())
    }
}

impl fmt::Debug for BackupWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupWriter").field("source", self.cx.source()).finish_non_exhaustive()
    }
}

/// Writes one stream artifact. Dropped unsealed, it fails its source.
pub struct ArtifactWriter {
    scope: BackupWriter,
    name: ArtifactName,
    sink: Box<dyn StreamSink>,
    digest: Sha256,
    bytes: u64,
}

impl ArtifactWriter {
    /// Appends.
    ///
    /// # Errors
    /// When the sink fails or the run was cancelled.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.scope.cx.check_cancelled()?;
        self.digest.update(&data);
        let count = data.len() as u64;
        self.bytes += count;
        self.sink.write(data).await?;
        self.scope.cx.progress(count, 0);
        Ok(())
    }

    /// Appends everything that `from` has and returns the number of bytes. Its end proves nothing: seal with evidence.
    ///
    /// # Errors
    /// When reading or writing fails, or the run was cancelled.
    pub async fn copy_from(&mut self, mut from: impl AsyncRead + Unpin) -> Result<u64> {
        let before = self.bytes;
        let cx = self.scope.cx.clone();
        loop {
            let mut buffer = BytesMut::with_capacity(COPY_BYTES);
            let ended = cx
                .unless_cancelled(async {
                    while buffer.len() < COPY_BYTES {
                        let count = from.read_buf(&mut buffer).await.map_err(|source| {
                            Error::from_io(format!("cannot read the data of `{}`", self.name), source)
                        })?;
                        if count == 0 {
                            return Ok(true);
                        }
                    }
                    Ok(false)
                })
                .await?;
            if !buffer.is_empty() {
                self.write(buffer.freeze()).await?;
            }
            if ended {
                return Ok(self.bytes - before);
            }
        }
    }

    /// The number of bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Accepts the artifact as complete.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when the evidence contradicts what was written; also when the sink fails.
    pub async fn seal(self, evidence: Evidence) -> Result<ArtifactRecord> {
        check_stream(&self.name, self.bytes, &evidence)?;
        let stored = self.sink.finish().await?;
        let record = record(self.name, ArtifactKind::Stream, stored, &evidence);
        let record = ArtifactRecord { bytes: self.bytes, sha256: Some(hex::encode(self.digest.finalize())), ..record };
        self.scope.seal(&record)?;
        Ok(record)
    }
}

impl fmt::Debug for ArtifactWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArtifactWriter").field("name", &self.name).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

fn check_stream(name: &ArtifactName, bytes: u64, evidence: &Evidence) -> Result<()> {
    match evidence {
        Evidence::ExactLength(expected) if *expected != bytes => Err(Error::new(
            ErrorKind::Incomplete,
            format!("the artifact `{name}` has {bytes} bytes where {expected} were announced"),
        )),
        Evidence::Listing { .. } => {
            Err(Error::new(ErrorKind::Internal, format!("a listing is no evidence for the stream `{name}`")))
        }
        Evidence::Exit { .. } if bytes == 0 => Err(Error::new(
            ErrorKind::Incomplete,
            format!("the artifact `{name}` is empty although its producer ended cleanly"),
        )),
        _ => Ok(()),
    }
}

fn record(name: ArtifactName, kind: ArtifactKind, stored: Stored, evidence: &Evidence) -> ArtifactRecord {
    ArtifactRecord {
        name,
        kind,
        bytes: stored.bytes,
        stored_bytes: stored.stored_bytes,
        entries: None,
        sha256: None,
        evidence: EvidenceRecord::from(evidence),
        content: stored.content,
    }
}

/// Writes one tree artifact. Entries come in the order of their [`TreePath`]s. Dropped unsealed, it fails its source.
pub struct TreeWriter {
    scope: BackupWriter,
    name: ArtifactName,
    sink: Box<dyn TreeSink>,
    entries: Arc<std::sync::atomic::AtomicU64>,
    last: Option<TreePath>,
}

impl TreeWriter {
    /// Adds an entry without content: anything but a regular file.
    ///
    /// # Errors
    /// When entries are out of order, or the sink fails.
    pub async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        if matches!(entry.kind, EntryKind::File { .. }) {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the file `{}` was added without content", entry.path),
            ));
        }
        self.advance(&entry.path)?;
        self.sink.entry(entry).await?;
        self.count();
        Ok(())
    }

    /// Adds a file without reading it when the sink holds its content already; `false` when it must be read.
    ///
    /// # Errors
    /// When entries are out of order, or the sink fails.
    pub async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        let reused = self.sink.reuse(entry).await?;
        if reused {
            self.advance(&entry.path)?;
            self.count();
            self.scope.cx.progress(entry.size(), 1);
        }
        Ok(reused)
    }

    /// Reserves the place of a file; its content may be written from another task while further entries are added.
    ///
    /// # Errors
    /// When entries are out of order, or the sink fails.
    pub async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<FileWriter> {
        self.advance(&path)?;
        let sink = self.sink.file(path.clone(), hint).await?;
        Ok(FileWriter {
            cx: self.scope.cx.clone(),
            path,
            sink,
            bytes: 0,
            unreported: 0,
            entries: Arc::clone(&self.entries),
        })
    }

    /// Accepts the tree as complete. Every [`FileWriter`] must be finished or abandoned.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when a file was left unfinished, or the evidence contradicts what was added.
    pub async fn seal(self, evidence: Evidence) -> Result<ArtifactRecord> {
        let stored = self.sink.finish().await?;
        let entries = self.entries.load(std::sync::atomic::Ordering::Acquire);
        if let Evidence::Listing { entries: expected } = evidence
            && expected != entries
        {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the tree `{}` has {entries} entries where {expected} were listed", self.name),
            ));
        }
        let record = record(self.name, ArtifactKind::Tree, stored, &evidence);
        let record = ArtifactRecord { entries: Some(entries), ..record };
        self.scope.seal(&record)?;
        Ok(record)
    }

    fn advance(&mut self, path: &TreePath) -> Result<()> {
        if self.last.as_ref().is_some_and(|last| last >= path) {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the entry `{path}` is out of order in `{}`", self.name),
            ));
        }
        self.last = Some(path.clone());
        self.scope.cx.check_cancelled()
    }

    fn count(&self) {
        self.entries.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}

impl fmt::Debug for TreeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeWriter").field("name", &self.name).field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Writes the content of one file of a tree. Dropped unfinished, it fails its tree.
pub struct FileWriter {
    cx: RunContext,
    path: TreePath,
    sink: Box<dyn FileSink>,
    bytes: u64,
    unreported: u64,
    entries: Arc<std::sync::atomic::AtomicU64>,
}

/// Progress of a file is reported in steps of this many bytes.
const REPORT_BYTES: u64 = 4 * 1024 * 1024;

impl FileWriter {
    /// Appends bytes.
    ///
    /// # Errors
    /// When the sink fails or the run was cancelled.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.cx.check_cancelled()?;
        self.advance(data.len() as u64);
        self.sink.write(data).await
    }

    /// Appends zero bytes that need not be stored.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn hole(&mut self, length: u64) -> Result<()> {
        self.advance(length);
        self.sink.hole(length).await
    }

    /// Forgets what was written, because the file changed while it was read.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn restart(&mut self) -> Result<()> {
        self.bytes = 0;
        self.sink.restart().await
    }

    /// Ends the file with its final attributes.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when the entry's length is not what was written.
    pub async fn finish(self, entry: TreeEntry) -> Result<()> {
        if entry.path != self.path || !matches!(entry.kind, EntryKind::File { .. }) {
            return Err(Error::new(ErrorKind::Internal, format!("`{}` was finished as something else", self.path)));
        }
        if entry.size() != self.bytes {
            let (size, bytes) = (entry.size(), self.bytes);
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("`{}` has {size} bytes, {bytes} were read", self.path),
            ));
        }
        self.sink.finish(entry).await?;
        self.entries.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        self.cx.progress(self.unreported, 1);
        Ok(())
    }

    /// Leaves the file out, because it vanished.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn abandon(self) -> Result<()> {
        self.sink.abandon().await
    }

    fn advance(&mut self, count: u64) {
        self.bytes += count;
        self.unreported += count;
        if self.unreported >= REPORT_BYTES {
            self.cx.progress(self.unreported, 0);
            self.unreported = 0;
        }
    }
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter").field("path", &self.path).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
