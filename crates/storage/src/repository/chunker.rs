//! Cuts a stream into chunks, at boundaries that its content decides (FastCDC).
//!
//! Invariant: the boundaries depend on the content alone, never on how it arrived in pieces.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::FastCDC;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The smallest, the average and the largest chunk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    min: usize,
    average: usize,
    max: usize,
}

const LARGE: Sizes = Sizes { min: 256 * KIB, average: MIB, max: 2 * MIB };
const MEDIUM: Sizes = Sizes { min: 64 * KIB, average: 256 * KIB, max: MIB };
const SMALL: Sizes = Sizes { min: 16 * KIB, average: 64 * KIB, max: 256 * KIB };
/// Listings change in a few places: small chunks keep what a run adds small.
const LISTING: Sizes = Sizes { min: 16 * KIB, average: 64 * KIB, max: 256 * KIB };

/// Up to these positions a stream is cut with [`SMALL`] and [`MEDIUM`] sizes: a change in a small artifact should
/// cost little, and a large one should not cost a large index.
const SMALL_UNTIL: u64 = 8 * MIB as u64;
const MEDIUM_UNTIL: u64 = 64 * MIB as u64;

/// No chunk is larger than this, by the format; we cut at half of it, because what waits for a worker costs memory.
pub(super) const MAX_CHUNK: usize = 4 * MIB;

/// What is being cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// A stream artifact.
    Stream,
    /// A file of a tree.
    File,
    /// A listing of our own.
    Listing,
}

impl Cut {
    fn sizes(self, position: u64) -> Sizes {
        match self {
            Self::Stream if position < SMALL_UNTIL => SMALL,
            Self::Stream if position < MEDIUM_UNTIL => MEDIUM,
            Self::Stream | Self::File => LARGE,
            Self::Listing => LISTING,
        }
    }
}

/// Cuts one stream. Holds at most twice the largest chunk.
#[derive(Debug)]
pub(super) struct Chunker {
    cut: Cut,
    /// How many bytes were cut off already.
    position: u64,
    /// The first bytes after them, when they arrived in one piece: a small file is never copied.
    whole: Bytes,
    /// The first bytes after them, gathered.
    gathered: BytesMut,
}

impl Chunker {
    pub(super) fn new(cut: Cut) -> Self {
        Self { cut, position: 0, whole: Bytes::new(), gathered: BytesMut::new() }
    }

    /// Takes `data` and appends the chunks that are now certain to `chunks`.
    pub(super) fn push(&mut self, data: Bytes, chunks: &mut Vec<Bytes>) {
        let max = self.cut.sizes(self.position).max;
        if self.whole.is_empty() && self.gathered.is_empty() {
            self.whole = data;
        } else {
            if self.gathered.is_empty() {
                self.gathered.reserve(2 * max);
                self.gathered.extend_from_slice(&std::mem::take(&mut self.whole));
            }
            self.gathered.extend_from_slice(&data);
            if self.gathered.len() < 2 * max {
                return;
            }
            self.whole = self.gathered.split().freeze();
        }
        while self.whole.len() >= self.cut.sizes(self.position).max {
            chunks.push(self.cut_one());
        }
    }

    /// Appends the remaining chunks.
    pub(super) fn finish(&mut self, chunks: &mut Vec<Bytes>) {
        if !self.gathered.is_empty() {
            self.whole = self.gathered.split().freeze();
        }
        while !self.whole.is_empty() {
            chunks.push(self.cut_one());
        }
    }

    fn cut_one(&mut self) -> Bytes {
        let sizes = self.cut.sizes(self.position);
        let length = self.whole.len().min(sizes.max);
        let at = if length <= sizes.min {
            length
        } else {
            let (_, at) = FastCDC::new(&self.whole[..length], sizes.min, sizes.average, sizes.max).cut(0, length);
            if at == 0 { length } else { at }
        };
        self.position += at as u64;
        self.whole.split_to(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn cut(cut: Cut, content: &[u8], piece: usize) -> Vec<usize> {
        let mut chunker = Chunker::new(cut);
        let mut chunks = Vec::new();
        for part in content.chunks(piece) {
            chunker.push(Bytes::copy_from_slice(part), &mut chunks);
        }
        chunker.finish(&mut chunks);
        assert_eq!(chunks.concat(), content);
        chunks.iter().map(Bytes::len).collect()
    }

    #[test]
    fn boundaries_do_not_depend_on_how_the_content_arrives() {
        let content = content(20 * MIB, 1);
        for kind in [Cut::Stream, Cut::File, Cut::Listing] {
            let whole = cut(kind, &content, content.len());
            for piece in [1_000, 65_536, MIB, 5 * MIB + 1] {
                assert_eq!(cut(kind, &content, piece), whole, "{kind:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let before = content(30 * MIB, 2);
        let mut after = before.clone();
        after.splice(5_000_000..5_000_000, *b"inserted");
        let (before, after) = (cut(Cut::File, &before, MIB), cut(Cut::File, &after, MIB));
        let common = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(before.len() - common < 10, "{} of {} chunks kept", common, before.len());
    }

    #[test]
    fn nothing_has_no_chunks() {
        assert!(cut(Cut::File, &[], 1).is_empty());
    }
}
