//! What a recovery can stop at: ends of transactions with their times, and points that were given a name.
//!
//! Sources: `xl_xact_commit`, `xl_xact_abort` (`access/xact.h`), `xl_restore_point` (`access/xlog_internal.h`), and the headers
//! of a record's data (`access/xlogrecord.h`).

use jiff::Timestamp;

use super::records::{RM_XACT, RM_XLOG, u32_at, u64_at};

/// So much of a record is looked at: a prepared transaction is named after the lists of its children and files.
pub(super) const KEEP: usize = 64 * 1024;
/// Seconds from the Unix epoch to that of PostgreSQL, 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;
/// `XLOG_RESTORE_POINT`.
const RESTORE_POINT: u8 = 0x70;
const NAME_BYTES: usize = 64;
/// `XLOG_XACT_OPMASK` and what it tells apart; `XLOG_XACT_HAS_INFO`.
const XACT_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_INFO: u8 = 0x80;
/// `XACT_XINFO_HAS_…`.
const DATABASE: u32 = 1;
const CHILDREN: u32 = 1 << 1;
const FILES: u32 = 1 << 2;
const INVALIDATIONS: u32 = 1 << 3;
const TWO_PHASE: u32 = 1 << 4;
const STATISTICS: u32 = 1 << 8;
/// `XLOG_PAGE_MAGIC` of version 18, in which an item of dropped statistics grew.
const MAGIC_18: u16 = 0xD118;

/// What a record means to a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// A transaction ended, by commit or abort, at this time.
    Transaction { id: u32, time: Timestamp },
    /// `pg_create_restore_point`.
    Point { name: String, time: Timestamp },
    /// Nothing that a recovery can stop at.
    Nothing,
}

/// What the record with this header and beginning of its body is; `None` when it is cut.
pub(super) fn end_of(rmgr: u8, info: u8, id: u32, body: &[u8], magic: u16) -> Option<End> {
    match (rmgr, info & XACT_MASK) {
        (RM_XACT, COMMIT | ABORT) => Some(End::Transaction { id, time: time(u64_at(main_data(body)?.get(..8)?, 0))? }),
        (RM_XACT, operation @ (COMMIT_PREPARED | ABORT_PREPARED)) => {
            let data = main_data(body)?;
            let id = if info & HAS_INFO == 0 { None } else { prepared(data, operation, magic) };
            Some(End::Transaction { id: id.unwrap_or(0), time: time(u64_at(data.get(..8)?, 0))? })
        }
        (RM_XLOG, _) if info & 0xF0 == RESTORE_POINT => {
            let data = main_data(body)?;
            let name = data.get(8..8 + NAME_BYTES)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(End::Point { name: String::from_utf8_lossy(name).into_owned(), time: time(u64_at(data, 0))? })
        }
        _ => Some(End::Nothing),
    }
}

/// Microseconds since PostgreSQL's epoch.
fn time(micros: u64) -> Option<Timestamp> {
    let micros = (micros as i64).checked_add(EPOCH_SECONDS.checked_mul(1_000_000)?)?;
    Timestamp::from_microsecond(micros).ok()
}

/// The main data of a record that refers to no block, as all of these.
pub(super) fn main_data(body: &[u8]) -> Option<&[u8]> {
    const SHORT: u8 = 255;
    const LONG: u8 = 254;
    const ORIGIN: u8 = 253;
    const TOP_LEVEL: u8 = 252;
    let mut at = 0;
    loop {
        match *body.get(at)? {
            SHORT => return body.get(at + 2..),
            LONG => return body.get(at + 5..),
            ORIGIN => at += 3,
            TOP_LEVEL => at += 5,
            _ => return None,
        }
    }
}

/// The id of the prepared transaction that a record ends, behind its lists.
fn prepared(data: &[u8], operation: u8, magic: u16) -> Option<u32> {
    let flags = u32_at(data.get(8..12)?, 0);
    let mut at = 12;
    if flags & DATABASE != 0 {
        at += 8;
    }
    let item = if magic >= MAGIC_18 { 16 } else { 12 };
    let lists = [(CHILDREN, 4), (FILES, 12), (STATISTICS, item), (INVALIDATIONS, 16)];
    for (flag, bytes) in lists {
        if flags & flag != 0 && !(flag == INVALIDATIONS && operation == ABORT_PREPARED) {
            let count = u32_at(data.get(at..at + 4)?, 0) as usize;
            at = at.checked_add(count.checked_mul(bytes)?)?.checked_add(4)?;
        }
    }
    (flags & TWO_PHASE != 0).then(|| data.get(at..at + 4).map(|id| u32_at(id, 0))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_behind_the_headers_of_their_data() {
        // 2026-11-20T00:00:00Z, in microseconds since 2000.
        let micros = 848_448_000_000_000_u64;
        let when: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
        let mut body = vec![253, 1, 0, 255, 8];
        body.extend(micros.to_ne_bytes());
        let transaction = |id| Some(End::Transaction { id, time: when });
        assert_eq!(end_of(RM_XACT, COMMIT, 7, &body, 0xD110), transaction(7));
        assert_eq!(end_of(RM_XACT, ABORT, 8, &body, 0xD110), transaction(8));
        assert_eq!(end_of(RM_XACT, COMMIT, 7, &body[..9], 0xD110), None, "cut");
        let mut lists = vec![255, 255];
        lists.extend(micros.to_ne_bytes());
        lists.extend((DATABASE | CHILDREN | TWO_PHASE).to_ne_bytes());
        lists.extend([0; 8]);
        lists.extend([2_u32, 70, 71, 69].iter().flat_map(|number| number.to_ne_bytes()));
        assert_eq!(end_of(RM_XACT, COMMIT_PREPARED | HAS_INFO, 0, &lists, 0xD110), transaction(69));
        let mut point = vec![255, 72];
        point.extend(micros.to_ne_bytes());
        point.extend(b"before the release\0".iter().chain(&[7; 45]));
        let name = "before the release".to_owned();
        assert_eq!(end_of(RM_XLOG, RESTORE_POINT, 0, &point, 0xD110), Some(End::Point { name, time: when }));
        assert_eq!(end_of(10, 0, 0, &[], 0xD110), Some(End::Nothing));
    }
}
