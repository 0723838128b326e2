//! The two oldest packed forms: sets of integers (redis/src/intset.c) and maps of strings (redis/src/zipmap.c).
//!
//! Invariant: as for listpacks, elements are drawn one after the other.

use backup_core::{Error, Result};

use super::listpack::little_endian;
use super::pull::{Elements, Item, Pull, Within};

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
    within: Within<'a>,
    /// Bytes behind the current element that mean nothing.
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
        Ok(Self { within: Within::new(packed), unused: 0, next: Role::Field, claimed, seen: 0 })
    }
}

impl Elements for Zipmap<'_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        self.within.leave()?;
        self.within.packed.skip(std::mem::take(&mut self.unused))?;
        let length = match (self.within.packed.byte()?, self.next) {
            (END, Role::Field) if self.within.packed.left() == 0 => {
                return match self.claimed {
                    Some(claimed) if claimed != self.seen => {
                        Err(self.within.packed.damaged("a zipmap has another count than it claims"))
                    }
                    _ => Ok(None),
                };
            }
            (END, _) => return Err(self.within.packed.damaged("a zipmap ends in the middle")),
            (LONG, _) => u64::from(u32::from_le_bytes(self.within.packed.array()?)),
            (short, _) => u64::from(short),
        };
        self.next = match self.next {
            Role::Field => Role::Value,
            Role::Value => {
                self.unused = u64::from(self.within.packed.byte()?);
                self.seen += 1;
                Role::Field
            }
        };
        self.within.enter(length, "an element is longer than its zipmap").map(Some)
    }

    fn damage(&self, what: &'static str) -> Error {
        self.within.packed.damaged(what)
    }
}
