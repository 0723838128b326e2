//! Records of tablespaces: the only records whose replay uses an absolute path. What one does, and the few bytes that have to
//! be others so that its replay does not follow the path.
//!
//! Sources: `xl_tblspc_create_rec`, `xl_tblspc_drop_rec` (`commands/tablespace.h`), `tblspc_redo` and
//! `create_tablespace_directories` (`tablespace.c`), `XLogInsertRecord` (the checksum); the same in PostgreSQL 13 to 18.
//! Invariant: a record without its path has the length that it had, its own checksum, and still says where the tablespace was:
//! only the first byte of the path, which is always a slash, becomes zero.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use backup_core::position::Lsn;
use crc_fast::{CrcAlgorithm, Digest};

use super::ends::main_data;
use super::page::PAGE_HEADER_BYTES;
use super::records::{CHECKED_HEADER, RECORD_HEADER, SHORT_HEADER, u32_at};

/// `RM_TBLSPC_ID`.
pub(super) const RM_SPACE: u8 = 5;
/// `XLOG_TBLSPC_CREATE`, `XLOG_TBLSPC_DROP`, in the upper half of what a record says of itself.
const OPERATION: u8 = 0xF0;
const CREATE: u8 = 0x00;
const DROP: u8 = 0x10;
/// The number of the tablespace, before its path.
const OID_BYTES: usize = 4;

/// What a record does to a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SpaceRecord {
    /// It is made in this folder of the server that wrote the log.
    Made {
        oid: u32,
        location: PathBuf,
        /// What has to change so that a server makes it where its link in `pg_tblspc` leads to; nothing when that was done.
        edits: Vec<Edit>,
    },
    Dropped {
        oid: u32,
    },
    /// Something that no known server writes.
    Unknown,
}

/// Bytes of the log that become others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) at: Lsn,
    pub(crate) old: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

/// How a log is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) page: u64,
    pub(super) segment: u64,
}

impl Cut {
    /// The position of the byte `offset` of what begins at `start`, headers of pages not counted.
    fn place(self, start: u64, offset: usize) -> u64 {
        let (mut at, mut left) = (start, offset as u64);
        loop {
            let room = self.page - at % self.page;
            if left < room {
                return at + left;
            }
            left -= room;
            at += room;
            at += if at.is_multiple_of(self.segment) { PAGE_HEADER_BYTES } else { SHORT_HEADER } as u64;
        }
    }

    /// The change of these bytes, which a header of a page may part.
    fn edits(self, start: u64, offset: usize, old: &[u8], new: &[u8]) -> Vec<Edit> {
        let mut edits: Vec<Edit> = Vec::new();
        for (index, (old, new)) in old.iter().zip(new).enumerate() {
            let at = self.place(start, offset + index);
            match edits.last_mut() {
                Some(last) if last.at.0 + last.old.len() as u64 == at => {
                    last.old.push(*old);
                    last.new.push(*new);
                }
                _ => edits.push(Edit { at: Lsn(at), old: vec![*old], new: vec![*new] }),
            }
        }
        edits
    }
}

/// What the record of a tablespace with this header and this body does, which begins at `start`; `None` when it follows no path:
/// that of a tablespace inside of the data directory.
pub(super) fn space_of(start: Lsn, head: &[u8; RECORD_HEADER], body: &[u8], cut: Cut) -> Option<SpaceRecord> {
    // One that was not kept to its end is longer than any path.
    let is_whole = u32_at(head, 0) as usize == RECORD_HEADER + body.len();
    let data = main_data(body).filter(|data| is_whole && data.len() >= OID_BYTES);
    let Some(data) = data else { return Some(SpaceRecord::Unknown) };
    let oid = u32_at(data, 0);
    match head[16] & OPERATION {
        DROP => Some(SpaceRecord::Dropped { oid }),
        CREATE => made(oid, start, head, body, body.len() - data.len() + OID_BYTES, cut),
        _ => Some(SpaceRecord::Unknown),
    }
}

/// The record of a new tablespace, whose path begins at this place of its body.
fn made(oid: u32, start: Lsn, head: &[u8; RECORD_HEADER], body: &[u8], path: usize, cut: Cut) -> Option<SpaceRecord> {
    let (first, rest) = match &body[path..] {
        [0] => return None,
        [first @ (b'/' | 0), rest @ ..] => (*first, rest),
        _ => return Some(SpaceRecord::Unknown),
    };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else { return Some(SpaceRecord::Unknown) };
    let location = PathBuf::from(OsStr::from_bytes(&[b"/", &rest[..end]].concat()));
    let edits = if first == 0 {
        Vec::new()
    } else {
        let mut blank = body.to_vec();
        blank[path] = 0;
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&blank);
        digest.update(&head[..CHECKED_HEADER]);
        let crc = (digest.finalize() as u32).to_ne_bytes();
        let mut edits = cut.edits(start.0, CHECKED_HEADER, &head[CHECKED_HEADER..], &crc);
        edits.extend(cut.edits(start.0, RECORD_HEADER + path, b"/", &[0]));
        edits
    };
    Some(SpaceRecord::Made { oid, location, edits })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::records::Walker;
    use super::super::records::tests::{SEGMENT, START, SYSTEM, log_of};
    use super::*;
    use crate::wal::SegmentSize;

    /// The record of a new tablespace; what stands before the data of a record that came from elsewhere, or of a subtransaction.
    fn create(oid: u32, path: &[u8], before: &[u8]) -> (u8, u8, Vec<u8>) {
        let length = OID_BYTES + path.len() + 1;
        let mut body = before.to_vec();
        match u8::try_from(length) {
            Ok(length) => body.extend([255, length]),
            Err(_) => body.extend([254].into_iter().chain((length as u32).to_ne_bytes())),
        }
        body.extend(oid.to_ne_bytes().iter().chain(path).chain(&[0]));
        (RM_SPACE, CREATE, body)
    }

    fn other(length: usize) -> (u8, u8, Vec<u8>) {
        (10, 0, vec![7; length])
    }

    /// Where records begin and end, and what becomes of tablespaces. All of it must be sound.
    fn walk(bytes: &[u8]) -> (Vec<(u64, u64)>, Vec<SpaceRecord>) {
        let mut walker = Walker::new(Lsn(START), SegmentSize::new(SEGMENT).unwrap(), SYSTEM);
        let (mut ends, mut spaces) = (Vec::new(), Vec::new());
        walker.push(bytes, &mut |record| {
            ends.push((record.start.0, record.end.0));
            spaces.extend(record.space.clone());
        });
        assert_eq!(walker.fault(), None);
        (ends, spaces)
    }

    /// Takes the path out of all records, and looks whether the log is one still.
    fn check(bytes: &[u8], oid: u32, path: &[u8]) {
        let (ends, spaces) = walk(bytes);
        let location = PathBuf::from(OsStr::from_bytes(path));
        let [SpaceRecord::Made { oid: told, location: said, edits }] = &*spaces else { panic!("{spaces:?}") };
        assert_eq!((*told, said), (oid, &location));
        let mut blank = bytes.to_vec();
        for Edit { at, old, new } in edits {
            let at = (at.0 - START) as usize;
            assert_eq!(blank[at..at + old.len()], old[..]);
            blank[at..at + new.len()].copy_from_slice(new);
        }
        let changed = bytes.iter().zip(&blank).filter(|(before, after)| before != after).count();
        assert!((1..=5).contains(&changed), "{changed} bytes changed");
        assert_eq!(walk(&blank), (ends, vec![SpaceRecord::Made { oid, location, edits: Vec::new() }]));
        assert!(!blank.windows(path.len()).any(|window| window == path), "nothing leads to the folder");
    }

    #[test]
    fn a_path_is_taken_out_wherever_pages_and_segments_end() {
        let path = b"/srv/a folder/ts";
        let pages = SEGMENT as usize / 8192;
        // Its checksum, its path, or nothing of either is in the next segment.
        for left in [8, 16, 24, 32, 40] {
            let headers = PAGE_HEADER_BYTES + (pages - 1) * SHORT_HEADER + RECORD_HEADER;
            let records = [other(SEGMENT as usize - headers - left), create(16_400, path, &[]), other(100)];
            let (bytes, ends) = log_of(records.into_iter());
            assert_eq!(ends[1].0, START + SEGMENT - left as u64);
            check(&bytes, 16_400, path);
        }
    }

    #[test]
    fn a_drop_is_told_a_folder_of_the_server_itself_is_none_and_what_nobody_writes_is_unknown() {
        let drop = (RM_SPACE, DROP, [&[255, 4][..], &16_400_u32.to_ne_bytes()].concat());
        let cut = (RM_SPACE, CREATE, [&[255, 6][..], &[0; 4], b"/a"].concat());
        for (record, told) in [
            (drop.clone(), vec![SpaceRecord::Dropped { oid: 16_400 }]),
            (create(16_400, b"", &[]), vec![]),
            (create(16_400, b"relative", &[]), vec![SpaceRecord::Unknown]),
            (cut, vec![SpaceRecord::Unknown]),
            ((RM_SPACE, 0x20, drop.2), vec![SpaceRecord::Unknown]),
            ((RM_SPACE, DROP, vec![255, 2, 0, 0]), vec![SpaceRecord::Unknown]),
            ((RM_SPACE, CREATE, vec![]), vec![SpaceRecord::Unknown]),
            (create(1, &[b"/", &*vec![b'x'; 70_000]].concat(), &[]), vec![SpaceRecord::Unknown]),
        ] {
            assert_eq!(walk(&log_of([record, other(1)].into_iter()).0).1, told);
        }
    }

    proptest! {
        #[test]
        fn a_path_is_taken_out_of_any_log(
            before in proptest::collection::vec(0_usize..9000, 0..4),
            path in "/[a-z/ ]{1,900}",
            of_elsewhere in any::<bool>(),
            oid in 1_u32..,
        ) {
            let origin: &[u8] = if of_elsewhere { &[253, 1, 0, 252, 9, 0, 0, 0] } else { &[] };
            let records = before.iter().map(|length| other(*length)).chain([create(oid, path.as_bytes(), origin), other(3)]);
            check(&log_of(records).0, oid, path.as_bytes());
        }
    }
}
