//! How a stream is stored around its entries (rdb.c, the `RDB_TYPE_STREAM_LISTPACKS` forms; t_stream.c).
//!
//! Invariant: the readers here are the only description of that order; skipping and exporting use the same ones.

use std::fmt;

use backup_core::Result;

use super::blob;
use super::input::Input;
use super::kind::StreamForm;

/// The id of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) milliseconds: u64,
    pub(super) sequence: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl Id {
    pub(super) const ZERO: Self = Self { milliseconds: 0, sequence: 0 };
    /// The length of an id in raw form.
    pub(super) const BYTES: usize = 16;

    /// An id in raw form: two big-endian numbers, so that the order of the bytes is that of the ids.
    pub(super) fn from_raw(raw: [u8; Self::BYTES]) -> Self {
        let raw = u128::from_be_bytes(raw);
        Self { milliseconds: (raw >> 64) as u64, sequence: raw as u64 }
    }

    pub(super) fn raw(self) -> [u8; Self::BYTES] {
        (u128::from(self.milliseconds) << 64 | u128::from(self.sequence)).to_be_bytes()
    }

    fn read(input: &mut Input<'_>) -> Result<Self> {
        Ok(Self { milliseconds: input.number()?, sequence: input.number()? })
    }
}

/// What stands behind a stream's entries.
pub(super) struct Tail {
    /// How many entries there are.
    pub(super) length: u64,
    pub(super) last: Id,
    /// From the second form on.
    pub(super) offsets: Option<Offsets>,
    pub(super) groups: u64,
}

/// What Redis 7.0 and later count.
pub(super) struct Offsets {
    pub(super) largest_deleted: Id,
    pub(super) added: u64,
}

impl Tail {
    pub(super) fn read(input: &mut Input<'_>, form: StreamForm) -> Result<Self> {
        let length = input.number()?;
        let last = Id::read(input)?;
        let offsets = if form >= StreamForm::Offsets {
            Id::read(input)?; // The first entry's, which its entries tell as well.
            Some(Offsets { largest_deleted: Id::read(input)?, added: input.number()? })
        } else {
            None
        };
        Ok(Self { length, last, offsets, groups: input.number()? })
    }
}

/// A consumer group, behind its name.
pub(super) struct Group {
    pub(super) last: Id,
    /// How many entries the group has read; -1 when the server does not know. From the second form on.
    pub(super) read: Option<i64>,
    pub(super) pending: u64,
}

impl Group {
    pub(super) fn read(input: &mut Input<'_>, form: StreamForm) -> Result<Self> {
        let last = Id::read(input)?;
        let read = if form >= StreamForm::Offsets { Some(input.number()? as i64) } else { None };
        Ok(Self { last, read, pending: input.number()? })
    }
}

/// An entry that was delivered and not acknowledged.
pub(super) struct Pending {
    pub(super) id: Id,
    pub(super) delivered_ms: i64,
    pub(super) deliveries: u64,
}

impl Pending {
    pub(super) fn read(input: &mut Input<'_>) -> Result<Self> {
        let id = Id::from_raw(input.array()?);
        Ok(Self { id, delivered_ms: input.milliseconds()?, deliveries: input.number()? })
    }
}

/// Reads what stands between a consumer's name and its pending ids; returns how many those are.
pub(super) fn consumer(input: &mut Input<'_>, form: StreamForm) -> Result<u64> {
    input.milliseconds()?; // When it was last seen: no command sets it.
    if form >= StreamForm::Active {
        input.milliseconds()?;
    }
    input.number()
}

/// Reads what remembers the messages of producers; returns how many of those are known.
pub(super) fn producers(input: &mut Input<'_>, form: StreamForm) -> Result<u64> {
    if form < StreamForm::Producers {
        return Ok(0);
    }
    input.number()?; // For how long messages are remembered,
    input.number()?; // and how many.
    let producers = input.number()?;
    for _ in 0..producers {
        blob::skip(input)?;
        for _ in 0..input.number()? {
            blob::skip(input)?;
            Id::read(input)?;
        }
    }
    input.number()?;
    input.number()?;
    Ok(producers)
}

/// Passes over a whole stream.
pub(super) fn skip(input: &mut Input<'_>, form: StreamForm) -> Result<()> {
    for _ in 0..input.number()? {
        blob::skip(input)?;
        blob::skip(input)?;
    }
    let tail = Tail::read(input, form)?;
    for _ in 0..tail.groups {
        blob::skip(input)?;
        let group = Group::read(input, form)?;
        for _ in 0..group.pending {
            Pending::read(input)?;
        }
        for _ in 0..input.number()? {
            blob::skip(input)?;
            for _ in 0..consumer(input, form)? {
                input.array::<{ Id::BYTES }>()?;
            }
        }
    }
    producers(input, form).map(drop)
}
