//! Which keys were seen already: SCAN may name a key twice, and an RDB must not have it twice.
//!
//! Invariant: memory is bounded; what does not fit lies in a file without a name, 16 bytes for each key and as much
//! again to spare. Two keys are taken for one with a probability of 2^-128.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, Result};

/// So many keys are remembered in memory before the file is used: 4 MiB, and as much again for the table around them.
const MEMORY_KEYS: usize = 1 << 18;
/// The first size of the file, in keys.
const FIRST_SLOTS: u64 = 4 << 20;
const SLOT_BYTES: u64 = 16;

type Mark = [u8; SLOT_BYTES as usize];
const EMPTY: Mark = [0; SLOT_BYTES as usize];

/// The keys that were seen.
pub(crate) struct Seen {
    hashers: [RandomState; 2],
    memory: HashSet<Mark>,
    limit: usize,
    folder: PathBuf,
    table: Option<Table>,
}

/// A hash table in a file: open addressing, at most half full.
struct Table {
    file: File,
    slots: u64,
    used: u64,
}

impl Seen {
    /// Nothing was seen yet. The file, when one is needed, is made in `folder`.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self::with_limit(folder, MEMORY_KEYS)
    }

    fn with_limit(folder: &Path, limit: usize) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { hashers, memory: HashSet::new(), limit, folder: folder.to_owned(), table: None }
    }

    /// Remembers a key; `false` when it was seen already.
    pub(crate) fn insert(&mut self, key: &[u8]) -> Result<bool> {
        let mark = self.mark(key);
        if let Some(table) = &mut self.table {
            return table.insert(mark, &self.folder);
        }
        if self.memory.len() >= self.limit && !self.memory.contains(&mark) {
            let mut table = Table::make(&self.folder, FIRST_SLOTS.max(4 * self.limit as u64))?;
            for mark in std::mem::take(&mut self.memory) {
                table.insert(mark, &self.folder)?;
            }
            return self.table.insert(table).insert(mark, &self.folder);
        }
        Ok(self.memory.insert(mark))
    }

    fn mark(&self, key: &[u8]) -> Mark {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(key));
        let mark = u128::from(high) << 64 | u128::from(low);
        // All zeros stand for an empty slot.
        mark.max(1).to_le_bytes()
    }
}

impl Table {
    fn make(folder: &Path, slots: u64) -> Result<Self> {
        let failed = |source| cannot(folder, source);
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        file.set_len(slots * SLOT_BYTES).map_err(failed)?;
        Ok(Self { file, slots, used: 0 })
    }

    fn insert(&mut self, mark: Mark, folder: &Path) -> Result<bool> {
        if self.used * 2 >= self.slots {
            self.grow(folder)?;
        }
        let mut slot = (u128::from_le_bytes(mark) % u128::from(self.slots)) as u64;
        loop {
            let mut there = EMPTY;
            self.file.read_exact_at(&mut there, slot * SLOT_BYTES).map_err(|source| cannot(folder, source))?;
            if there == mark {
                return Ok(false);
            }
            if there == EMPTY {
                self.file.write_all_at(&mark, slot * SLOT_BYTES).map_err(|source| cannot(folder, source))?;
                self.used += 1;
                return Ok(true);
            }
            slot = (slot + 1) % self.slots;
        }
    }

    fn grow(&mut self, folder: &Path) -> Result<()> {
        let mut larger = Self::make(folder, self.slots * 2)?;
        let mut piece = vec![0; 64 * 1024];
        let mut position = 0;
        while position < self.slots * SLOT_BYTES {
            let count = piece.len().min((self.slots * SLOT_BYTES - position) as usize);
            self.file.read_exact_at(&mut piece[..count], position).map_err(|source| cannot(folder, source))?;
            for mark in piece[..count].as_chunks::<{ SLOT_BYTES as usize }>().0.iter().filter(|mark| **mark != EMPTY) {
                larger.insert(*mark, folder)?;
            }
            position += count as u64;
        }
        *self = larger;
        Ok(())
    }
}

fn cannot(folder: &Path, source: std::io::Error) -> Error {
    Error::io("cannot remember which keys were seen", folder, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_new_once() {
        let folder = tempfile::tempdir().unwrap();
        // In memory first, then in a file.
        let mut seen = Seen::with_limit(folder.path(), 1000);
        for number in 0..20_000_u32 {
            assert_eq!(seen.table.is_some(), number > 1000);
            assert!(seen.insert(&number.to_le_bytes()).unwrap(), "{number}");
            assert!(!seen.insert(&(number / 2).to_le_bytes()).unwrap(), "{number}");
        }
        // In a file that must grow.
        let mut small = Table::make(folder.path(), 16).unwrap();
        let marks: Vec<Mark> = (1..=500_u128).map(|number| (number * 0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        for mark in &marks {
            assert!(small.insert(*mark, folder.path()).unwrap());
        }
        assert!(small.slots >= 1000, "it grew to {}", small.slots);
        for mark in &marks {
            assert!(!small.insert(*mark, folder.path()).unwrap());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
