//! Packs: sealed chunks in one object, with a sealed table of contents at the end.
//!
//! Invariant: a pack's name is the BLAKE3 of its bytes, and its table of contents rebuilds the index if that is lost.

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;

use super::codec::Decoder;
use super::content::ChunkId;
use super::crypto::{BoxKind, FRAME_OVERHEAD, Key, SessionId, open_box, seal_box};
use super::layout::{ObjectHash, object_hash};

const MAGIC: &[u8; 4] = b"SWPK";
const FOOTER_MAGIC: &[u8; 4] = b"SWPE";
const VERSION: u8 = 1;
/// Magic, version, class, two zero bytes, session id, eight zero bytes.
pub(super) const HEADER_BYTES: usize = 32;
/// The length of the sealed table of contents, and a magic.
pub(super) const FOOTER_BYTES: usize = 8;
/// A pack is closed when it has reached this size.
pub(super) const TARGET_BYTES: usize = 16 * 1024 * 1024;
const CONTENTS_ENTRY_BYTES: usize = 40;
/// A pack of the target size holds fewer chunks than this, were they all empty.
const MAX_ENTRIES: usize = (TARGET_BYTES + 2 * super::chunker::MAX_CHUNK) / FRAME_OVERHEAD;

/// What the chunks of a pack are, and so which key seals them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Class {
    /// Contents of files and streams: the session's content key.
    Content = 0,
    /// Listings: the session's meta key, which the writing host can derive again.
    Meta = 1,
}

impl Class {
    fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            0 => Ok(Self::Content),
            1 => Ok(Self::Meta),
            _ => Err(super::codec::malformed("a pack is of an unknown class")),
        }
    }
}

/// One chunk in a pack. Frames follow one another, so offsets are sums of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackEntry {
    pub(super) id: ChunkId,
    /// The length of the frame.
    pub(super) stored: u32,
    /// The length of the plain bytes. Equal to the payload's length when it is not compressed.
    pub(super) raw: u32,
}

/// What is known of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackInfo {
    pub(super) hash: ObjectHash,
    pub(super) size: u64,
    pub(super) session: SessionId,
    pub(super) class: Class,
    pub(super) entries: Vec<PackEntry>,
}

/// A pack being filled.
#[derive(Debug)]
pub(super) struct PackBuilder {
    session: SessionId,
    class: Class,
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
}

impl PackBuilder {
    pub(super) fn new(session: SessionId, class: Class) -> Self {
        let mut bytes = Vec::with_capacity(TARGET_BYTES + super::chunker::MAX_CHUNK);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, class as u8, 0, 0]);
        bytes.extend_from_slice(&session.0);
        bytes.extend_from_slice(&[0; 8]);
        Self { session, class, bytes, entries: Vec::new() }
    }

    pub(super) fn push(&mut self, id: ChunkId, raw: u32, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.entries.push(PackEntry { id, stored: frame.len() as u32, raw });
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= TARGET_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Seals the table of contents and names the pack.
    pub(super) fn finish(mut self, index_key: &Key) -> Result<(PackInfo, Bytes)> {
        let mut contents = Vec::with_capacity(4 + self.entries.len() * CONTENTS_ENTRY_BYTES);
        put_entries(&mut contents, &self.entries);
        let sealed = seal_box(index_key, BoxKind::PackContents, &contents)?;
        self.bytes.extend_from_slice(&sealed);
        self.bytes.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(FOOTER_MAGIC);
        let info = PackInfo {
            hash: object_hash(&self.bytes),
            size: self.bytes.len() as u64,
            session: self.session,
            class: self.class,
            entries: self.entries,
        };
        Ok((info, Bytes::from(self.bytes)))
    }
}

pub(super) fn put_entries(out: &mut Vec<u8>, entries: &[PackEntry]) {
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend_from_slice(&entry.id.0);
        out.extend_from_slice(&entry.stored.to_le_bytes());
        out.extend_from_slice(&entry.raw.to_le_bytes());
    }
}

/// Reads a list of entries and checks that they fill `frames` bytes.
pub(super) fn read_entries(decoder: &mut Decoder<'_>, frames: u64) -> Result<Vec<PackEntry>> {
    let count = decoder.u32()? as usize;
    if count > MAX_ENTRIES || count > decoder.remaining() / CONTENTS_ENTRY_BYTES {
        return Err(super::codec::malformed("a pack lists more chunks than it can hold"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut total = 0u64;
    for _ in 0..count {
        let entry = PackEntry { id: ChunkId(decoder.array()?), stored: decoder.u32()?, raw: decoder.u32()? };
        if (entry.stored as usize) < FRAME_OVERHEAD || entry.raw as usize > super::chunker::MAX_CHUNK {
            return Err(super::codec::malformed("a pack lists a chunk of an impossible size"));
        }
        total += u64::from(entry.stored);
        entries.push(entry);
    }
    if total > frames {
        return Err(super::codec::malformed("a pack lists chunks beyond its end"));
    }
    Ok(entries)
}

/// The header of a pack: whose keys seal it.
pub(super) fn read_header(bytes: &[u8]) -> Result<(SessionId, Class)> {
    let mut decoder = Decoder::new(bytes);
    if &decoder.array::<4>()? != MAGIC {
        return Err(super::codec::malformed("it is not a pack"));
    }
    if decoder.byte()? != VERSION {
        return Err(Error::new(ErrorKind::Unsupported, "a pack has a newer format").hint("use a newer stackward"));
    }
    let class = Class::from_byte(decoder.byte()?)?;
    decoder.take(2)?;
    Ok((SessionId(decoder.array()?), class))
}

/// The length of the sealed table of contents, from the last [`FOOTER_BYTES`] bytes of a pack of `size` bytes.
pub(super) fn read_footer(footer: &[u8], size: u64) -> Result<u64> {
    let mut decoder = Decoder::new(footer);
    let length = u64::from(decoder.u32()?);
    if &decoder.array::<4>()? != FOOTER_MAGIC || length + (HEADER_BYTES + FOOTER_BYTES) as u64 > size {
        return Err(super::codec::malformed("a pack has no table of contents at its end"));
    }
    Ok(length)
}

/// Opens a pack's table of contents.
pub(super) fn read_contents(index_key: &Key, sealed: &[u8], frames: u64) -> Result<Vec<PackEntry>> {
    let plain = open_box(index_key, BoxKind::PackContents, sealed)?;
    let mut decoder = Decoder::new(&plain);
    let entries = read_entries(&mut decoder, frames)?;
    decoder.finish()?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::super::crypto::random_key;
    use super::*;

    #[test]
    fn the_table_of_contents_says_what_was_packed() {
        let key = random_key().unwrap();
        let mut builder = PackBuilder::new(SessionId([3; 16]), Class::Meta);
        for (number, length) in [(1u8, 24usize), (2, 100), (3, 5_000)] {
            builder.push(ChunkId([number; 32]), 9, &vec![number; length]);
        }
        let (info, bytes) = builder.finish(&key).unwrap();
        assert_eq!(info.size, bytes.len() as u64);
        assert_eq!(read_header(&bytes).unwrap(), (SessionId([3; 16]), Class::Meta));
        let length = read_footer(&bytes[bytes.len() - FOOTER_BYTES..], info.size).unwrap() as usize;
        let end = bytes.len() - FOOTER_BYTES;
        let frames = (end - length - HEADER_BYTES) as u64;
        assert_eq!(read_contents(&key, &bytes[end - length..end], frames).unwrap(), info.entries);
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, size: u64) {
            let _any = (read_header(&bytes), read_footer(&bytes, size), read_entries(&mut Decoder::new(&bytes), size));
        }
    }
}
