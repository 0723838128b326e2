//! Bytes that are needed again later: in memory while they are few, in a temporary file from then on.
//!
//! Invariant: at most [`MEMORY_BYTES`] and one piece are in memory; the file has no name and dies with us.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backup_core::Result;

use crate::rdb::pull::{Item, cannot_spool};

/// What is kept in memory before the file is used, and what is collected before it is appended to.
const MEMORY_BYTES: usize = 1024 * 1024;
/// The pieces in which bytes come back out of the file.
const PIECE_BYTES: usize = 64 * 1024;

/// A growing row of bytes that can be read anywhere.
#[derive(Debug, Default)]
pub(super) struct Held {
    file: Option<File>,
    /// How many bytes are in the file; what follows them is in `memory`.
    in_file: u64,
    memory: Vec<u8>,
}

impl Held {
    pub(super) fn len(&self) -> u64 {
        self.in_file + self.memory.len() as u64
    }

    /// Forgets everything; the file is kept for the next time.
    pub(super) fn clear(&mut self) {
        self.memory.clear();
        self.in_file = 0;
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() >= MEMORY_BYTES {
            self.spill().map_err(cannot_spool)?;
        }
        Ok(())
    }

    /// Appends an element's bytes; returns where they begin and how many they are.
    pub(super) fn append_item(&mut self, item: Item<'_>) -> Result<(u64, u64)> {
        let (start, length) = (self.len(), item.len());
        item.each(&mut |piece| self.append(piece))?;
        Ok((start, length))
    }

    fn spill(&mut self) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.write_all_at(&self.memory, self.in_file)?;
        self.in_file += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Hands out `length` bytes from `start` on, in pieces. They must be there.
    pub(super) fn each(&self, start: u64, length: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (mut position, end) = (start, start + length);
        if let Some(file) = &self.file
            && position < self.in_file
        {
            let mut piece = vec![0; PIECE_BYTES.min(length as usize)];
            while position < end.min(self.in_file) {
                let count = (end.min(self.in_file) - position).min(PIECE_BYTES as u64) as usize;
                file.read_exact_at(&mut piece[..count], position).map_err(cannot_spool)?;
                take(&piece[..count])?;
                position += count as u64;
            }
        }
        if position < end {
            take(&self.memory[(position - self.in_file) as usize..(end - self.in_file) as usize])?;
        }
        Ok(())
    }

    /// The `N` bytes at `start`.
    pub(super) fn array<const N: usize>(&self, start: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        self.each(start, N as u64, &mut |piece| {
            bytes[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            Ok(())
        })?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_wherever_it_lies() {
        let mut held = Held::default();
        for round in 0..2 {
            held.clear();
            let numbers = 0..(MEMORY_BYTES as u64 / 8 + 1000) * 2;
            for number in numbers.clone() {
                held.append(&(number + round).to_le_bytes()).unwrap();
            }
            assert!(held.file.is_some() && !held.memory.is_empty(), "both places are in use");
            for number in numbers.step_by(997) {
                assert_eq!(held.array::<8>(number * 8).unwrap(), (number + round).to_le_bytes());
            }
            // Across the border between file and memory.
            let border = held.in_file - 3;
            let mut whole = Vec::new();
            held.each(border, 11, &mut |piece| {
                whole.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
            assert_eq!(whole.len(), 11);
            assert_eq!(whole[3..], (held.in_file / 8 + round).to_le_bytes());
        }
    }
}
