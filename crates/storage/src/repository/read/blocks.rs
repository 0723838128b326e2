//! A small cache of pack blocks: neighbouring chunks cost one request, whatever the store's latency.
//!
//! Invariant: memory is bounded by [`CACHED_BLOCKS`] blocks; a failed read is not remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::repository::index::{Location, PackHead};
use crate::repository::layout::{self, ObjectHash};
use crate::repository::store::Store;

/// What one request reads.
const BLOCK_BYTES: u64 = 1024 * 1024;
/// Blocks kept: 48 MiB.
const CACHED_BLOCKS: usize = 48;

type BlockKey = (ObjectHash, u64);
type Block = Arc<OnceCell<Bytes>>;

#[derive(Debug, Default)]
struct Cached {
    blocks: HashMap<BlockKey, (Block, u64)>,
    clock: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct BlockCache {
    store: Store,
    cached: Mutex<Cached>,
}

impl BlockCache {
    pub(super) fn new(store: Store) -> Self {
        Self { store, cached: Mutex::default() }
    }

    /// The sealed frame at `location` of `pack`.
    pub(super) async fn frame(&self, pack: &PackHead, location: &Location) -> Result<Vec<u8>> {
        let start = u64::from(location.offset);
        let end = start + u64::from(location.stored);
        if end > pack.size {
            return Err(Error::new(ErrorKind::Damaged, "the index places a chunk beyond the end of its pack"));
        }
        let mut frame = Vec::with_capacity(location.stored as usize);
        for number in start / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            let block = self.block(pack, number).await?;
            let base = number * BLOCK_BYTES;
            let from = start.saturating_sub(base) as usize;
            let to = (end - base).min(block.len() as u64) as usize;
            frame.extend_from_slice(&block[from..to]);
        }
        Ok(frame)
    }

    async fn block(&self, pack: &PackHead, number: u64) -> Result<Bytes> {
        let cell = self.cell((pack.hash, number));
        let range = number * BLOCK_BYTES..((number + 1) * BLOCK_BYTES).min(pack.size);
        let path = layout::pack(&pack.hash);
        cell.get_or_try_init(|| self.store.get_range(&path, range)).await.cloned()
    }

    fn cell(&self, key: BlockKey) -> Block {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.clock += 1;
        let now = cached.clock;
        if let Some((block, used)) = cached.blocks.get_mut(&key) {
            *used = now;
            return Arc::clone(block);
        }
        if cached.blocks.len() >= CACHED_BLOCKS {
            let oldest = cached.blocks.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                cached.blocks.remove(&oldest);
            }
        }
        let block = Block::default();
        cached.blocks.insert(key, (Arc::clone(&block), now));
        block
    }
}
