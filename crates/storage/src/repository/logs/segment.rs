//! One segment as an object: magic, length of the header, header, body.
//!
//! The header is a box under the index key: the machine that writes reads it again. The body is the segment, zstd
//! compressed, inside an age file to the log's own key pair (plain zstd in a repository that is not encrypted).
//!
//! Invariant: a header vouches for its name, its body and its content, so no object can stand for another.

use std::io::{Read, Write};

use backup_core::SourceName;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{MAX_SEGMENT_BYTES, SegmentId, SegmentMeta, SegmentRecord};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::key::{LogIdentity, LogRecipient};
use crate::repository::crypto::{BoxKind, Key, open_box, seal_box};

/// The first bytes of a segment object; the last digit is the version of its form.
pub(in crate::repository) const MAGIC: &[u8; 8] = b"STKWLOG1";
/// Magic and length of the header.
pub(in crate::repository) const PREFIX_BYTES: usize = MAGIC.len() + 4;
/// A header that claims to be longer is none. (A mark takes less than 80 bytes.)
pub(in crate::repository) const MAX_HEADER_BYTES: usize = 1024 * 1024;
const BUFFER_BYTES: usize = 128 * 1024;

/// What the header holds, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::repository) struct Header {
    source: SourceName,
    id: SegmentId,
    meta: SegmentMeta,
    /// Plain bytes.
    bytes: u64,
    /// BLAKE3 of the plain bytes, keyed with the id key: it tells whether another push brings the same.
    content: String,
    /// The length of the body.
    body_bytes: u64,
    /// BLAKE3 of the body, without a key.
    body: String,
    /// The key pair that the body is sealed to; none in a repository that is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    stored: Timestamp,
}

/// A segment, ready to be stored.
pub(in crate::repository) struct Sealed {
    pub(in crate::repository) head: Vec<u8>,
    pub(in crate::repository) body: Vec<u8>,
    content: blake3::Hash,
}

impl Sealed {
    pub(in crate::repository) fn stored_bytes(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }

    /// Whether `header` is that of the same bytes.
    fn is_content_of(&self, header: &Header) -> bool {
        blake3::Hash::from_hex(&header.content).is_ok_and(|content| content == self.content)
    }
}

/// What lies under the name of a segment that is to be stored.
pub(in crate::repository) enum Found {
    /// The same bytes, and they can be read again.
    Same,
    /// Other bytes.
    Other,
    /// Nothing that could be read again; it says what is wrong with it.
    Damaged(Error),
}

impl Found {
    /// Compares a whole object with `sealed`. A body needs no private key to be checked: the header has its hash.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the object has a newer form.
    pub(in crate::repository) fn look(
        index_key: &Key,
        source: &SourceName,
        id: &SegmentId,
        sealed: &Sealed,
        object: &[u8],
    ) -> Result<Self> {
        let found = split(object).and_then(|(head, body)| Ok((Header::open(index_key, source, id, head)?, body)));
        match found {
            // Whoever brings other bytes is refused, whatever has become of these.
            Ok((header, _)) if !sealed.is_content_of(&header) => Ok(Self::Other),
            Ok((header, body)) => match header.check_body(body) {
                Ok(()) => Ok(Self::Same),
                Err(error) => Ok(Self::Damaged(error)),
            },
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(Self::Damaged(error)),
            Err(error) => Err(error),
        }
    }
}

/// The sealed header of a segment's object, and its body.
///
/// # Errors
/// As [`header_length`]; [`ErrorKind::Damaged`] when it is cut.
pub(in crate::repository) fn split(object: &[u8]) -> Result<(&[u8], &[u8])> {
    let length = header_length(object)?;
    let rest = object.get(PREFIX_BYTES..).unwrap_or_default();
    rest.split_at_checked(length).ok_or_else(|| Error::new(ErrorKind::Damaged, "the segment is cut short"))
}

/// Makes objects of segments. Everything that it needs is on the machine that writes.
#[derive(Clone)]
pub(in crate::repository) struct Sealer {
    pub(in crate::repository) index_key: Key,
    pub(in crate::repository) id_key: Key,
    /// `None`: the repository is not encrypted.
    pub(in crate::repository) recipient: Option<LogRecipient>,
    pub(in crate::repository) level: i32,
}

impl Sealer {
    /// Reads `content` to its end, compressing and sealing on the way.
    pub(in crate::repository) fn seal(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: &mut dyn Read,
    ) -> Result<Sealed> {
        let failed = |error| Error::from_io(format!("cannot seal the segment {id}"), error);
        let mut body = Vec::new();
        let read = match &self.recipient {
            Some(recipient) => {
                let mut sealing = recipient.seal(&mut body)?;
                let read = self.compress(id, content, &mut sealing)?;
                sealing.finish().map_err(failed)?;
                read
            }
            None => self.compress(id, content, &mut body)?,
        };
        let header = Header {
            source: source.clone(),
            id: id.clone(),
            meta,
            bytes: read.bytes,
            content: read.hash.to_hex().to_string(),
            body_bytes: body.len() as u64,
            body: blake3::hash(&body).to_hex().to_string(),
            key: self.recipient.as_ref().map(|recipient| recipient.id().to_owned()),
            stored: Timestamp::now(),
        };
        Ok(Sealed { head: self.head(&header)?, body, content: read.hash })
    }

    fn head(&self, header: &Header) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(header).map_err(|source| {
            Error::new(ErrorKind::Internal, "cannot write the header of a segment").caused_by(source)
        })?;
        let sealed = seal_box(&self.index_key, BoxKind::Segment, &json)?;
        if sealed.len() > MAX_HEADER_BYTES {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the header of the segment {} is too long", header.id),
            ));
        }
        let mut head = Vec::with_capacity(PREFIX_BYTES + sealed.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        head.extend_from_slice(&sealed);
        Ok(head)
    }

    fn compress(&self, id: &SegmentId, content: &mut dyn Read, out: &mut dyn Write) -> Result<Plain> {
        let sealing = |error| Error::from_io(format!("cannot seal the segment {id}"), error);
        let mut encoder = zstd::Encoder::new(out, self.level).map_err(sealing)?;
        // So that the plain command notices damage, too.
        encoder.include_checksum(true).map_err(sealing)?;
        let mut hasher = blake3::Hasher::new_keyed(&self.id_key);
        let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::from_io(format!("cannot read the segment {id}"), error)),
            };
            bytes += count as u64;
            if bytes > MAX_SEGMENT_BYTES {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the segment {id} is longer than {MAX_SEGMENT_BYTES} bytes"),
                ));
            }
            hasher.update(&buffer[..count]);
            encoder.write_all(&buffer[..count]).map_err(sealing)?;
        }
        encoder.finish().map_err(sealing)?;
        Ok(Plain { bytes, hash: hasher.finalize() })
    }
}

struct Plain {
    bytes: u64,
    hash: blake3::Hash,
}

/// The length of the header that `prefix` announces.
///
/// # Errors
/// [`ErrorKind::Damaged`] when these are not the first bytes of a segment, [`ErrorKind::Unsupported`] for a newer form.
pub(in crate::repository) fn header_length(prefix: &[u8]) -> Result<usize> {
    let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("it is no segment: {what}"));
    let (magic, rest) = prefix.split_first_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
    if magic[..7] != MAGIC[..7] {
        return Err(damaged("it does not begin as one"));
    }
    if magic != MAGIC {
        return Err(Error::new(ErrorKind::Unsupported, "the segment has a newer form").hint("use a newer stackward"));
    }
    let length = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let length = length.ok_or_else(|| damaged("it is too short"))?;
    if length <= MAX_HEADER_BYTES { Ok(length) } else { Err(damaged("its header is too long")) }
}

impl Header {
    /// Opens the sealed header of the segment that is called `id`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is not what was written, or belongs to another segment.
    pub(in crate::repository) fn open(
        index_key: &Key,
        source: &SourceName,
        id: &SegmentId,
        sealed: &[u8],
    ) -> Result<Self> {
        let json = open_box(index_key, BoxKind::Segment, sealed)?;
        let header: Self = serde_json::from_slice(&json).map_err(|error| {
            Error::new(ErrorKind::Damaged, "the header of a segment is not readable").caused_by(error)
        })?;
        if header.source != *source || header.id != *id {
            let message = format!("it is the segment {} of `{}`, under another name", header.id, header.source);
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        Ok(header)
    }

    /// Whether the segment was made of the bytes of `content`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(in crate::repository) fn is_of(&self, id_key: &Key, content: &mut dyn Read) -> Result<bool> {
        let mut hasher = blake3::Hasher::new_keyed(id_key);
        let read = hasher.update_reader(content.take(MAX_SEGMENT_BYTES + 1));
        read.map_err(|error| Error::from_io(format!("cannot read the segment {}", self.id), error))?;
        let same = blake3::Hash::from_hex(&self.content).is_ok_and(|hash| hash == hasher.finalize());
        Ok(same && hasher.count() == self.bytes)
    }

    pub(in crate::repository) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    pub(in crate::repository) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Compares a body with what the header says of it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`].
    pub(in crate::repository) fn check_body(&self, body: &[u8]) -> Result<()> {
        let same = body.len() as u64 == self.body_bytes
            && blake3::Hash::from_hex(&self.body).is_ok_and(|hash| hash == blake3::hash(body));
        if same { Ok(()) } else { Err(Error::new(ErrorKind::Damaged, "its content is not what was written")) }
    }

    pub(in crate::repository) fn record(self, header_bytes: usize) -> SegmentRecord {
        SegmentRecord {
            stored_bytes: (PREFIX_BYTES + header_bytes) as u64 + self.body_bytes,
            id: self.id,
            meta: self.meta,
            bytes: self.bytes,
            stored: self.stored,
        }
    }

    /// Writes the plain bytes of a checked body to `out`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when they are not those that were stored; also when `out` fails.
    pub(in crate::repository) fn unseal(
        &self,
        id_key: &Key,
        identity: Option<&LogIdentity>,
        body: &[u8],
        out: &mut dyn Write,
    ) -> Result<()> {
        match identity {
            Some(identity) => self.decompress(id_key, &mut identity.open(body)?, out),
            None => self.decompress(id_key, &mut &*body, out),
        }
    }

    fn decompress(&self, id_key: &Key, sealed: &mut dyn Read, out: &mut dyn Write) -> Result<()> {
        let damaged = || Error::new(ErrorKind::Damaged, format!("the segment {} is not what was written", self.id));
        let mut decoder = zstd::Decoder::new(sealed).map_err(|error| damaged().caused_by(error))?;
        let mut hasher = blake3::Hasher::new_keyed(id_key);
        let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0u64);
        loop {
            let count = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged().caused_by(error)),
            };
            bytes += count as u64;
            if bytes > self.bytes {
                return Err(damaged());
            }
            hasher.update(&buffer[..count]);
            let written = out.write_all(&buffer[..count]);
            written.map_err(|error| Error::from_io(format!("cannot write the segment {}", self.id), error))?;
        }
        let same = blake3::Hash::from_hex(&self.content).is_ok_and(|hash| hash == hasher.finalize());
        if !same || bytes != self.bytes {
            return Err(damaged());
        }
        out.flush().map_err(|error| Error::from_io(format!("cannot write the segment {}", self.id), error))
    }
}

#[cfg(test)]
mod tests {
    use backup_core::{SegmentName, Timeline};

    use super::super::key::pair;
    use super::*;
    use crate::repository::crypto::random_key;

    fn id(name: &str) -> SegmentId {
        SegmentId { timeline: Timeline::new("1").unwrap(), name: SegmentName::new(name).unwrap() }
    }

    fn source() -> SourceName {
        SourceName::new("db").unwrap()
    }

    fn make(recipient: Option<LogRecipient>) -> Sealer {
        Sealer { index_key: random_key().unwrap(), id_key: random_key().unwrap(), recipient, level: 1 }
    }

    fn header(writer: &Sealer, sealed: &Sealed, name: &str) -> Result<Header> {
        let length = header_length(&sealed.head)?;
        assert_eq!(sealed.head.len(), PREFIX_BYTES + length);
        Header::open(&writer.index_key, &source(), &id(name), &sealed.head[PREFIX_BYTES..])
    }

    #[test]
    fn a_segment_opens_under_its_own_name_with_its_own_key() {
        let (recipient, identity) = pair().unwrap();
        let writer = make(Some(recipient));
        let plain = vec![7u8; 300_000];
        let sealed = writer.seal(&source(), &id("a"), SegmentMeta::default(), &mut &*plain).unwrap();
        let found = header(&writer, &sealed, "a").unwrap();
        found.check_body(&sealed.body).unwrap();
        let mut out = Vec::new();
        found.unseal(&writer.id_key, Some(&identity), &sealed.body, &mut out).unwrap();
        assert!(out == plain);
        assert!(header(&writer, &sealed, "b").unwrap_err().to_string().contains("under another name"));
        let (_, stranger) = pair().unwrap();
        assert!(found.unseal(&writer.id_key, Some(&stranger), &sealed.body, &mut Vec::new()).is_err());
        assert!(!sealed.body.windows(100).any(|window| window == &plain[..100]), "it is not sealed");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let writer = make(None);
        let plain = b"some bytes of a log".repeat(40);
        let sealed = writer.seal(&source(), &id("a"), SegmentMeta::default(), &mut &*plain).unwrap();
        let object = [&sealed.head[..], &sealed.body[..]].concat();
        let read = |object: &[u8]| -> Result<()> {
            let length = header_length(object)?;
            let rest = object.get(PREFIX_BYTES..).unwrap_or_default();
            let (sealed, body) = rest
                .split_at_checked(length)
                .ok_or_else(|| Error::new(ErrorKind::Damaged, "it is shorter than its header"))?;
            let header = Header::open(&writer.index_key, &source(), &id("a"), sealed)?;
            header.check_body(body)?;
            header.unseal(&writer.id_key, None, body, &mut Vec::new())
        };
        read(&object).unwrap();
        for position in 0..object.len() {
            let mut broken = object.clone();
            broken[position] ^= 1;
            assert!(read(&broken).is_err(), "{position}");
            assert!(read(&object[..position]).is_err(), "{position}");
        }
    }
}
