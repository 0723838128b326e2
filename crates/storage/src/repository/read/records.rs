//! Records one after another, each with its length before it, as listings and page maps are: cut from their stream,
//! and found by path in any order.
//!
//! Invariant: finding needs memory for one path in [`MARK_BYTES`] of records, and for one extent in a chunk of them.

use std::cmp::Ordering;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{Piece, PieceReader};
use backup_core::tree::TreePath;
use bytes::{Buf, BytesMut};

use super::ChunkReader;
use super::content::{ContentReader, ExtentWalker};
use crate::repository::codec::{Decoder, malformed};
use crate::repository::content::{ContentList, Extent};
use crate::repository::entry::MAX_RECORD_BYTES;

/// One record in so many bytes can be found without reading those before it. A million files have listings of about
/// 200 MB, so 50,000 marks: 5 MB of memory.
const MARK_BYTES: u64 = 4 * 1024;

/// Cuts records from pieces of their stream.
#[derive(Debug, Default)]
pub(super) struct RecordBuffer {
    bytes: BytesMut,
    /// The length of the records that were cut off.
    position: u64,
}

impl RecordBuffer {
    pub(super) fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next record without its length, once all of it is here.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>> {
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
    /// Reads the whole stream once.
    pub(in crate::repository) async fn build(chunks: &Arc<ChunkReader>, content: ContentList) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut end = 0u64;
        let mut walker = ExtentWalker::new(chunks, content.clone());
        while let Some(extent) = walker.next().await? {
            pieces.push((end, extent));
            end = end.checked_add(extent.length).ok_or_else(|| malformed("a listing is impossibly long"))?;
        }
        let mut index = Self { chunks: Arc::clone(chunks), pieces, marks: Vec::new() };
        index.mark(content).await?;
        Ok(index)
    }

    async fn mark(&mut self, content: ContentList) -> Result<()> {
        let mut reader = ContentReader::new(&self.chunks, content);
        let mut buffer = RecordBuffer::default();
        let mut next_mark = 0;
        while let Some(piece) = reader.next().await? {
            let Piece::Data(data) = piece else { return Err(malformed("a listing has a hole")) };
            buffer.push(&data);
            loop {
                let at = buffer.position;
                let Some(record) = buffer.next()? else { break };
                if at >= next_mark {
                    self.marks.push((path_of(&record)?, at));
                    next_mark = at + MARK_BYTES;
                }
            }
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
            let (from, to) = (extent.offset as usize + skip, extent.offset as usize + extent.length as usize);
            let data = chunk
                .get(from..to)
                .ok_or_else(|| Error::new(ErrorKind::Damaged, "an extent reaches beyond its chunk"))?;
            buffer.push(data);
            (piece, skip) = (piece + 1, 0);
        }
    }
}
