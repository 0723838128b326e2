//! The tree that an earlier snapshot has under the same name: its files are found by path, and pieces of their content
//! are taken over without being read.
//!
//! Invariant: only content whose chunks the repository has is taken over; what cannot be read costs storing it again.

use std::collections::VecDeque;
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::tree::{EntryKind, TreeEntry, TreePath};

use super::content::{ChunkId, ContentList, Extent};
use super::entry::read_entry;
use super::read::{ChunkReader, ExtentWalker, ListingReader, RecordIndex};

/// A file of an earlier snapshot.
#[derive(Debug, Clone)]
pub(super) struct EarlierFile {
    pub(super) entry: TreeEntry,
    pub(super) content: ContentList,
}

/// See the module.
pub(super) struct EarlierTree {
    chunks: Arc<ChunkReader>,
    way: Way,
}

/// How files are found.
enum Way {
    /// Both trees are read along in the same order.
    Along {
        listing: Box<ListingReader>,
        current: Option<EarlierFile>,
    },
    /// By an index, which is made when it is first needed.
    Unread(ContentList),
    Indexed(RecordIndex),
    /// Nothing can be found any more.
    Lost,
}

impl EarlierTree {
    /// A tree that is asked for ascending paths.
    pub(super) fn along(chunks: &Arc<ChunkReader>, listing: ContentList) -> Self {
        let listing = Box::new(ListingReader::new(chunks, listing));
        Self { chunks: Arc::clone(chunks), way: Way::Along { listing, current: None } }
    }

    /// A tree that is asked for paths in any order.
    pub(super) fn indexed(chunks: &Arc<ChunkReader>, listing: ContentList) -> Self {
        Self { chunks: Arc::clone(chunks), way: Way::Unread(listing) }
    }

    /// The regular file at `path`, whole or not.
    pub(super) async fn find(&mut self, path: &TreePath) -> Option<EarlierFile> {
        // An earlier listing that cannot be read costs a full read of the files, nothing else.
        if let Ok(found) = self.look_up(path).await {
            return found.filter(|file| matches!(file.entry.kind, EntryKind::File { .. }));
        }
        self.way = Way::Lost;
        None
    }

    /// The regular file at `path`, if the repository has all of its content: this is how damage heals.
    pub(super) async fn find_whole(&mut self, path: &TreePath) -> Option<EarlierFile> {
        let file = self.find(path).await?;
        self.has_all(&file.content).await.then_some(file)
    }

    /// Whether the repository has every chunk of `content`.
    pub(super) async fn has_all(&self, content: &ContentList) -> bool {
        has_all(&self.chunks, content).await.unwrap_or(false)
    }

    /// A way into the content of a file that was found.
    pub(super) fn start(&self, file: EarlierFile) -> EarlierContent {
        EarlierContent { chunks: Arc::clone(&self.chunks), file }
    }

    async fn look_up(&mut self, path: &TreePath) -> Result<Option<EarlierFile>> {
        if let Way::Unread(listing) = &mut self.way {
            let listing = std::mem::take(listing);
            self.way = Way::Indexed(RecordIndex::build(&self.chunks, listing).await?);
        }
        match &mut self.way {
            Way::Along { listing, current } => {
                while current.as_ref().is_none_or(|file| file.entry.path < *path) {
                    let Some((entry, content)) = listing.next().await? else {
                        self.way = Way::Lost;
                        return Ok(None);
                    };
                    *current = Some(EarlierFile { entry, content });
                }
                Ok(current.as_ref().filter(|file| file.entry.path == *path).cloned())
            }
            Way::Indexed(index) => {
                let Some(record) = index.find(path).await? else { return Ok(None) };
                let (entry, content) = read_entry(&record)?;
                Ok(Some(EarlierFile { entry, content }))
            }
            Way::Unread(_) | Way::Lost => Ok(None),
        }
    }
}

async fn has_all(chunks: &Arc<ChunkReader>, content: &ContentList) -> Result<bool> {
    if content.depth > 0 && !content.extents.iter().all(|extent| chunks.locate(&extent.chunk).is_some()) {
        return Ok(false);
    }
    let mut walker = ExtentWalker::new(chunks, content.clone());
    while let Some(extent) = walker.next().await? {
        if extent.chunk != ChunkId::HOLE && chunks.locate(&extent.chunk).is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The content that an earlier snapshot has of a file.
pub(super) struct EarlierContent {
    chunks: Arc<ChunkReader>,
    file: EarlierFile,
}

impl EarlierContent {
    pub(super) fn length(&self) -> u64 {
        self.file.entry.size()
    }

    pub(super) fn cursor(&self) -> ExtentCursor {
        ExtentCursor::new(&self.chunks, self.file.content.clone())
    }
}

/// Goes through the extents of a content from its beginning to its end.
pub(super) struct ExtentCursor {
    chunks: Arc<ChunkReader>,
    walker: ExtentWalker,
    ahead: VecDeque<Extent>,
    /// Where the first of `ahead` begins.
    position: u64,
    /// A chunk that the repository has.
    known: ChunkId,
}

impl ExtentCursor {
    pub(super) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        Self {
            chunks: Arc::clone(chunks),
            walker: ExtentWalker::new(chunks, content),
            ahead: VecDeque::new(),
            position: 0,
            known: ChunkId::HOLE,
        }
    }

    /// Appends the extents of the bytes from `start` to `end` to `to`; `false` when the repository lacks some of them.
    /// Every call begins where the one before began, or later.
    pub(super) async fn take(&mut self, start: u64, end: u64, to: &mut Vec<Extent>) -> Result<bool> {
        let mut at = start;
        while at < end {
            let Some(extent) = self.at(at).await? else { return Ok(false) };
            let skip = at - self.position;
            let length = (extent.length - skip).min(end - at);
            if extent.chunk == ChunkId::HOLE {
                to.push(Extent { length, ..extent });
            } else {
                if extent.chunk != self.known && self.chunks.locate(&extent.chunk).is_none() {
                    return Ok(false);
                }
                self.known = extent.chunk;
                to.push(Extent { chunk: extent.chunk, offset: extent.offset.saturating_add(skip as u32), length });
            }
            at += length;
        }
        Ok(true)
    }

    /// The extent that holds the byte at `position`.
    async fn at(&mut self, position: u64) -> Result<Option<Extent>> {
        loop {
            if self.ahead.is_empty() {
                let Some(extent) = self.walker.next().await? else { return Ok(None) };
                self.ahead.push_back(extent);
            }
            let Some(first) = self.ahead.front() else { return Ok(None) };
            if self.position.saturating_add(first.length) > position {
                return Ok(Some(*first));
            }
            self.position += first.length;
            self.ahead.pop_front();
        }
    }
}
