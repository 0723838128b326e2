//! Content lists: which pieces of which chunks, in order, make a stream or a file.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{Content, Extent as ExtentRecord};

use super::codec::{Decoder, put_varint};

/// The id of a chunk: keyed BLAKE3 of its plain bytes. All zero: a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ChunkId(pub(super) [u8; 32]);

impl ChunkId {
    /// Stands for zero bytes that are stored nowhere.
    pub(super) const HOLE: Self = Self([0; 32]);

    pub(super) fn of(key: &[u8; 32], data: &[u8]) -> Self {
        Self(*blake3::keyed_hash(key, data).as_bytes())
    }
}

/// A piece of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) chunk: ChunkId,
    pub(super) offset: u32,
    pub(super) length: u64,
}

impl Extent {
    /// Whether `next` is the piece of the same chunk, or hole, that follows this one.
    pub(super) fn continues_with(&self, next: &Self) -> bool {
        self.chunk == next.chunk
            && (self.chunk == ChunkId::HOLE || u64::from(self.offset) + self.length == u64::from(next.offset))
    }
}

/// The content of a stream or a file. With a depth above zero, the extents hold an encoded list of further extents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ContentList {
    pub(super) depth: u8,
    pub(super) extents: Vec<Extent>,
}

/// Lists nest when they grow past [`super::stream::MAX_INLINE_EXTENTS`]; three levels hold more than any disk.
pub(super) const MAX_DEPTH: u8 = 4;

pub(super) fn put_extent(out: &mut Vec<u8>, extent: &Extent) {
    out.extend_from_slice(&extent.chunk.0);
    put_varint(out, u64::from(extent.offset));
    put_varint(out, extent.length);
}

pub(super) fn read_extent(decoder: &mut Decoder<'_>) -> Result<Extent> {
    Ok(Extent { chunk: ChunkId(decoder.array()?), offset: decoder.varint_u32()?, length: decoder.varint()? })
}

/// The longest encoding of one extent.
pub(super) const MAX_EXTENT_BYTES: usize = 32 + 5 + 10;

impl ContentList {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.depth);
        put_varint(out, self.extents.len() as u64);
        for extent in &self.extents {
            put_extent(out, extent);
        }
    }

    pub(super) fn read(decoder: &mut Decoder<'_>) -> Result<Self> {
        let depth = decoder.byte()?;
        check_depth(depth)?;
        let count = decoder.varint()?;
        // An extent takes at least 34 bytes: a count beyond that is a lie, and must not make us allocate.
        let room = decoder.remaining() as u64 / 34;
        if count > room {
            return Err(super::codec::malformed("it lists more extents than it holds"));
        }
        let extents = (0..count).map(|_| read_extent(decoder)).collect::<Result<_>>()?;
        Ok(Self { depth, extents })
    }

    pub(super) fn to_record(&self) -> Content {
        let extents = self.extents.iter().map(|extent| ExtentRecord {
            chunk: hex::encode(extent.chunk.0),
            offset: extent.offset,
            length: extent.length,
        });
        Content::Extents { depth: self.depth, extents: extents.collect() }
    }

    pub(super) fn from_record(content: &Content) -> Result<Self> {
        let Content::Extents { depth, extents } = content else {
            return Err(Error::new(ErrorKind::Damaged, "the manifest names a file where a repository has extents"));
        };
        check_depth(*depth)?;
        let extents = extents
            .iter()
            .map(|extent| {
                let mut chunk = [0; 32];
                hex::decode_to_slice(&extent.chunk, &mut chunk).map_err(|source| {
                    Error::new(ErrorKind::Damaged, "the manifest names a chunk that is no id").caused_by(source)
                })?;
                Ok(Extent { chunk: ChunkId(chunk), offset: extent.offset, length: extent.length })
            })
            .collect::<Result<_>>()?;
        Ok(Self { depth: *depth, extents })
    }
}

fn check_depth(depth: u8) -> Result<()> {
    if depth <= MAX_DEPTH { Ok(()) } else { Err(super::codec::malformed("its lists are nested too deep")) }
}
