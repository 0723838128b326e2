//! Lists, sets, sorted sets and hashes, in each of their stored forms, as elements of a batch.
//!
//! Invariant: every form is read once, in order, and through its last byte.

use backup_core::Result;

use super::batch::Batch;
use crate::rdb::blob::{Blob, Strings};
use crate::rdb::input::Input;
use crate::rdb::kind::{FieldExpiry, KeyType, Minimum, Packing, Score, Stored};
use crate::rdb::listpack::Listpack;
use crate::rdb::packed::{Intset, Zipmap};
use crate::rdb::pull::{Elements, Pull};
use crate::rdb::ziplist::Ziplist;

/// The kinds of nodes of a quicklist (quicklist.h, `QUICKLIST_NODE_CONTAINER_`).
const PLAIN_NODE: u64 = 1;
const PACKED_NODE: u64 = 2;
/// The lengths that stand for no number and for the infinities (rdb.c, `rdbLoadDoubleValue`).
const NOT_A_NUMBER: u8 = 253;
const INFINITE: u8 = 254;
const MINUS_INFINITE: u8 = 255;

/// The command that adds elements to a collection of this type.
pub(super) fn verb(of: KeyType) -> &'static [u8] {
    match of {
        KeyType::List => b"RPUSH",
        KeyType::Set => b"SADD",
        KeyType::SortedSet => b"ZADD",
        _ => b"HSET",
    }
}

/// Reads a collection into a batch.
pub(super) fn read(input: &mut Input<'_>, stored: Stored, batch: &mut Batch<'_, '_>) -> Result<()> {
    match stored {
        Stored::List | Stored::Set => {
            let count = input.number()?;
            singles(&mut Strings::new(input, count), batch)
        }
        Stored::Hash => {
            let count = pairs_count(input)?;
            pairs(&mut Strings::new(input, count), batch)
        }
        Stored::SortedSet(score) => scored(input, score, batch),
        Stored::Packed(of, packing) => {
            let mut blob = Blob::open(input)?;
            packed(blob.packed()?, of, packing, batch)?;
            blob.close()
        }
        Stored::Quicklist | Stored::Quicklist2 => quicklist(input, stored, batch),
        Stored::ExpiringHash(expiry) => expiring_hash(input, expiry, batch),
        Stored::ExpiringListpack(minimum) => expiring_listpack(input, minimum, batch),
        Stored::String | Stored::Stream(_) | Stored::Module => Err(input.damaged("no collection stands here")),
    }
}

fn singles(elements: &mut dyn Elements, batch: &mut Batch<'_, '_>) -> Result<()> {
    while let Some(item) = elements.next()? {
        batch.single(item)?;
    }
    Ok(())
}

fn pairs(elements: &mut dyn Elements, batch: &mut Batch<'_, '_>) -> Result<()> {
    while let Some(field) = elements.next()? {
        batch.first(field)?;
        batch.value(elements.must()?)?;
    }
    Ok(())
}

fn members(elements: &mut dyn Elements, batch: &mut Batch<'_, '_>) -> Result<()> {
    while let Some(member) = elements.next()? {
        batch.first(member)?;
        batch.score(&elements.must()?.number_text()?)?;
    }
    Ok(())
}

/// A count of pairs, as a count of strings.
fn pairs_count(input: &mut Input<'_>) -> Result<u64> {
    let pairs = input.number()?;
    pairs.checked_mul(2).ok_or_else(|| input.damaged("a hash has more fields than can be"))
}

fn packed(packed: &mut dyn Pull, of: KeyType, packing: Packing, batch: &mut Batch<'_, '_>) -> Result<()> {
    let elements: &mut dyn Elements = match packing {
        Packing::Zipmap => &mut Zipmap::open(packed)?,
        Packing::Ziplist => &mut Ziplist::open(packed)?,
        Packing::Intset => &mut Intset::open(packed)?,
        Packing::Listpack => &mut Listpack::open(packed)?,
    };
    match of {
        KeyType::SortedSet => members(elements, batch),
        KeyType::Hash => pairs(elements, batch),
        _ => singles(elements, batch),
    }
}

fn quicklist(input: &mut Input<'_>, stored: Stored, batch: &mut Batch<'_, '_>) -> Result<()> {
    for _ in 0..input.number()? {
        let packing = if stored == Stored::Quicklist2 { node(input)? } else { Some(Packing::Ziplist) };
        let mut blob = Blob::open(input)?;
        match packing {
            Some(packing) => packed(blob.packed()?, KeyType::List, packing, batch)?,
            None => batch.single(blob.item())?,
        }
        blob.close()?;
    }
    Ok(())
}

/// How a node packs its elements; `None` when it is a single one.
fn node(input: &mut Input<'_>) -> Result<Option<Packing>> {
    match input.number()? {
        PLAIN_NODE => Ok(None),
        PACKED_NODE => Ok(Some(Packing::Listpack)),
        other => Err(input.damaged(format!("a list has a node of the unknown kind {other}"))),
    }
}

fn scored(input: &mut Input<'_>, score: Score, batch: &mut Batch<'_, '_>) -> Result<()> {
    let count = input.number()?;
    let mut strings = Strings::new(input, count);
    while let Some(member) = strings.next()? {
        batch.first(member)?;
        let text = read_score(strings.between()?, score)?;
        batch.score(text.as_bytes())?;
    }
    Ok(())
}

fn read_score(input: &mut Input<'_>, score: Score) -> Result<String> {
    let number = match score {
        Score::Binary => f64::from_le_bytes(input.array()?),
        Score::Text => match input.byte()? {
            NOT_A_NUMBER => f64::NAN,
            INFINITE => f64::INFINITY,
            MINUS_INFINITE => f64::NEG_INFINITY,
            length => {
                let mut text = vec![0; usize::from(length)];
                input.fill(&mut text)?;
                std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
            }
        },
    };
    if number.is_nan() {
        return Err(input.damaged("a score is not a number"));
    }
    Ok(score_text(number))
}

/// The shortest text that a server reads as the same number.
fn score_text(number: f64) -> String {
    if number.is_finite() {
        let text = format!("{number:?}");
        text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
    } else if number > 0.0 {
        "inf".to_owned()
    } else {
        "-inf".to_owned()
    }
}

fn expiring_hash(input: &mut Input<'_>, expiry: FieldExpiry, batch: &mut Batch<'_, '_>) -> Result<()> {
    let minimum = if expiry == FieldExpiry::Relative { input.milliseconds()? } else { 0 };
    let fields = input.number()?;
    let count = fields.checked_mul(2).ok_or_else(|| input.damaged("a hash has more fields than can be"))?;
    let mut strings = Strings::new(input, count);
    for _ in 0..fields {
        let before = match expiry {
            FieldExpiry::Behind => 0,
            FieldExpiry::Absolute | FieldExpiry::Relative => strings.between()?.number()?,
        };
        batch.first(strings.must()?)?;
        batch.value(strings.must()?)?;
        let expires_ms = match expiry {
            FieldExpiry::Behind => Some(strings.between()?.milliseconds()?).filter(|expires_ms| *expires_ms >= 0),
            _ if before == 0 => None,
            FieldExpiry::Absolute => Some(before as i64),
            FieldExpiry::Relative => Some(minimum.wrapping_add(before as i64).wrapping_sub(1)),
        };
        match expires_ms {
            Some(expires_ms) if expires_ms < 0 => return Err(strings.damage("the expiry of a field is negative")),
            Some(expires_ms) => batch.expire_field(expires_ms)?,
            None => {}
        }
    }
    strings.between().map(drop)
}

fn expiring_listpack(input: &mut Input<'_>, minimum: Minimum, batch: &mut Batch<'_, '_>) -> Result<()> {
    if minimum == Minimum::Present {
        input.milliseconds()?;
    }
    let mut blob = Blob::open(input)?;
    let mut triples = Listpack::open(blob.packed()?)?;
    while let Some(field) = triples.next()? {
        batch.first(field)?;
        batch.value(triples.must()?)?;
        match triples.must()?.integer()? {
            0 => {}
            expires_ms if expires_ms < 0 => return Err(triples.damage("the expiry of a field is negative")),
            expires_ms => batch.expire_field(expires_ms)?,
        }
    }
    blob.close()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_come_back_exactly() {
        let numbers = [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, 5e-324, f64::MAX, 1.0 / 3.0, 9_007_199_254_740_993.0];
        for number in numbers {
            let text = score_text(number);
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits(), "{text}");
        }
        assert_eq!(score_text(f64::INFINITY), "inf");
        assert_eq!(score_text(f64::NEG_INFINITY), "-inf");
        assert_eq!(score_text(3.0), "3");
    }
}
