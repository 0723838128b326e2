//! Where the pieces of a file of pages go: into chunks and a list of extents, and their hashes into a page map.
//!
//! Invariant: memory is bounded by [`RUN_BYTES`], [`MAX_PARTS`] and [`MAX_INLINE_PAGES`].

use std::sync::Arc;

use backup_core::error::Result;
use bytes::{Bytes, BytesMut};

use super::PageSetup;
use crate::repository::chunker::Cut;
use crate::repository::content::{ContentList, Extent};
use crate::repository::pack::Class;
use crate::repository::page_map::{HASH_BYTES, Hashes, MAX_INLINE_PAGES, PageHash};
use crate::repository::pipeline::{Pipeline, Tally};
use crate::repository::stream::{ChunkWriter, ListBuilder};

/// New pages are stored together until they fill a chunk of this size. Larger chunks compress hardly better, and cost
/// more when a single page of one is wanted.
const RUN_BYTES: usize = 256 * 1024;
/// A run ends early when so many pieces lie between its pages: they wait for its chunk's id.
const MAX_PARTS: usize = 4096;

/// A piece of the file.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Somewhere already.
    Stored(Extent),
    /// In the chunk that is being filled.
    Fresh { offset: u32, length: u64 },
}

/// Puts pieces in order: new ones gather in a chunk, and stored ones between them wait for its id.
pub(super) struct Output {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    list: ListBuilder,
    run: BytesMut,
    parts: Vec<Part>,
    /// Whether a chunk was filled: only then the next one gets all of its memory at once. Most files are small.
    large: bool,
}

impl Output {
    pub(super) fn new(setup: &PageSetup) -> Self {
        Self {
            pipeline: Arc::clone(&setup.pipeline),
            tally: Arc::clone(&setup.tally),
            list: ListBuilder::default(),
            run: BytesMut::new(),
            parts: Vec::new(),
            large: false,
        }
    }

    /// Appends what is stored already.
    pub(super) async fn stored(&mut self, extent: Extent) -> Result<()> {
        if self.run.is_empty() {
            return self.list.push(&self.pipeline, &self.tally, extent).await;
        }
        match self.parts.last_mut() {
            Some(Part::Stored(last)) if last.continues_with(&extent) => last.length += extent.length,
            _ => self.parts.push(Part::Stored(extent)),
        }
        if self.parts.len() < MAX_PARTS { Ok(()) } else { self.cut().await }
    }

    /// Appends new bytes.
    pub(super) async fn fresh(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let (piece, rest) = data.split_at(data.len().min(RUN_BYTES - self.run.len()));
            let (offset, length) = (self.run.len() as u32, piece.len() as u64);
            match self.parts.last_mut() {
                Some(Part::Fresh { length: last, .. }) => *last += length,
                _ => self.parts.push(Part::Fresh { offset, length }),
            }
            if self.run.is_empty() && self.large {
                self.run.reserve(RUN_BYTES);
            }
            self.run.extend_from_slice(piece);
            if self.run.len() == RUN_BYTES {
                self.large = true;
                self.cut().await?;
            }
            data = rest;
        }
        Ok(())
    }

    /// Stores the chunk that was being filled.
    async fn cut(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let chunk = self.pipeline.store(Class::Content, self.run.split().freeze(), &self.tally).await?;
        for part in self.parts.drain(..) {
            let extent = match part {
                Part::Stored(extent) => extent,
                Part::Fresh { offset, length } => Extent { chunk, offset, length },
            };
            self.list.push(&self.pipeline, &self.tally, extent).await?;
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<ContentList> {
        self.cut().await?;
        self.list.finish(&self.pipeline, &self.tally).await
    }
}

/// Collects the hashes of a file's pages; past a limit they become a stream of their own.
pub(super) struct HashWriter {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    inline: Vec<u8>,
    listed: Option<ChunkWriter>,
}

impl HashWriter {
    pub(super) fn new(setup: &PageSetup) -> Self {
        let (pipeline, tally) = (Arc::clone(&setup.pipeline), Arc::clone(&setup.tally));
        Self { pipeline, tally, inline: Vec::new(), listed: None }
    }

    pub(super) async fn push(&mut self, hash: PageHash) -> Result<()> {
        if self.inline.len() >= MAX_INLINE_PAGES * HASH_BYTES {
            self.spill().await?;
        }
        self.inline.extend_from_slice(&hash);
        Ok(())
    }

    async fn spill(&mut self) -> Result<()> {
        let (pipeline, tally) = (&self.pipeline, &self.tally);
        let listed = self.listed.get_or_insert_with(|| {
            ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Meta, Cut::Listing)
        });
        let hashes = Bytes::copy_from_slice(&self.inline);
        self.inline.clear();
        listed.write(hashes).await
    }

    pub(super) async fn finish(mut self) -> Result<Hashes> {
        if self.listed.is_none() {
            return Ok(Hashes::Inline(self.inline));
        }
        self.spill().await?;
        match self.listed {
            Some(listed) => Ok(Hashes::Listed(listed.finish().await?)),
            None => Ok(Hashes::Inline(Vec::new())),
        }
    }
}
