//! Names of files in `pg_wal`, and the positions that they stand for.

use std::fmt;
use std::str::FromStr;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::SegmentId;
use backup_core::position::Lsn;
use backup_core::{SegmentName, Timeline};

/// The length of a server's segments: a power of two, 1 MiB to 1 GiB (`initdb --wal-segsize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What `initdb` chooses: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Checks and wraps.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for a length that no server has.
    pub fn new(bytes: u64) -> Result<Self> {
        let plausible = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if plausible {
            return Ok(Self(bytes as u32));
        }
        Err(Error::new(ErrorKind::Damaged, format!("{bytes} bytes is no length of a write-ahead log segment"))
            .hint("a segment has 1 MiB to 1 GiB, usually 16 MiB; the file was cut, or is none"))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// One segment of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline in its name.
    pub timeline: u32,
    /// The upper half of its positions.
    pub log: u32,
    /// Which segment of that half.
    pub segment: u32,
}

impl WalSegment {
    /// The segment of `timeline` that holds the byte at `lsn`.
    #[must_use]
    pub fn containing(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        Self::numbered(timeline, lsn.0 / size.bytes(), size)
    }

    /// The segment of this number, counted from the beginning of the log.
    #[must_use]
    pub fn numbered(timeline: u32, number: u64, size: SegmentSize) -> Self {
        Self { timeline, log: (number / size.per_log()) as u32, segment: (number % size.per_log()) as u32 }
    }

    /// Its number, counted from the beginning of the log.
    #[must_use]
    pub fn number(self, size: SegmentSize) -> u64 {
        u64::from(self.log) * size.per_log() + u64::from(self.segment)
    }

    /// The position of its first byte. (Names that no server gives are at the end of all positions.)
    #[must_use]
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.number(size).saturating_mul(size.bytes()))
    }

    /// The position after its last byte.
    #[must_use]
    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn((self.number(size) + 1).saturating_mul(size.bytes()))
    }

    /// The one before it on the same timeline; `None` for the first of all.
    #[must_use]
    pub fn previous(self, size: SegmentSize) -> Option<Self> {
        Some(Self::numbered(self.timeline, self.number(size).checked_sub(1)?, size))
    }

    /// The one after it on the same timeline.
    #[must_use]
    pub fn next(self, size: SegmentSize) -> Self {
        Self::numbered(self.timeline, self.number(size) + 1, size)
    }
}

impl fmt::Display for WalSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

/// A file that a server archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFile {
    /// `000000010000000A000000FF`: a whole segment.
    Segment(WalSegment),
    /// `….partial`: the last segment of a timeline that was left, up to where it was.
    Partial(WalSegment),
    /// `00000002.history`: where a timeline comes from.
    History(u32),
    /// `….00000028.backup`: where a base backup began and ended; a note for people.
    Backup(WalSegment, u32),
    /// `….00000000-00400000.piece`: bytes of a segment that is not full yet, from one offset to another. No server makes
    /// these: the receiver does, so that an idle server's log is archived, too.
    Piece(WalSegment, u32, u32),
}

impl WalFile {
    /// The timeline in its name.
    #[must_use]
    pub fn timeline(self) -> u32 {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup(segment, _) | Self::Piece(segment, ..) => {
                segment.timeline
            }
            Self::History(timeline) => timeline,
        }
    }

    /// Its place in the archive.
    ///
    /// # Errors
    /// Never: such names are names of segments.
    pub fn id(self) -> Result<SegmentId> {
        let timeline = Timeline::new(format!("{:08X}", self.timeline()))?;
        Ok(SegmentId { timeline, name: SegmentName::new(self.to_string())? })
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
            Self::Backup(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
            Self::Piece(segment, from, to) => write!(f, "{segment}.{from:08X}-{to:08X}.piece"),
        }
    }
}

impl FromStr for WalFile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        parse(name).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("`{}` is no file of a write-ahead log", name.escape_debug()))
                .hint("a segment is called like 0000000100000000000000A3; pass `%p` of archive_command, `%f` of restore_command")
        })
    }
}

/// Eight upper-case hexadecimal digits, as servers write them.
fn number(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    if plain { u32::from_str_radix(text, 16).ok() } else { None }
}

fn segment(text: &str) -> Option<WalSegment> {
    if !text.is_ascii() || text.len() != 24 {
        return None;
    }
    Some(WalSegment { timeline: number(&text[..8])?, log: number(&text[8..16])?, segment: number(&text[16..])? })
}

fn parse(name: &str) -> Option<WalFile> {
    let mut parts = name.split('.');
    let (first, second, third, rest) = (parts.next()?, parts.next(), parts.next(), parts.next());
    match (second, third, rest) {
        (None, ..) => segment(first).map(WalFile::Segment),
        (Some("partial"), None, _) => segment(first).map(WalFile::Partial),
        (Some("history"), None, _) => number(first).map(WalFile::History),
        (Some(offset), Some("backup"), None) => Some(WalFile::Backup(segment(first)?, number(offset)?)),
        (Some(range), Some("piece"), None) => {
            let (from, to) = range.split_once('-')?;
            let (from, to) = (number(from)?, number(to)?);
            (from < to).then_some(WalFile::Piece(segment(first)?, from, to))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_as_servers_write_them() {
        for name in [
            "000000010000000A000000FF",
            "0000000200000000000000A3.partial",
            "00000002.history",
            "000000010000000000000002.00000028.backup",
            "000000010000000000000002.00000000-00400000.piece",
        ] {
            assert_eq!(name.parse::<WalFile>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "RECOVERYXLOG",
            "000000010000000A000000F",
            "000000010000000a000000ff",
            "00000002.HISTORY",
            "000000010000000000000002.backup",
            "000000010000000000000002.00400000-00400000.piece",
            "000000010000000A000000FF.gz",
            "é00000010000000A000000F",
        ] {
            assert_eq!(bad.parse::<WalFile>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }

    #[test]
    fn positions_are_those_of_pg_walfile_name() {
        // select pg_walfile_name('1A/FF000028') on a server with 16 MiB segments, and with 1 GiB segments.
        let lsn: Lsn = "1A/FF000028".parse().unwrap();
        let usual = WalSegment::containing(1, lsn, SegmentSize::DEFAULT);
        assert_eq!(usual.to_string(), "000000010000001A000000FF");
        assert_eq!(usual.start(SegmentSize::DEFAULT).to_string(), "1A/FF000000");
        assert_eq!(usual.next(SegmentSize::DEFAULT).to_string(), "000000010000001B00000000");
        let large = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(WalSegment::containing(1, lsn, large).to_string(), "000000010000001A00000003");
        let first = WalSegment::numbered(7, 0, large);
        assert_eq!(first.previous(large), None);
        assert_eq!(first.next(large).previous(large), Some(first));
        assert!(SegmentSize::new(3 << 20).is_err() && SegmentSize::new(1 << 19).is_err());
    }
}
