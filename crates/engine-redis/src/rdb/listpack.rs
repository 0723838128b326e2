//! Listpacks (redis/src/listpack.c): a row of elements in one string, each with its length before and after it.
//!
//! Invariant: elements are drawn one after the other; of none more is held than the caller takes.

use backup_core::{Error, Result};

use super::pull::{Elements, Item, Pull};

const END: u8 = 0xff;
/// The count in the header when there are too many elements to count.
const UNCOUNTED: u16 = u16::MAX;

/// A listpack that is being read.
pub(super) struct Listpack<'a> {
    packed: &'a mut (dyn Pull + 'a),
    /// The count that the header claims.
    claimed: Option<u64>,
    seen: u64,
    current: Current,
}

/// The element that was begun.
enum Current {
    /// None, or one whose trailing length was checked.
    Nothing,
    /// One of `size` bytes (its encoding and data), of which `left` are still to be drawn.
    Element { size: u64, left: u64 },
}

/// What an element's first bytes say.
enum Entry {
    Integer { value: i64, size: u64 },
    Text { prefix: u64, length: u64 },
}

impl<'a> Listpack<'a> {
    /// Reads the header: the whole size and the count.
    pub(super) fn open(packed: &'a mut (dyn Pull + 'a)) -> Result<Self> {
        let whole = packed.left();
        let size = u32::from_le_bytes(packed.array()?);
        let count = u16::from_le_bytes(packed.array()?);
        if u64::from(size) != whole {
            return Err(packed.damaged("a listpack is not as long as it claims"));
        }
        let claimed = (count != UNCOUNTED).then_some(u64::from(count));
        Ok(Self { packed, claimed, seen: 0, current: Current::Nothing })
    }

    /// Ends the current element: passes over its rest and checks the length that stands behind it.
    fn finish(&mut self) -> Result<()> {
        let Current::Element { size, left } = self.current else { return Ok(()) };
        self.packed.skip(left)?;
        self.current = Current::Nothing;
        let mut claimed = 0;
        let width = backlen_width(size);
        for position in (0..width).rev() {
            let byte = self.packed.byte()?;
            let more = if position == width - 1 { 0 } else { 0x80 };
            if byte & 0x80 != more {
                return Err(self.packed.damaged("the length behind an element of a listpack is wrong"));
            }
            claimed = claimed << 7 | u64::from(byte & 0x7f);
        }
        if claimed == size {
            Ok(())
        } else {
            Err(self.packed.damaged("the length behind an element of a listpack is wrong"))
        }
    }

    fn integer<const N: usize>(&mut self) -> Result<Entry> {
        let bytes = self.packed.array::<N>()?;
        Ok(Entry::Integer { value: little_endian(&bytes), size: 1 + N as u64 })
    }

    /// Reads an element's encoding (listpack.c, `lpEncodeGetType` and the `LP_ENCODING_` names).
    fn entry(&mut self, first: u8) -> Result<Entry> {
        Ok(match first {
            0x00..=0x7f => Entry::Integer { value: i64::from(first), size: 1 },
            0x80..=0xbf => Entry::Text { prefix: 1, length: u64::from(first & 0x3f) },
            0xc0..=0xdf => {
                let value = i64::from(first & 0x1f) << 8 | i64::from(self.packed.byte()?);
                Entry::Integer { value: if value >= 1 << 12 { value - (1 << 13) } else { value }, size: 2 }
            }
            0xe0..=0xef => {
                let length = u64::from(first & 0x0f) << 8 | u64::from(self.packed.byte()?);
                Entry::Text { prefix: 2, length }
            }
            0xf0 => Entry::Text { prefix: 5, length: u64::from(u32::from_le_bytes(self.packed.array()?)) },
            0xf1 => self.integer::<2>()?,
            0xf2 => self.integer::<3>()?,
            0xf3 => self.integer::<4>()?,
            0xf4 => self.integer::<8>()?,
            _ => return Err(self.packed.damaged("an element of a listpack has an unknown encoding")),
        })
    }

    fn end(&mut self) -> Result<()> {
        if self.packed.left() > 0 {
            return Err(self.packed.damaged("a listpack ends before its length"));
        }
        match self.claimed {
            Some(claimed) if claimed != self.seen => {
                Err(self.packed.damaged("a listpack has another count than it claims"))
            }
            _ => Ok(()),
        }
    }
}

impl Elements for Listpack<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        self.finish()?;
        let first = self.packed.byte()?;
        if first == END {
            self.end()?;
            return Ok(None);
        }
        self.seen += 1;
        match self.entry(first)? {
            Entry::Integer { value, size } => {
                self.current = Current::Element { size, left: 0 };
                Ok(Some(Item::Integer(value)))
            }
            Entry::Text { prefix, length } => {
                if length > self.packed.left() {
                    return Err(self.packed.damaged("an element is longer than its listpack"));
                }
                self.current = Current::Element { size: prefix + length, left: length };
                Ok(Some(Item::Bytes(self)))
            }
        }
    }

    fn damage(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

impl Pull for Listpack<'_> {
    fn left(&self) -> u64 {
        match self.current {
            Current::Nothing => 0,
            Current::Element { left, .. } => left,
        }
    }

    fn pull(&mut self, max: usize) -> Result<&[u8]> {
        let Current::Element { left, .. } = &mut self.current else { return Ok(&[]) };
        let piece = self.packed.pull(usize::try_from(*left).unwrap_or(usize::MAX).min(max))?;
        *left -= piece.len() as u64;
        Ok(piece)
    }

    fn damaged(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

/// How many bytes the length behind an element takes (listpack.c, `lpEncodeBacklen`): seven bits each.
fn backlen_width(size: u64) -> u32 {
    match size {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    }
}

/// A signed little-endian integer of one to eight bytes.
pub(super) fn little_endian(bytes: &[u8]) -> i64 {
    let mut wide = [if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}
