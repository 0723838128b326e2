//! What an earlier snapshot has under the same name: its files are found by path, and pieces of their content are taken
//! over without being read.
//!
//! Invariant: only content whose chunks the repository has is taken over; what cannot be read costs storing it again.

use std::collections::VecDeque;
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::manifest::ArtifactRecord;
use backup_core::tree::{EntryKind, TreeEntry, TreePath};

use super::content::{ChunkId, ContentList, Extent};
use super::entry::read_entry;
use super::page_map::{HEADER_BYTES, HashCursor, Hashes, PageHash, PageKey, PageMap, read_map};
use super::read::{ChunkReader, ContentReader, ExtentWalker, ListingReader, MapReader, RecordIndex};

/// A file of an earlier snapshot.
#[derive(Debug, Clone)]
pub(super) struct EarlierFile {
    pub(super) entry: TreeEntry,
    pub(super) content: ContentList,
    pub(super) map: Option<PageMap>,
}

/// Records that are found by path, in the order or not in which they lie.
enum Found<R, T> {
    /// They are read along, in the same order. The last that was read.
    Along(Box<R>, Option<T>),
    /// By an index, which is made when it is first needed; so many bytes are before the first record.
    Unread(ContentList, usize),
    Indexed(RecordIndex),
    /// Nothing can be found any more: it could not be read, or was read to its end.
    Lost,
}

/// The page map of an earlier artifact, at its first record.
pub(super) struct EarlierMaps {
    content: ContentList,
    reader: MapReader,
}

impl EarlierMaps {
    /// Opens the page map that is recorded with an artifact. The run goes on with its key; one that cannot be read is none.
    pub(super) async fn open(chunks: &Arc<ChunkReader>, record: &ArtifactRecord) -> Option<(PageKey, Self)> {
        let content = ContentList::from_record(record.page_map.as_ref()?).ok()?;
        let (key, reader) = MapReader::open(chunks, content.clone()).await.ok()?;
        Some((key, Self { content, reader }))
    }
}

/// See the module.
pub(super) struct EarlierTree {
    chunks: Arc<ChunkReader>,
    listing: Found<ListingReader, (TreeEntry, ContentList)>,
    maps: Found<MapReader, (TreePath, PageMap)>,
}

impl EarlierTree {
    /// A tree that is asked for ascending paths.
    pub(super) fn along(chunks: &Arc<ChunkReader>, listing: ContentList, maps: Option<EarlierMaps>) -> Self {
        let listing = Found::Along(Box::new(ListingReader::new(chunks, listing)), None);
        let along = |maps: EarlierMaps| Found::Along(Box::new(maps.reader), None);
        Self { chunks: Arc::clone(chunks), listing, maps: maps.map_or(Found::Lost, along) }
    }

    /// A tree that is asked for paths in any order.
    pub(super) fn indexed(chunks: &Arc<ChunkReader>, listing: ContentList, maps: Option<EarlierMaps>) -> Self {
        let maps = maps.map_or(Found::Lost, |maps| Found::Unread(maps.content, HEADER_BYTES));
        Self { chunks: Arc::clone(chunks), listing: Found::Unread(listing, 0), maps }
    }

    /// The regular file at `path`, whole or not.
    pub(super) async fn find(&mut self, path: &TreePath) -> Option<EarlierFile> {
        let (entry, content) = match self.find_entry(path).await {
            Ok(found) => found.filter(|(entry, _)| matches!(entry.kind, EntryKind::File { .. }))?,
            Err(_) => {
                self.listing = Found::Lost;
                return None;
            }
        };
        let map = match self.find_map(path).await {
            Ok(map) => map.filter(|map| map.size == entry.size()),
            Err(_) => {
                self.maps = Found::Lost;
                None
            }
        };
        Some(EarlierFile { entry, content, map })
    }

    async fn find_entry(&mut self, path: &TreePath) -> Result<Option<(TreeEntry, ContentList)>> {
        self.listing.open(&self.chunks).await?;
        match &mut self.listing {
            Found::Along(reader, last) => {
                while last.as_ref().is_none_or(|(entry, _)| entry.path < *path) {
                    let Some(next) = reader.next().await? else {
                        self.listing = Found::Lost;
                        return Ok(None);
                    };
                    *last = Some(next);
                }
                Ok(last.as_ref().filter(|(entry, _)| entry.path == *path).cloned())
            }
            Found::Indexed(index) => index.find(path).await?.map(|record| read_entry(&record)).transpose(),
            Found::Unread(..) | Found::Lost => Ok(None),
        }
    }

    async fn find_map(&mut self, path: &TreePath) -> Result<Option<PageMap>> {
        self.maps.open(&self.chunks).await?;
        match &mut self.maps {
            Found::Along(reader, last) => {
                while last.as_ref().is_none_or(|(mapped, _)| mapped < path) {
                    let Some(next) = reader.next().await? else {
                        self.maps = Found::Lost;
                        return Ok(None);
                    };
                    *last = Some(next);
                }
                Ok(last.as_ref().filter(|(mapped, _)| mapped == path).map(|(_, map)| map.clone()))
            }
            Found::Indexed(index) => {
                Ok(index.find(path).await?.map(|record| read_map(&record)).transpose()?.map(|(_, map)| map))
            }
            Found::Unread(..) | Found::Lost => Ok(None),
        }
    }

    /// A way into the content of a file that was found.
    pub(super) fn start(&self, file: EarlierFile) -> EarlierContent {
        EarlierContent {
            chunks: Arc::clone(&self.chunks),
            length: file.entry.size(),
            content: file.content,
            map: file.map,
        }
    }
}

impl<R, T> Found<R, T> {
    async fn open(&mut self, chunks: &Arc<ChunkReader>) -> Result<()> {
        if let Self::Unread(content, head) = self {
            let (content, head) = (std::mem::take(content), *head);
            *self = Self::Indexed(RecordIndex::build(chunks, content, head).await?);
        }
        Ok(())
    }
}

/// The content that an earlier snapshot has of a file or a stream.
#[derive(Clone)]
pub(super) struct EarlierContent {
    chunks: Arc<ChunkReader>,
    length: u64,
    content: ContentList,
    map: Option<PageMap>,
}

impl EarlierContent {
    /// That of a stream. Its map is the only record of its page map, under the path of the root.
    pub(super) async fn of_stream(
        chunks: &Arc<ChunkReader>,
        record: &ArtifactRecord,
        mut maps: EarlierMaps,
    ) -> Option<Self> {
        let content = ContentList::from_record(&record.content).ok()?;
        let (_, map) = maps.reader.next().await.ok()??;
        let map = Some(map).filter(|map| map.size == record.bytes);
        Some(Self { chunks: Arc::clone(chunks), length: record.bytes, content, map })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether the repository has every chunk of it.
    pub(super) async fn is_whole(&self) -> bool {
        has_all(&self.chunks, &self.content).await.unwrap_or(false)
    }

    /// The content and its page map, to be taken over as they are.
    pub(super) fn into_parts(self) -> (ContentList, Option<PageMap>) {
        (self.content, self.map)
    }

    pub(super) fn cursor(&self) -> ExtentCursor {
        ExtentCursor::new(&self.chunks, self.content.clone())
    }

    /// Its pages of this size, from the first to the last.
    pub(super) fn pages(&self, page_bytes: u32) -> EarlierPages {
        let map = self.map.as_ref().filter(|map| map.page_bytes == page_bytes);
        let hashes = map.map(|map| match &map.hashes {
            Hashes::Inline(hashes) => HashCursor::inline(hashes),
            Hashes::Listed(list) => HashCursor::listed(ContentReader::new(&self.chunks, list.clone())),
        });
        EarlierPages { cursor: Some(self.cursor()), hashes, page_bytes: u64::from(page_bytes), content: self.clone() }
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
    fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
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
            if self.ahead.is_empty() && !self.look_ahead().await? {
                return Ok(None);
            }
            let Some(first) = self.ahead.front() else { return Ok(None) };
            if self.position.saturating_add(first.length) > position {
                return Ok(Some(*first));
            }
            self.position += first.length;
            self.ahead.pop_front();
        }
    }

    async fn look_ahead(&mut self) -> Result<bool> {
        let Some(extent) = self.walker.next().await? else { return Ok(false) };
        self.ahead.push_back(extent);
        Ok(true)
    }

    /// Whether more than `most` extents lie between `start` and `end`.
    async fn has_more_than(&mut self, most: usize, start: u64, end: u64) -> Result<bool> {
        if self.at(start).await?.is_none() {
            return Ok(false);
        }
        let mut reached = self.ahead.iter().fold(self.position, |at, extent| at.saturating_add(extent.length));
        while reached < end && self.ahead.len() <= most && self.look_ahead().await? {
            reached = self.ahead.back().map_or(end, |last| reached.saturating_add(last.length));
        }
        Ok(self.ahead.len() > most)
    }
}

/// The pages of an earlier content, from the first to the last. What cannot be read is not there.
pub(super) struct EarlierPages {
    content: EarlierContent,
    page_bytes: u64,
    cursor: Option<ExtentCursor>,
    hashes: Option<HashCursor>,
}

impl EarlierPages {
    pub(super) fn length(&self) -> u64 {
        self.content.length
    }

    pub(super) async fn is_whole(&self) -> bool {
        self.content.is_whole().await
    }

    pub(super) fn as_it_is(&self) -> (ContentList, Option<PageMap>) {
        self.content.clone().into_parts()
    }

    /// The hash of the page that begins at `start` and has `length` bytes.
    pub(super) async fn hash(&mut self, start: u64, length: u64) -> Option<PageHash> {
        let there = self.length().saturating_sub(start).min(self.page_bytes);
        if there != length {
            return None;
        }
        match self.hashes.as_mut()?.at(start / self.page_bytes).await {
            Ok(hash) => hash,
            Err(_) => {
                self.hashes = None;
                None
            }
        }
    }

    /// See [`ExtentCursor::take`].
    pub(super) async fn take(&mut self, start: u64, end: u64, to: &mut Vec<Extent>) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        match cursor.take(start, end, to).await {
            Ok(there) => there,
            Err(_) => {
                self.cursor = None;
                false
            }
        }
    }

    /// Whether more than `most` extents lie between `start` and `end`.
    pub(super) async fn is_fragmented(&mut self, start: u64, end: u64, most: usize) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        match cursor.has_more_than(most, start, end).await {
            Ok(fragmented) => fragmented,
            Err(_) => {
                self.cursor = None;
                false
            }
        }
    }
}
