//! Writes one tree: contents as they come from many tasks, the listing in the order of the paths.
//!
//! Invariant: the listing holds only files whose content is complete; one that was dropped fails the tree.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{ChunkHint, FileSink, Stored, TreeOrder, TreeSink};
use backup_core::tree::{TreeEntry, TreePath};
use bytes::{Bytes, BytesMut};

use super::chunker::Cut;
use super::content::ContentList;
use super::earlier::{EarlierContent, EarlierTree};
use super::entry::put_entry;
use super::file::RepositoryFile;
use super::pack::Class;
use super::page_map::{PageMap, put_header, put_map};
use super::pages::PageSetup;
use super::pipeline::{Pipeline, Tally};
use super::sorter::{Sortable, Sorter};
use super::stream::ChunkWriter;
use crate::blocking;
use crate::ordered::Ordered;

/// Records are handed to the chunker in batches of about this size.
const BATCH_BYTES: usize = 64 * 1024;

/// An entry, and where its content and its pages' hashes are.
pub(super) struct Listed {
    pub(super) entry: Box<TreeEntry>,
    pub(super) content: ContentList,
    pub(super) map: Option<PageMap>,
}

/// A tree artifact in a repository.
pub(super) struct RepositoryTree {
    setup: PageSetup,
    listing: Records,
    maps: Records,
    /// Whether the page map has anything in it.
    is_mapped: bool,
    order: Ordered<Listed>,
    /// For entries that come in any order; taken while it writes to its temporary file.
    sorter: Option<Sorter>,
    bytes: u64,
    earlier: Option<EarlierTree>,
    found: Option<Found>,
}

/// A file of the earlier snapshot.
struct Found {
    entry: TreeEntry,
    content: EarlierContent,
}

impl RepositoryTree {
    pub(super) fn new(setup: PageSetup, order: &TreeOrder, earlier: Option<EarlierTree>) -> Self {
        let sorter = match order {
            TreeOrder::ByPath => None,
            TreeOrder::Any { scratch } => Some(Sorter::new(scratch)),
        };
        let (listing, maps) = (Records::new(&setup), Records::new(&setup));
        Self { setup, listing, maps, is_mapped: false, order: Ordered::new(), sorter, bytes: 0, earlier, found: None }
    }

    /// What the earlier snapshot has at `path`. The last answer is remembered: files are asked for, then written.
    async fn find_earlier(&mut self, path: &TreePath) -> Option<&mut Found> {
        let earlier = self.earlier.as_mut()?;
        if self.found.as_ref().is_none_or(|found| found.entry.path != *path) {
            let file = earlier.find(path).await;
            self.found = file.map(|file| Found { entry: file.entry.clone(), content: earlier.start(file) });
        }
        self.found.as_mut()
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
        while let Some(listed) = self.order.next_ready()? {
            self.record(listed).await?;
        }
        Ok(())
    }

    async fn record(&mut self, item: Listed) -> Result<()> {
        let Listed { entry, content, map } = item;
        let (mut listed, mut mapped) = (Vec::new(), Vec::new());
        put_entry(&mut listed, &entry, &content);
        if let Some(map) = map {
            put_map(&mut mapped, &entry.path, &map);
        }
        let record = Sortable { size: entry.size(), path: entry.path, listed, mapped };
        let Some(sorter) = &mut self.sorter else { return self.list(&record).await };
        if sorter.push(record)
            && let Some(full) = self.sorter.take()
        {
            self.sorter = Some(blocking(move || full.spill()).await?);
        }
        Ok(())
    }

    /// Writes the records of the entry whose turn it is.
    async fn list(&mut self, record: &Sortable) -> Result<()> {
        self.bytes += record.size;
        self.listing.push(&record.listed).await?;
        if !record.mapped.is_empty() {
            if !self.is_mapped {
                self.is_mapped = true;
                let mut header = Vec::new();
                put_header(&mut header, &self.setup.key);
                self.maps.push(&header).await?;
            }
            self.maps.push(&record.mapped).await?;
        }
        Ok(())
    }

    /// Writes the records that were sorted.
    async fn list_sorted(&mut self) -> Result<()> {
        let Some(sorter) = self.sorter.take() else { return Ok(()) };
        let mut records = sorter.finish()?;
        while let Some(record) = records.next()? {
            self.list(&record).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl TreeSink for RepositoryTree {
    async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.order.push(Listed { entry: Box::new(entry), content: ContentList::default(), map: None });
        self.settle().await
    }

    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        let Some(found) = self.find_earlier(&entry.path).await else { return Ok(false) };
        // Content whose chunks are gone must be read again: this is how damage heals.
        if !entry.same_file(&found.entry) || !found.content.is_whole().await {
            return Ok(false);
        }
        let (content, map) = found.content.clone().into_parts();
        self.order.push(Listed { entry: Box::new(entry.clone()), content, map });
        self.settle().await?;
        Ok(true)
    }

    async fn earlier_length(&mut self, path: &TreePath) -> Result<Option<u64>> {
        let Some(found) = self.find_earlier(path).await else { return Ok(None) };
        Ok(found.content.is_whole().await.then(|| found.content.length()))
    }

    async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>> {
        let earlier = self.find_earlier(&path).await.map(|found| found.content.clone());
        let place = self.order.reserve(path);
        self.settle().await?;
        Ok(Box::new(RepositoryFile::new(self.setup.clone(), hint, earlier, place)))
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        self.advance().await?;
        self.order.finish()?;
        self.list_sorted().await?;
        let Self { setup, listing, maps, is_mapped, bytes, .. } = *self;
        let content = listing.finish().await?;
        let page_map = if is_mapped { Some(maps.finish().await?.to_record()) } else { None };
        let stored_bytes = setup.tally.settle().await;
        Ok(Stored { bytes, stored_bytes, content: content.to_record(), page_map })
    }
}

/// A stream of records: a listing, a page map.
struct Records {
    batch: BytesMut,
    writer: ChunkWriter,
}

impl Records {
    fn new(setup: &PageSetup) -> Self {
        let (pipeline, tally): (&Arc<Pipeline>, &Arc<Tally>) = (&setup.pipeline, &setup.tally);
        let writer = ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Meta, Cut::Listing);
        Self { batch: BytesMut::new(), writer }
    }

    async fn push(&mut self, record: &[u8]) -> Result<()> {
        self.batch.extend_from_slice(record);
        if self.batch.len() < BATCH_BYTES {
            return Ok(());
        }
        let batch: Bytes = self.batch.split().freeze();
        self.writer.write(batch).await
    }

    async fn finish(mut self) -> Result<ContentList> {
        self.writer.write(self.batch.freeze()).await?;
        self.writer.finish().await
    }
}
