//! Writes one tree: contents as they come from many tasks, the listing in the order of the paths.
//!
//! Invariant: the listing holds only files whose content is complete; one that was dropped fails the tree.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{ChunkHint, FileSink, Stored, TreeSink};
use backup_core::tree::{TreeEntry, TreePath};
use bytes::{Bytes, BytesMut};

use super::chunker::Cut;
use super::content::ContentList;
use super::entry::put_entry;
use super::pack::Class;
use super::pipeline::{Pipeline, Tally};
use super::read::ListingReader;
use super::stream::ChunkWriter;
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
    batch: BytesMut,
    bytes: u64,
    earlier: Option<Earlier>,
}

/// The tree of an earlier snapshot, read along in the same order.
struct Earlier {
    reader: ListingReader,
    current: Option<(TreeEntry, ContentList)>,
}

impl RepositoryTree {
    pub(super) fn new(pipeline: Arc<Pipeline>, earlier: Option<ListingReader>) -> Self {
        let tally = Arc::<Tally>::default();
        let listing = ChunkWriter::new(Arc::clone(&pipeline), Arc::clone(&tally), Class::Meta, Cut::Listing);
        let earlier = earlier.map(|reader| Earlier { reader, current: None });
        Self { pipeline, tally, listing, order: Ordered::new(), batch: BytesMut::new(), bytes: 0, earlier }
    }

    /// The content that an earlier snapshot has for this very file.
    async fn find_earlier(&mut self, entry: &TreeEntry) -> Option<ContentList> {
        let earlier = self.earlier.as_mut()?;
        while earlier.current.as_ref().is_none_or(|(current, _)| current.path < entry.path) {
            if let Ok(Some(next)) = earlier.reader.next().await {
                earlier.current = Some(next);
            } else {
                // An earlier listing that cannot be read costs a full read of the files, nothing else.
                self.earlier = None;
                return None;
            }
        }
        let (current, content) = earlier.current.as_ref()?;
        if !entry.same_file(current) {
            return None;
        }
        // Content whose chunks are gone must be read again: this is how damage heals.
        let whole = earlier.reader.has_all(content).await.unwrap_or(false);
        whole.then(|| content.clone())
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
        self.bytes += entry.size();
        let mut record = Vec::new();
        put_entry(&mut record, entry, content);
        self.batch.extend_from_slice(&record);
        if self.batch.len() >= BATCH_BYTES {
            let batch = self.batch.split().freeze();
            self.listing.write(batch).await?;
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
        let Some(content) = self.find_earlier(entry).await else { return Ok(false) };
        self.order.push((Box::new(entry.clone()), content));
        self.settle().await?;
        Ok(true)
    }

    async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>> {
        let place = self.order.reserve(path);
        self.settle().await?;
        let cut = Cut::of_file(hint);
        let (pipeline, tally) = (Arc::clone(&self.pipeline), Arc::clone(&self.tally));
        Ok(Box::new(RepositoryFile { pipeline, tally, cut, writer: None, place }))
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        self.advance().await?;
        self.order.finish()?;
        let Self { mut listing, batch, tally, bytes, .. } = *self;
        listing.write(batch.freeze()).await?;
        let content = listing.finish().await?;
        let stored_bytes = tally.settle().await;
        Ok(Stored { bytes, stored_bytes, content: content.to_record() })
    }
}

/// A file of a tree in a repository.
struct RepositoryFile {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    cut: Cut,
    writer: Option<ChunkWriter>,
    place: Place<Listed>,
}

impl RepositoryFile {
    fn writer(&mut self) -> &mut ChunkWriter {
        let (pipeline, tally, cut) = (&self.pipeline, &self.tally, self.cut);
        self.writer
            .get_or_insert_with(|| ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Content, cut))
    }
}

#[async_trait]
impl FileSink for RepositoryFile {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.writer().write(data).await
    }

    async fn hole(&mut self, length: u64) -> Result<()> {
        self.writer().hole(length).await
    }

    async fn restart(&mut self) -> Result<()> {
        self.writer = None;
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
