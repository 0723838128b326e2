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
use crate::sink::{ChunkHint, SnapshotWriter, Stored, StreamSink, TreeOrder};

mod earlier;
mod tree;

pub use earlier::EarlierSource;
use tree::Sequence;
pub use tree::{FileWriter, TreeWriter};

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
        Ok(ArtifactWriter::new(self.clone(), name, sink))
    }

    /// Begins a stream artifact that this machine can read again at its next run, without a private key, through
    /// [`BackupWriter::earlier`]: what the next backup must know of this one, a list of files and checksums, say.
    /// It is sealed as listings are, under a key that the writing machine keeps. No user data belongs into it.
    ///
    /// # Errors
    /// When the name was used before, or the sink fails.
    pub async fn memo(&self, name: ArtifactName) -> Result<ArtifactWriter> {
        self.open(&name)?;
        let sink = self.snapshot.memo(self.cx.source(), &name).await?;
        Ok(ArtifactWriter::new(self.clone(), name, sink))
    }

    /// Begins a tree artifact whose entries come in the order of their paths.
    ///
    /// # Errors
    /// When the name was used before, or the sink fails.
    pub async fn tree(&self, name: ArtifactName) -> Result<TreeWriter> {
        self.open(&name)?;
        let sink = self.snapshot.tree(self.cx.source(), &name, TreeOrder::ByPath).await?;
        Ok(TreeWriter::new(self.clone(), name, sink, Sequence::Ascending(None)))
    }

    /// Begins a tree artifact whose entries come in any order, as in a server's archive. No path twice, and the target of
    /// a hard link has a smaller path than the link.
    ///
    /// Repositories sort the listing (in a temporary file below [`RunContext::scratch`] when it is long), so readers see
    /// the usual order; a plain directory keeps the order in which the entries came.
    ///
    /// # Errors
    /// When the name was used before, or the sink fails. Repositories notice a path that came twice when the tree is sealed.
    pub async fn tree_in_any_order(&self, name: ArtifactName) -> Result<TreeWriter> {
        self.open(&name)?;
        let order = TreeOrder::Any { scratch: self.cx.scratch().to_owned() };
        let sink = self.snapshot.tree(self.cx.source(), &name, order).await?;
        Ok(TreeWriter::new(self.clone(), name, sink, Sequence::Free))
    }

    /// What this machine's latest snapshot of this plan holds of this source, when the source was complete there. Within
    /// one run it is always the same snapshot: the one that trees are compared with and that [`FileWriter::keep`] takes from.
    ///
    /// `None` when there is none, when it cannot be read, and where the sink can keep nothing.
    ///
    /// # Errors
    /// When the run was cancelled, or the sink fails.
    pub async fn earlier(&self) -> Result<Option<EarlierSource>> {
        self.cx.check_cancelled()?;
        let source = self.cx.source();
        let reader = self.snapshot.earlier(source).await?;
        reader.map(|reader| EarlierSource::new(reader, source.clone())).transpose()
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
    midst: Midst,
}

impl ArtifactWriter {
    fn new(scope: BackupWriter, name: ArtifactName, sink: Box<dyn StreamSink>) -> Self {
        Self { scope, name, sink, digest: Sha256::new(), bytes: 0, midst: Midst::default() }
    }

    /// Appends. Not cancel safe: once a call was given up while it waited, the artifact can be neither written nor sealed.
    ///
    /// # Errors
    /// When the sink fails or the run was cancelled.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        self.scope.cx.check_cancelled()?;
        self.midst.enter(&self.name)?;
        self.digest.update(&data);
        let count = data.len() as u64;
        self.bytes += count;
        let written = self.sink.write(data).await;
        self.midst.leave();
        written?;
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
        self.midst.refuse(&self.name)?;
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

/// Whether a call is in its midst. One that stays there was given up: how much of it the sink took is not known.
#[derive(Debug, Default)]
struct Midst(bool);

impl Midst {
    fn refuse(&self, name: impl fmt::Display) -> Result<()> {
        if self.0 {
            let message = format!("a write into `{name}` was given up before it ended, so `{name}` is not whole");
            return Err(Error::new(ErrorKind::Incomplete, message));
        }
        Ok(())
    }

    /// Before the first change of the caller's state; [`Midst::leave`] comes after the last wait.
    fn enter(&mut self, name: impl fmt::Display) -> Result<()> {
        self.refuse(name)?;
        self.0 = true;
        Ok(())
    }

    fn leave(&mut self) {
        self.0 = false;
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
        page_map: stored.page_map,
    }
}
