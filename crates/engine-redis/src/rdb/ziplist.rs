//! Ziplists (redis/src/ziplist.c), the packed rows of Redis before 7.0.
//!
//! Invariant: as for listpacks, elements are drawn one after the other.

use backup_core::{Error, Result};

use super::listpack::little_endian;
use super::pull::{Elements, Item, Pull, Within};

const END: u8 = 0xff;
/// The length of the element before takes five bytes when the first one is this.
const LONG_PREVIOUS: u8 = 0xfe;
const UNCOUNTED: u16 = u16::MAX;

/// A ziplist that is being read.
pub(super) struct Ziplist<'a> {
    within: Within<'a>,
    claimed: Option<u64>,
    seen: u64,
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
        let claimed = (count != UNCOUNTED).then_some(u64::from(count));
        Ok(Self { within: Within::new(packed), claimed, seen: 0 })
    }

    fn integer<const N: usize>(&mut self) -> Result<Item<'_>> {
        Ok(Item::Integer(little_endian(&self.within.packed.array::<N>()?)))
    }

    fn text(&mut self, length: u64) -> Result<Item<'_>> {
        self.within.enter(length, "an element is longer than its ziplist")
    }

    /// Reads an element's encoding (the `ZIP_STR_` and `ZIP_INT_` names of ziplist.c).
    fn entry(&mut self) -> Result<Item<'_>> {
        let first = self.within.packed.byte()?;
        match first {
            0x00..=0x3f => self.text(u64::from(first)),
            0x40..=0x7f => {
                let low = self.within.packed.byte()?;
                self.text(u64::from(first & 0x3f) << 8 | u64::from(low))
            }
            0x80 => {
                let length = u32::from_be_bytes(self.within.packed.array()?);
                self.text(u64::from(length))
            }
            0xc0 => self.integer::<2>(),
            0xd0 => self.integer::<4>(),
            0xe0 => self.integer::<8>(),
            0xf0 => self.integer::<3>(),
            0xfe => self.integer::<1>(),
            0xf1..=0xfd => Ok(Item::Integer(i64::from(first & 0x0f) - 1)),
            _ => Err(self.within.packed.damaged("an element of a ziplist has an unknown encoding")),
        }
    }
}

impl Elements for Ziplist<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        self.within.leave()?;
        let first = self.within.packed.byte()?;
        if first == END {
            return if self.within.packed.left() > 0 {
                Err(self.within.packed.damaged("a ziplist ends before its length"))
            } else if self.claimed.is_some_and(|claimed| claimed != self.seen) {
                Err(self.within.packed.damaged("a ziplist has another count than it claims"))
            } else {
                Ok(None)
            };
        }
        if first == LONG_PREVIOUS {
            self.within.packed.skip(4)?;
        }
        self.seen += 1;
        self.entry().map(Some)
    }

    fn damage(&self, what: &'static str) -> Error {
        self.within.packed.damaged(what)
    }
}
