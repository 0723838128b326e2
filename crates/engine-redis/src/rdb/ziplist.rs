//! Ziplists (redis/src/ziplist.c), the packed rows of Redis before 7.0.
//!
//! Invariant: as for listpacks, elements are drawn one after the other.

use backup_core::{Error, Result};

use super::listpack::little_endian;
use super::pull::{Elements, Item, Pull};

const END: u8 = 0xff;
/// The length of the element before takes five bytes when the first one is this.
const LONG_PREVIOUS: u8 = 0xfe;
const UNCOUNTED: u16 = u16::MAX;

/// A ziplist that is being read.
pub(super) struct Ziplist<'a> {
    packed: &'a mut (dyn Pull + 'a),
    claimed: Option<u64>,
    seen: u64,
    /// Bytes of the current element that nobody drew yet.
    left: u64,
}

impl<'a> Ziplist<'a> {
    /// Reads the header: size, offset of the last element, count.
    pub(super) fn open(packed: &'a mut (dyn Pull + 'a)) -> Result<Self> {
        let whole = packed.left();
        let size = u32::from_le_bytes(packed.array()?);
        let _tail = packed.array::<4>()?;
        let count = u16::from_le_bytes(packed.array()?);
        if u64::from(size) != whole {
            return Err(packed.damaged("a ziplist is not as long as it claims"));
        }
        Ok(Self { packed, claimed: (count != UNCOUNTED).then_some(u64::from(count)), seen: 0, left: 0 })
    }

    fn integer<const N: usize>(&mut self) -> Result<Item<'_>> {
        Ok(Item::Integer(little_endian(&self.packed.array::<N>()?)))
    }

    fn text(&mut self, length: u64) -> Result<Item<'_>> {
        if length > self.packed.left() {
            return Err(self.packed.damaged("an element is longer than its ziplist"));
        }
        self.left = length;
        Ok(Item::Bytes(self))
    }

    /// Reads an element's encoding (the `ZIP_STR_` and `ZIP_INT_` names of ziplist.c).
    fn entry(&mut self) -> Result<Item<'_>> {
        let first = self.packed.byte()?;
        match first {
            0x00..=0x3f => self.text(u64::from(first)),
            0x40..=0x7f => {
                let low = self.packed.byte()?;
                self.text(u64::from(first & 0x3f) << 8 | u64::from(low))
            }
            0x80 => {
                let length = u32::from_be_bytes(self.packed.array()?);
                self.text(u64::from(length))
            }
            0xc0 => self.integer::<2>(),
            0xd0 => self.integer::<4>(),
            0xe0 => self.integer::<8>(),
            0xf0 => self.integer::<3>(),
            0xfe => self.integer::<1>(),
            0xf1..=0xfd => Ok(Item::Integer(i64::from(first & 0x0f) - 1)),
            _ => Err(self.packed.damaged("an element of a ziplist has an unknown encoding")),
        }
    }
}

impl Elements for Ziplist<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        self.packed.skip(self.left)?;
        self.left = 0;
        let first = self.packed.byte()?;
        if first == END {
            return if self.packed.left() > 0 {
                Err(self.packed.damaged("a ziplist ends before its length"))
            } else if self.claimed.is_some_and(|claimed| claimed != self.seen) {
                Err(self.packed.damaged("a ziplist has another count than it claims"))
            } else {
                Ok(None)
            };
        }
        if first == LONG_PREVIOUS {
            self.packed.skip(4)?;
        }
        self.seen += 1;
        self.entry().map(Some)
    }

    fn damage(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

impl Pull for Ziplist<'_> {
    fn left(&self) -> u64 {
        self.left
    }

    fn pull(&mut self, max: usize) -> Result<&[u8]> {
        let piece = self.packed.pull(usize::try_from(self.left).unwrap_or(usize::MAX).min(max))?;
        self.left -= piece.len() as u64;
        Ok(piece)
    }

    fn damaged(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}
