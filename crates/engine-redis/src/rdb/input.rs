//! The bytes of an RDB: buffered, counted and checksummed.
//!
//! Invariant: every byte handed out has passed, or will pass before the next refill, through the CRC-64; memory is one
//! buffer whatever the lengths in the data say.

use std::io::{ErrorKind as IoKind, Read};

use backup_core::{Error, ErrorKind, Result};
use crc_fast::{CrcAlgorithm, Digest};

/// Bytes asked of the reader at once, and the most that are held.
const BUFFER_BYTES: usize = 256 * 1024;

/// A length field (rdb.c, `rdbLoadLen`): a number, or the announcement of a special encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// A plain number.
    Number(u64),
    /// What follows is an encoded string of this kind.
    Encoding(u8),
}

/// A buffered reader that knows its offset and the CRC-64 of what was consumed.
pub(super) struct Input<'r> {
    reader: Box<dyn Read + 'r>,
    buffer: Vec<u8>,
    /// The unread bytes are `buffer[start..end]`; those before `hashed` are in the digest.
    start: usize,
    end: usize,
    hashed: usize,
    /// The offset in the RDB of `buffer[0]`.
    base: u64,
    digest: Digest,
    /// The window of the LZF decoder: here, so that it is allocated once.
    pub(super) window: Vec<u8>,
}

impl<'r> Input<'r> {
    pub(super) fn new(reader: impl Read + 'r) -> Self {
        Self {
            reader: Box::new(reader),
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            hashed: 0,
            base: 0,
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            window: Vec::new(),
        }
    }

    /// How many bytes were consumed.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.start as u64
    }

    /// Damage at the place that was just read.
    pub(super) fn damaged(&self, what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Damaged, what).with("offset", self.offset())
    }

    /// At least one and at most `max` of the next bytes, consumed. `max` is at least one.
    pub(super) fn chunk(&mut self, max: usize) -> Result<&[u8]> {
        if self.start == self.end && self.refill()? == 0 {
            return Err(self.damaged("the RDB ends in the middle"));
        }
        let taken = self.start..self.end.min(self.start.saturating_add(max));
        self.start = taken.end;
        Ok(&self.buffer[taken])
    }

    /// One byte.
    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.chunk(1)?[0])
    }

    /// `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// As many bytes as `target` holds.
    pub(super) fn fill(&mut self, target: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < target.len() {
            let chunk = self.chunk(target.len() - filled)?;
            target[filled..filled + chunk.len()].copy_from_slice(chunk);
            filled += chunk.len();
        }
        Ok(())
    }

    /// Passes over `count` bytes; they are still checksummed.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let max = usize::try_from(count).unwrap_or(usize::MAX);
            count -= self.chunk(max)?.len() as u64;
        }
        Ok(())
    }

    /// A length field: 6 or 14 bits, 32 or 64 bits big-endian, or an encoding.
    pub(super) fn length(&mut self) -> Result<Length> {
        let first = self.byte()?;
        let low = first & 0x3f;
        Ok(match first >> 6 {
            0 => Length::Number(u64::from(low)),
            1 => Length::Number(u64::from(low) << 8 | u64::from(self.byte()?)),
            3 => Length::Encoding(low),
            _ => match first {
                0x80 => Length::Number(u64::from(u32::from_be_bytes(self.array()?))),
                0x81 => Length::Number(u64::from_be_bytes(self.array()?)),
                _ => return Err(self.damaged(format!("a length begins with the byte {first:#04x}"))),
            },
        })
    }

    /// A length field that must be a number.
    pub(super) fn number(&mut self) -> Result<u64> {
        match self.length()? {
            Length::Number(number) => Ok(number),
            Length::Encoding(_) => Err(self.damaged("an encoded string stands where a number belongs")),
        }
    }

    /// A point in time: milliseconds since 1970, little-endian.
    pub(super) fn milliseconds(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// The CRC-64 of everything consumed so far.
    pub(super) fn checksum(&mut self) -> u64 {
        self.digest.update(&self.buffer[self.hashed..self.start]);
        self.hashed = self.start;
        self.digest.finalize()
    }

    /// Whether nothing follows.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        Ok(self.start == self.end && self.refill()? == 0)
    }

    /// What was not consumed, as it is.
    pub(super) fn rest(&mut self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() || self.at_end()? {
            return Ok(0);
        }
        let chunk = self.chunk(into.len())?;
        into[..chunk.len()].copy_from_slice(chunk);
        Ok(chunk.len())
    }

    fn refill(&mut self) -> Result<usize> {
        self.digest.update(&self.buffer[self.hashed..self.end]);
        self.base += self.end as u64;
        (self.start, self.end, self.hashed) = (0, 0, 0);
        loop {
            match self.reader.read(&mut self.buffer) {
                Ok(count) => {
                    self.end = count;
                    return Ok(count);
                }
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::from_io("cannot read the RDB", error).with("offset", self.base));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(bytes: &[u8]) -> Result<Length> {
        Input::new(bytes).length()
    }

    #[test]
    fn lengths_of_every_width() {
        let cases: [(&[u8], u64); 5] = [
            (&[0x3f], 63),
            (&[0x7f, 0xff], 16383),
            (&[0x40, 0x40], 64),
            (&[0x80, 0, 1, 0, 0], 65536),
            (&[0x81, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
        ];
        for (bytes, expected) in cases {
            assert_eq!(length(bytes).unwrap(), Length::Number(expected), "{bytes:x?}");
        }
        assert_eq!(length(&[0xc3]).unwrap(), Length::Encoding(3));
        assert_eq!(length(&[0x82]).unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(length(&[0x80, 1]).unwrap_err().kind(), ErrorKind::Damaged);
    }

    /// The check value in redis/src/crc64.c's own test.
    #[test]
    fn the_checksum_is_that_of_redis() {
        let mut input = Input::new(&b"123456789"[..]);
        input.skip(9).unwrap();
        assert_eq!(input.checksum(), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn a_reader_that_gives_single_bytes_is_read_just_as_well() {
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(&mut into[..1])
            }
        }
        let mut input = Input::new(Drip(b"123456789"));
        assert_eq!(&input.array::<4>().unwrap(), b"1234");
        input.skip(5).unwrap();
        assert_eq!(input.checksum(), 0xe9c6_d914_c4b8_d9ca);
        assert!(input.at_end().unwrap());
        assert_eq!(input.offset(), 9);
    }
}
