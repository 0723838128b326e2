//! Incremental files (PostgreSQL 17 and newer): which blocks follow, and how long the file is.
//!
//! The format is that of `backup/basebackup_incremental.c`: a magic number, the number of blocks, the length to which
//! older versions were cut, the blocks' numbers, zeroes up to a whole page (only when there are blocks), then the blocks.
//! Invariant: blocks are in order and within one segment of a relation; a stream that is longer or shorter than its header
//! says is refused.

use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes, BytesMut};

const MAGIC: u32 = 0xd3ae_1f0d;
const FIXED: usize = 12;

/// What an incremental file says, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Patch {
    /// The header: from now on the length of the file is known.
    Begin {
        /// The file has at least so many blocks.
        blocks: u32,
    },
    /// A block of the file, whole.
    Block { number: u32, page: Bytes },
    /// Everything that was pushed is used up.
    More,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Fixed,
    Numbers {
        count: usize,
        truncation: u32,
    },
    Pages,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct IncrementalReader {
    page_bytes: usize,
    /// The most blocks that a segment of a relation has.
    segment_blocks: u32,
    state: State,
    pending: BytesMut,
    numbers: std::collections::VecDeque<u32>,
}

impl IncrementalReader {
    pub(crate) fn new(page_bytes: usize, segment_blocks: u32) -> Self {
        Self { page_bytes, segment_blocks, state: State::Fixed, pending: BytesMut::new(), numbers: [].into() }
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when this is no incremental file.
    pub(crate) fn patch(&mut self) -> Result<Patch> {
        loop {
            match self.state {
                State::Fixed if self.pending.len() < FIXED => return Ok(Patch::More),
                State::Fixed => {
                    let (magic, count, truncation) =
                        (self.pending.get_u32_le(), self.pending.get_u32_le(), self.pending.get_u32_le());
                    if magic != MAGIC || count > self.segment_blocks || truncation > self.segment_blocks {
                        return Err(damaged("its header is wrong"));
                    }
                    self.state = State::Numbers { count: count as usize, truncation };
                }
                State::Numbers { count, truncation } => {
                    let unpadded = FIXED + count * 4;
                    let padded = if count == 0 { unpadded } else { unpadded.next_multiple_of(self.page_bytes) };
                    if self.pending.len() < padded - FIXED {
                        return Ok(Patch::More);
                    }
                    let mut header = self.pending.split_to(padded - FIXED);
                    for _ in 0..count {
                        let number = header.get_u32_le();
                        let in_order = self.numbers.back().is_none_or(|last| *last < number);
                        if !in_order || number >= self.segment_blocks {
                            return Err(damaged("its blocks are out of order"));
                        }
                        self.numbers.push_back(number);
                    }
                    self.state = State::Pages;
                    let blocks = self.numbers.back().map_or(0, |last| last + 1).max(truncation);
                    return Ok(Patch::Begin { blocks });
                }
                State::Pages if self.pending.is_empty() => return Ok(Patch::More),
                State::Pages if self.numbers.is_empty() => return Err(damaged("it is longer than its header says")),
                State::Pages if self.pending.len() < self.page_bytes => return Ok(Patch::More),
                State::Pages => {
                    let page = self.pending.split_to(self.page_bytes).freeze();
                    let number = self.numbers.pop_front().unwrap_or_default();
                    return Ok(Patch::Block { number, page });
                }
            }
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when blocks are missing.
    pub(crate) fn finish(self) -> Result<()> {
        let whole = matches!(self.state, State::Pages) && self.numbers.is_empty() && self.pending.is_empty();
        if whole { Ok(()) } else { Err(damaged("it is shorter than its header says")) }
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("an incremental file of the server is not understood: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 8192;

    fn file(truncation: u32, blocks: &[u32]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend((blocks.len() as u32).to_le_bytes());
        bytes.extend(truncation.to_le_bytes());
        bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        }
        bytes.extend(blocks.iter().flat_map(|block| [*block as u8; PAGE]));
        bytes
    }

    fn read(bytes: &[u8], step: usize) -> Result<(u32, Vec<u32>)> {
        let mut reader = IncrementalReader::new(PAGE, 131_072);
        let (mut length, mut numbers) = (0, Vec::new());
        for piece in bytes.chunks(step) {
            reader.push(piece);
            loop {
                match reader.patch()? {
                    Patch::More => break,
                    Patch::Begin { blocks } => length = blocks,
                    Patch::Block { number, page } => {
                        assert!(page.iter().all(|byte| *byte == number as u8));
                        numbers.push(number);
                    }
                }
            }
        }
        reader.finish().map(|()| (length, numbers))
    }

    #[test]
    fn length_is_the_cut_or_the_last_block() {
        for (truncation, blocks, length) in
            [(7, vec![], 7), (0, vec![], 0), (3, vec![0, 2], 3), (3, vec![1, 9], 10), (9, (0..3000).collect(), 3000)]
        {
            assert_eq!(read(&file(truncation, &blocks), 5000).unwrap(), (length, blocks));
        }
    }

    #[test]
    fn what_is_cut_or_longer_or_wrong_is_refused() {
        let whole = file(3, &[0, 2]);
        for cut in [0, 1, 12, 15, 8192, 16384, 24575] {
            assert!(read(&whole[..cut], 5000).is_err(), "{cut}");
        }
        assert!(read(&[whole.as_slice(), &[0]].concat(), 5000).is_err());
        assert!(read(&file(3, &[2, 0]), 5000).is_err());
        assert!(read(&file(3, &[2, 2]), 5000).is_err());
        assert!(read(&file(200_000, &[]), 5000).is_err());
        let mut other = whole;
        other[0] ^= 1;
        assert!(read(&other, 5000).is_err());
    }

    proptest! {
        #[test]
        fn how_it_arrives_does_not_matter(step in 1usize..20_000) {
            prop_assert_eq!(read(&file(3, &[0, 2, 4]), step).unwrap(), (5, vec![0, 2, 4]));
        }
    }
}
