//! The first page header of a segment: which server wrote it, and where in the log it belongs.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;

use super::names::{SegmentSize, WalSegment};

/// The length of a long page header (`XLogLongPageHeaderData`).
pub const PAGE_HEADER_BYTES: usize = 40;
/// `XLP_LONG_HEADER`: the first page of a segment has one.
const LONG: u16 = 2;
/// The upper byte of `XLOG_PAGE_MAGIC`, since version 9.3; the lower one changes with versions.
pub(super) const MAGIC_HIGH: u16 = 0xD1;

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Tells versions apart.
    pub magic: u16,
    /// The timeline of the page. In the first segment after a switch it is still the parent's.
    pub timeline: u32,
    /// The position of the page.
    pub start: Lsn,
    /// The server's identifier, as `pg_control_system()` shows it.
    pub system: u64,
    /// The length of this server's segments.
    pub segment_size: SegmentSize,
}

impl PageHeader {
    /// Parses the first [`PAGE_HEADER_BYTES`] of a segment. Written by a machine of the byte order of this one.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when this is no beginning of a segment: zeroes, or something else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::Damaged, format!("it does not begin as a segment does: {what}"));
        let bytes: &[u8; PAGE_HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| wrong("it is too short"))?;
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        let (magic, info) = (u16_at(0), u16_at(2));
        if magic >> 8 != MAGIC_HIGH {
            return Err(wrong("the page's magic number is missing"));
        }
        if info & LONG == 0 {
            return Err(wrong("its first page has no long header"));
        }
        let segment_size = SegmentSize::new(u64::from(u32_at(32)))?;
        Ok(Self { magic, timeline: u32_at(4), start: Lsn(u64_at(8)), system: u64_at(24), segment_size })
    }

    /// Looks whether the page is the first one of `segment`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it belongs elsewhere: a recycled file that was not written yet, a renamed one.
    pub fn check(&self, segment: WalSegment) -> Result<()> {
        let expected = segment.start(self.segment_size);
        if self.start != expected {
            let message = format!("the file {segment} holds the log from {} on, not from {expected}", self.start);
            return Err(Error::new(ErrorKind::Damaged, message).hint("it was renamed, or recycled and not written yet"));
        }
        if self.timeline > segment.timeline {
            let message = format!("the file {segment} holds the log of the later timeline {}", self.timeline);
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The first page header of a segment as a server writes it.
    pub(in crate::wal) fn header(segment: WalSegment, system: u64, size: SegmentSize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_HEADER_BYTES];
        bytes[0..2].copy_from_slice(&0xD110u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&LONG.to_ne_bytes());
        bytes[4..8].copy_from_slice(&segment.timeline.to_ne_bytes());
        bytes[8..16].copy_from_slice(&segment.start(size).0.to_ne_bytes());
        bytes[24..32].copy_from_slice(&system.to_ne_bytes());
        bytes[32..36].copy_from_slice(&(size.bytes() as u32).to_ne_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_header_says_whose_and_where_and_a_foreign_one_is_refused() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let segment = WalSegment::numbered(3, 77, size);
        let bytes = header(segment, 7_123_456_789, size);
        let found = PageHeader::parse(&bytes).unwrap();
        assert_eq!((found.system, found.segment_size, found.timeline), (7_123_456_789, size, 3));
        found.check(segment).unwrap();
        found.check(WalSegment { timeline: 4, ..segment }).unwrap();
        assert!(found.check(segment.next(size)).unwrap_err().to_string().contains("not from"));
        assert!(found.check(WalSegment { timeline: 2, ..segment }).is_err());
        assert!(PageHeader::parse(&[0; 40]).is_err() && PageHeader::parse(&bytes[..39]).is_err());
    }
}
