//! Writes one stream of bytes: cuts it, stores its chunks and remembers where they are.
//!
//! Invariant: memory does not grow with the stream. A content list that grows too long becomes a stream itself.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{Stored, StreamSink};
use backup_core::tree::TreePath;
use bytes::Bytes;

use super::chunker::{Chunker, Cut};
use super::content::{ChunkId, ContentList, Extent, MAX_EXTENT_BYTES, put_extent};
use super::earlier::EarlierContent;
use super::pack::Class;
use super::page_map::{PageKey, PageMap, put_header, put_map};
use super::pages::{PageSetup, PageWriter};
use super::pipeline::{Pipeline, Tally};

/// More extents than this are moved into a list of their own. 256 extents are about 10 KiB.
pub(super) const MAX_INLINE_EXTENTS: usize = 256;

/// Cuts and stores one stream, without knowing whose it is.
pub(super) struct ChunkWriter {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    class: Class,
    chunker: Chunker,
    /// Chunks that are not stored yet.
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
        self.list.finish(&self.pipeline, &self.tally).await
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

/// Collects extents, makes one of those that continue each other, and past a limit moves them into a nested stream.
#[derive(Default)]
pub(super) struct ListBuilder {
    extents: Vec<Extent>,
    nested: Option<Box<ChunkWriter>>,
}

impl ListBuilder {
    pub(super) async fn push(&mut self, pipeline: &Arc<Pipeline>, tally: &Arc<Tally>, extent: Extent) -> Result<()> {
        if let Some(last) = self.extents.last_mut()
            && last.continues_with(&extent)
        {
            last.length += extent.length;
            return Ok(());
        }
        if self.extents.len() >= MAX_INLINE_EXTENTS {
            self.spill(pipeline, tally).await?;
        }
        self.extents.push(extent);
        Ok(())
    }

    async fn spill(&mut self, pipeline: &Arc<Pipeline>, tally: &Arc<Tally>) -> Result<()> {
        let nested = self.nested.get_or_insert_with(|| {
            Box::new(ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Meta, Cut::Listing))
        });
        let mut bytes = Vec::with_capacity(self.extents.len() * MAX_EXTENT_BYTES);
        for extent in self.extents.drain(..) {
            put_extent(&mut bytes, &extent);
        }
        // A list of lists is rare and shallow: the recursion needs a box, not a limit.
        Box::pin(nested.write(Bytes::from(bytes))).await
    }

    pub(super) async fn finish(mut self, pipeline: &Arc<Pipeline>, tally: &Arc<Tally>) -> Result<ContentList> {
        if self.nested.is_some() {
            self.spill(pipeline, tally).await?;
        }
        let Some(nested) = self.nested else { return Ok(ContentList { depth: 0, extents: self.extents }) };
        let list = Box::pin(nested.finish()).await?;
        Ok(ContentList { depth: list.depth + 1, extents: list.extents })
    }
}

/// How the bytes of a stream or a file are stored.
pub(super) enum ContentWriter {
    /// In chunks that its content decides.
    Chunks(ChunkWriter),
    /// Page by page, compared with an earlier snapshot.
    Pages(Box<PageWriter>),
}

impl ContentWriter {
    pub(super) async fn write(&mut self, data: Bytes) -> Result<()> {
        match self {
            Self::Chunks(writer) => writer.write(data).await,
            Self::Pages(writer) => writer.write(&data).await,
        }
    }

    pub(super) async fn hole(&mut self, length: u64) -> Result<()> {
        match self {
            Self::Chunks(writer) => writer.hole(length).await,
            Self::Pages(writer) => writer.hole(length).await,
        }
    }

    pub(super) async fn finish(self) -> Result<(ContentList, Option<PageMap>)> {
        match self {
            Self::Chunks(writer) => Ok((writer.finish().await?, None)),
            Self::Pages(writer) => writer.finish().await,
        }
    }
}

/// A stream artifact in a repository.
pub(super) struct RepositoryStream {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    writer: ContentWriter,
    /// For a stream of pages.
    key: Option<Arc<PageKey>>,
    bytes: u64,
}

impl RepositoryStream {
    pub(super) fn new(pipeline: Arc<Pipeline>, class: Class) -> Self {
        let tally = Arc::<Tally>::default();
        let writer = ChunkWriter::new(Arc::clone(&pipeline), Arc::clone(&tally), class, Cut::Stream);
        Self { pipeline, tally, writer: ContentWriter::Chunks(writer), key: None, bytes: 0 }
    }

    pub(super) fn of_pages(setup: PageSetup, page_bytes: u32, earlier: Option<&EarlierContent>) -> Self {
        let (pipeline, tally) = (Arc::clone(&setup.pipeline), Arc::clone(&setup.tally));
        let key = Some(Arc::clone(&setup.key));
        let writer = ContentWriter::Pages(Box::new(PageWriter::new(setup, page_bytes, earlier)));
        Self { pipeline, tally, writer, key, bytes: 0 }
    }
}

#[async_trait]
impl StreamSink for RepositoryStream {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.bytes += data.len() as u64;
        self.writer.write(data).await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let Self { pipeline, tally, writer, key, bytes } = *self;
        let (content, map) = writer.finish().await?;
        let page_map = match (map, key) {
            (Some(map), Some(key)) => {
                let mut record = Vec::new();
                put_header(&mut record, &key);
                put_map(&mut record, &TreePath::root(), &map);
                let mut listed = ChunkWriter::new(pipeline, Arc::clone(&tally), Class::Meta, Cut::Listing);
                listed.write(Bytes::from(record)).await?;
                Some(listed.finish().await?.to_record())
            }
            _ => None,
        };
        let stored_bytes = tally.settle().await;
        Ok(Stored { bytes, stored_bytes, content: content.to_record(), page_map })
    }
}
