//! The walker of the log, for [`crate::fuzzing`]: what it reads is compared with a second, slow reading.
//!
//! Invariant: no panic, no more memory than a record's beginning, the same records and the same fault however the bytes are
//! cut. What stops accidents, not enemies (checksums, magic numbers, where a page belongs), is put right first.

use std::io::Write as _;

use backup_core::position::Lsn;
use crc_fast::{CrcAlgorithm, Digest};

use super::ends::KEEP;
use super::names::{SegmentSize, WalSegment};
use super::page::PageHeader;
use super::records::{Fault, Record, Walker};
use super::spaces::{Edit, SpaceRecord};
use super::walk::{Observer, Shared};

const SYSTEM: u64 = 7_100_000_000_000_000_001;
const SEGMENT: usize = 1 << 20;
/// What an input is: bits of its first byte.
const AS_IT_IS: u8 = 1;
/// The stretch begins shortly before a segment ends.
const OVER_A_BORDER: u8 = 2;
/// A stretch over the border has so many pages before it.
const PAGES_BEFORE: usize = 2;
const LONG_HEADER: usize = 40;
const SHORT_HEADER: usize = 24;
const RECORD_HEADER: usize = 24;

/// What was read of a stretch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    records: Vec<Record>,
    /// Where the walk was when all had passed, unless it met a fault.
    position: Option<Lsn>,
    fault: Option<Fault>,
}

impl Observer for Seen {
    fn see(&mut self, record: &Record) {
        self.records.push(record.clone());
    }
}

/// A stretch of the log behind three bytes: what it is, the logarithm of its pages' length, how it is cut. Returns whether
/// a record was read.
pub(crate) fn walk(input: &[u8]) -> bool {
    let [kind, page, cut, stretch @ ..] = input else { return false };
    if stretch.len() > SEGMENT / 2 {
        return false;
    }
    let page = 1 << (10 + page % 7);
    let begin = if kind & OVER_A_BORDER == 0 { 5 * SEGMENT } else { 6 * SEGMENT - PAGES_BEFORE * 8192 };
    let mut bytes = stretch.to_vec();
    // Pages have the default length until a segment's first one says otherwise.
    let page = if kind & OVER_A_BORDER == 0 { page } else { 8192 };
    let expected = (kind & AS_IT_IS == 0).then(|| Layer::new(begin, page).repair(&mut bytes));
    headers(&bytes);
    let seen = read(begin, &[(0, &bytes)]);
    let step = usize::from(*cut) + 1;
    let pieces: Vec<(usize, &[u8])> = bytes.chunks(step).enumerate().map(|(n, piece)| (n * step, piece)).collect();
    assert_eq!(read(begin, &pieces), seen, "cut every {step} bytes");
    // Pieces that overlap, as a receiver that was killed leaves them.
    let overlapping: Vec<(usize, &[u8])> =
        pieces.iter().step_by(2).map(|(at, piece)| (at / 2, &bytes[at / 2..at + piece.len()])).collect();
    let reach = overlapping.last().map_or(0, |(at, piece)| at + piece.len());
    assert_eq!(read(begin, &overlapping), read(begin, &[(0, &bytes[..reach])]), "in pieces that overlap");
    look(begin, bytes.len(), &seen);
    blank(begin, &bytes, &seen);
    if let Some(expected) = expected {
        let told: Vec<(usize, usize)> =
            seen.records.iter().map(|record| (record.start.0 as usize, record.end.0 as usize)).collect();
        assert_eq!(told, expected.records, "{seen:?}");
        assert_eq!(seen.fault.map(|fault| (fault.at.0 as usize, fault.why)), expected.fault);
    }
    !seen.records.is_empty()
}

/// Lets pieces pass, which say where they begin.
fn read(begin: usize, pieces: &[(usize, &[u8])]) -> Seen {
    let size = SegmentSize::new(SEGMENT as u64);
    let walker = size.map(|size| Walker::new(Lsn(begin as u64), size, SYSTEM));
    let Ok(walker) = walker else { panic!("a length that servers have") };
    let shared = Shared::new(walker, Seen::default());
    for (at, piece) in pieces {
        let written = shared.tap(shared.passed(Lsn((begin + at) as u64))).write_all(piece);
        assert!(written.is_ok());
    }
    let Ok((walker, mut seen)) = shared.take() else { panic!("the walker is there") };
    assert!(walker.held_bytes() <= 2 * KEEP, "{} bytes are held", walker.held_bytes());
    assert_eq!(walker.last(), seen.records.last().map(|record| (record.start, record.end)));
    seen.fault = walker.fault().cloned();
    seen.position = seen.fault.is_none().then(|| walker.position());
    seen
}

/// Records ascend, and each is inside of what passed.
fn look(begin: usize, length: usize, seen: &Seen) {
    let (begin, end) = (begin as u64, (begin + length) as u64);
    let mut at = begin;
    for Record { start, end: after, .. } in &seen.records {
        assert!(start.0 >= at && after.0 >= start.0 + RECORD_HEADER as u64, "{start} to {after}");
        assert!(start.0.is_multiple_of(8) && after.0.is_multiple_of(8) && after.0 <= end.next_multiple_of(8));
        at = after.0;
    }
    assert!(seen.fault.is_some() || seen.position == Some(Lsn(end)), "nothing is left over without a reason");
    assert!(seen.fault.as_ref().is_none_or(|fault| (begin..end).contains(&fault.at.0)), "{seen:?}");
}

/// Without the paths of its tablespaces the log is the same, and tells where they were.
fn blank(begin: usize, bytes: &[u8], seen: &Seen) {
    let (mut bytes, mut expected) = (bytes.to_vec(), seen.clone());
    for space in expected.records.iter_mut().filter_map(|record| record.space.as_mut()) {
        let SpaceRecord::Made { edits, .. } = space else { continue };
        for Edit { at, old, new } in edits.drain(..) {
            let at = at.0 as usize - begin;
            assert_eq!(bytes[at..at + old.len()], old[..]);
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
    }
    assert_eq!(read(begin, &[(0, &bytes)]), expected);
}

/// The first page's header, and a name made of the bytes behind it.
fn headers(bytes: &[u8]) {
    let number =
        |at: usize| bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let segment = WalSegment { timeline: number(40), log: number(44), segment: number(48) };
    if let Ok(header) = PageHeader::parse(bytes) {
        let start = segment.start(header.segment_size);
        let fits = header.check(segment).is_ok();
        assert!(!fits || (header.start == start && header.timeline <= segment.timeline));
        assert!(start <= segment.end(header.segment_size));
    }
}

/// Puts a stretch right, byte by byte.
struct Layer {
    begin: usize,
    page: usize,
    /// So many bytes of a page's header follow.
    header: usize,
    /// So many bytes of a record from before the stretch follow.
    passing: usize,
    /// Where the bytes of the record are that did not end yet.
    record: Vec<usize>,
    total: usize,
    is_idle: bool,
    previous: usize,
}

/// What a reader must find.
#[derive(Debug, Default)]
struct Laid {
    records: Vec<(usize, usize)>,
    fault: Option<(usize, &'static str)>,
}

impl Layer {
    fn new(begin: usize, page: usize) -> Self {
        let previous = begin - 8;
        Self { begin, page, header: 0, passing: 0, record: Vec::new(), total: 0, is_idle: false, previous }
    }

    fn repair(mut self, bytes: &mut [u8]) -> Laid {
        let mut laid = Laid::default();
        for at in 0..bytes.len() {
            let position = self.begin + at;
            self.is_idle &= !position.is_multiple_of(SEGMENT);
            if self.is_idle {
                continue;
            }
            if position.is_multiple_of(self.page) && !self.page_header(bytes, at) {
                break;
            }
            let (begins, inside) = (position.is_multiple_of(8), !self.record.is_empty());
            if self.header > 0 {
                self.header -= 1;
            } else if self.passing > 0 {
                self.passing -= 1;
            } else if begins || inside {
                self.record.push(at);
                if !self.record_grew(bytes, &mut laid) {
                    break;
                }
            }
        }
        laid
    }

    /// Returns whether all of the header is there.
    fn page_header(&mut self, bytes: &mut [u8], at: usize) -> bool {
        let position = self.begin + at;
        let is_long = position.is_multiple_of(SEGMENT);
        self.header = if is_long { LONG_HEADER } else { SHORT_HEADER };
        let Some(header) = bytes.get_mut(at..at + self.header) else { return false };
        let put = |header: &mut [u8], at: usize, with: &[u8]| header[at..at + with.len()].copy_from_slice(with);
        let info = u16::from_ne_bytes([header[2], header[3]]);
        // XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER, XLP_FIRST_IS_OVERWRITE_CONTRECORD.
        let (mut continues, overwrites) = (info & 1, info & 8);
        let mut rest = u32::from_ne_bytes([header[16], header[17], header[18], header[19]]) as usize;
        if at == 0 {
            self.passing = rest * usize::from(continues);
        } else {
            if overwrites != 0 {
                (self.record, self.passing) = (Vec::new(), 0);
            } else {
                let begun = if self.record.is_empty() { 0 } else { self.total - self.record.len() };
                rest = self.passing.max(begun);
                continues = u16::from(rest > 0);
            }
            put(header, 16, &(rest as u32).to_ne_bytes());
        }
        put(header, 0, &(0xD100 | u16::from(header[0])).to_ne_bytes());
        put(header, 2, &(continues | overwrites | u16::from(is_long) << 1).to_ne_bytes());
        put(header, 8, &(position as u64).to_ne_bytes());
        if is_long {
            put(header, 24, &SYSTEM.to_ne_bytes());
            put(header, 32, &(SEGMENT as u32).to_ne_bytes());
            put(header, 36, &(self.page as u32).to_ne_bytes());
        }
        true
    }

    /// Returns whether a reader goes on.
    fn record_grew(&mut self, bytes: &mut [u8], laid: &mut Laid) -> bool {
        let start = self.begin + self.record[0];
        let get = |from: usize, record: &[usize]| record[from..].iter().map(|at| bytes[*at]).collect::<Vec<u8>>();
        match self.record.len() {
            4 => {
                let total = get(0, &self.record);
                self.total = u32::from_ne_bytes([total[0], total[1], total[2], total[3]]) as usize;
                if !(RECORD_HEADER..1 << 30).contains(&self.total) {
                    laid.fault = Some((start, "there is no record"));
                    return false;
                }
            }
            RECORD_HEADER => {
                for (at, byte) in self.record[8..16].iter().zip((self.previous as u64).to_ne_bytes()) {
                    bytes[*at] = byte;
                }
            }
            _ => {}
        }
        if self.record.len() < RECORD_HEADER || self.record.len() < self.total {
            return true;
        }
        let all: Vec<u8> = self.record.iter().map(|at| bytes[*at]).collect();
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&all[RECORD_HEADER..]);
        digest.update(&all[..20]);
        for (at, byte) in self.record[20..RECORD_HEADER].iter().zip((digest.finalize() as u32).to_ne_bytes()) {
            bytes[*at] = byte;
        }
        // RM_XLOG_ID, XLOG_SWITCH.
        self.is_idle = all[17] == 0 && all[16] & 0xF0 == 0x40;
        let last = self.record.last().copied().unwrap_or_default();
        laid.records.push((start, (self.begin + last + 1).next_multiple_of(8)));
        (self.previous, self.record) = (start, Vec::new());
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use backup_testkit::PrivatePostgres;

    use super::*;
    use crate::wal::End;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/wal_records")
    }

    /// What a real server wrote: the beginnings of two segments, with everything that a recovery can stop at.
    fn stretches() -> Vec<(&'static str, Vec<u8>)> {
        // Else rows are committed before their log is in its file.
        let settings = [("max_prepared_transactions", "4"), ("autovacuum", "off"), ("synchronous_commit", "local")];
        let server = PrivatePostgres::with_settings(&settings);
        let stretch = |length: usize, during: &dyn Fn()| {
            server.sql("postgres", "select pg_switch_wal()");
            let name = server.sql("postgres", "select pg_walfile_name(pg_logical_emit_message(false, '', 'here'))");
            during();
            let path = server.data_folder().join("pg_wal").join(name);
            std::fs::read(path).unwrap()[..length].to_vec()
        };
        let sql = |text: &str| {
            server.sql("postgres", text);
        };
        sql("create table t (n int, note text)");
        // A statement by itself each: what is sent at once is one transaction.
        let ends = stretch(8 * 1024, &|| {
            sql("select pg_create_restore_point('before the release')");
            sql("begin; insert into t values (1); savepoint a; insert into t values (2); release a; commit");
            sql("begin; insert into t values (3); rollback");
            sql("begin; savepoint b; create table u (n int); release b; prepare transaction 'one'");
            sql("commit prepared 'one'");
            sql("begin; insert into t values (4); prepare transaction 'two'");
            sql("rollback prepared 'two'");
        });
        let long = stretch(32 * 1024, &|| {
            sql("insert into t select n, repeat(md5(n::text), 60) from generate_series(1, 12) n");
        });
        let switched = stretch(8 * 1024, &|| {
            sql("insert into t values (5)");
            sql("select pg_switch_wal()");
        });
        let space = server.make_folder("a space");
        let spaces = stretch(8 * 1024, &|| {
            sql(&format!("create tablespace a_space location '{}'", space.display()));
            sql("drop tablespace a_space");
        });
        vec![("ends", ends), ("long", long), ("switched", switched), ("spaces", spaces)]
    }

    /// The same records, as a server with pages of this length writes them from `begin` on.
    fn laid_anew(stretch: &[u8], begin: usize, page: usize) -> Vec<u8> {
        let mut original = stretch.to_vec();
        let is_header = |position: usize, page: usize| {
            let length = if position.is_multiple_of(SEGMENT) { LONG_HEADER } else { SHORT_HEADER };
            position.is_multiple_of(page).then_some(length)
        };
        let from = 5 * SEGMENT;
        let records = Layer::new(from, 8192).repair(&mut original).records;
        let mut anew = Vec::new();
        let mut grow = |byte: u8, only_to_align: bool| {
            anew.resize(anew.len() + is_header(begin + anew.len(), page).unwrap_or(0), 0);
            let wanted = !(only_to_align && (begin + anew.len()).is_multiple_of(8));
            anew.extend(wanted.then_some(byte));
            wanted
        };
        for (start, end) in records {
            while grow(0, true) {}
            let mut at = start;
            let mut left = u32::from_ne_bytes(original[start - from..][..4].try_into().unwrap());
            while left > 0 && at < end {
                at += is_header(at, 8192).unwrap_or(0);
                grow(original[at - from], false);
                (at, left) = (at + 1, left - 1);
            }
        }
        Layer::new(begin, page).repair(&mut anew);
        anew
    }

    /// No two servers write the same: these were written by one, and are written anew when `STACKWARD_WRITE_SEEDS` is set.
    #[test]
    fn seeds_of_real_servers_are_walked() {
        if std::env::var_os("STACKWARD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            for (name, stretch) in stretches() {
                let border = laid_anew(&stretch, 6 * SEGMENT - PAGES_BEFORE * 8192, 8192);
                let small = laid_anew(&stretch, 5 * SEGMENT, 1024);
                let forms = [
                    ("", [0, 3, 96], &stretch),
                    ("-border", [OVER_A_BORDER, 3, 96], &border),
                    ("-pages", [AS_IT_IS, 0, 96], &small),
                ];
                for (what, head, bytes) in forms {
                    std::fs::write(folder().join(format!("{name}{what}")), [&head, &bytes[..]].concat()).unwrap();
                }
            }
        }
        let mut seen = 0;
        for item in std::fs::read_dir(folder()).unwrap() {
            let path = item.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let walked = walk(&std::fs::read(&path).unwrap());
            assert!(walked || name.starts_with("found-"), "{name}");
            seen += usize::from(!name.starts_with("found-"));
        }
        assert_eq!(seen, 12);
    }

    /// Both readings agree on what this server writes now, and what a recovery can stop at is told.
    #[test]
    fn what_a_server_writes_is_read() {
        for (name, stretch) in stretches() {
            let expected = match name {
                "ends" => (4, 1, 0),
                "spaces" => (2, 0, 2),
                _ => (1, 0, 0),
            };
            for (begin, page) in [(5 * SEGMENT, 8192), (5 * SEGMENT, 1024), (6 * SEGMENT - PAGES_BEFORE * 8192, 8192)] {
                let seen = read(begin, &[(0, &laid_anew(&stretch, begin, page))]);
                let transactions = seen.records.iter().filter(|record| matches!(record.what, End::Transaction { .. }));
                let points = seen.records.iter().filter(|record| matches!(record.what, End::Point { .. }));
                let spaces = seen.records.iter().filter(|record| {
                    matches!(record.space, Some(SpaceRecord::Made { .. } | SpaceRecord::Dropped { .. }))
                });
                let told = (transactions.count(), points.count(), spaces.count());
                assert_eq!(told, expected, "{name} {page} {:?}", seen.fault);
            }
        }
    }
}
