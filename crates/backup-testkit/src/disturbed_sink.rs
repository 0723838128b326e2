//! A sink around another sink that fails, cancels, cuts or damages at a chosen moment: what engines must survive.
//!
//! Invariant: it is deterministic; the same disturbance of the same work happens at the same operation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::LogStore;
use backup_core::manifest::{ArtifactRecord, Manifest};
use backup_core::sink::{
    CheckDepth, CheckReport, ChunkHint, EntryReader, FileContent, FileSink, Piece, PieceReader, Sink, SnapshotFilter,
    SnapshotHeader, SnapshotReader, SnapshotSummary, SnapshotWriter, Stored, StoredEntry, StreamSink, TreeOrder,
    TreeSink, UnreadableSnapshot,
};
use backup_core::tree::{TreeEntry, TreePath};
use backup_core::{ArtifactName, RunContext, SnapshotId, SourceName};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// What goes wrong. Operations are counted from one: each call that hands over or fetches content.
#[derive(Debug, Clone, Default)]
pub enum Disturbance {
    /// Nothing: only counts.
    #[default]
    None,
    /// The operation of this number fails, as on a full disk.
    Fail(u64),
    /// The token is cancelled at the operation of this number.
    Cancel(u64, CancellationToken),
    /// This is called at every operation, with its number: to change the system in the middle of the work.
    Act(Action),
    /// Streams end early: their last piece is missing. Trees lose their last entry.
    CutShort,
    /// One bit of each stream is flipped; reading a file of a tree fails as damaged, as a sink must notice.
    FlipBit,
}

/// Something to do in the middle of the work.
#[derive(Clone)]
pub struct Action(Arc<dyn Fn(u64) + Send + Sync>);

impl Action {
    /// Wraps it.
    pub fn new(action: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(action))
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Action")
    }
}

#[derive(Debug, Default)]
struct Plan {
    disturbance: Disturbance,
    operations: AtomicU64,
}

impl Plan {
    fn step(&self) -> Result<()> {
        let number = self.operations.fetch_add(1, Ordering::AcqRel) + 1;
        match &self.disturbance {
            Disturbance::Fail(at) if *at == number => {
                Err(Error::new(ErrorKind::NoSpace, "the disturbed sink is full").hint("this is a test"))
            }
            Disturbance::Cancel(at, token) if *at == number => {
                token.cancel();
                Ok(())
            }
            Disturbance::Act(Action(action)) => {
                action(number);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct DisturbedSink {
    inner: Arc<dyn Sink>,
    plan: Arc<Plan>,
}

impl DisturbedSink {
    /// Disturbs `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Sink>, disturbance: Disturbance) -> Self {
        Self { inner, plan: Arc::new(Plan { disturbance, operations: AtomicU64::new(0) }) }
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.plan.operations.load(Ordering::Acquire)
    }
}

#[async_trait]
impl Sink for DisturbedSink {
    fn describe(&self) -> String {
        format!("{}, disturbed", self.inner.describe())
    }

    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        let inner = self.inner.begin(header).await?;
        Ok(Arc::new(Writer { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        self.inner.snapshots(filter).await
    }

    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        self.inner.unreadable().await
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        self.inner.manifest(id).await
    }

    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        let inner = self.inner.open(id).await?;
        Ok(Arc::new(Reader { inner, plan: Arc::clone(&self.plan) }))
    }

    fn logs(&self) -> Option<Arc<dyn LogStore>> {
        self.inner.logs()
    }

    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        self.inner.check(cx, depth, of).await
    }
}

#[derive(Debug)]
struct Writer {
    inner: Arc<dyn SnapshotWriter>,
    plan: Arc<Plan>,
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn stream(&self, source: &SourceName, name: &ArtifactName, hint: ChunkHint) -> Result<Box<dyn StreamSink>> {
        let inner = self.inner.stream(source, name, hint).await?;
        Ok(Box::new(Disturbed { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn memo(&self, source: &SourceName, name: &ArtifactName) -> Result<Box<dyn StreamSink>> {
        let inner = self.inner.memo(source, name).await?;
        Ok(Box::new(Disturbed { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn tree(&self, source: &SourceName, name: &ArtifactName, order: TreeOrder) -> Result<Box<dyn TreeSink>> {
        let inner = self.inner.tree(source, name, order).await?;
        Ok(Box::new(Disturbed { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn earlier(&self, source: &SourceName) -> Result<Option<Arc<dyn SnapshotReader>>> {
        let inner = self.inner.earlier(source).await?;
        Ok(inner.map(|inner| Arc::new(Reader { inner, plan: Arc::clone(&self.plan) }) as Arc<dyn SnapshotReader>))
    }

    async fn commit(&self, manifest: Manifest) -> Result<Manifest> {
        self.inner.commit(manifest).await
    }
}

struct Disturbed<T: ?Sized> {
    plan: Arc<Plan>,
    inner: Box<T>,
}

#[async_trait]
impl StreamSink for Disturbed<dyn StreamSink> {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.plan.step()?;
        self.inner.write(data).await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        self.plan.step()?;
        self.inner.finish().await
    }
}

#[async_trait]
impl TreeSink for Disturbed<dyn TreeSink> {
    async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.plan.step()?;
        self.inner.entry(entry).await
    }

    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        self.inner.reuse(entry).await
    }

    async fn earlier_length(&mut self, path: &TreePath) -> Result<Option<u64>> {
        self.inner.earlier_length(path).await
    }

    async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>> {
        self.plan.step()?;
        let inner = self.inner.file(path, hint).await?;
        Ok(Box::new(Disturbed { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        self.plan.step()?;
        self.inner.finish().await
    }
}

#[async_trait]
impl FileSink for Disturbed<dyn FileSink> {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.plan.step()?;
        self.inner.write(data).await
    }

    async fn hole(&mut self, length: u64) -> Result<()> {
        self.plan.step()?;
        self.inner.hole(length).await
    }

    async fn keep(&mut self, length: u64) -> Result<()> {
        self.plan.step()?;
        self.inner.keep(length).await
    }

    async fn restart(&mut self) -> Result<()> {
        self.inner.restart().await
    }

    async fn finish(self: Box<Self>, entry: TreeEntry) -> Result<()> {
        self.plan.step()?;
        self.inner.finish(entry).await
    }

    async fn abandon(self: Box<Self>) -> Result<()> {
        self.inner.abandon().await
    }
}

#[derive(Debug)]
struct Reader {
    inner: Arc<dyn SnapshotReader>,
    plan: Arc<Plan>,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn manifest(&self) -> &Manifest {
        self.inner.manifest()
    }

    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        let inner = self.inner.stream(source, artifact).await?;
        Ok(Box::new(Pieces { inner, plan: Arc::clone(&self.plan), ahead: None, begun: false }))
    }

    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        let inner = self.inner.tree(source, artifact).await?;
        Ok(Box::new(Entries { inner, plan: Arc::clone(&self.plan), ahead: None, begun: false }))
    }
}

struct Pieces {
    inner: Box<dyn PieceReader>,
    plan: Arc<Plan>,
    ahead: Option<Piece>,
    begun: bool,
}

#[async_trait]
impl PieceReader for Pieces {
    async fn next(&mut self) -> Result<Option<Piece>> {
        self.plan.step()?;
        if !matches!(self.plan.disturbance, Disturbance::CutShort) {
            let piece = self.inner.next().await?;
            let first = !std::mem::replace(&mut self.begun, true);
            let flip = first && matches!(self.plan.disturbance, Disturbance::FlipBit);
            return Ok(if flip { piece.map(flipped) } else { piece });
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.ahead = self.inner.next().await?;
        }
        let next = self.inner.next().await?;
        // The piece that is ahead is delivered only when another one follows: the last never is.
        Ok(if next.is_some() { std::mem::replace(&mut self.ahead, next) } else { None })
    }
}

fn flipped(piece: Piece) -> Piece {
    match piece {
        Piece::Data(data) => {
            let mut bytes = data.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
            Piece::Data(bytes.into())
        }
        Piece::Hole(length) => Piece::Hole(length),
    }
}

struct Entries {
    inner: Box<dyn EntryReader>,
    plan: Arc<Plan>,
    ahead: Option<StoredEntry>,
    begun: bool,
}

impl Entries {
    fn disturb(&self, mut stored: StoredEntry) -> StoredEntry {
        let plan = &self.plan;
        stored.content =
            stored.content.map(|inner| Box::new(Content { inner, plan: Arc::clone(plan) }) as Box<dyn FileContent>);
        stored
    }
}

#[async_trait]
impl EntryReader for Entries {
    async fn next(&mut self) -> Result<Option<StoredEntry>> {
        self.plan.step()?;
        if !matches!(self.plan.disturbance, Disturbance::CutShort) {
            let stored = self.inner.next().await?;
            return Ok(stored.map(|stored| self.disturb(stored)));
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.ahead = self.inner.next().await?;
        }
        let next = self.inner.next().await?;
        Ok(if next.is_some() { std::mem::replace(&mut self.ahead, next) } else { None })
    }
}

#[derive(Debug)]
struct Content {
    inner: Box<dyn FileContent>,
    plan: Arc<Plan>,
}

#[async_trait]
impl FileContent for Content {
    async fn open(self: Box<Self>) -> Result<Box<dyn PieceReader>> {
        self.plan.step()?;
        if matches!(self.plan.disturbance, Disturbance::FlipBit) {
            return Err(Error::new(ErrorKind::Damaged, "a chunk is not what was written"));
        }
        let inner = self.inner.open().await?;
        Ok(Box::new(Pieces { inner, plan: self.plan, ahead: None, begun: false }))
    }
}
