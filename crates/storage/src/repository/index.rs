//! The index: which pack holds a chunk. Rebuilt in memory from index objects when a repository is opened.
//!
//! Invariant: an index object is written after the packs that it lists are durable.
//! Memory: about 70 bytes a chunk, so 70 MB for a terabyte of distinct content.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;

use super::codec::Decoder;
use super::content::ChunkId;
use super::crypto::{BoxKind, FRAME_OVERHEAD, Key, SessionId, open_box, seal_box};
use super::layout::{ObjectHash, object_hash};
use super::pack::{Class, HEADER_BYTES, PackEntry, PackInfo, put_entries, read_entries};

const MAGIC: &[u8; 4] = b"SWIX";
const VERSION: u8 = 1;
/// An index object that lists more packs than this was not written by us.
const MAX_PACKS: u32 = 1 << 20;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The pack's number in [`Index::packs`].
    pub(super) pack: u32,
    /// Where the frame begins.
    pub(super) offset: u32,
    /// The frame's length.
    pub(super) stored: u32,
    /// The plain length.
    pub(super) raw: u32,
}

impl Location {
    /// Whether the payload is compressed: only what shrank is.
    pub(super) fn is_compressed(&self) -> bool {
        self.stored as usize - FRAME_OVERHEAD != self.raw as usize
    }
}

/// A pack without its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackHead {
    pub(super) hash: ObjectHash,
    pub(super) size: u64,
    pub(super) session: SessionId,
    pub(super) class: Class,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IdHasher(u64);

/// Ids are uniformly distributed already: their first bytes are their hash.
impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
    fn write_usize(&mut self, _: usize) {}
}

pub(super) type BuildIdHasher = std::hash::BuildHasherDefault<IdHasher>;

/// A set of chunk ids.
pub(super) type IdSet = HashSet<ChunkId, BuildIdHasher>;

/// The index in memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: HashMap<ChunkId, Location, BuildIdHasher>,
    /// The other places of chunks that are in several packs: two runs stored them at once, or one was lost and healed.
    others: HashMap<ChunkId, Vec<Location>, BuildIdHasher>,
    packs: Vec<PackHead>,
    known: HashSet<ObjectHash>,
}

/// The index of an open repository; it grows when other runs' index objects are read.
pub(super) type SharedIndex = Arc<RwLock<Index>>;

/// The index for a look-up. Do not hold it across an await.
pub(super) fn read(index: &SharedIndex) -> RwLockReadGuard<'_, Index> {
    index.read().unwrap_or_else(PoisonError::into_inner)
}

/// The index for adding packs.
pub(super) fn write(index: &SharedIndex) -> RwLockWriteGuard<'_, Index> {
    index.write().unwrap_or_else(PoisonError::into_inner)
}

impl Index {
    pub(super) fn get(&self, id: &ChunkId) -> Option<Location> {
        self.chunks.get(id).copied()
    }

    /// All places of a chunk.
    pub(super) fn places(&self, id: &ChunkId) -> impl Iterator<Item = Location> {
        self.get(id).into_iter().chain(self.others.get(id).into_iter().flatten().copied())
    }

    #[cfg(test)]
    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.chunks.contains_key(id)
    }

    pub(super) fn pack(&self, number: u32) -> &PackHead {
        &self.packs[number as usize]
    }

    pub(super) fn packs(&self) -> &[PackHead] {
        &self.packs
    }

    pub(super) fn knows_pack(&self, hash: &ObjectHash) -> bool {
        self.known.contains(hash)
    }

    /// Forgets the chunks of packs that cannot be relied on, so that a run stores them again.
    pub(super) fn forget(&mut self, is_lost: impl Fn(&PackHead) -> bool) {
        let packs = &self.packs;
        if !packs.iter().any(&is_lost) {
            return;
        }
        for pack in packs.iter().filter(|pack| is_lost(pack)) {
            // It may come back, or be stored anew.
            self.known.remove(&pack.hash);
        }
        let usable: Vec<bool> = packs.iter().map(|pack| !is_lost(pack)).collect();
        let is_usable = |location: &Location| usable[location.pack as usize];
        for places in self.others.values_mut() {
            places.retain(is_usable);
        }
        let others = &mut self.others;
        self.chunks.retain(|id, location| {
            if !is_usable(location) {
                let Some(other) = others.get_mut(id).and_then(Vec::pop) else { return false };
                *location = other;
            }
            true
        });
    }

    /// Adds a pack; a chunk that is in several packs is read from the first that can be read.
    pub(super) fn add(&mut self, pack: &PackInfo) {
        if !self.known.insert(pack.hash) {
            return;
        }
        let number = self.packs.len() as u32;
        self.packs.push(PackHead { hash: pack.hash, size: pack.size, session: pack.session, class: pack.class });
        self.chunks.reserve(pack.entries.len());
        let mut offset = HEADER_BYTES as u32;
        for PackEntry { id, stored, raw } in &pack.entries {
            let location = Location { pack: number, offset, stored: *stored, raw: *raw };
            match self.chunks.entry(*id) {
                Entry::Vacant(free) => drop(free.insert(location)),
                Entry::Occupied(_) => self.others.entry(*id).or_default().push(location),
            }
            offset += stored;
        }
    }
}

/// An index object that lists `packs`, and its name.
pub(super) fn encode(index_key: &Key, packs: &[PackInfo]) -> Result<(ObjectHash, Bytes)> {
    let mut object = [&MAGIC[..], &[VERSION, 0, 0, 0]].concat();
    object.extend_from_slice(&seal_box(index_key, BoxKind::Index, &encode_plain(packs))?);
    Ok((object_hash(&object), Bytes::from(object)))
}

/// What an index object that lists `packs` holds, before it is sealed.
pub(super) fn encode_plain(packs: &[PackInfo]) -> Vec<u8> {
    let mut plain = Vec::new();
    plain.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    for pack in packs {
        plain.extend_from_slice(&pack.hash);
        plain.extend_from_slice(&(pack.size as u32).to_le_bytes());
        plain.extend_from_slice(&pack.session.0);
        plain.push(pack.class as u8);
        put_entries(&mut plain, &pack.entries);
    }
    plain
}

/// Reads an index object.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the bytes are not those that were written.
pub(super) fn decode(index_key: &Key, object: &[u8]) -> Result<Vec<PackInfo>> {
    let mut decoder = Decoder::new(object);
    if &decoder.array::<4>()? != MAGIC {
        return Err(super::codec::malformed("it is not an index object"));
    }
    if decoder.array::<4>()? != [VERSION, 0, 0, 0] {
        return Err(
            Error::new(ErrorKind::Unsupported, "an index object has a newer format").hint("use a newer stackward")
        );
    }
    let sealed = decoder.take(decoder.remaining())?;
    decode_plain(&open_box(index_key, BoxKind::Index, sealed)?)
}

/// Reads what an index object holds once it is opened.
pub(super) fn decode_plain(plain: &[u8]) -> Result<Vec<PackInfo>> {
    let mut decoder = Decoder::new(plain);
    let count = decoder.u32()?;
    if count > MAX_PACKS {
        return Err(super::codec::malformed("an index lists too many packs"));
    }
    let mut packs = Vec::new();
    for _ in 0..count {
        let hash = decoder.array()?;
        let size = u64::from(decoder.u32()?);
        let session = SessionId(decoder.array()?);
        let class = match decoder.byte()? {
            0 => Class::Content,
            1 => Class::Meta,
            _ => return Err(super::codec::malformed("an index lists a pack of an unknown class")),
        };
        let entries = read_entries(&mut decoder, size.saturating_sub(HEADER_BYTES as u64))?;
        packs.push(PackInfo { hash, size, session, class, entries });
    }
    decoder.finish()?;
    Ok(packs)
}

#[cfg(test)]
mod tests {
    use super::super::crypto::random_key;
    use super::*;

    fn pack(number: u8) -> PackInfo {
        let entry = |id: u8| PackEntry { id: ChunkId([id; 32]), stored: 30, raw: 6 };
        PackInfo {
            hash: [number; 32],
            size: 200,
            session: SessionId([number; 16]),
            class: Class::Content,
            entries: vec![entry(number), entry(99)],
        }
    }

    #[test]
    fn an_index_object_round_trips_and_shows_one_flipped_bit() {
        let key = random_key().unwrap();
        let (_, object) = encode(&key, &[pack(1), pack(2)]).unwrap();
        assert_eq!(decode(&key, &object).unwrap(), [pack(1), pack(2)]);
        for position in 0..object.len() {
            let mut broken = object.to_vec();
            broken[position] ^= 0x10;
            assert!(decode(&key, &broken).is_err(), "byte {position}");
        }
    }

    #[test]
    fn a_chunk_in_two_packs_is_found_once() {
        let mut index = Index::default();
        index.add(&pack(1));
        index.add(&pack(2));
        index.add(&pack(2));
        assert_eq!(index.packs().len(), 2);
        assert_eq!(index.get(&ChunkId([99; 32])).unwrap().pack, 0);
        assert_eq!(index.get(&ChunkId([2; 32])).unwrap().offset, HEADER_BYTES as u32);
        assert!(!index.get(&ChunkId([2; 32])).unwrap().is_compressed());
    }

    #[test]
    fn a_chunk_that_is_left_in_another_pack_is_found_there() {
        let mut index = Index::default();
        for number in 1..=3 {
            index.add(&pack(number));
        }
        let packs = |index: &Index| index.places(&ChunkId([99; 32])).map(|place| place.pack).collect::<Vec<_>>();
        assert_eq!(packs(&index), [0, 1, 2]);
        index.forget(|pack| pack.hash != [3; 32]);
        assert_eq!(packs(&index), [2], "two are lost");
        assert!(!index.contains(&ChunkId([1; 32])) && index.contains(&ChunkId([3; 32])));
        index.forget(|_| true);
        assert!(packs(&index).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _any = decode_plain(&bytes);
        }
    }
}
