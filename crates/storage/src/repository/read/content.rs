//! From a content list to its bytes, some chunks ahead so that every core has work.
//!
//! Invariant: at most [`AHEAD`] chunks are in memory at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{Piece, PieceReader};
use bytes::{Buf, Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::ChunkReader;
use crate::repository::codec::Decoder;
use crate::repository::content::{ChunkId, ContentList, Extent, MAX_EXTENT_BYTES, read_extent};

/// Chunks that are read before they are asked for.
const AHEAD: usize = 4;

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
    Ahead(Extent, JoinHandle<Result<Bytes>>),
}

/// Reads the bytes of a content list in order.
pub(in crate::repository) struct ContentReader {
    chunks: Arc<ChunkReader>,
    extents: ExtentWalker,
    single: bool,
    pending: VecDeque<Pending>,
    ended: bool,
}

impl ContentReader {
    pub(in crate::repository) fn new(chunks: &Arc<ChunkReader>, content: ContentList) -> Self {
        let single = content.depth == 0 && content.extents.len() == 1;
        let extents = ExtentWalker::new(chunks, content);
        Self { chunks: Arc::clone(chunks), extents, single, pending: VecDeque::new(), ended: false }
    }

    async fn look_ahead(&mut self) -> Result<()> {
        while !self.ended && self.pending.len() < AHEAD {
            let Some(extent) = self.extents.next().await? else {
                self.ended = true;
                break;
            };
            self.pending.push_back(if extent.chunk == ChunkId::HOLE {
                Pending::Hole(extent.length)
            } else if self.single {
                Pending::Inline(extent)
            } else {
                let chunks = Arc::clone(&self.chunks);
                Pending::Ahead(extent, tokio::spawn(async move { chunks.chunk(extent.chunk).await }))
            });
        }
        Ok(())
    }
}

#[async_trait]
impl PieceReader for ContentReader {
    async fn next(&mut self) -> Result<Option<Piece>> {
        self.look_ahead().await?;
        let Some(pending) = self.pending.pop_front() else { return Ok(None) };
        let (extent, data) = match pending {
            Pending::Hole(length) => return Ok(Some(Piece::Hole(length))),
            Pending::Inline(extent) => (extent, self.chunks.chunk(extent.chunk).await?),
            Pending::Ahead(extent, task) => {
                let joined = task.await;
                (
                    extent,
                    joined.map_err(|source| {
                        Error::new(ErrorKind::Internal, "a reader task failed").caused_by(source)
                    })??,
                )
            }
        };
        let start = extent.offset as usize;
        let end = usize::try_from(extent.length)
            .ok()
            .and_then(|length| start.checked_add(length))
            .filter(|end| *end <= data.len());
        match end {
            Some(end) => Ok(Some(Piece::Data(data.slice(start..end)))),
            None => Err(Error::new(ErrorKind::Damaged, "an extent reaches beyond its chunk")),
        }
    }
}

impl Drop for ContentReader {
    fn drop(&mut self) {
        for pending in &self.pending {
            if let Pending::Ahead(_, task) = pending {
                task.abort();
            }
        }
    }
}
