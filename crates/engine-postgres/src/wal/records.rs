//! Walks the records of the log as its bytes pass: every record's length, predecessor and CRC-32C are checked, what a
//! recovery can stop at (ends of transactions, named points) and what becomes of tablespaces is told, and memory stays flat.
//!
//! Sources: `access/xlogrecord.h`, `access/xlog_internal.h`, `access/xact.h` and `xlogreader.c` of PostgreSQL 13 to 18.
//! Invariant: a record is told only when all of it passed and its checksum was right.

use backup_core::position::Lsn;
use crc_fast::{CrcAlgorithm, Digest};

use super::ends::{End, KEEP, end_of};
use super::images::{KEEP_HEADERS, PageAddress, whole_pages};
use super::names::SegmentSize;
use super::page::{MAGIC_HIGH, PAGE_HEADER_BYTES as LONG_HEADER};
use super::spaces::{Cut, RM_SPACE, SpaceRecord, space_of};

/// The header of a page within a segment; the first page of one has the long header.
pub(super) const SHORT_HEADER: usize = 24;
/// `XLogRecord`.
pub(super) const RECORD_HEADER: usize = 24;
/// The header up to its own checksum.
pub(super) const CHECKED_HEADER: usize = 20;
/// `XLP_FIRST_IS_CONTRECORD`, `XLP_FIRST_IS_OVERWRITE_CONTRECORD`.
const CONTINUES: u16 = 1;
const OVERWRITES: u16 = 8;
/// A record has less than a gigabyte.
const MAX_RECORD: u32 = 1 << 30;
/// Where records begin, and what their ends are rounded up to.
const ALIGN: u64 = 8;
const DEFAULT_PAGE: u64 = 8192;
/// `RM_XLOG_ID`, `RM_XACT_ID`, and `XLOG_SWITCH`.
pub(super) const RM_XLOG: u8 = 0;
pub(super) const RM_XACT: u8 = 1;
const SWITCH: u8 = 0x40;

/// A record that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) start: Lsn,
    /// Where the next can begin.
    pub(crate) end: Lsn,
    pub(crate) what: End,
    /// What it does to a tablespace.
    pub(crate) space: Option<SpaceRecord>,
    /// The pages that it puts back as a whole, when the walker was [told to look](Walker::with_pages).
    pub(crate) pages: Vec<PageAddress>,
}

/// What is no record, or not the one that belongs there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Lsn,
    pub(crate) why: &'static str,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Walker {
    size: u64,
    page: u64,
    system: u64,
    /// Where the walk began.
    begin: u64,
    /// The position of the next byte.
    at: u64,
    state: State,
    /// Of the record that did not end yet, over headers of pages.
    record: Option<Partial>,
    header: Vec<u8>,
    magic: u16,
    previous: Option<Lsn>,
    last: Option<(Lsn, Lsn)>,
    /// What the first record that began in the walk says that it follows; of no use when one before it was given up.
    first_follows: Option<Lsn>,
    gave_up: bool,
    fault: Option<Fault>,
    look: Look,
}

/// What of a record is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Whether a recovery can stop there.
    Ends,
    /// That, and which pages it puts back.
    Pages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of a record that began before the walk are passed over.
    Passing(u64),
    /// Records follow each other.
    Walking,
    /// After a switch, up to the end of the segment.
    Idle,
}

#[derive(Debug)]
struct Partial {
    start: Lsn,
    head: [u8; RECORD_HEADER],
    got: u32,
    /// Known once four bytes are.
    total: u32,
    body: Vec<u8>,
    digest: Digest,
}

impl Walker {
    /// A walk through the log of the server `system` that begins with the first byte of the segment at `start`.
    pub(crate) fn new(start: Lsn, size: SegmentSize, system: u64) -> Self {
        Self {
            size: size.bytes(),
            page: DEFAULT_PAGE,
            system,
            begin: start.0,
            at: start.0,
            state: State::Passing(0),
            record: None,
            header: Vec::new(),
            magic: 0,
            previous: None,
            last: None,
            first_follows: None,
            gave_up: false,
            fault: None,
            look: Look::Ends,
        }
    }

    /// The same walk, which also tells the pages that records put back.
    pub(crate) fn with_pages(self) -> Self {
        Self { look: Look::Pages, ..self }
    }

    /// Where the last record that was whole begins and ends.
    pub(crate) fn last(&self) -> Option<(Lsn, Lsn)> {
        self.last
    }

    /// The record that the first one of the walk follows, as it says itself.
    pub(super) fn first_follows(&self) -> Option<Lsn> {
        self.first_follows.filter(|_| !self.gave_up)
    }

    /// Where the last record begins, be it whole or not.
    pub(super) fn last_begun(&self) -> Option<Lsn> {
        self.record.as_ref().map(|record| record.start).or(self.previous)
    }

    /// Where the walk ended, because what stands there is no record.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// The position of the next byte.
    pub(crate) fn position(&self) -> Lsn {
        Lsn(self.at)
    }

    /// Whether what was pushed ends within a record that may be one of a tablespace, so that nobody is told of it.
    pub(crate) fn ends_within_space(&self) -> bool {
        let may_be = |record: &Partial| (record.got as usize) < RECORD_HEADER || record.rmgr() == RM_SPACE;
        self.fault.is_none() && self.record.as_ref().is_some_and(|record| record.got > 0 && may_be(record))
    }

    /// What it holds of the log.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held_bytes(&self) -> usize {
        self.header.capacity() + self.record.as_ref().map_or(0, |record| record.body.capacity())
    }

    /// The next bytes of the log. After a fault they are passed over.
    pub(crate) fn push(&mut self, mut data: &[u8], each: &mut dyn FnMut(&Record)) {
        while !data.is_empty() && self.fault.is_none() {
            // A header may have come in part already.
            let here = self.at - self.header.len() as u64;
            let used = match self.step(data, each) {
                Ok(used) => used,
                Err(why) => {
                    let at = self.record.as_ref().map_or(Lsn(here), |record| record.start);
                    self.fault = Some(Fault { at, why });
                    return;
                }
            };
            self.at += used as u64;
            data = &data[used..];
        }
    }

    fn step(&mut self, data: &[u8], each: &mut dyn FnMut(&Record)) -> Result<usize, &'static str> {
        if self.state == State::Idle {
            let left = self.size - self.at % self.size;
            if !self.at.is_multiple_of(self.size) {
                return Ok(shorter(left, data));
            }
            self.state = State::Walking;
        }
        let on_page = self.at % self.page;
        if on_page == 0 || !self.header.is_empty() {
            return self.page_header(data);
        }
        let left = self.page - on_page;
        match &mut self.state {
            State::Passing(count) if *count > 0 => {
                let used = shorter(left.min(*count), data);
                *count -= used as u64;
                Ok(used)
            }
            _ if self.record.is_some() => self.continue_record(&data[..shorter(left, data)], each),
            _ if !self.at.is_multiple_of(ALIGN) => Ok(shorter((ALIGN - self.at % ALIGN).min(left), data)),
            _ => {
                self.state = State::Walking;
                self.record = Some(Partial::new(Lsn(self.at)));
                Ok(0)
            }
        }
    }

    fn page_header(&mut self, data: &[u8]) -> Result<usize, &'static str> {
        let start = self.at - self.header.len() as u64;
        let wanted = if start.is_multiple_of(self.size) { LONG_HEADER } else { SHORT_HEADER };
        let used = (wanted - self.header.len()).min(data.len());
        self.header.extend_from_slice(&data[..used]);
        if self.header.len() < wanted {
            return Ok(used);
        }
        let header = std::mem::take(&mut self.header);
        let (magic, info) = (u16_at(&header, 0), u16_at(&header, 2));
        let rest = u64::from(u32_at(&header, 16));
        if magic >> 8 != MAGIC_HIGH {
            return Err("the page has no header of a log");
        }
        if u64_at(&header, 8) != start {
            return Err("the page belongs elsewhere");
        }
        if wanted == LONG_HEADER {
            let page = u64::from(u32_at(&header, 36));
            if !page.is_power_of_two() || !(1024..=65_536).contains(&page) {
                return Err("the segment has no length of a page");
            }
            if u64_at(&header, 24) != self.system {
                return Err("the segment is of another server");
            }
            self.page = page;
        }
        self.magic = magic;
        self.go_on(start, info, rest).map(|()| used)
    }

    /// What the page at `start` says of the record that the page before left unfinished.
    fn go_on(&mut self, start: u64, info: u16, rest: u64) -> Result<(), &'static str> {
        let continues = info & CONTINUES != 0;
        if start == self.begin {
            self.state = State::Passing(if continues { rest } else { 0 });
            self.gave_up = info & OVERWRITES != 0;
            return Ok(());
        }
        if info & OVERWRITES != 0 {
            // The record before was given up by a server that crashed while it wrote it.
            (self.record, self.state) = (None, State::Walking);
            self.gave_up |= self.first_follows.is_none();
            return Ok(());
        }
        let missing = match (&self.record, self.state) {
            (Some(record), _) => u64::from(record.total.saturating_sub(record.got)),
            (None, State::Passing(count)) => count,
            (None, State::Walking | State::Idle) => 0,
        };
        match (missing, continues) {
            (0, false) => Ok(()),
            (0, true) => Err("the page goes on with a record that did not begin"),
            (missing, true) if rest == missing => Ok(()),
            _ => Err("the record does not go on, on the next page"),
        }
    }

    fn continue_record(&mut self, data: &[u8], each: &mut dyn FnMut(&Record)) -> Result<usize, &'static str> {
        let Some(record) = &mut self.record else { return Ok(0) };
        let used = record.take(data, self.previous, self.look)?;
        if record.got as usize >= RECORD_HEADER {
            self.first_follows.get_or_insert(Lsn(u64_at(&record.head, 8)));
        }
        if record.got < record.total || record.total == 0 {
            return Ok(used);
        }
        record.check()?;
        let end = Lsn((self.at + used as u64).next_multiple_of(ALIGN));
        let (rmgr, info) = (record.rmgr(), record.info());
        let is_switch = rmgr == RM_XLOG && info & 0xF0 == SWITCH;
        let what = end_of(rmgr, info, u32_at(&record.head, 4), &record.body, self.magic).unwrap_or(End::Nothing);
        let pages = if self.look == Look::Pages { whole_pages(&record.body, self.magic) } else { Vec::new() };
        let start = record.start;
        let cut = Cut { page: self.page, segment: self.size };
        let space = if rmgr == RM_SPACE { space_of(start, &record.head, &record.body, cut) } else { None };
        (self.previous, self.last, self.record) = (Some(start), Some((start, end)), None);
        if is_switch {
            self.state = State::Idle;
        }
        each(&Record { start, end, what, space, pages });
        Ok(used)
    }
}

impl Partial {
    fn new(start: Lsn) -> Self {
        let digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        Self { start, head: [0; RECORD_HEADER], got: 0, total: 0, body: Vec::new(), digest }
    }

    fn rmgr(&self) -> u8 {
        self.head[17]
    }

    fn info(&self) -> u8 {
        self.head[16]
    }

    /// Takes what belongs to it and says how much that was.
    fn take(&mut self, data: &[u8], previous: Option<Lsn>, look: Look) -> Result<usize, &'static str> {
        let got = self.got as usize;
        if got < RECORD_HEADER {
            let used = (RECORD_HEADER - got).min(data.len());
            self.head[got..got + used].copy_from_slice(&data[..used]);
            self.got += used as u32;
            if self.got >= 4 && self.total == 0 {
                self.total = u32_at(&self.head, 0);
                if !(RECORD_HEADER as u32..MAX_RECORD).contains(&self.total) {
                    return Err("there is no record");
                }
            }
            if self.got as usize == RECORD_HEADER {
                let before = Lsn(u64_at(&self.head, 8));
                if before >= self.start || previous.is_some_and(|previous| previous != before) {
                    return Err("the record does not follow the one before it");
                }
            }
            return Ok(used);
        }
        let used = ((self.total - self.got) as usize).min(data.len());
        self.digest.update(&data[..used]);
        let kept = match (self.rmgr(), look) {
            (RM_XLOG | RM_XACT | RM_SPACE, _) => KEEP,
            (_, Look::Pages) => KEEP_HEADERS,
            (_, Look::Ends) => 0,
        };
        let room = kept.saturating_sub(self.body.len()).min(used);
        self.body.extend_from_slice(&data[..room]);
        self.got += used as u32;
        Ok(used)
    }

    fn check(&mut self) -> Result<(), &'static str> {
        self.digest.update(&self.head[..CHECKED_HEADER]);
        let right = self.digest.finalize() as u32 == u32_at(&self.head, CHECKED_HEADER);
        if right { Ok(()) } else { Err("the record does not have its own checksum") }
    }
}

fn shorter(count: u64, data: &[u8]) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).min(data.len())
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::wal) const SYSTEM: u64 = 7_100_000_000_000_000_001;
    pub(in crate::wal) const SEGMENT: u64 = 1 << 20;
    pub(in crate::wal) const START: u64 = 5 * SEGMENT;

    /// Writes a log as a server does: records of these lengths, from the first byte of a segment on.
    pub(in crate::wal) fn log(lengths: &[usize]) -> (Vec<u8>, Vec<(u64, u64)>) {
        log_of(lengths.iter().map(|length| (10, 0, (0..*length).map(|index| index as u8).collect())))
    }

    /// The same of records of these managers, with these flags and bodies.
    pub(in crate::wal) fn log_of(records: impl Iterator<Item = (u8, u8, Vec<u8>)>) -> (Vec<u8>, Vec<(u64, u64)>) {
        let given = records;
        let mut bytes = Vec::new();
        let mut records = Vec::new();
        let mut previous = START - 64;
        for (rmgr, info, body) in given {
            header(&mut bytes, 0);
            while !(bytes.len() as u64).is_multiple_of(ALIGN) {
                bytes.push(0);
                header(&mut bytes, 0);
            }
            let start = START + bytes.len() as u64;
            let record = record_of(previous, rmgr, info, &body);
            for (index, byte) in record.iter().enumerate() {
                header(&mut bytes, record.len() - index);
                bytes.push(*byte);
            }
            records.push((start, (START + bytes.len() as u64).next_multiple_of(ALIGN)));
            previous = start;
        }
        (bytes, records)
    }

    /// The header of a page, when one begins here; `rest` bytes of a record go on behind it.
    fn header(bytes: &mut Vec<u8>, rest: usize) {
        if !(bytes.len() as u64).is_multiple_of(DEFAULT_PAGE) {
            return;
        }
        let at = START + bytes.len() as u64;
        let is_long = at.is_multiple_of(SEGMENT);
        let info = (u16::from(rest > 0 && !bytes.is_empty()) * CONTINUES) | (u16::from(is_long) * 2);
        bytes.extend(0xD110_u16.to_ne_bytes().iter().chain(&info.to_ne_bytes()).chain(&1_u32.to_ne_bytes()));
        bytes.extend(at.to_ne_bytes().iter().chain(&(rest as u32).to_ne_bytes()).chain(&[0; 4]));
        if is_long {
            bytes.extend(SYSTEM.to_ne_bytes().iter().chain(&(SEGMENT as u32).to_ne_bytes()));
            bytes.extend((DEFAULT_PAGE as u32).to_ne_bytes());
        }
    }

    fn record(previous: u64, body: usize) -> Vec<u8> {
        record_of(previous, 10, 0, &(0..body).map(|index| index as u8).collect::<Vec<_>>())
    }

    fn record_of(previous: u64, rmgr: u8, info: u8, body: &[u8]) -> Vec<u8> {
        let mut record = ((RECORD_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        record.extend(77_u32.to_ne_bytes().iter().chain(&previous.to_ne_bytes()).chain(&[info, rmgr]));
        record.extend([0; 6].iter().chain(body));
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&record[RECORD_HEADER..]);
        digest.update(&record[..CHECKED_HEADER]);
        let crc = digest.finalize() as u32;
        record[CHECKED_HEADER..RECORD_HEADER].copy_from_slice(&crc.to_ne_bytes());
        record
    }

    fn walk(bytes: &[u8], step: usize) -> (Vec<(u64, u64)>, Option<Fault>) {
        let mut walker = Walker::new(Lsn(START), SegmentSize::new(SEGMENT).unwrap(), SYSTEM);
        let mut seen = Vec::new();
        for piece in bytes.chunks(step) {
            walker.push(piece, &mut |record| seen.push((record.start.0, record.end.0)));
        }
        (seen, walker.fault().cloned())
    }

    /// Some within a page, one that ends with it, some over several pages.
    const LENGTHS: [usize; 8] = [0, 100, 8192 - 40 - 24 - 128 - 24, 3, 20_000, 8, 8191, 1];

    #[test]
    fn the_records_at_both_ends_of_a_walk_are_known() {
        let (bytes, records) = log(&LENGTHS);
        let edges = |bytes: &[u8]| {
            let mut walker = Walker::new(Lsn(START), SegmentSize::new(SEGMENT).unwrap(), SYSTEM);
            walker.push(bytes, &mut |_| {});
            (walker.first_follows().map(|lsn| lsn.0), walker.last_begun().map(|lsn| lsn.0))
        };
        let last = records.last().unwrap().0;
        assert_eq!(edges(&bytes), (Some(START - 64), Some(last)));
        // The last one goes on behind the end.
        assert_eq!(edges(&bytes[..(last - START) as usize + 9]), (Some(START - 64), Some(last)));
        assert_eq!(edges(&bytes[..40]), (None, None));
        // Given up by a server that crashed: what follows names a record before it.
        let mut given_up = bytes;
        given_up[2] |= OVERWRITES as u8;
        assert_eq!(edges(&given_up).0, None);
    }

    #[test]
    fn records_are_found_however_they_arrive_and_wherever_pages_end() {
        let (bytes, records) = log(&LENGTHS);
        for step in [1, 7, 4096, usize::MAX] {
            assert_eq!(walk(&bytes, step), (records.clone(), None), "{step}");
        }
        // Cut anywhere, what was whole is found, and the rest is no fault: it may still come.
        for cut in (0..bytes.len()).step_by(97) {
            // Ends are rounded up.
            let whole = records.iter().take_while(|(_, end)| end - START <= cut as u64).count();
            let (seen, fault) = walk(&bytes[..cut], 1000);
            assert!(fault.is_none() && records.starts_with(&seen) && seen.len() >= whole, "{cut}: {fault:?}");
        }
    }

    #[test]
    fn a_walk_can_begin_behind_the_record_that_fills_the_beginning() {
        let (bytes, records) = log(&[SEGMENT as usize + 30_000, 50, 60]);
        let mut walker = Walker::new(Lsn(START + SEGMENT), SegmentSize::new(SEGMENT).unwrap(), SYSTEM);
        let mut seen = Vec::new();
        walker.push(&bytes[SEGMENT as usize..], &mut |record| seen.push((record.start.0, record.end.0)));
        assert_eq!((seen, walker.fault()), (records[1..].to_vec(), None));
    }

    #[test]
    fn a_record_from_before_the_walk_goes_on_page_by_page_or_was_given_up() {
        let (bytes, _) = log(&[SEGMENT as usize + 30_000]);
        let read = |bytes: &[u8]| {
            let mut walker = Walker::new(Lsn(START + SEGMENT), SegmentSize::new(SEGMENT).unwrap(), SYSTEM);
            let mut seen = Vec::new();
            for piece in bytes.chunks(10) {
                walker.push(piece, &mut |record| seen.push((record.start.0, record.end.0)));
            }
            (seen, walker.fault().cloned())
        };
        let second = DEFAULT_PAGE as usize;
        let mut torn = bytes[SEGMENT as usize..].to_vec();
        torn[second + 16] ^= 1;
        let at = Lsn(START + SEGMENT + DEFAULT_PAGE);
        let why = "the record does not go on, on the next page";
        assert_eq!(read(&torn), (Vec::new(), Some(Fault { at, why })));
        // A server that crashed gave it up: its place is taken by what comes next.
        let mut given_up = bytes[SEGMENT as usize..][..second].to_vec();
        let mut tail = bytes[SEGMENT as usize + second..][..SHORT_HEADER].to_vec();
        tail[2..4].copy_from_slice(&OVERWRITES.to_ne_bytes());
        given_up.extend(tail.into_iter().chain(record(START, 50)));
        let start = at.0 + SHORT_HEADER as u64;
        assert_eq!(read(&given_up), (vec![(start, (start + 74).next_multiple_of(ALIGN))], None));
    }

    #[test]
    fn another_server_and_zeroes_are_faults() {
        let (mut bytes, _) = log(&LENGTHS);
        bytes.extend([0; 64]);
        assert_eq!(walk(&bytes, 512).1.unwrap().why, "there is no record");
        bytes[24] ^= 1;
        assert_eq!(walk(&bytes, 512).1.unwrap().why, "the segment is of another server");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found_at_once(position in 0_usize..20_000, bit in 0_u8..8) {
            let (bytes, records) = log(&LENGTHS);
            let mut flipped = bytes.clone();
            flipped[position] ^= 1 << bit;
            let (seen, fault) = walk(&flipped, 3000);
            // Bytes between records, and fields of pages that say nothing of records, mean nothing.
            let in_record = |(start, end): &&(u64, u64)| (START + position as u64) >= *start && START + (position as u64) < *end;
            let in_page = (position as u64 % DEFAULT_PAGE) < LONG_HEADER as u64;
            let padding = records.iter().find(in_record).is_some_and(|(_, end)| end - START - position as u64 <= 7);
            if records.iter().any(|record| in_record(&record)) && !in_page && !padding {
                prop_assert!(fault.is_some() || seen.len() < records.len(), "{position} {fault:?}");
            }
            prop_assert!(records.starts_with(&seen));
        }

        #[test]
        fn anything_at_all_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..30_000), step in 1_usize..5000) {
            let (mut log, _) = log(&[10]);
            log.extend(bytes);
            walk(&log, step);
        }
    }
}
