//! Writes one tree: contents as they come from many tasks, the listing in the order of the paths.
//!
//! Invariant: the listing holds only files whose content is complete; one that was dropped fails the tree.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{ChunkHint, FileSink, Stored, TreeOrder, TreeSink, nothing_to_keep};
use backup_core::tree::{TreeEntry, TreePath};
use bytes::{Bytes, BytesMut};

use super::chunker::Cut;
use super::content::{ContentList, Extent};
use super::earlier::{EarlierContent, EarlierTree, ExtentCursor};
use super::entry::put_entry;
use super::pack::Class;
use super::pipeline::{Pipeline, Tally};
use super::sorter::{Sortable, Sorter};
use super::stream::ChunkWriter;
use crate::blocking;
use crate::ordered::{Ordered, Place};

/// Records are handed to the chunker in batches of about this size.
const BATCH_BYTES: usize = 64 * 1024;

/// An entry, and where its content is.
type Listed = (Box<TreeEntry>, ContentList);

/// A tree artifact in a repository.
pub(super) struct RepositoryTree {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    listing: ChunkWriter,
    order: Ordered<Listed>,
    /// For entries that come in any order; taken while it writes to its temporary file.
    sorter: Option<Sorter>,
    batch: BytesMut,
    bytes: u64,
    earlier: Option<EarlierTree>,
}

impl RepositoryTree {
    pub(super) fn new(pipeline: Arc<Pipeline>, order: &TreeOrder, earlier: Option<EarlierTree>) -> Self {
        let tally = Arc::<Tally>::default();
        let listing = ChunkWriter::new(Arc::clone(&pipeline), Arc::clone(&tally), Class::Meta, Cut::Listing);
        let sorter = match order {
            TreeOrder::ByPath => None,
            TreeOrder::Any { scratch } => Some(Sorter::new(scratch)),
        };
        Self { pipeline, tally, listing, order: Ordered::new(), sorter, batch: BytesMut::new(), bytes: 0, earlier }
    }

    /// Makes room for what waits, by writing what is complete.
    async fn settle(&mut self) -> Result<()> {
        self.advance().await?;
        while self.order.is_full() {
            self.order.first_filled().await;
            self.advance().await?;
        }
        Ok(())
    }

    /// Writes the records of all entries at the front that are complete.
    async fn advance(&mut self) -> Result<()> {
        while let Some((entry, content)) = self.order.next_ready()? {
            self.record(&entry, &content).await?;
        }
        Ok(())
    }

    async fn record(&mut self, entry: &TreeEntry, content: &ContentList) -> Result<()> {
        let mut listed = Vec::new();
        put_entry(&mut listed, entry, content);
        let Some(sorter) = &mut self.sorter else {
            self.bytes += entry.size();
            return self.list(&listed).await;
        };
        let record = Sortable { path: entry.path.clone(), size: entry.size(), listed, mapped: Vec::new() };
        if sorter.push(record)
            && let Some(full) = self.sorter.take()
        {
            self.sorter = Some(blocking(move || full.spill()).await?);
        }
        Ok(())
    }

    async fn list(&mut self, record: &[u8]) -> Result<()> {
        self.batch.extend_from_slice(record);
        if self.batch.len() >= BATCH_BYTES {
            let batch = self.batch.split().freeze();
            self.listing.write(batch).await?;
        }
        Ok(())
    }

    /// Writes the records that were sorted.
    async fn list_sorted(&mut self) -> Result<()> {
        let Some(sorter) = self.sorter.take() else { return Ok(()) };
        let mut records = sorter.finish()?;
        while let Some(record) = records.next()? {
            self.bytes += record.size;
            self.list(&record.listed).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl TreeSink for RepositoryTree {
    async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.order.push((Box::new(entry), ContentList::default()));
        self.settle().await
    }

    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        let Some(earlier) = &mut self.earlier else { return Ok(false) };
        let Some(file) = earlier.find(&entry.path).await else { return Ok(false) };
        if !entry.same_file(&file.entry) || !earlier.has_all(&file.content).await {
            return Ok(false);
        }
        self.order.push((Box::new(entry.clone()), file.content));
        self.settle().await?;
        Ok(true)
    }

    async fn earlier_length(&mut self, path: &TreePath) -> Result<Option<u64>> {
        let Some(earlier) = &mut self.earlier else { return Ok(None) };
        Ok(earlier.find_whole(path).await.map(|file| file.entry.size()))
    }

    async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>> {
        let earlier = match &mut self.earlier {
            Some(earlier) => earlier.find(&path).await.map(|file| earlier.start(file)),
            None => None,
        };
        let place = self.order.reserve(path);
        self.settle().await?;
        let cut = Cut::of_file(hint);
        let (pipeline, tally) = (Arc::clone(&self.pipeline), Arc::clone(&self.tally));
        Ok(Box::new(RepositoryFile { pipeline, tally, cut, earlier, writer: None, cursor: None, position: 0, place }))
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        self.advance().await?;
        self.order.finish()?;
        self.list_sorted().await?;
        let Self { mut listing, batch, tally, bytes, .. } = *self;
        listing.write(batch.freeze()).await?;
        let content = listing.finish().await?;
        let stored_bytes = tally.settle().await;
        Ok(Stored { bytes, stored_bytes, content: content.to_record(), page_map: None })
    }
}

/// A file of a tree in a repository.
struct RepositoryFile {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    cut: Cut,
    earlier: Option<EarlierContent>,
    writer: Option<ChunkWriter>,
    cursor: Option<ExtentCursor>,
    position: u64,
    place: Place<Listed>,
}

/// So much is kept at a time: the extents of more would take too much memory.
const KEEP_BYTES: u64 = 4 * 1024 * 1024;

impl RepositoryFile {
    fn writer(&mut self) -> &mut ChunkWriter {
        let (pipeline, tally, cut) = (&self.pipeline, &self.tally, self.cut);
        self.writer
            .get_or_insert_with(|| ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Content, cut))
    }

    /// The extents that the earlier snapshot has of the next `length` bytes.
    async fn kept(&mut self, length: u64) -> Result<Vec<Extent>> {
        let earlier = self.earlier.as_ref().ok_or_else(nothing_to_keep)?;
        let end =
            self.position.checked_add(length).filter(|end| *end <= earlier.length()).ok_or_else(nothing_to_keep)?;
        let cursor = self.cursor.get_or_insert_with(|| earlier.cursor());
        let mut extents = Vec::new();
        match cursor.take(self.position, end, &mut extents).await {
            Ok(true) => Ok(extents),
            Ok(false) => Err(nothing_to_keep()),
            Err(error) => Err(nothing_to_keep().caused_by(error)),
        }
    }
}

#[async_trait]
impl FileSink for RepositoryFile {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.position += data.len() as u64;
        self.writer().write(data).await
    }

    async fn hole(&mut self, length: u64) -> Result<()> {
        self.position += length;
        self.writer().hole(length).await
    }

    async fn keep(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let count = length.min(KEEP_BYTES);
            let extents = self.kept(count).await?;
            self.writer().splice(&extents).await?;
            self.position += count;
            length -= count;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        (self.writer, self.cursor, self.position) = (None, None, 0);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, entry: TreeEntry) -> Result<()> {
        let content = match self.writer.take() {
            Some(writer) => writer.finish().await?,
            None => ContentList::default(),
        };
        self.place.fill((Box::new(entry), content));
        Ok(())
    }

    async fn abandon(mut self: Box<Self>) -> Result<()> {
        self.place.abandon();
        Ok(())
    }
}
