//! Writes trees: the order of their entries, and the lengths of their files, are checked whatever the sink.
//!
//! Invariant: a tree is sealed only when each of its files was finished or abandoned.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{BackupWriter, Midst, record};
use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::manifest::{ArtifactKind, ArtifactRecord};
use crate::names::ArtifactName;
use crate::sink::{ChunkHint, FileSink, TreeSink};
use crate::tree::{EntryKind, TreeEntry, TreePath};

/// Whether the entries of a tree must come in the order of their paths.
#[derive(Debug)]
pub(super) enum Sequence {
    /// They must; this was the last.
    Ascending(Option<TreePath>),
    /// They need not: the sink takes them as they come.
    Free,
}

impl Sequence {
    fn is_free(&self) -> bool {
        matches!(self, Self::Free)
    }
}

/// Writes one tree artifact. Dropped unsealed, it fails its source. No call is cancel safe: once one was given up while it
/// waited, the tree can be neither written nor sealed.
///
/// Entries come in the order of their [`TreePath`]s, unless the tree was begun with [`BackupWriter::tree_in_any_order`].
pub struct TreeWriter {
    scope: BackupWriter,
    name: ArtifactName,
    sink: Box<dyn TreeSink>,
    entries: Arc<AtomicU64>,
    sequence: Sequence,
    midst: Midst,
}

impl TreeWriter {
    pub(super) fn new(scope: BackupWriter, name: ArtifactName, sink: Box<dyn TreeSink>, sequence: Sequence) -> Self {
        Self { scope, name, sink, entries: Arc::default(), sequence, midst: Midst::default() }
    }

    /// Adds an entry without content: anything but a regular file.
    ///
    /// # Errors
    /// When entries are out of order, a hard link in a tree in any order sorts before its target, or the sink fails.
    pub async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        match &entry.kind {
            EntryKind::File { .. } => {
                let message = format!("the file `{}` was added without content", entry.path);
                return Err(Error::new(ErrorKind::Internal, message));
            }
            EntryKind::Hardlink { target } if self.sequence.is_free() && *target >= entry.path => {
                let message = format!("the hard link `{}` sorts before its target `{target}`", entry.path);
                return Err(Error::new(ErrorKind::Internal, message));
            }
            _ => {}
        }
        self.midst.enter(&self.name)?;
        let added = match self.advance(&entry.path) {
            Ok(()) => self.sink.entry(entry).await,
            Err(error) => Err(error),
        };
        self.midst.leave();
        added?;
        self.count();
        Ok(())
    }

    /// Adds a file without reading it when the sink holds its content already; `false` when it must be read.
    ///
    /// # Errors
    /// When entries are out of order, or the sink fails.
    pub async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        self.midst.enter(&self.name)?;
        let reused = self.sink.reuse(entry).await;
        self.midst.leave();
        let reused = reused?;
        if reused {
            self.advance(&entry.path)?;
            self.count();
            self.scope.cx.progress(entry.size(), 1);
        }
        Ok(reused)
    }

    /// The length of this file's content in the earlier snapshot (see [`BackupWriter::earlier`]) when its bytes can be
    /// kept with [`FileWriter::keep`]. Ask right before the file is begun: in a tree whose entries come in order, asking
    /// for a path gives up those before it.
    ///
    /// # Errors
    /// When the sink fails. An earlier snapshot that cannot be read is `None`.
    pub async fn earlier_length(&mut self, path: &TreePath) -> Result<Option<u64>> {
        self.scope.cx.check_cancelled()?;
        self.sink.earlier_length(path).await
    }

    /// Reserves the place of a file; its content may be written from another task while further entries are added.
    ///
    /// # Errors
    /// When entries are out of order, or the sink fails.
    pub async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<FileWriter> {
        self.advance(&path)?;
        self.midst.enter(&self.name)?;
        let sink = self.sink.file(path.clone(), hint).await;
        self.midst.leave();
        let sink = sink?;
        Ok(FileWriter {
            midst: Midst::default(),
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
        self.midst.refuse(&self.name)?;
        let stored = self.sink.finish().await?;
        let entries = self.entries.load(Ordering::Acquire);
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
        if let Sequence::Ascending(last) = &mut self.sequence {
            if last.as_ref().is_some_and(|last| last >= path) {
                let message = format!("the entry `{path}` is out of order in `{}`", self.name);
                return Err(Error::new(ErrorKind::Internal, message));
            }
            *last = Some(path.clone());
        }
        self.scope.cx.check_cancelled()
    }

    fn count(&self) {
        self.entries.fetch_add(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for TreeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeWriter").field("name", &self.name).field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Writes the content of one file of a tree. Dropped unfinished, it fails its tree. No call is cancel safe: after one that
/// was given up only [`FileWriter::restart`] and [`FileWriter::abandon`] are left.
pub struct FileWriter {
    cx: RunContext,
    path: TreePath,
    sink: Box<dyn FileSink>,
    bytes: u64,
    unreported: u64,
    entries: Arc<AtomicU64>,
    midst: Midst,
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
        self.midst.enter(&self.path)?;
        self.advance(data.len() as u64);
        let written = self.sink.write(data).await;
        self.midst.leave();
        written
    }

    /// Appends zero bytes that need not be stored.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn hole(&mut self, length: u64) -> Result<()> {
        self.midst.enter(&self.path)?;
        self.advance(length);
        let written = self.sink.hole(length).await;
        self.midst.leave();
        written
    }

    /// Appends the next `length` bytes as they are, at the same position of the same path, in the tree of the same name
    /// in the earlier snapshot ([`BackupWriter::earlier`]): pages that a server says are unchanged. They are not read.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when they are not there (the source must then be saved in full); also when the run was
    /// cancelled or the sink fails.
    pub async fn keep(&mut self, length: u64) -> Result<()> {
        self.cx.check_cancelled()?;
        self.midst.enter(&self.path)?;
        let kept = self.sink.keep(length).await;
        self.midst.leave();
        kept.map_err(|error| error.with("file", &self.path))?;
        self.advance(length);
        Ok(())
    }

    /// Forgets what was written, because the file changed while it was read.
    ///
    /// # Errors
    /// When the sink fails.
    pub async fn restart(&mut self) -> Result<()> {
        self.bytes = 0;
        // From here on nothing counts that was written before, whole or not.
        self.midst.0 = true;
        self.sink.restart().await?;
        self.midst.leave();
        Ok(())
    }

    /// Ends the file with its final attributes.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when the entry's length is not what was written.
    pub async fn finish(self, entry: TreeEntry) -> Result<()> {
        self.midst.refuse(&self.path)?;
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
        self.entries.fetch_add(1, Ordering::AcqRel);
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
