//! The two oldest packed forms: sets of integers (redis/src/intset.c) and maps of strings (redis/src/zipmap.c).
//!
//! Invariant: as for listpacks, elements are drawn one after the other.

use backup_core::{Error, Result};

use super::listpack::little_endian;
use super::pull::{Elements, Item, Pull};

/// An intset that is being read.
pub(super) struct Intset<'a> {
    packed: &'a mut (dyn Pull + 'a),
    width: u64,
}

impl<'a> Intset<'a> {
    /// Reads the header: the width of the integers, and their count.
    pub(super) fn open(packed: &'a mut (dyn Pull + 'a)) -> Result<Self> {
        let width = u64::from(u32::from_le_bytes(packed.array()?));
        let count = u64::from(u32::from_le_bytes(packed.array()?));
        if !matches!(width, 2 | 4 | 8) || packed.left() != width * count {
            return Err(packed.damaged("a set of integers is not as long as it claims"));
        }
        Ok(Self { packed, width })
    }
}

impl Elements for Intset<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        if self.packed.left() == 0 {
            return Ok(None);
        }
        let number = match self.width {
            2 => little_endian(&self.packed.array::<2>()?),
            4 => little_endian(&self.packed.array::<4>()?),
            _ => little_endian(&self.packed.array::<8>()?),
        };
        Ok(Some(Item::Integer(number)))
    }

    fn damage(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

/// The byte behind the last element of a zipmap.
const END: u8 = 0xff;
/// A length of four bytes follows.
const LONG: u8 = 0xfe;

/// A zipmap that is being read: field, value, field, value, ...
pub(super) struct Zipmap<'a> {
    packed: &'a mut (dyn Pull + 'a),
    /// Bytes of the current element that nobody drew yet, and the unused ones behind it.
    left: u64,
    unused: u64,
    next: Role,
    /// The pairs that the header claims, when they were few enough to be counted in a byte, and those seen.
    claimed: Option<u64>,
    seen: u64,
}

#[derive(Clone, Copy)]
enum Role {
    Field,
    Value,
}

impl<'a> Zipmap<'a> {
    /// Reads the header: a count.
    pub(super) fn open(packed: &'a mut (dyn Pull + 'a)) -> Result<Self> {
        let count = packed.byte()?;
        let claimed = (count < LONG).then_some(u64::from(count));
        Ok(Self { packed, left: 0, unused: 0, next: Role::Field, claimed, seen: 0 })
    }
}

impl Elements for Zipmap<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        self.packed.skip(self.left + self.unused)?;
        (self.left, self.unused) = (0, 0);
        let length = match (self.packed.byte()?, self.next) {
            (END, Role::Field) if self.packed.left() == 0 => {
                return match self.claimed {
                    Some(claimed) if claimed != self.seen => {
                        Err(self.packed.damaged("a zipmap has another count than it claims"))
                    }
                    _ => Ok(None),
                };
            }
            (END, _) => return Err(self.packed.damaged("a zipmap ends in the middle")),
            (LONG, _) => u64::from(u32::from_le_bytes(self.packed.array()?)),
            (short, _) => u64::from(short),
        };
        self.next = match self.next {
            Role::Field => Role::Value,
            Role::Value => {
                self.unused = u64::from(self.packed.byte()?);
                self.seen += 1;
                Role::Field
            }
        };
        if length > self.packed.left() {
            return Err(self.packed.damaged("an element is longer than its zipmap"));
        }
        self.left = length;
        Ok(Some(Item::Bytes(self)))
    }

    fn damage(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

impl Pull for Zipmap<'_> {
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
