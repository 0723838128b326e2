//! What a run refers to that was stored before it: looked up once more before its snapshot is committed.
//!
//! Invariant: a chunk that a run refers to without storing it was found in the index, and the pack that it was found in is
//! there, with its full size, when everything else of the run is durable. Memory: a bit a pack.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use backup_core::error::{Error, ErrorKind, Result};

use super::content::ChunkId;
use super::index::{self, Location, SharedIndex};
use super::layout::{self, ObjectHash};
use super::store::Store;

/// See the module.
pub(super) struct Referred {
    index: SharedIndex,
    /// Whether the pack of this number is referred to.
    packs: Mutex<Vec<bool>>,
}

impl Referred {
    pub(super) fn new(index: SharedIndex) -> Self {
        Self { index, packs: Mutex::default() }
    }

    /// Where a chunk is that will be referred to, when the repository has it.
    pub(super) fn find(&self, id: &ChunkId) -> Option<Location> {
        let location = index::read(&self.index).get(id)?;
        let number = location.pack as usize;
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if packs.len() <= number {
            packs.resize(number + 1, false);
        }
        packs[number] = true;
        Some(location)
    }

    /// Looks for every pack that is referred to.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when one is gone.
    pub(super) async fn look_up(&self, store: &Store) -> Result<()> {
        let wanted = self.wanted();
        if wanted.is_empty() {
            return Ok(());
        }
        let listed = store.list(layout::PACKS).await?;
        let present: HashMap<ObjectHash, u64> =
            listed.iter().filter_map(|(path, size)| Some((layout::hash_in(path)?, *size))).collect();
        match wanted.into_iter().find(|(hash, size)| present.get(hash) != Some(size)) {
            None => Ok(()),
            Some((hash, _)) => {
                let message = format!("the object `{}` was lost while the run relied on it", layout::pack(&hash));
                Err(Error::new(ErrorKind::Damaged, message)
                    .hint("run `stackward backup` again: it stores the content anew"))
            }
        }
    }

    fn wanted(&self) -> Vec<(ObjectHash, u64)> {
        let packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        let index = index::read(&self.index);
        let numbers = (0..).zip(&*packs).filter(|(_, wanted)| **wanted).map(|(number, _)| index.pack(number));
        numbers.map(|pack| (pack.hash, pack.size)).collect()
    }
}
