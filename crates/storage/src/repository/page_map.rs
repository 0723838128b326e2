//! Page maps: a keyed hash of each page of a file, by which the next run recognises the pages that did not change.
//!
//! Invariant: the hash of a page stands at the page's number, or [`UNKNOWN_PAGE`] does, for a wrong one could make a change
//! pass unseen; a map that cannot be read costs storing pages again, nothing else.

use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey};
use backup_core::error::Result;
use backup_core::sink::{Piece, PieceReader};
use backup_core::tree::TreePath;
use bytes::{Buf, Bytes, BytesMut};

use super::codec::{Decoder, malformed, put_bytes, put_varint};
use super::content::ContentList;
use super::crypto::{KEY_BYTES, Key, aead, nonce, random_key};
use super::read::ContentReader;

/// See [`PageKey`].
pub(super) type PageHash = [u8; HASH_BYTES];
pub(super) const HASH_BYTES: usize = 16;
/// Stands for a page of zero bytes, which is stored nowhere.
pub(super) const ZERO_PAGE: PageHash = [0; HASH_BYTES];
/// Stands for a page that nobody hashed: it was kept where no map knew it, or was put together from pieces.
pub(super) const UNKNOWN_PAGE: PageHash = [0xFF; HASH_BYTES];

/// Maps of up to so many pages lie within their record: database clusters have thousands of files of a few pages.
pub(super) const MAX_INLINE_PAGES: usize = 256;
/// Smaller pages are taken together, and larger ones apart: a hash should stand for some kilobytes.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 4 * 1024..=64 * 1024;

/// The size of the pages that are compared, for a file that changes in pages of `hinted` bytes.
pub(super) fn page_bytes(hinted: u32) -> u32 {
    let (least, most) = (*PAGE_BYTES.start(), *PAGE_BYTES.end());
    match hinted {
        0 => 2 * least,
        _ if hinted < least => hinted * least.div_ceil(hinted),
        _ => hinted.min(most),
    }
}

/// Makes hashes of pages: the tag that AES-256-GCM gives to the page as associated data of an empty message, under a key
/// that is used for nothing else and a nonce of zeros.
///
/// This is a universal hash, five times as fast as BLAKE3 on pages: for whoever does not know the key, two pages of up to
/// 64 KiB have the same tag with a probability of 2⁻¹¹⁶. Tags are stored sealed, beside the key; they authenticate
/// nothing, so that the nonce repeats gives nothing away.
pub(super) struct PageKey {
    bytes: Key,
    key: LessSafeKey,
}

impl PageKey {
    pub(super) fn random() -> Result<Self> {
        Self::new(random_key()?)
    }

    fn new(bytes: Key) -> Result<Self> {
        let key = aead(&bytes)?;
        Ok(Self { bytes, key })
    }

    pub(super) fn hash(&self, page: &[u8]) -> PageHash {
        let tag = self.key.seal_in_place_separate_tag(nonce(0), Aad::from(page), &mut []);
        // Pages are far too short for sealing to fail; if it did, the page would be stored anew each time.
        tag.ok().and_then(|tag| tag.as_ref().first_chunk().copied()).unwrap_or(UNKNOWN_PAGE)
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey")
    }
}

const MAGIC: &[u8; 4] = b"SWPM";
const VERSION: u8 = 1;
/// Magic, version, three zero bytes, the key of the hashes.
pub(super) const HEADER_BYTES: usize = 8 + KEY_BYTES;

/// Appends the beginning of a page map.
pub(super) fn put_header(out: &mut Vec<u8>, key: &PageKey) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    out.extend_from_slice(&*key.bytes);
}

/// Reads the beginning of a page map.
pub(super) fn read_header(header: &[u8]) -> Result<PageKey> {
    let mut decoder = Decoder::new(header);
    if &decoder.array::<4>()? != MAGIC || decoder.array::<4>()? != [VERSION, 0, 0, 0] {
        return Err(malformed("it is not a page map of this version"));
    }
    PageKey::new(Key::new(decoder.array()?))
}

/// The map of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageMap {
    /// The size of its pages. The last one may be shorter.
    pub(super) page_bytes: u32,
    /// The length of the file.
    pub(super) size: u64,
    pub(super) hashes: Hashes,
}

/// The hashes of a file's pages, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hashes {
    Inline(Vec<u8>),
    Listed(ContentList),
}

const INLINE: u8 = 0;
const LISTED: u8 = 1;

/// Appends the record of the file at `path`: its length, then its body.
pub(super) fn put_map(out: &mut Vec<u8>, path: &TreePath, map: &PageMap) {
    let mut body = Vec::with_capacity(96);
    put_bytes(&mut body, path.as_bytes());
    put_varint(&mut body, u64::from(map.page_bytes));
    put_varint(&mut body, map.size);
    match &map.hashes {
        Hashes::Inline(hashes) => {
            body.push(INLINE);
            put_bytes(&mut body, hashes);
        }
        Hashes::Listed(content) => {
            body.push(LISTED);
            content.put(&mut body);
        }
    }
    put_bytes(out, &body);
}

/// Decodes the body of a record.
pub(super) fn read_map(body: &[u8]) -> Result<(TreePath, PageMap)> {
    let mut decoder = Decoder::new(body);
    let path = TreePath::new(decoder.bytes()?)?;
    let page_bytes = decoder.varint_u32()?;
    let size = decoder.varint()?;
    if page_bytes == 0 {
        return Err(malformed("a page map has pages of no length"));
    }
    let hashes = match decoder.byte()? {
        INLINE => Hashes::Inline(decoder.bytes()?.to_vec()),
        LISTED => Hashes::Listed(ContentList::read(&mut decoder)?),
        _ => return Err(malformed("a page map is of an unknown kind")),
    };
    if let Hashes::Inline(hashes) = &hashes
        && size.div_ceil(u64::from(page_bytes)).checked_mul(HASH_BYTES as u64) != Some(hashes.len() as u64)
    {
        return Err(malformed("a page map does not have one hash for each page"));
    }
    decoder.finish()?;
    Ok((path, PageMap { page_bytes, size, hashes }))
}

/// Goes through the hashes of a map from its beginning to its end.
pub(super) struct HashCursor {
    /// What follows `buffer`.
    rest: Option<ContentReader>,
    buffer: BytesMut,
    /// How many bytes were before `buffer`.
    start: u64,
}

impl HashCursor {
    pub(super) fn inline(hashes: &[u8]) -> Self {
        Self { rest: None, buffer: BytesMut::from(hashes), start: 0 }
    }

    pub(super) fn listed(hashes: ContentReader) -> Self {
        Self { rest: Some(hashes), buffer: BytesMut::new(), start: 0 }
    }

    /// The hash of the page of this number; `None` behind the last one. Every call asks for the same page as the one
    /// before, or a later one.
    pub(super) async fn at(&mut self, number: u64) -> Result<Option<PageHash>> {
        let wanted = number.saturating_mul(HASH_BYTES as u64);
        loop {
            let Some(skip) = wanted.checked_sub(self.start) else { return Ok(None) };
            let skip = skip.min(self.buffer.len() as u64);
            self.buffer.advance(skip as usize);
            self.start += skip;
            if self.start == wanted
                && let Some(hash) = self.buffer.first_chunk()
            {
                return Ok(Some(*hash));
            }
            let Some(rest) = &mut self.rest else { return Ok(None) };
            match rest.next().await? {
                Some(Piece::Data(data)) => self.push(&data),
                Some(Piece::Hole(_)) => return Err(malformed("a page map has a hole")),
                None => return Ok(None),
            }
        }
    }

    fn push(&mut self, data: &Bytes) {
        self.buffer.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::content::{ChunkId, Extent};
    use super::*;

    proptest! {
        #[test]
        fn a_map_round_trips(
            path in "[a-z]{1,9}(/[a-z]{1,9}){0,3}", page_bytes in 1..100_000u32, pages in 0..50u64, short in 0..1000u32,
            extents in proptest::collection::vec((any::<[u8; 32]>(), any::<u32>(), any::<u64>()), 0..5), inline: bool,
        ) {
            let path = TreePath::new(path).unwrap();
            let size = (pages * u64::from(page_bytes)).saturating_sub(u64::from(short % page_bytes));
            let extents = extents.into_iter().map(|(id, offset, length)| Extent { chunk: ChunkId(id), offset, length });
            let hashes = if inline {
                Hashes::Inline(vec![9; pages as usize * HASH_BYTES])
            } else {
                Hashes::Listed(ContentList { depth: 1, extents: extents.collect() })
            };
            let map = PageMap { page_bytes, size, hashes };
            let mut out = Vec::new();
            put_map(&mut out, &path, &map);
            let mut decoder = Decoder::new(&out);
            prop_assert_eq!(read_map(decoder.bytes().unwrap()).unwrap(), (path, map));
            decoder.finish().unwrap();
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _any = read_map(&bytes);
        }
    }

    #[test]
    fn pages_of_any_size_are_taken_as_some_kilobytes() {
        let cases =
            [(0, 8192), (512, 4096), (1000, 5000), (4096, 4096), (8192, 8192), (65_536, 65_536), (1 << 30, 65_536)];
        for (hinted, expected) in cases {
            assert_eq!(page_bytes(hinted), expected, "{hinted}");
        }
    }

    #[tokio::test]
    async fn hashes_are_found_forwards_only() {
        let hashes: Vec<u8> = (0..5 * HASH_BYTES as u8).collect();
        let mut cursor = HashCursor::inline(&hashes);
        for number in [0, 0, 1, 3, 4] {
            let at = number * HASH_BYTES;
            assert_eq!(cursor.at(number as u64).await.unwrap().unwrap()[..], hashes[at..at + HASH_BYTES]);
        }
        assert_eq!(cursor.at(3).await.unwrap(), None);
        assert_eq!(cursor.at(5).await.unwrap(), None);
    }
}
