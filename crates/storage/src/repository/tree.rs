//! Writes one tree: contents as they come from many tasks, the listing in the order of the paths.
//!
//! Invariant: the listing holds only files whose content is complete; one that was dropped fails the tree.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{ChunkHint, FileSink, Stored, TreeSink};
use backup_core::tree::{TreeEntry, TreePath};
use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::chunker::Cut;
use super::content::ContentList;
use super::entry::put_entry;
use super::pack::Class;
use super::pipeline::{Pipeline, Tally};
use super::read::ListingReader;
use super::stream::ChunkWriter;

/// So many entries may wait behind a file that is still being read.
const MAX_WAITING: usize = 4096;
/// Records are handed to the chunker in batches of about this size.
const BATCH_BYTES: usize = 64 * 1024;

/// The place of a file in the listing.
#[derive(Debug)]
enum Slot {
    Pending,
    Filled(Box<TreeEntry>, ContentList),
    Abandoned,
    Dropped,
}

#[derive(Debug)]
struct Place {
    slot: Mutex<Slot>,
    filled: Notify,
}

impl Place {
    fn fill(&self, slot: Slot) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = slot;
        self.filled.notify_one();
    }

    fn take(&self) -> Option<Slot> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        match *slot {
            Slot::Pending => None,
            _ => Some(std::mem::replace(&mut *slot, Slot::Pending)),
        }
    }
}

/// An entry that waits for its turn.
enum Waiting {
    Ready(Box<TreeEntry>, ContentList),
    File(TreePath, Arc<Place>),
}

/// A tree artifact in a repository.
pub(super) struct RepositoryTree {
    pipeline: Arc<Pipeline>,
    tally: Arc<Tally>,
    listing: ChunkWriter,
    waiting: VecDeque<Waiting>,
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
        Self { pipeline, tally, listing, waiting: VecDeque::new(), batch: BytesMut::new(), bytes: 0, earlier }
    }

    /// The content that an earlier snapshot has for this very file.
    async fn find_earlier(&mut self, entry: &TreeEntry) -> Option<ContentList> {
        let earlier = self.earlier.as_mut()?;
        while earlier.current.as_ref().is_none_or(|(current, _)| current.path < entry.path) {
            // An earlier listing that cannot be read costs a full read of the files, nothing else.
            let Ok(Some(next)) = earlier.reader.next().await else {
                self.earlier = None;
                return None;
            };
            earlier.current = Some(next);
        }
        let (current, content) = earlier.current.as_ref()?;
        if !entry.same_file(current) {
            return None;
        }
        // Content whose chunks are gone must be read again: this is how damage heals.
        let whole = earlier.reader.has_all(content).await.unwrap_or(false);
        whole.then(|| content.clone())
    }

    async fn wait(&mut self, waiting: Waiting) -> Result<()> {
        self.waiting.push_back(waiting);
        self.advance().await?;
        while self.waiting.len() >= MAX_WAITING {
            let Some(Waiting::File(_, place)) = self.waiting.front() else { break };
            Arc::clone(place).filled.notified().await;
            self.advance().await?;
        }
        Ok(())
    }

    /// Writes the records of all entries at the front that are complete.
    async fn advance(&mut self) -> Result<()> {
        while let Some(front) = self.waiting.front() {
            let slot = match front {
                Waiting::Ready(..) => None,
                Waiting::File(_, place) => match place.take() {
                    Some(slot) => Some(slot),
                    None => break,
                },
            };
            let Some(front) = self.waiting.pop_front() else { break };
            match (front, slot) {
                (Waiting::Ready(entry, content), _) | (_, Some(Slot::Filled(entry, content))) => {
                    self.record(&entry, &content).await?;
                }
                (_, Some(Slot::Abandoned)) => {}
                (Waiting::File(path, _), _) => {
                    return Err(Error::new(
                        ErrorKind::Incomplete,
                        format!("the file `{path}` was not read to its end"),
                    ));
                }
            }
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
        self.wait(Waiting::Ready(Box::new(entry), ContentList::default())).await
    }

    async fn reuse(&mut self, entry: &TreeEntry) -> Result<bool> {
        let Some(content) = self.find_earlier(entry).await else { return Ok(false) };
        self.wait(Waiting::Ready(Box::new(entry.clone()), content)).await?;
        Ok(true)
    }

    async fn file(&mut self, path: TreePath, hint: ChunkHint) -> Result<Box<dyn FileSink>> {
        let place = Arc::new(Place { slot: Mutex::new(Slot::Pending), filled: Notify::new() });
        self.wait(Waiting::File(path, Arc::clone(&place))).await?;
        let cut = Cut::of_file(hint);
        let (pipeline, tally) = (Arc::clone(&self.pipeline), Arc::clone(&self.tally));
        Ok(Box::new(RepositoryFile { pipeline, tally, cut, writer: None, place: Some(place) }))
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        self.advance().await?;
        if let Some(Waiting::File(path, _)) = self.waiting.front() {
            return Err(Error::new(ErrorKind::Incomplete, format!("the file `{path}` was left unfinished")));
        }
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
    place: Option<Arc<Place>>,
}

impl RepositoryFile {
    fn writer(&mut self) -> &mut ChunkWriter {
        let (pipeline, tally, cut) = (&self.pipeline, &self.tally, self.cut);
        self.writer
            .get_or_insert_with(|| ChunkWriter::new(Arc::clone(pipeline), Arc::clone(tally), Class::Content, cut))
    }

    fn fill(&mut self, slot: Slot) {
        if let Some(place) = self.place.take() {
            place.fill(slot);
        }
    }
}

impl Drop for RepositoryFile {
    fn drop(&mut self) {
        self.fill(Slot::Dropped);
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
        self.fill(Slot::Filled(Box::new(entry), content));
        Ok(())
    }

    async fn abandon(mut self: Box<Self>) -> Result<()> {
        self.fill(Slot::Abandoned);
        Ok(())
    }
}
