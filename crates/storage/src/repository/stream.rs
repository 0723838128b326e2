//! Writes one stream of bytes: cuts it, stores its chunks and remembers where they are.
//!
//! Invariant: memory does not grow with the stream. A content list that grows too long becomes a stream itself.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{Stored, StreamSink};
use bytes::Bytes;

use super::chunker::{Chunker, Cut};
use super::content::{ChunkId, ContentList, Extent, MAX_EXTENT_BYTES, put_extent};
use super::pack::Class;
use super::pipeline::{Pipeline, Tally};

/// More extents than this are moved into a list of their own. 256 extents are about 10 KiB.
pub(super) const MAX_INLINE_EXTENTS: usize = 256;

/// Cuts and stores one stream, without knowing whose it is.
pub(super) struct ChunkWriter {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    class: Class,
    chunker: Chunker,
    cut: Vec<Bytes>,
    list: ListBuilder,
}

impl ChunkWriter {
    pub(super) fn new(pipeline: Arc<Pipeline>, tally: Arc<Tally>, class: Class, cut: Cut) -> Self {
        Self { pipeline, tally, class, chunker: Chunker::new(cut), cut: Vec::new(), list: ListBuilder::default() }
    }

    pub(super) async fn write(&mut self, data: Bytes) -> Result<()> {
        self.chunker.push(data, &mut self.cut);
        self.store_cut().await
    }

    /// Records zero bytes that are stored nowhere.
    pub(super) async fn hole(&mut self, length: u64) -> Result<()> {
        self.chunker.finish(&mut self.cut);
        self.store_cut().await?;
        let extent = Extent { chunk: ChunkId::HOLE, offset: 0, length };
        self.list.push(&self.pipeline, &self.tally, extent).await
    }

    /// Appends bytes that are stored already.
    pub(super) async fn splice(&mut self, extents: &[Extent]) -> Result<()> {
        self.chunker.finish(&mut self.cut);
        self.store_cut().await?;
        for extent in extents {
            self.list.push(&self.pipeline, &self.tally, *extent).await?;
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<ContentList> {
        self.chunker.finish(&mut self.cut);
        self.store_cut().await?;
        self.list.finish().await
    }

    async fn store_cut(&mut self) -> Result<()> {
        for data in self.cut.drain(..) {
            let length = data.len() as u64;
            let chunk = self.pipeline.store(self.class, data, &self.tally).await?;
            self.list.push(&self.pipeline, &self.tally, Extent { chunk, offset: 0, length }).await?;
        }
        Ok(())
    }
}

/// Collects extents; past a limit they go into a nested stream.
#[derive(Default)]
struct ListBuilder {
    extents: Vec<Extent>,
    nested: Option<Box<ChunkWriter>>,
}

impl ListBuilder {
    async fn push(&mut self, pipeline: &Arc<Pipeline>, tally: &Arc<Tally>, extent: Extent) -> Result<()> {
        self.extents.push(extent);
        if self.extents.len() < MAX_INLINE_EXTENTS {
            return Ok(());
        }
        let nested = self.nested.get_or_insert_with(|| {
            Box::new(ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Meta, Cut::Listing))
        });
        Self::spill(nested, &mut self.extents).await
    }

    async fn spill(nested: &mut ChunkWriter, extents: &mut Vec<Extent>) -> Result<()> {
        let mut bytes = Vec::with_capacity(extents.len() * MAX_EXTENT_BYTES);
        for extent in extents.drain(..) {
            put_extent(&mut bytes, &extent);
        }
        // A list of lists is rare and shallow: the recursion needs a box, not a limit.
        Box::pin(nested.write(Bytes::from(bytes))).await
    }

    async fn finish(self) -> Result<ContentList> {
        let Self { mut extents, nested } = self;
        let Some(mut nested) = nested else { return Ok(ContentList { depth: 0, extents }) };
        Self::spill(&mut nested, &mut extents).await?;
        let list = Box::pin(nested.finish()).await?;
        Ok(ContentList { depth: list.depth + 1, extents: list.extents })
    }
}

/// A stream artifact in a repository.
pub(super) struct RepositoryStream {
    writer: ChunkWriter,
    tally: Arc<Tally>,
    bytes: u64,
}

impl RepositoryStream {
    pub(super) fn new(pipeline: Arc<Pipeline>, class: Class, cut: Cut) -> Self {
        let tally = Arc::<Tally>::default();
        Self { writer: ChunkWriter::new(pipeline, Arc::clone(&tally), class, cut), tally, bytes: 0 }
    }
}

#[async_trait]
impl StreamSink for RepositoryStream {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.bytes += data.len() as u64;
        self.writer.write(data).await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let content = self.writer.finish().await?;
        let stored_bytes = self.tally.settle().await;
        Ok(Stored { bytes: self.bytes, stored_bytes, content: content.to_record(), page_map: None })
    }
}
