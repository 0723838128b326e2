//! A small cache of decoded chunks, for those of which only a part is wanted at a time: the pages of a database file
//! that changed together lie in one chunk and are scattered over the file.
//!
//! Invariant: what is cached holds at most [`CACHED_BYTES`]; whoever asks for a chunk that is being decoded waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::repository::content::ChunkId;
use crate::repository::index::BuildIdHasher;

/// Chunks of pages have at most 256 KiB: 64 of them. A file that is read in order needs, at any place, one chunk of
/// each run that changed pages thereabouts.
const CACHED_BYTES: usize = 16 * 1024 * 1024;

/// A chunk that is decoded by whoever comes first.
pub(super) type Cell = Arc<OnceCell<Bytes>>;

#[derive(Debug)]
struct Entry {
    cell: Cell,
    weight: usize,
    used: u64,
}

#[derive(Debug, Default)]
struct Cached {
    entries: HashMap<ChunkId, Entry, BuildIdHasher>,
    /// By when they were last used.
    order: BTreeMap<u64, ChunkId>,
    bytes: usize,
    clock: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DecodedCache(Mutex<Cached>);

impl DecodedCache {
    /// The place of a chunk of `weight` plain bytes.
    pub(super) fn cell(&self, id: ChunkId, weight: usize) -> Cell {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = &mut *cached;
        cached.clock += 1;
        let now = cached.clock;
        if let Some(entry) = cached.entries.get_mut(&id) {
            cached.order.remove(&std::mem::replace(&mut entry.used, now));
            cached.order.insert(now, id);
            return Arc::clone(&entry.cell);
        }
        let cell = Cell::default();
        cached.entries.insert(id, Entry { cell: Arc::clone(&cell), weight, used: now });
        cached.order.insert(now, id);
        cached.bytes += weight;
        while cached.bytes > CACHED_BYTES {
            let Some((_, oldest)) = cached.order.pop_first() else { break };
            if let Some(entry) = cached.entries.remove(&oldest) {
                cached.bytes -= entry.weight;
            }
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ChunkId {
        ChunkId([number; 32])
    }

    #[test]
    fn the_least_recently_used_leave_first() {
        let cache = DecodedCache::default();
        let weight = CACHED_BYTES / 4;
        let cells: Vec<Cell> = (0..4).map(|number| cache.cell(id(number), weight)).collect();
        assert!(Arc::ptr_eq(&cells[0], &cache.cell(id(0), weight)), "it is used again");
        cache.cell(id(4), weight);
        assert!(Arc::ptr_eq(&cells[0], &cache.cell(id(0), weight)));
        assert!(Arc::ptr_eq(&cells[2], &cache.cell(id(2), weight)));
        assert!(!Arc::ptr_eq(&cells[1], &cache.cell(id(1), weight)), "it was the oldest");
        let cached = cache.0.lock().unwrap();
        assert!(cached.bytes <= CACHED_BYTES && cached.entries.len() == 4 && cached.order.len() == 4);
    }
}
