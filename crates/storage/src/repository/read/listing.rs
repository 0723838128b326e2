//! From the listing of a tree artifact to its entries.
//!
//! Invariant: entries come in strictly ascending order of their paths, so none can shadow or repeat another.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{EntryReader, FileContent, Piece, PieceReader, StoredEntry};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};

use super::ChunkReader;
use super::content::ContentReader;
use super::records::RecordReader;
use crate::repository::content::ContentList;
use crate::repository::entry::read_entry;

/// Reads a listing.
pub(in crate::repository) struct ListingReader {
    chunks: Arc<ChunkReader>,
    records: RecordReader,
    last: Option<TreePath>,
}

impl ListingReader {
    pub(in crate::repository) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        Self { chunks: Arc::clone(chunks), records: RecordReader::new(chunks, content), last: None }
    }

    /// The next entry and, for a regular file, its content.
    pub(in crate::repository) async fn next(&mut self) -> Result<Option<(TreeEntry, ContentList)>> {
        let Some(record) = self.records.next().await? else { return Ok(None) };
        let (entry, content) = read_entry(&record)?;
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(Error::new(ErrorKind::Damaged, format!("the listing is out of order at `{}`", entry.path)));
        }
        self.last = Some(entry.path.clone());
        Ok(Some((entry, content)))
    }
}

#[async_trait]
impl EntryReader for ListingReader {
    async fn next(&mut self) -> Result<Option<StoredEntry>> {
        let Some((entry, content)) = ListingReader::next(self).await? else { return Ok(None) };
        let chunks = Arc::clone(&self.chunks);
        let file = matches!(entry.kind, EntryKind::File { .. });
        let size = entry.size();
        let content = file.then(|| Box::new(StoredContent { chunks, content, size }) as Box<dyn FileContent>);
        Ok(Some(StoredEntry { entry, content }))
    }
}

struct StoredContent {
    chunks: Arc<ChunkReader>,
    content: ContentList,
    size: u64,
}

#[async_trait]
impl FileContent for StoredContent {
    async fn open(self: Box<Self>) -> Result<Box<dyn PieceReader>> {
        Ok(Box::new(SizedReader { inner: ContentReader::new(&self.chunks, self.content), left: self.size }))
    }
}

impl fmt::Debug for StoredContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredContent({} bytes)", self.size)
    }
}

/// Checks that a file has the length that its entry says.
struct SizedReader {
    inner: ContentReader,
    left: u64,
}

#[async_trait]
impl PieceReader for SizedReader {
    async fn next(&mut self) -> Result<Option<Piece>> {
        let piece = self.inner.next().await?;
        let length = match &piece {
            Some(Piece::Data(data)) => data.len() as u64,
            Some(Piece::Hole(length)) => *length,
            None if self.left == 0 => return Ok(None),
            None => return Err(Error::new(ErrorKind::Damaged, format!("a file is {} bytes short", self.left))),
        };
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| crate::repository::codec::malformed("a file is longer than its entry says"))?;
        Ok(piece)
    }
}
