//! Passing over a value: the structure is followed, packed strings are not opened.
//!
//! Invariant: exactly the value's bytes are consumed. What is inside a packed string is guarded by the CRC-64.

use backup_core::Result;

use super::blob;
use super::input::Input;
use super::kind::{FieldExpiry, Minimum, Score, Stored};
use super::module;
use super::stream;

/// Passes over a value. Returns the name of the module type when it is a module's.
pub(super) fn value(input: &mut Input<'_>, stored: Stored) -> Result<Option<String>> {
    match stored {
        Stored::String | Stored::Packed(..) => blob::skip(input)?,
        Stored::List | Stored::Set | Stored::Quicklist => strings(input, 1)?,
        Stored::Hash => strings(input, 2)?,
        Stored::SortedSet(score) => {
            for _ in 0..input.number()? {
                blob::skip(input)?;
                skip_score(input, score)?;
            }
        }
        Stored::Quicklist2 => {
            for _ in 0..input.number()? {
                input.number()?;
                blob::skip(input)?;
            }
        }
        Stored::ExpiringHash(expiry) => expiring_hash(input, expiry)?,
        Stored::ExpiringListpack(minimum) => {
            if minimum == Minimum::Present {
                input.milliseconds()?;
            }
            blob::skip(input)?;
        }
        Stored::Stream(form) => stream::skip(input, form)?,
        Stored::Module => {
            let id = input.number()?;
            module::skip_parts(input)?;
            return Ok(Some(module::name(id)));
        }
    }
    Ok(None)
}

fn strings(input: &mut Input<'_>, each: u64) -> Result<()> {
    let count = input.number()?;
    for _ in 0..count {
        for _ in 0..each {
            blob::skip(input)?;
        }
    }
    Ok(())
}

fn skip_score(input: &mut Input<'_>, score: Score) -> Result<()> {
    match score {
        Score::Binary => input.skip(8),
        Score::Text => match input.byte()? {
            // Not a number, and the two infinities (rdb.c, `rdbLoadDoubleValue`).
            253..=255 => Ok(()),
            length => input.skip(u64::from(length)),
        },
    }
}

fn expiring_hash(input: &mut Input<'_>, expiry: FieldExpiry) -> Result<()> {
    if expiry == FieldExpiry::Relative {
        input.milliseconds()?;
    }
    for _ in 0..input.number()? {
        if expiry != FieldExpiry::Behind {
            input.number()?;
        }
        blob::skip(input)?;
        blob::skip(input)?;
        if expiry == FieldExpiry::Behind {
            input.milliseconds()?;
        }
    }
    Ok(())
}
