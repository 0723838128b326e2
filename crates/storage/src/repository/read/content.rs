//! From a content list to its bytes, some chunks ahead so that every core has work.
//!
//! Invariant: at most [`AHEAD`] chunks are decoded before they are asked for, and of the small ones of a fragmented file
//! at most [`WINDOW`] are held.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{Piece, PieceReader};
use bytes::{Buf, Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::ChunkReader;
use super::decoded::Cell;
use crate::repository::codec::Decoder;
use crate::repository::content::{ChunkId, ContentList, Extent, MAX_EXTENT_BYTES, read_extent};

/// Chunks that are read before they are asked for.
const AHEAD: usize = 4;
/// Extents that are looked at before they are asked for. Neighbouring pages of a database file often lie in a few chunks.
const WINDOW: usize = 64;
/// Parts are handed on together up to this length.
const PIECE_BYTES: usize = 256 * 1024;

/// Lists the extents of a content list, whatever its depth.
pub(in crate::repository) struct ExtentWalker(Walk);

enum Walk {
    Flat(std::vec::IntoIter<Extent>),
    Nested { list: Box<ContentReader>, buffer: BytesMut },
}

impl ExtentWalker {
    pub(in crate::repository) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        match content.depth {
            0 => Self(Walk::Flat(content.extents.into_iter())),
            depth => {
                let inner = ContentList { depth: depth - 1, extents: content.extents };
                Self(Walk::Nested { list: Box::new(ContentReader::new(chunks, inner)), buffer: BytesMut::new() })
            }
        }
    }

    pub(in crate::repository) async fn next(&mut self) -> Result<Option<Extent>> {
        match &mut self.0 {
            Walk::Flat(extents) => Ok(extents.next()),
            Walk::Nested { list, buffer } => {
                while buffer.len() < MAX_EXTENT_BYTES {
                    match Box::pin(list.next()).await? {
                        Some(Piece::Data(data)) => buffer.extend_from_slice(&data),
                        Some(Piece::Hole(_)) => {
                            return Err(Error::new(ErrorKind::Damaged, "a list of extents has a hole"));
                        }
                        None => break,
                    }
                }
                if buffer.is_empty() {
                    return Ok(None);
                }
                let mut decoder = Decoder::new(buffer);
                let extent = read_extent(&mut decoder)?;
                let used = buffer.len() - decoder.remaining();
                buffer.advance(used);
                Ok(Some(extent))
            }
        }
    }
}

enum Pending {
    Hole(u64),
    /// Read by whoever asks: the content is a single chunk, and a task would only cost.
    Inline(Extent),
    /// All of a chunk.
    Whole(Extent, JoinHandle<Result<Bytes>>),
    /// A part of a chunk that others may want parts of, too; with the task that was started to decode it.
    Part(Extent, Cell, Option<JoinHandle<()>>),
}

impl Pending {
    /// Whether a task works for it.
    fn is_ahead(&self) -> bool {
        matches!(self, Self::Whole(..) | Self::Part(_, _, Some(_)))
    }
}

/// Reads the bytes of a content list in order.
pub(in crate::repository) struct ContentReader {
    chunks: Arc<ChunkReader>,
    extents: ExtentWalker,
    single: bool,
    pending: VecDeque<Pending>,
    ahead: usize,
    ended: bool,
}

impl ContentReader {
    pub(in crate::repository) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        let single = content.depth == 0 && content.extents.len() == 1;
        let extents = ExtentWalker::new(chunks, content);
        Self { chunks: Arc::clone(chunks), extents, single, pending: VecDeque::new(), ahead: 0, ended: false }
    }

    async fn look_ahead(&mut self) -> Result<()> {
        while !self.ended && self.ahead < AHEAD && self.pending.len() < WINDOW {
            let Some(extent) = self.extents.next().await? else {
                self.ended = true;
                break;
            };
            let pending = self.start(extent);
            self.ahead += usize::from(pending.is_ahead());
            self.pending.push_back(pending);
        }
        Ok(())
    }

    fn start(&self, extent: Extent) -> Pending {
        if extent.chunk == ChunkId::HOLE {
            return Pending::Hole(extent.length);
        }
        if self.single {
            return Pending::Inline(extent);
        }
        let chunks = Arc::clone(&self.chunks);
        let Some(cell) = chunks.cell_of_part(&extent) else {
            return Pending::Whole(extent, tokio::spawn(async move { chunks.chunk(extent.chunk).await }));
        };
        let is_started = |pending: &Pending| matches!(pending, Pending::Part(_, other, _) if Arc::ptr_eq(other, &cell));
        if cell.initialized() || self.pending.iter().rev().any(is_started) {
            return Pending::Part(extent, cell, None);
        }
        let decoding = Arc::clone(&cell);
        let task = tokio::spawn(async move {
            // A failure is met again, and told, by whoever wants the chunk.
            let _met_again = decoding.get_or_try_init(|| chunks.chunk(extent.chunk)).await;
        });
        Pending::Part(extent, cell, Some(task))
    }

    fn pop(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.ahead -= usize::from(pending.is_ahead());
        Some(pending)
    }

    /// A part of a chunk, and those after it that are at hand, as one piece: pages that lie far apart come one by one.
    async fn parts(&mut self, extent: Extent, cell: Cell) -> Result<Bytes> {
        let chunk = cell.get_or_try_init(|| self.chunks.chunk(extent.chunk)).await?;
        let first = cut(&extent, chunk)?;
        let mut gathered = BytesMut::new();
        while let Some(Pending::Part(next, cell, _)) = self.pending.front()
            && first.len() + gathered.len() + (next.length as usize) <= PIECE_BYTES
            && let Some(chunk) = cell.get()
        {
            if gathered.is_empty() {
                gathered.reserve(PIECE_BYTES);
                gathered.extend_from_slice(&first);
            }
            gathered.extend_from_slice(&cut(next, chunk)?);
            self.pop();
        }
        Ok(if gathered.is_empty() { first } else { gathered.freeze() })
    }
}

#[async_trait]
impl PieceReader for ContentReader {
    async fn next(&mut self) -> Result<Option<Piece>> {
        self.look_ahead().await?;
        let data = match self.pop() {
            None => return Ok(None),
            Some(Pending::Hole(length)) => return Ok(Some(Piece::Hole(length))),
            Some(Pending::Inline(extent)) => cut(&extent, &self.chunks.chunk(extent.chunk).await?)?,
            Some(Pending::Part(extent, cell, _)) => self.parts(extent, cell).await?,
            Some(Pending::Whole(extent, task)) => {
                let joined = task.await;
                let chunk = joined
                    .map_err(|source| Error::new(ErrorKind::Internal, "a reader task failed").caused_by(source))??;
                cut(&extent, &chunk)?
            }
        };
        Ok(Some(Piece::Data(data)))
    }
}

/// The bytes of `chunk` that an extent names.
pub(super) fn cut(extent: &Extent, chunk: &Bytes) -> Result<Bytes> {
    let start = extent.offset as usize;
    let end = usize::try_from(extent.length)
        .ok()
        .and_then(|length| start.checked_add(length))
        .filter(|end| *end <= chunk.len());
    match end {
        Some(end) => Ok(chunk.slice(start..end)),
        None => Err(Error::new(ErrorKind::Damaged, "an extent reaches beyond its chunk")),
    }
}

impl Drop for ContentReader {
    fn drop(&mut self) {
        for pending in &self.pending {
            match pending {
                Pending::Whole(_, task) => task.abort(),
                Pending::Part(_, _, Some(task)) => task.abort(),
                _ => {}
            }
        }
    }
}
