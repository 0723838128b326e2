//! Reading: from a chunk's id to its plain bytes, from a content list to a stream, from a listing to entries.
//!
//! Invariant: every chunk is authenticated and compared with its id before a byte of it is handed on.

mod blocks;
mod buffers;
mod content;
mod decoded;
mod listing;
mod records;
mod sessions;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;

use super::chunker::MAX_CHUNK;
use super::content::{ChunkId, Extent};
use super::crypto::Key;
use super::index::{self, Location, PackHead, SharedIndex};
use super::load::IndexLoader;
use super::pack::Class;
use super::store::Store;
use blocks::BlockCache;
use buffers::Buffers;
pub(super) use content::{ContentReader, ExtentWalker};
use decoded::{Cell, DecodedCache};
pub(super) use listing::ListingReader;
pub(super) use records::{MapReader, RecordIndex};
pub(super) use sessions::{KeySource, Sessions, needs_identity, open_keys};

/// Reads chunks of one repository.
pub(super) struct ChunkReader {
    index: SharedIndex,
    loader: Arc<IndexLoader>,
    blocks: BlockCache,
    decoded: DecodedCache,
    buffers: Arc<Buffers>,
    sessions: Arc<Sessions>,
    id_key: Key,
    #[cfg(test)]
    decodes: std::sync::atomic::AtomicUsize,
}

thread_local! {
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

impl ChunkReader {
    pub(super) fn new(
        store: Store,
        index: SharedIndex,
        loader: Arc<IndexLoader>,
        sessions: Arc<Sessions>,
        id_key: Key,
    ) -> Self {
        Self {
            index,
            loader,
            blocks: BlockCache::new(store),
            decoded: DecodedCache::default(),
            buffers: Arc::default(),
            sessions,
            id_key,
            #[cfg(test)]
            decodes: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    /// Where a chunk is, when the repository has it.
    pub(super) fn locate(&self, id: &ChunkId) -> Option<Location> {
        index::read(&self.index).get(id)
    }

    fn places(&self, id: &ChunkId) -> Vec<(Location, PackHead)> {
        let index = index::read(&self.index);
        index.places(id).map(|location| (location, index.pack(location.pack).clone())).collect()
    }

    /// Where a chunk of which this is only a part is decoded once for all who want parts of it; `None` for a whole chunk.
    fn cell_of_part(&self, extent: &Extent) -> Option<Cell> {
        let raw = self.locate(&extent.chunk)?.raw;
        (extent.length < u64::from(raw)).then(|| self.decoded.cell(extent.chunk, raw as usize))
    }

    /// The plain bytes of a chunk that is wanted again and again.
    async fn shared(&self, id: ChunkId) -> Result<Bytes> {
        let weight = self.locate(&id).map_or(MAX_CHUNK, |location| location.raw as usize);
        let cell = self.decoded.cell(id, weight);
        cell.get_or_try_init(|| self.chunk(id)).await.cloned()
    }

    /// The plain bytes of a chunk. One that is in several packs is read from the first that is whole.
    pub(super) async fn chunk(&self, id: ChunkId) -> Result<Bytes> {
        let mut places = self.places(&id);
        if places.is_empty() {
            self.loader.mend().await?;
            places = self.places(&id);
        }
        let mut failure = None;
        for (location, pack) in places {
            match self.read(id, &location, &pack).await {
                Ok(data) => return Ok(data),
                Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                    failure.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| {
            Error::new(ErrorKind::Damaged, format!("the repository has no chunk {}", hex::encode(id.0)))
                .hint("`stackward verify --depth manifest` tells what else is hurt")
        }))
    }

    async fn read(&self, id: ChunkId, location: &Location, pack: &PackHead) -> Result<Bytes> {
        #[cfg(test)]
        self.decodes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let keys = self.sessions.get(pack.session).await?;
        let mut frame = self.blocks.frame(pack, location).await?;
        let in_pack = |error: Error| error.with("pack", hex::encode(pack.hash));
        let (opener, id_key) = match pack.class {
            Class::Content => (keys.content()?, &self.id_key),
            Class::Meta => (&keys.meta, &keys.meta_id),
        };
        let length = opener.open(&id.0, &mut frame).map_err(in_pack)?.len();
        let payload = Bytes::from(frame).slice(super::crypto::FRAME_PREFIX..super::crypto::FRAME_PREFIX + length);
        let data =
            if location.is_compressed() { self.decompress(&payload, location.raw).map_err(in_pack)? } else { payload };
        if ChunkId::of(id_key, &data) == id {
            return Ok(data);
        }
        Err(in_pack(Error::new(ErrorKind::Damaged, "a chunk does not have the content that its id promises")))
    }

    fn decompress(&self, payload: &[u8], raw: u32) -> Result<Bytes> {
        let broken =
            |source: std::io::Error| Error::new(ErrorKind::Damaged, "a chunk does not decompress").caused_by(source);
        let mut data = self.buffers.take(raw as usize);
        DECOMPRESSOR.with_borrow_mut(|slot| {
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(zstd::bulk::Decompressor::new().map_err(broken)?),
            };
            decompressor.decompress_to_buffer(payload, &mut data.bytes).map_err(broken)
        })?;
        if data.bytes.len() == raw as usize {
            Ok(Bytes::from_owner(data))
        } else {
            Err(super::codec::malformed("a chunk has the wrong length"))
        }
    }
}

impl fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkReader")
    }
}
