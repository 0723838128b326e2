//! Writing an RDB from values that a server handed out one by one (`DUMP`), or that were read element by element.
//!
//! Invariant: whoever announces a length or a count writes exactly so much; the checksum covers every byte.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::summary::Flavour;

const OPCODE_AUX: u8 = 250;
const OPCODE_EXPIRES_MS: u8 = 252;
const OPCODE_DATABASE: u8 = 254;
const OPCODE_END: u8 = 255;
/// The largest length of 32 bits.
const LARGEST_SHORT: u64 = u32::MAX as u64;
/// From this version on a value handed out by `DUMP` is Valkey's.
const FIRST_OF_VALKEY: u32 = 80;

/// The types of values that are written element by element (rdb.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    /// `RDB_TYPE_LIST`: elements.
    List = 1,
    /// `RDB_TYPE_SET`: members.
    Set = 2,
    /// `RDB_TYPE_HASH`: fields and values.
    Hash = 4,
    /// `RDB_TYPE_ZSET_2`: members and their scores, as eight bytes.
    SortedSet = 5,
}

/// An RDB that grows at its end; take what is there from time to time.
pub(crate) struct RdbWriter {
    out: Vec<u8>,
    digest: Digest,
    database: Option<u32>,
}

impl RdbWriter {
    /// Begins an RDB of this version.
    pub(crate) fn begin(version: u32) -> Self {
        let flavour = flavour_of(version);
        let magic = match flavour {
            Flavour::Redis => format!("REDIS{version:04}"),
            Flavour::Valkey => format!("VALKEY{version:03}"),
        };
        Self { out: magic.into_bytes(), digest: Digest::new(CrcAlgorithm::Crc64Redis), database: None }
    }

    /// Something that the RDB says about itself.
    pub(crate) fn aux(&mut self, key: &str, value: &str) {
        self.out.push(OPCODE_AUX);
        string(&mut self.out, key.as_bytes());
        string(&mut self.out, value.as_bytes());
    }

    /// The head of a key: its database, expiry, type and name. Its value must follow.
    pub(crate) fn key(&mut self, database: u32, expires_ms: Option<i64>, kind: u8, name: &[u8]) {
        if self.database != Some(database) {
            self.out.push(OPCODE_DATABASE);
            length(&mut self.out, u64::from(database));
            self.database = Some(database);
        }
        if let Some(expires_ms) = expires_ms {
            self.out.push(OPCODE_EXPIRES_MS);
            self.out.extend(expires_ms.to_le_bytes());
        }
        self.out.push(kind);
        string(&mut self.out, name);
    }

    /// Bytes that are in the form of an RDB already.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// How many bytes wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// What was written since the last time.
    pub(crate) fn take(&mut self) -> Bytes {
        self.digest.update(&self.out);
        Bytes::from(std::mem::take(&mut self.out))
    }

    /// Ends it: the last bytes, with the checksum.
    pub(crate) fn end(mut self) -> Bytes {
        self.out.push(OPCODE_END);
        self.digest.update(&self.out);
        self.out.extend(self.digest.finalize().to_le_bytes());
        Bytes::from(self.out)
    }
}

/// Whose RDB has this version.
pub(crate) fn flavour_of(version: u32) -> Flavour {
    if version >= FIRST_OF_VALKEY { Flavour::Valkey } else { Flavour::Redis }
}

/// A string, as it is.
pub(crate) fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    length(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A length, in its shortest form (rdb.c, `rdbSaveLen`).
pub(crate) fn length(out: &mut Vec<u8>, number: u64) {
    match number {
        0..64 => out.push(number as u8),
        64..16_384 => out.extend([0x40 | (number >> 8) as u8, number as u8]),
        16_384..=LARGEST_SHORT => {
            out.push(0x80);
            out.extend((number as u32).to_be_bytes());
        }
        _ => {
            out.push(0x81);
            out.extend(number.to_be_bytes());
        }
    }
}

/// What stands at the end of a value that `DUMP` hands out: the version of its form, and a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) version: u32,
    pub(crate) checksum: u64,
}

impl Footer {
    pub(crate) const BYTES: usize = 10;

    pub(crate) fn of(bytes: [u8; Self::BYTES]) -> Self {
        let [low, high, checksum @ ..] = bytes;
        Self { version: u32::from(u16::from_le_bytes([low, high])), checksum: u64::from_le_bytes(checksum) }
    }

    /// Whether the value whose bytes went into `digest` has this footer. A checksum of 0 says that there is none.
    pub(crate) fn fits(self, mut digest: Digest) -> bool {
        digest.update(&(self.version as u16).to_le_bytes());
        self.checksum == 0 || digest.finalize() == self.checksum
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Checksum, KeyType, scan};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for version in [9, 12, 80] {
            let mut writer = RdbWriter::begin(version);
            writer.aux("redis-ver", "x");
            writer.key(3, Some(5), 0, b"string");
            let mut value = Vec::new();
            string(&mut value, &vec![b'v'; 20_000]);
            writer.raw(&value);
            let first = writer.take();
            writer.key(3, None, Plain::Set as u8, &[b'k'; 70]);
            let mut members = Vec::new();
            length(&mut members, 2);
            string(&mut members, b"a");
            string(&mut members, b"");
            writer.raw(&members);
            let rdb = [first, writer.end()].concat();
            let summary = scan(&rdb[..], 6).unwrap();
            assert_eq!((summary.version, summary.checksum), (version, Checksum::Verified));
            assert_eq!(summary.databases[&3].keys, [(KeyType::String, 1), (KeyType::Set, 1)].into());
            assert_eq!(summary.databases[&3].expired, 1);
        }
    }

    #[test]
    fn a_footer_fits_its_value_only() {
        // `DUMP` of the string `1`, by Redis 7.0.
        let value = [0, 0xc0, 1];
        let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
        digest.update(&value);
        digest.update(&10_u16.to_le_bytes());
        let footer = Footer { version: 10, checksum: digest.finalize() };
        let over = |bytes: &[u8]| {
            let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
            digest.update(bytes);
            digest
        };
        assert!(footer.fits(over(&value)));
        assert!(!footer.fits(over(&[0, 0xc0, 2])));
        assert!(!Footer { version: 11, ..footer }.fits(over(&value)));
    }
}
