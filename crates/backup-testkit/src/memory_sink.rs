//! A sink that keeps everything in memory: the simplest implementation of the contract, and what engines test against.
//!
//! Invariant: nothing is visible before `commit`; an unfinished file fails its tree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::LogStore;
use backup_core::manifest::{ArtifactRecord, Content, EntryOrder, Manifest, SourceRecord};
use backup_core::sink::{
    CheckDepth, CheckReport, ChunkHint, EntryReader, FileContent, FileSink, Piece, PieceReader, Sink, SnapshotFilter,
    SnapshotHeader, SnapshotReader, SnapshotSummary, SnapshotWriter, Stored, StoredEntry, StreamSink, TreeOrder,
    TreeSink, UnreadableSnapshot, nothing_to_keep,
};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use backup_core::{ArtifactName, PlanName, RunContext, SnapshotId, SourceName};
use bytes::Bytes;

use crate::MemoryLog;

type Address = (SourceName, ArtifactName);
type Tree = Vec<(TreeEntry, Vec<Piece>)>;
type Committed = BTreeMap<SnapshotId, (Manifest, Arc<Artifacts>)>;

#[derive(Debug, Clone, Default)]
struct Artifacts {
    streams: BTreeMap<Address, Vec<Bytes>>,
    trees: BTreeMap<Address, Tree>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct MemorySink {
    committed: Arc<Mutex<Committed>>,
    log: MemoryLog,
}

impl MemorySink {
    /// The logs that it keeps.
    #[must_use]
    pub fn log(&self) -> &MemoryLog {
        &self.log
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Sink for MemorySink {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        let before = Arc::new(lock(&self.committed).clone());
        Ok(Arc::new(MemoryWriter { sink: self.clone(), plan: header.plan, before, artifacts: Arc::default() }))
    }

    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        let committed = lock(&self.committed);
        let wanted = |manifest: &&Manifest| filter.plan.as_ref().is_none_or(|plan| *plan == manifest.plan);
        let found = committed.values().map(|(manifest, _)| manifest).filter(wanted);
        let mut summaries: Vec<SnapshotSummary> = found.map(SnapshotSummary::of).collect();
        summaries.sort_by_key(|summary| summary.started);
        Ok(summaries)
    }

    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        Ok(Vec::new())
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        let committed = lock(&self.committed);
        let found = committed.get(id).map(|(manifest, _)| manifest.clone());
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no snapshot {id}")))
    }

    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        let manifest = self.manifest(id).await?;
        let artifacts = lock(&self.committed).get(id).map(|(_, artifacts)| Arc::clone(artifacts)).unwrap_or_default();
        Ok(Arc::new(MemoryReader { manifest, artifacts }))
    }

    fn logs(&self) -> Option<Arc<dyn LogStore>> {
        Some(Arc::new(self.log.clone()))
    }

    async fn check(&self, _: &RunContext, _: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        Ok(CheckReport { objects: of.len() as u64, ..CheckReport::default() })
    }
}

#[derive(Debug)]
struct MemoryWriter {
    sink: MemorySink,
    plan: PlanName,
    /// What was committed when the run began.
    before: Arc<Committed>,
    artifacts: Arc<Mutex<Artifacts>>,
}

impl MemoryWriter {
    /// The latest snapshot of the plan in which the source is complete.
    fn base(&self, source: &SourceName) -> Option<&(Manifest, Arc<Artifacts>)> {
        let complete = |manifest: &Manifest| manifest.source(source).is_some_and(SourceRecord::is_complete);
        let same = self.before.values().filter(|(manifest, _)| manifest.plan == self.plan && complete(manifest));
        same.max_by_key(|(manifest, _)| manifest.started)
    }
}

#[async_trait]
impl SnapshotWriter for MemoryWriter {
    async fn stream(&self, source: &SourceName, name: &ArtifactName, _: ChunkHint) -> Result<Box<dyn StreamSink>> {
        let address = (source.clone(), name.clone());
        Ok(Box::new(MemoryStream { artifacts: Arc::clone(&self.artifacts), address, data: Vec::new() }))
    }

    /// Sorts trees that come in any order, as repositories do.
    async fn tree(&self, source: &SourceName, name: &ArtifactName, _: TreeOrder) -> Result<Box<dyn TreeSink>> {
        let address = (source.clone(), name.clone());
        let earlier = self.base(source).and_then(|(_, artifacts)| artifacts.trees.get(&address).cloned());
        let earlier = Arc::new(earlier.unwrap_or_default());
        Ok(Box::new(MemoryTree { artifacts: Arc::clone(&self.artifacts), address, earlier, slots: Vec::new() }))
    }

    async fn earlier(&self, source: &SourceName) -> Result<Option<Arc<dyn SnapshotReader>>> {
        Ok(self.base(source).map(|(manifest, artifacts)| {
            Arc::new(MemoryReader { manifest: manifest.clone(), artifacts: Arc::clone(artifacts) }) as _
        }))
    }

    async fn commit(&self, manifest: Manifest) -> Result<Manifest> {
        let mut committed = lock(&self.sink.committed);
        if committed.contains_key(&manifest.id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the snapshot {} exists", manifest.id)));
        }
        let artifacts = Arc::new(lock(&self.artifacts).clone());
        committed.insert(manifest.id.clone(), (manifest.clone(), artifacts));
        Ok(manifest)
    }
}

fn stored(address: &Address, bytes: u64) -> Result<Stored> {
    let path = ArtifactName::new(format!("{}/{}", address.0, address.1))?;
    let content = Content::File { path, compression: "none".to_owned(), order: EntryOrder::ByPath };
    Ok(Stored { bytes, stored_bytes: bytes, content, page_map: None })
}

struct MemoryStream {
    artifacts: Arc<Mutex<Artifacts>>,
    address: Address,
    data: Vec<Bytes>,
}

#[async_trait]
impl StreamSink for MemoryStream {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.data.push(data);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let bytes = self.data.iter().map(|data| data.len() as u64).sum();
        let stored = stored(&self.address, bytes)?;
        lock(&self.artifacts).streams.insert(self.address, self.data);
        Ok(stored)
    }
}

/// The place of an entry: filled when its content is complete.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Pending,
    Filled(TreeEntry, Vec<Piece>),
    Abandoned,
}

struct MemoryTree {
    artifacts: Arc<Mutex<Artifacts>>,
    address: Address,
    earlier: Arc<Tree>,
    slots: Vec<(TreePath, Arc<Mutex<Slot>>)>,
}

#[async_trait]
impl TreeSink for MemoryTree {
    async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.slots.push((entry.path.clone(), Arc::new(Mutex::new(Slot::Filled(entry, Vec::new())))));
        Ok(())
    }

    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        let found = self.earlier.iter().find(|(earlier, _)| entry.same_file(earlier)).map(|(_, pieces)| pieces.clone());
        let Some(pieces) = found else { return Ok(false) };
        self.slots.push((entry.path.clone(), Arc::new(Mutex::new(Slot::Filled(entry.clone(), pieces)))));
        Ok(true)
    }

    async fn earlier_length(&mut self, path: &TreePath) -> Result<Option<u64>> {
        Ok(earlier_file(&self.earlier, path).map(|(entry, _)| entry.size()))
    }

    async fn file(&mut self, path: TreePath, _: ChunkHint) -> Result<Box<dyn FileSink>> {
        let slot = Arc::new(Mutex::new(Slot::Pending));
        self.slots.push((path.clone(), Arc::clone(&slot)));
        Ok(Box::new(MemoryFile { slot, path, earlier: Arc::clone(&self.earlier), pieces: Vec::new() }))
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let mut tree = Tree::new();
        for (path, slot) in self.slots {
            match std::mem::take(&mut *lock(&slot)) {
                Slot::Filled(entry, pieces) => tree.push((entry, pieces)),
                Slot::Abandoned => {}
                Slot::Pending => {
                    return Err(Error::new(ErrorKind::Incomplete, format!("the file `{path}` was left unfinished")));
                }
            }
        }
        tree.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        if let Some(twice) = tree.windows(2).find(|pair| pair[0].0.path == pair[1].0.path) {
            return Err(Error::new(ErrorKind::Internal, format!("the entry `{}` came twice", twice[0].0.path)));
        }
        let bytes = tree.iter().map(|(entry, _)| entry.size()).sum();
        let stored = stored(&self.address, bytes)?;
        lock(&self.artifacts).trees.insert(self.address, tree);
        Ok(stored)
    }
}

fn earlier_file<'a>(tree: &'a Tree, path: &TreePath) -> Option<&'a (TreeEntry, Vec<Piece>)> {
    tree.iter().find(|(entry, _)| entry.path == *path && matches!(entry.kind, EntryKind::File { .. }))
}

/// What lies in `pieces` from `start` to `end`; `None` when they are shorter.
fn cut(pieces: &[Piece], start: u64, end: u64) -> Option<Vec<Piece>> {
    let mut at = 0;
    let mut found = Vec::new();
    for piece in pieces {
        let (from, to) = (start.clamp(at, at + piece.length()), end.clamp(at, at + piece.length()));
        if from < to {
            found.push(match piece {
                Piece::Data(data) => Piece::Data(data.slice((from - at) as usize..(to - at) as usize)),
                Piece::Hole(_) => Piece::Hole(to - from),
            });
        }
        at += piece.length();
    }
    (end <= at).then_some(found)
}

struct MemoryFile {
    slot: Arc<Mutex<Slot>>,
    path: TreePath,
    earlier: Arc<Tree>,
    pieces: Vec<Piece>,
}

#[async_trait]
impl FileSink for MemoryFile {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.pieces.push(Piece::Data(data));
        Ok(())
    }

    async fn hole(&mut self, length: u64) -> Result<()> {
        self.pieces.push(Piece::Hole(length));
        Ok(())
    }

    async fn keep(&mut self, count: u64) -> Result<()> {
        let start = self.pieces.iter().map(Piece::length).sum::<u64>();
        let (_, earlier) = earlier_file(&self.earlier, &self.path).ok_or_else(nothing_to_keep)?;
        self.pieces.extend(cut(earlier, start, start + count).ok_or_else(nothing_to_keep)?);
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.pieces.clear();
        Ok(())
    }

    async fn finish(self: Box<Self>, entry: TreeEntry) -> Result<()> {
        *lock(&self.slot) = Slot::Filled(entry, self.pieces);
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<()> {
        *lock(&self.slot) = Slot::Abandoned;
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryReader {
    manifest: Manifest,
    artifacts: Arc<Artifacts>,
}

fn missing(name: &ArtifactName) -> Error {
    Error::new(ErrorKind::Damaged, format!("the artifact `{name}` is not in memory"))
}

#[async_trait]
impl SnapshotReader for MemoryReader {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        let data = self.artifacts.streams.get(&(source.clone(), artifact.name.clone()));
        let data = data.ok_or_else(|| missing(&artifact.name))?;
        let pieces: Vec<Piece> = data.iter().cloned().map(Piece::Data).collect();
        Ok(Box::new(Pieces(pieces.into_iter())))
    }

    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        let tree = self.artifacts.trees.get(&(source.clone(), artifact.name.clone()));
        Ok(Box::new(Entries(tree.cloned().ok_or_else(|| missing(&artifact.name))?.into_iter())))
    }
}

struct Pieces(std::vec::IntoIter<Piece>);

#[async_trait]
impl PieceReader for Pieces {
    async fn next(&mut self) -> Result<Option<Piece>> {
        Ok(self.0.next())
    }
}

struct Entries(std::vec::IntoIter<(TreeEntry, Vec<Piece>)>);

#[async_trait]
impl EntryReader for Entries {
    async fn next(&mut self) -> Result<Option<StoredEntry>> {
        Ok(self.0.next().map(|(entry, pieces)| {
            let file = matches!(entry.kind, EntryKind::File { .. });
            let content = file.then(|| Box::new(MemoryContent(pieces)) as Box<dyn FileContent>);
            StoredEntry { entry, content }
        }))
    }
}

#[derive(Debug)]
struct MemoryContent(Vec<Piece>);

#[async_trait]
impl FileContent for MemoryContent {
    async fn open(self: Box<Self>) -> Result<Box<dyn PieceReader>> {
        Ok(Box::new(Pieces(self.0.into_iter())))
    }
}
