//! Sinks: where snapshots are kept. This is the artifact level; objects, packs and files are the sink's own affair.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::log::LogStore;
use crate::manifest::{ArtifactRecord, Content, Manifest, Outcome};
use crate::names::{ArtifactName, PlanName, SnapshotId, SourceName};
use crate::tree::TreeEntry;

/// What is known of a snapshot when its run begins.
#[derive(Debug, Clone)]
pub struct SnapshotHeader {
    /// Its id.
    pub id: SnapshotId,
    /// The plan that is run.
    pub plan: PlanName,
    /// The machine that runs it.
    pub host: String,
    /// When the run began.
    pub started: Timestamp,
}

/// Which snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFilter {
    /// Only those of this plan.
    pub plan: Option<PlanName>,
}

/// What a sink tells of a snapshot to someone who may not be able to read its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotSummary {
    /// Its id.
    pub id: SnapshotId,
    /// The plan that was run.
    pub plan: PlanName,
    /// The machine that ran it.
    pub host: String,
    /// When the run began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Whether every source succeeded.
    pub outcome: Outcome,
    /// Plain bytes.
    pub bytes: u64,
    /// Bytes that the run had to store.
    pub stored_bytes: u64,
    /// The sources that are in it, then those that failed.
    pub sources: Vec<SourceName>,
    /// The sources that failed.
    pub failed: Vec<SourceName>,
}

/// A snapshot that is there and cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadableSnapshot {
    /// Its id, which its name gives away.
    pub id: SnapshotId,
    /// What is wrong, as one line.
    pub problem: String,
}

impl SnapshotSummary {
    /// The summary of a manifest.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        let names = |complete: bool| {
            manifest
                .sources
                .iter()
                .filter(|source| source.is_complete() == complete)
                .map(|source| source.name.clone())
                .collect()
        };
        Self {
            id: manifest.id.clone(),
            plan: manifest.plan.clone(),
            host: manifest.host.clone(),
            started: manifest.started,
            finished: manifest.finished,
            outcome: manifest.outcome,
            bytes: manifest.bytes(),
            stored_bytes: manifest.stored_bytes(),
            sources: names(true),
            failed: names(false),
        }
    }
}

/// How a stream should be cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChunkHint {
    /// Content-defined boundaries: dumps, documents, anything that shifts.
    #[default]
    Stream,
    /// Database files that change in place, page by page, of this page size in bytes.
    Pages(u32),
}

/// In which order the entries of a tree are handed to a sink.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TreeOrder {
    /// In that of their [`TreePath`](crate::tree::TreePath)s: the order of a walk.
    #[default]
    ByPath,
    /// In any: that of a server's archive, say. No path twice; the target of a hard link has a smaller path than the link.
    Any {
        /// Where a sink that sorts them keeps what does not fit into memory, in files without a name: entries, no contents.
        scratch: PathBuf,
    },
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes that the file system need not store.
    Hole(u64),
}

impl Piece {
    /// Its bytes, those of a hole included.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(length) => *length,
        }
    }
}

/// What a sink stored for an artifact.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Plain bytes.
    pub bytes: u64,
    /// Bytes that had to be stored.
    pub stored_bytes: u64,
    /// Where they are.
    pub content: Content,
    /// What the sink keeps beside it to recognise unchanged pages at its next run, see
    /// [`ArtifactRecord::page_map`].
    pub page_map: Option<Content>,
}

/// A place that keeps snapshots.
///
/// An implementation MUST
/// - keep a snapshot invisible until [`SnapshotWriter::commit`] returned, whatever dies in between;
/// - make exactly one of two commits under the same id succeed;
/// - let several snapshots be written at the same time, by several processes;
/// - notice, on reading, that bytes are not those that were written;
/// - when it fails, leave every earlier snapshot as readable as before.
#[async_trait]
pub trait Sink: Debug + Send + Sync + 'static {
    /// A short description without secrets: `repository at /srv/backups`.
    fn describe(&self) -> String;

    /// Begins a snapshot.
    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>>;

    /// Lists snapshots, oldest first. Those that are damaged are left out: [`Sink::unreadable`] names them.
    ///
    /// # Errors
    /// A listing that fails is an error, never an empty list; so is one in which nothing but damage was found.
    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>>;

    /// The snapshots that are there and cannot be listed, of whatever plan.
    ///
    /// # Errors
    /// As [`Sink::snapshots`].
    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>>;

    /// Reads a snapshot's manifest. On a writing host without a private key a sink may still be able to.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) when there is none of this id.
    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest>;

    /// Opens a snapshot for reading its content.
    ///
    /// # Errors
    /// [`WrongKey`](crate::ErrorKind::WrongKey) when the keys at hand do not open it.
    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>>;

    /// Where this sink keeps continuous logs; `None` when it keeps none.
    fn logs(&self) -> Option<Arc<dyn LogStore>> {
        None
    }

    /// A folder of this machine that belongs to this sink and to no other, for what the machine itself must remember of it.
    /// It may not be there yet. `None` when this machine keeps no state for the sink.
    fn local_state(&self) -> Option<PathBuf> {
        None
    }

    /// Checks what is stored, as far as `depth` says, and tells which snapshots and artifacts damage hurts.
    ///
    /// # Errors
    /// When it could not check. Damage is a finding, not an error.
    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport>;
}

/// How thoroughly a sink checks itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckDepth {
    /// Manifests parse, everything that they refer to exists with the right size.
    References,
    /// Also: every stored byte is read and compared with its checksum.
    Data,
}

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Objects or files looked at.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong. Empty means whole.
    pub damage: Vec<Damage>,
    /// What is odd but hurts nothing: leftovers of a run that died.
    pub notes: Vec<String>,
}

/// One damaged thing and what it hurts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object or file.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The artifacts that cannot be restored because of it.
    pub hurts: Vec<Hurt>,
}

/// An artifact that damage hurts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Hurt {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The source, when only one is hurt.
    pub source: Option<SourceName>,
    /// The artifact, when only one is hurt.
    pub artifact: Option<ArtifactName>,
    /// Some of the damaged files of a tree, when that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
}

impl Hurt {
    /// A snapshot that is hurt as a whole.
    #[must_use]
    pub fn whole(snapshot: SnapshotId) -> Self {
        Self { snapshot, source: None, artifact: None, files: Vec::new() }
    }
}

/// Writes one snapshot. Only the runner calls [`SnapshotWriter::commit`].
///
/// Dropping it without a commit leaves nothing visible.
#[async_trait]
pub trait SnapshotWriter: Debug + Send + Sync {
    /// Begins a stream.
    async fn stream(&self, source: &SourceName, name: &ArtifactName, hint: ChunkHint) -> Result<Box<dyn StreamSink>>;

    /// Begins a stream that this machine itself can read again, see
    /// [`BackupWriter::memo`](crate::writer::BackupWriter::memo). To sinks whose writers can read anyhow it is a stream.
    async fn memo(&self, source: &SourceName, name: &ArtifactName) -> Result<Box<dyn StreamSink>> {
        self.stream(source, name, ChunkHint::Stream).await
    }

    /// Begins a tree.
    async fn tree(&self, source: &SourceName, name: &ArtifactName, order: TreeOrder) -> Result<Box<dyn TreeSink>>;

    /// The earlier snapshot against which this run stores `source`: the latest of the same plan and machine in which the
    /// source is complete and whose manifest this machine can read. It is chosen once a run: trees are compared with it,
    /// [`FileSink::keep`] takes from it, and its memos can be read.
    ///
    /// `None` when there is none, and always from sinks that can keep nothing.
    async fn earlier(&self, _source: &SourceName) -> Result<Option<Arc<dyn SnapshotReader>>> {
        Ok(None)
    }

    /// Makes the snapshot durable and visible, in that order. Returns the manifest as it was stored.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) when another run committed the same id.
    async fn commit(&self, manifest: Manifest) -> Result<Manifest>;
}

/// Takes the bytes of one stream.
#[async_trait]
pub trait StreamSink: Send {
    /// Appends. Waits when the sink is behind. Not cancel safe: after a cancelled call the stream must be dropped.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// Ends the stream and tells where it is.
    async fn finish(self: Box<Self>) -> Result<Stored>;
}

/// Takes the entries of one tree, in the [`TreeOrder`] that was announced.
#[async_trait]
pub trait TreeSink: Send {
    /// Adds an entry without content.
    async fn entry(&mut self, entry: TreeEntry) -> Result<()>;

    /// Adds a file whose content the sink has already, as [`TreeEntry::same_file`] tells. `false`: it has not, read the file.
    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool>;

    /// The length of the content that the earlier snapshot (see [`SnapshotWriter::earlier`]) has of the file at `path` in
    /// the tree of the same name; `None` when there is no such file, or [`FileSink::keep`] could not take from it.
    async fn earlier_length(&mut self, _path: &crate::tree::TreePath) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Reserves the place of a file at `path`; its content may arrive while later entries are added.
    async fn file(&mut self, path: crate::tree::TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>>;

    /// Ends the tree, once every file of it is finished or abandoned, and tells where it is.
    async fn finish(self: Box<Self>) -> Result<Stored>;
}

/// Takes the content of one file of a tree. Dropping it unfinished makes [`TreeSink::finish`] fail.
#[async_trait]
pub trait FileSink: Send {
    /// Appends bytes. Waits when the sink is behind.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// Appends zero bytes that need not be stored.
    async fn hole(&mut self, length: u64) -> Result<()>;

    /// Appends the next `length` bytes of the same file in the earlier snapshot, from the position that was reached here.
    ///
    /// # Errors
    /// [`Incomplete`](crate::ErrorKind::Incomplete) when they are not there.
    async fn keep(&mut self, _length: u64) -> Result<()> {
        Err(nothing_to_keep())
    }

    /// Forgets what was written, because the file changed while it was read.
    async fn restart(&mut self) -> Result<()>;

    /// Ends the file. `entry` has the path that was reserved and the length that was written.
    async fn finish(self: Box<Self>, entry: TreeEntry) -> Result<()>;

    /// Leaves the file out of the tree, because it vanished.
    async fn abandon(self: Box<Self>) -> Result<()>;
}

/// The error of [`FileSink::keep`] when the earlier snapshot does not have the bytes.
#[must_use]
pub fn nothing_to_keep() -> Error {
    Error::new(ErrorKind::Incomplete, "the earlier snapshot does not have the bytes that shall be kept")
        .hint("back the source up in full")
}

/// Reads one snapshot.
#[async_trait]
pub trait SnapshotReader: Debug + Send + Sync {
    /// Its manifest.
    fn manifest(&self) -> &Manifest;

    /// Opens the content of a stream artifact.
    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>>;

    /// Opens a tree artifact.
    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>>;
}

/// Reads a stream's or a file's content in order.
#[async_trait]
pub trait PieceReader: Send {
    /// The next piece; `None` only after the last byte was delivered and everything checked.
    async fn next(&mut self) -> Result<Option<Piece>>;
}

/// Reads the entries of a tree: in the order of their paths; of a tree that was written in any order, a sink that stores
/// it as one archive may give them as they came.
#[async_trait]
pub trait EntryReader: Send {
    /// The next entry; `None` only after the last one.
    async fn next(&mut self) -> Result<Option<StoredEntry>>;
}

/// An entry together with a way to its content.
#[derive(Debug)]
pub struct StoredEntry {
    /// The entry.
    pub entry: TreeEntry,
    /// For regular files.
    pub content: Option<Box<dyn FileContent>>,
}

/// The content of a stored file. May be opened later, and from another task, while the tree is read on.
#[async_trait]
pub trait FileContent: Debug + Send + Sync {
    /// Opens it.
    async fn open(self: Box<Self>) -> Result<Box<dyn PieceReader>>;
}
