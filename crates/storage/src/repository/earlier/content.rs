//! The content that an earlier snapshot has of one file: its extents and its pages, from the first to the last.
//!
//! Invariant: extents are handed out only when the repository has their chunks.

use std::collections::VecDeque;
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::manifest::ArtifactRecord;

use super::EarlierMaps;
use crate::repository::codec::malformed;
use crate::repository::content::{ChunkId, ContentList, Extent};
use crate::repository::page_map::{HashCursor, Hashes, PageHash, PageMap};
use crate::repository::read::{ChunkReader, ContentReader, ExtentWalker};
use crate::repository::referred::Referred;

/// The content that an earlier snapshot has of a file or a stream.
#[derive(Clone)]
pub(in crate::repository) struct EarlierContent {
    pub(super) chunks: Arc<ChunkReader>,
    pub(super) referred: Arc<Referred>,
    pub(super) length: u64,
    pub(super) content: ContentList,
    pub(super) map: Option<PageMap>,
    /// Whether the repository is known to have every chunk of it.
    pub(super) is_whole: bool,
}

impl EarlierContent {
    /// That of a stream. Its map is the only record of its page map, under the path of the root.
    pub(in crate::repository) async fn of_stream(
        chunks: &Arc<ChunkReader>,
        referred: &Arc<Referred>,
        record: &ArtifactRecord,
        mut maps: EarlierMaps,
    ) -> Option<Self> {
        let content = ContentList::from_record(&record.content).ok()?;
        let (_, map) = maps.reader.next().await.ok()??;
        let map = Some(map).filter(|map| map.size == record.bytes);
        let (chunks, referred) = (Arc::clone(chunks), Arc::clone(referred));
        Some(Self { chunks, referred, length: record.bytes, content, map, is_whole: false })
    }

    pub(in crate::repository) fn length(&self) -> u64 {
        self.length
    }

    /// Whether the repository has every chunk of it.
    pub(in crate::repository) async fn is_whole(&mut self) -> bool {
        if !self.is_whole {
            self.is_whole = has_all(&self.chunks, &self.referred, &self.content).await.unwrap_or(false);
        }
        self.is_whole
    }

    /// The content and its page map, to be taken over as they are.
    pub(in crate::repository) fn into_parts(self) -> (ContentList, Option<PageMap>) {
        (self.content, self.map)
    }

    pub(in crate::repository) fn cursor(&self) -> ExtentCursor {
        ExtentCursor::new(&self.chunks, &self.referred, self.content.clone())
    }

    /// Its pages of this size, from the first to the last.
    pub(in crate::repository) fn pages(&self, page_bytes: u32) -> EarlierPages {
        let map = self.map.as_ref().filter(|map| map.page_bytes == page_bytes);
        let hashes = map.map(|map| match &map.hashes {
            Hashes::Inline(hashes) => HashCursor::inline(hashes),
            Hashes::Listed(list) => HashCursor::listed(ContentReader::new(&self.chunks, list.clone())),
        });
        EarlierPages { cursor: Some(self.cursor()), hashes, page_bytes: u64::from(page_bytes), content: self.clone() }
    }
}

async fn has_all(chunks: &Arc<ChunkReader>, referred: &Referred, content: &ContentList) -> Result<bool> {
    if content.depth > 0 && !content.extents.iter().all(|extent| referred.find(&extent.chunk).is_some()) {
        return Ok(false);
    }
    let mut walker = ExtentWalker::new(chunks, content.clone());
    while let Some(extent) = walker.next().await? {
        if extent.chunk != ChunkId::HOLE && referred.find(&extent.chunk).is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Goes through the extents of a content from its beginning to its end.
pub(in crate::repository) struct ExtentCursor {
    referred: Arc<Referred>,
    walker: ExtentWalker,
    ahead: VecDeque<Extent>,
    /// Where the first of `ahead` begins.
    position: u64,
    /// A chunk that the repository has.
    known: ChunkId,
}

impl ExtentCursor {
    fn new(chunks: &Arc<ChunkReader>, referred: &Arc<Referred>, content: ContentList) -> Self {
        Self {
            referred: Arc::clone(referred),
            walker: ExtentWalker::new(chunks, content),
            ahead: VecDeque::new(),
            position: 0,
            known: ChunkId::HOLE,
        }
    }

    /// Appends the extents of the bytes from `start` to `end` to `to`; `false` when the repository lacks some of them.
    /// Every call begins where the one before began, or later.
    pub(in crate::repository) async fn take(&mut self, start: u64, end: u64, to: &mut Vec<Extent>) -> Result<bool> {
        let mut at = start;
        while at < end {
            let Some(extent) = self.at(at).await? else { return Ok(false) };
            let Some(skip) = at.checked_sub(self.position) else { return Ok(false) };
            let length = (extent.length - skip).min(end - at);
            if extent.chunk == ChunkId::HOLE {
                to.push(Extent { length, ..extent });
            } else {
                if extent.chunk != self.known && self.referred.find(&extent.chunk).is_none() {
                    return Ok(false);
                }
                self.known = extent.chunk;
                let offset = u32::try_from(skip).ok().and_then(|skip| extent.offset.checked_add(skip));
                let Some(offset) = offset else { return Err(malformed("an extent is longer than any chunk")) };
                to.push(Extent { chunk: extent.chunk, offset, length });
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
pub(in crate::repository) struct EarlierPages {
    content: EarlierContent,
    page_bytes: u64,
    cursor: Option<ExtentCursor>,
    hashes: Option<HashCursor>,
}

impl EarlierPages {
    pub(in crate::repository) fn length(&self) -> u64 {
        self.content.length
    }

    pub(in crate::repository) async fn is_whole(&mut self) -> bool {
        self.content.is_whole().await
    }

    pub(in crate::repository) fn as_it_is(&self) -> (ContentList, Option<PageMap>) {
        self.content.clone().into_parts()
    }

    /// The hash of the page that begins at `start` and has `length` bytes.
    pub(in crate::repository) async fn hash(&mut self, start: u64, length: u64) -> Option<PageHash> {
        let there = self.length().saturating_sub(start).min(self.page_bytes);
        if there != length {
            return None;
        }
        if let Ok(hash) = self.hashes.as_mut()?.at(start / self.page_bytes).await {
            return hash;
        }
        self.hashes = None;
        None
    }

    /// See [`ExtentCursor::take`].
    pub(in crate::repository) async fn take(&mut self, start: u64, end: u64, to: &mut Vec<Extent>) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        if let Ok(there) = cursor.take(start, end, to).await {
            return there;
        }
        self.cursor = None;
        false
    }

    /// Whether more than `most` extents lie between `start` and `end`.
    pub(in crate::repository) async fn is_fragmented(&mut self, start: u64, end: u64, most: usize) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        if let Ok(fragmented) = cursor.has_more_than(most, start, end).await {
            return fragmented;
        }
        self.cursor = None;
        false
    }
}
