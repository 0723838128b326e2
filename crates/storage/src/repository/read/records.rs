//! Records one after another, each with its length before it, as listings and page maps are: cut from their stream,
//! and found by path in any order.
//!
//! Invariant: finding needs memory for one path in [`MARK_BYTES`] of records, and for one extent in a chunk of them.

use std::cmp::Ordering;
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::sink::{Piece, PieceReader};
use backup_core::tree::TreePath;
use bytes::{Buf, BytesMut};

use super::ChunkReader;
use super::content::{ContentReader, ExtentWalker, cut};
use crate::repository::codec::{Decoder, malformed};
use crate::repository::content::{ContentList, Extent};
use crate::repository::entry::MAX_RECORD_BYTES;
use crate::repository::page_map::{HEADER_BYTES, PageKey, PageMap, read_header, read_map};

/// One record in so many bytes can be found without reading those before it. A million files have listings of about
/// 200 MB, so 50,000 marks: 5 MB of memory.
const MARK_BYTES: u64 = 4 * 1024;

/// Cuts records from pieces of their stream.
#[derive(Debug, Default)]
struct RecordBuffer {
    bytes: BytesMut,
    /// The length of the records that were cut off.
    position: u64,
}

impl RecordBuffer {
    fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next record without its length, once all of it is here.
    fn next(&mut self) -> Result<Option<BytesMut>> {
        let mut decoder = Decoder::new(&self.bytes);
        let Ok(length) = decoder.varint() else {
            // Ten bytes hold any number: with as many at hand this one is malformed.
            return if self.bytes.len() < 10 { Ok(None) } else { Err(malformed("a listing is not readable")) };
        };
        if length > MAX_RECORD_BYTES {
            return Err(malformed("a listing has an impossible entry"));
        }
        if (decoder.remaining() as u64) < length {
            return Ok(None);
        }
        let head = self.bytes.len() - decoder.remaining();
        self.bytes.advance(head);
        self.position += head as u64 + length;
        Ok(Some(self.bytes.split_to(length as usize)))
    }
}

/// Reads records in the order in which they lie.
pub(super) struct RecordReader {
    content: ContentReader,
    buffer: RecordBuffer,
}

impl RecordReader {
    pub(super) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        Self { content: ContentReader::new(chunks, content), buffer: RecordBuffer::default() }
    }

    /// The `length` bytes before the first record.
    async fn head(&mut self, length: usize) -> Result<BytesMut> {
        while self.buffer.bytes.len() < length {
            match self.content.next().await? {
                Some(Piece::Data(data)) => self.buffer.push(&data),
                _ => return Err(malformed("a page map ends too early")),
            }
        }
        self.buffer.position += length as u64;
        Ok(self.buffer.bytes.split_to(length))
    }

    /// The next record without its length.
    pub(super) async fn next(&mut self) -> Result<Option<BytesMut>> {
        loop {
            if let Some(record) = self.buffer.next()? {
                return Ok(Some(record));
            }
            match self.content.next().await? {
                Some(Piece::Data(data)) => self.buffer.push(&data),
                Some(Piece::Hole(_)) => return Err(malformed("a listing has a hole")),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(malformed("a listing ends within an entry")),
            }
        }
    }

    /// Where the next record begins.
    fn position(&self) -> u64 {
        self.buffer.position
    }
}

/// Reads a page map: the maps of files, in ascending order of their paths.
pub(in crate::repository) struct MapReader {
    records: RecordReader,
    last: Option<TreePath>,
}

impl MapReader {
    /// Reads the beginning of a page map: the key of its hashes.
    pub(in crate::repository) async fn open(
        chunks: &Arc<ChunkReader>,
        content: ContentList,
    ) -> Result<(PageKey, Self)> {
        let mut records = RecordReader::new(chunks, content);
        let key = read_header(&records.head(HEADER_BYTES).await?)?;
        Ok((key, Self { records, last: None }))
    }

    pub(in crate::repository) async fn next(&mut self) -> Result<Option<(TreePath, PageMap)>> {
        let Some(record) = self.records.next().await? else { return Ok(None) };
        let (path, map) = read_map(&record)?;
        if self.last.as_ref().is_some_and(|last| *last >= path) {
            return Err(malformed("a page map is out of order"));
        }
        self.last = Some(path.clone());
        Ok(Some((path, map)))
    }
}

/// Every record begins with its path.
fn path_of(record: &[u8]) -> Result<TreePath> {
    TreePath::new(Decoder::new(record).bytes()?)
}

/// Finds records of a sorted stream.
pub(in crate::repository) struct RecordIndex {
    chunks: Arc<ChunkReader>,
    /// The stream's extents, each with the position at which it begins.
    pieces: Vec<(u64, Extent)>,
    marks: Vec<(TreePath, u64)>,
}

impl RecordIndex {
    /// Reads the whole stream once; `head` bytes are before its first record.
    pub(in crate::repository) async fn build(
        chunks: &Arc<ChunkReader>,
        content: ContentList,
        head: usize,
    ) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut end = 0u64;
        let mut walker = ExtentWalker::new(chunks, content.clone());
        while let Some(extent) = walker.next().await? {
            pieces.push((end, extent));
            end = end.checked_add(extent.length).ok_or_else(|| malformed("a listing is impossibly long"))?;
        }
        let mut index = Self { chunks: Arc::clone(chunks), pieces, marks: Vec::new() };
        index.mark(content, head).await?;
        Ok(index)
    }

    async fn mark(&mut self, content: ContentList, head: usize) -> Result<()> {
        let mut records = RecordReader::new(&self.chunks, content);
        records.head(head).await?;
        let (mut at, mut next_mark) = (records.position(), 0);
        while let Some(record) = records.next().await? {
            if at >= next_mark {
                self.marks.push((path_of(&record)?, at));
                next_mark = at + MARK_BYTES;
            }
            at = records.position();
        }
        let ascending = self.marks.is_sorted_by(|(a, _), (b, _)| a < b);
        if ascending { Ok(()) } else { Err(malformed("a listing is out of order")) }
    }

    /// The record of `path`, without its length.
    pub(in crate::repository) async fn find(&self, path: &TreePath) -> Result<Option<BytesMut>> {
        let after = self.marks.partition_point(|(marked, _)| marked <= path);
        let Some((_, start)) = after.checked_sub(1).and_then(|number| self.marks.get(number)) else {
            return Ok(None);
        };
        let mut piece = self.pieces.partition_point(|(begin, _)| begin <= start) - 1;
        let mut skip = (start - self.pieces[piece].0) as usize;
        let mut buffer = RecordBuffer::default();
        loop {
            while let Some(record) = buffer.next()? {
                match path_of(&record)?.cmp(path) {
                    Ordering::Less => {}
                    Ordering::Equal => return Ok(Some(record)),
                    Ordering::Greater => return Ok(None),
                }
            }
            let Some((_, extent)) = self.pieces.get(piece) else { return Ok(None) };
            let chunk = self.chunks.shared(extent.chunk).await?;
            buffer.push(cut(extent, &chunk)?.get(skip..).unwrap_or_default());
            (piece, skip) = (piece + 1, 0);
        }
    }
}
