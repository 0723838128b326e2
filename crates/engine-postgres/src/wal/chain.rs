//! Which files of the log an archive holds, and what is missing between them. Names alone tell, so listings suffice; where a
//! timeline comes from is in the header of its history file, so no private key is needed.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::SegmentLog;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::SegmentRecord;
use backup_core::position::Lsn;
use serde::Serialize;

use super::history::{History, Switch};
use super::names::{SegmentSize, WalFile, WalSegment};

/// Nobody replays more segments than this onto one base backup: 64 TiB, when they have the usual length. An archive in which
/// there are more has a segment with a name that no server gave.
const MAX_NEEDED: u64 = 1 << 22;

/// The segments of an archive.
#[derive(Debug, Clone)]
pub struct Chain {
    size: SegmentSize,
    system: Option<String>,
    /// The numbers of the whole segments, by timeline.
    segments: BTreeMap<u32, BTreeSet<u64>>,
    histories: BTreeMap<u32, History>,
    /// How far the pieces of a segment that is not full reach, without a gap: by timeline and number.
    pieces: BTreeMap<(u32, u64), u32>,
    stored_bytes: BTreeMap<u32, u64>,
}

/// Segments that are missing between two that are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// The name of the first that is missing.
    pub first: String,
    /// The name of the last that is missing.
    pub last: String,
    /// How many.
    pub count: u64,
}

/// What is archived of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The timeline.
    pub timeline: u32,
    /// The name of its first segment.
    pub first: String,
    /// The name of its last segment, which may be there in pieces only.
    pub last: String,
    /// The position after the last byte that is archived, in pieces of the next segment, too.
    pub end: Lsn,
    /// Whole segments.
    pub count: u64,
    /// What they take in the archive, with the files beside them.
    pub stored_bytes: u64,
    /// What is missing in between.
    pub holes: Vec<Hole>,
}

impl Chain {
    /// Reads what the archive holds; `None` when it holds no segment.
    ///
    /// # Errors
    /// Those of listing, and of reading the headers of histories and of one segment.
    pub async fn read(log: &SegmentLog) -> Result<Option<Self>> {
        let mut chain = Self {
            size: SegmentSize::DEFAULT,
            system: None,
            segments: BTreeMap::new(),
            histories: BTreeMap::new(),
            pieces: BTreeMap::new(),
            stored_bytes: BTreeMap::new(),
        };
        let mut newest = None;
        let mut found = Vec::new();
        let mut pieces = Vec::new();
        for timeline in log.timelines().await? {
            for entry in log.segments(&timeline).await? {
                let Ok(file) = entry.id.name.as_str().parse::<WalFile>() else { continue };
                *chain.stored_bytes.entry(file.timeline()).or_default() += entry.stored_bytes;
                match file {
                    WalFile::Segment(segment) => {
                        newest = Some(entry.id);
                        found.push(segment);
                    }
                    WalFile::History(timeline) => {
                        chain.histories.insert(timeline, history(&log.record(&entry.id).await?)?);
                    }
                    WalFile::Piece(segment, from, to) => {
                        newest = newest.or(Some(entry.id));
                        pieces.push((segment, from, to));
                    }
                    WalFile::Partial(_) | WalFile::Backup(..) => {}
                }
            }
        }
        let Some(newest) = newest else { return Ok(None) };
        let record = log.record(&newest).await?;
        chain.size = size_of(&record)?;
        chain.system = record.meta.details.get("system").and_then(|system| system.as_str()).map(str::to_owned);
        for segment in found {
            chain.segments.entry(segment.timeline).or_default().insert(segment.number(chain.size));
        }
        pieces.sort_unstable_by_key(|(segment, from, to)| (*segment, *from, *to));
        for (segment, from, to) in pieces {
            let reach = chain.pieces.entry((segment.timeline, segment.number(chain.size))).or_default();
            if from <= *reach {
                *reach = to.max(*reach);
            }
        }
        Ok(Some(chain))
    }

    /// The length of the segments.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The identifier of the server.
    #[must_use]
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// The timelines of which there is anything, in order.
    #[must_use]
    pub fn timelines(&self) -> Vec<u32> {
        let of_pieces = self.pieces.keys().map(|(timeline, _)| timeline);
        self.segments.keys().chain(of_pieces).copied().collect::<BTreeSet<u32>>().into_iter().collect()
    }

    /// The last whole segment of a timeline.
    #[must_use]
    pub fn last(&self, timeline: u32) -> Option<WalSegment> {
        let number = self.segments.get(&timeline)?.last()?;
        Some(WalSegment::numbered(timeline, *number, self.size))
    }

    /// Whether the history of a timeline is in the archive.
    #[must_use]
    pub fn has_history(&self, timeline: u32) -> bool {
        self.histories.contains_key(&timeline)
    }

    /// The timelines whose histories are in the archive.
    pub fn histories(&self) -> impl Iterator<Item = u32> + '_ {
        self.histories.keys().copied()
    }

    /// So many bytes at the beginning of a segment are archived in pieces.
    #[must_use]
    pub fn pieces_of(&self, segment: WalSegment) -> u32 {
        self.pieces.get(&(segment.timeline, segment.number(self.size))).copied().unwrap_or_default()
    }

    /// The end of what is archived of a timeline, pieces included; holes before it do not count.
    #[must_use]
    pub fn end(&self, timeline: u32) -> Option<Lsn> {
        let whole = self.last(timeline).map(|segment| segment.end(self.size));
        let (number, reach) = self
            .pieces
            .range((timeline, 0)..=(timeline, u64::MAX))
            .next_back()
            .map(|((_, number), reach)| (number, reach))
            .unzip();
        let pieces = number
            .zip(reach)
            .map(|(number, reach)| Lsn(number.saturating_mul(self.size.bytes()).saturating_add(u64::from(*reach))));
        whole.max(pieces)
    }

    /// The segments of a timeline, in order; of the last one there may be pieces only.
    #[must_use]
    pub fn held(&self, timeline: u32) -> Vec<WalSegment> {
        let whole = self.segments.get(&timeline).into_iter().flatten().copied();
        let last = self.pieces.range((timeline, 0)..=(timeline, u64::MAX)).next_back().map(|((_, number), _)| *number);
        let numbers: BTreeSet<u64> = whole.chain(last).collect();
        numbers.into_iter().map(|number| WalSegment::numbered(timeline, number, self.size)).collect()
    }

    /// Where the ways to two timelines part; `None` when one is on the way to the other and is not left.
    #[must_use]
    pub fn fork(&self, one: u32, other: u32) -> Option<Lsn> {
        let (one, other) = (self.ancestry(one).ok()?, self.ancestry(other).ok()?);
        let mut common = Lsn(0);
        for ((timeline, left), (beside, left_beside)) in one.iter().zip(&other) {
            if timeline != beside {
                return Some(common);
            }
            let end = |left: &Option<Lsn>| left.unwrap_or(Lsn(u64::MAX));
            common = end(left).min(end(left_beside));
            if left != left_beside {
                return Some(common);
            }
        }
        None
    }

    /// What is archived, timeline by timeline.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.timelines().into_iter().filter_map(|timeline| self.span(timeline)).collect()
    }

    fn span(&self, timeline: u32) -> Option<Span> {
        let whole = self.segments.get(&timeline);
        let numbers: BTreeSet<u64> = self.held(timeline).into_iter().map(|held| held.number(self.size)).collect();
        let named = |number: &u64| WalSegment::numbered(timeline, *number, self.size).to_string();
        Some(Span {
            timeline,
            first: named(numbers.first()?),
            last: named(numbers.last()?),
            end: self.end(timeline)?,
            count: whole.map_or(0, BTreeSet::len) as u64,
            stored_bytes: self.stored_bytes.get(&timeline).copied().unwrap_or_default(),
            holes: self.holes(timeline, &numbers),
        })
    }

    fn holes(&self, timeline: u32, numbers: &BTreeSet<u64>) -> Vec<Hole> {
        let pairs = numbers.iter().zip(numbers.iter().skip(1)).filter(|(a, b)| **b > **a + 1);
        pairs.map(|(before, after)| self.hole(timeline, *before + 1, *after - 1)).collect()
    }

    fn hole(&self, timeline: u32, first: u64, last: u64) -> Hole {
        let name = |number| WalSegment::numbered(timeline, number, self.size).to_string();
        Hole { first: name(first), last: name(last), count: last - first + 1 }
    }

    /// The way from the beginning of the log to the end of `timeline`: the timelines in turn, each with the position where
    /// it is left; the last is left nowhere.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the history of a timeline above the first is not in the archive.
    pub fn ancestry(&self, timeline: u32) -> Result<Vec<(u32, Option<Lsn>)>> {
        let switches: &[Switch] = match self.histories.get(&timeline) {
            Some(history) => &history.0,
            None if timeline == 1 => &[],
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the history {} is not in the archive", WalFile::History(timeline)),
                ));
            }
        };
        let left = switches.iter().map(|switch| (switch.timeline, Some(switch.at)));
        Ok(left.chain([(timeline, None)]).collect())
    }

    /// The segments that replay from `from` (a position of `start_timeline`) to `to` on `timeline` needs, in order.
    /// At a switch the segment is taken from the descendant, as the server does.
    ///
    /// # Errors
    /// As [`Chain::ancestry`]; [`ErrorKind::NotFound`] when `timeline` does not descend from that position;
    /// [`ErrorKind::Incomplete`] when they are too many to be true.
    pub fn needed(&self, start_timeline: u32, from: Lsn, timeline: u32, to: Lsn) -> Result<Vec<WalSegment>> {
        let ancestry = self.ancestry(timeline)?;
        let apart = || {
            Error::new(
                ErrorKind::NotFound,
                format!("timeline {timeline} does not come from timeline {start_timeline} after {from}"),
            )
            .hint("choose a snapshot that was taken before the timelines parted, or another timeline")
        };
        let begin = ancestry.iter().position(|(each, _)| *each == start_timeline).ok_or_else(apart)?;
        if ancestry[begin].1.is_some_and(|left| left < from) {
            return Err(apart());
        }
        let mut needed = Vec::new();
        let mut number = from.0 / self.size.bytes();
        for (each, left) in &ancestry[begin..] {
            let end = left.map_or(to, |left| left.min(to));
            // Up to, not including, the segment in which this timeline is left: the descendant has a copy of it.
            let until = if left.is_some_and(|left| left <= to) {
                end.0 / self.size.bytes()
            } else {
                end.0.div_ceil(self.size.bytes())
            };
            if until.saturating_sub(number) > MAX_NEEDED {
                let last = WalSegment::numbered(*each, until - 1, self.size);
                return Err(Error::new(
                    ErrorKind::Incomplete,
                    format!("{} segments lie before {last}", until - number),
                )
                .hint("look whether a server wrote the last one; recover to a moment with `--to-lsn`, `--to-time`"));
            }
            while number < until {
                needed.push(WalSegment::numbered(*each, number, self.size));
                number += 1;
            }
            if left.is_none_or(|left| left > to) {
                break;
            }
        }
        Ok(needed)
    }

    /// Whether a segment is there.
    #[must_use]
    pub fn has(&self, segment: WalSegment) -> bool {
        self.segments.get(&segment.timeline).is_some_and(|numbers| numbers.contains(&segment.number(self.size)))
    }

    /// How far replay from `from` gets on `timeline` without a hole: the position after the last segment of the unbroken
    /// chain; `None` when not even the first segment is there.
    ///
    /// # Errors
    /// As [`Chain::needed`].
    pub fn reach(&self, start_timeline: u32, from: Lsn, timeline: u32) -> Result<Option<Lsn>> {
        let Some(end) = self.end(timeline) else { return Ok(None) };
        let mut reach = None;
        for segment in self.needed(start_timeline, from, timeline, end)? {
            if self.has(segment) {
                reach = Some(segment.end(self.size));
                continue;
            }
            let pieces = Lsn(segment.start(self.size).0 + u64::from(self.pieces_of(segment)));
            // Pieces end the chain: what follows them is not there.
            return Ok(reach.max(Some(pieces).filter(|pieces| *pieces > from && *pieces > segment.start(self.size))));
        }
        Ok(reach)
    }
}

/// The length of the segments, from the record of one or of a piece of one.
pub(super) fn size_of(record: &SegmentRecord) -> Result<SegmentSize> {
    match record.meta.details.get("segment_size").and_then(serde_json::Value::as_u64) {
        Some(size) => SegmentSize::new(size),
        None => SegmentSize::new(record.bytes),
    }
}

fn history(record: &SegmentRecord) -> Result<History> {
    let found = record.meta.details.get("history").cloned().unwrap_or_default();
    serde_json::from_value(found).map_err(|source| {
        Error::new(ErrorKind::Damaged, format!("the archive does not say what {} holds", record.id)).caused_by(source)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::wal) const MIB: u64 = 1 << 20;

    pub(in crate::wal) fn chain(segments: &[(u32, &[u64])], histories: &[(u32, &[(u32, u64)])]) -> Chain {
        let switch = |(timeline, at): &(u32, u64)| Switch { timeline: *timeline, at: Lsn(*at) };
        Chain {
            size: SegmentSize::new(MIB).unwrap(),
            system: None,
            segments: segments
                .iter()
                .map(|(timeline, numbers)| (*timeline, numbers.iter().copied().collect()))
                .collect(),
            histories: histories
                .iter()
                .map(|(timeline, switches)| (*timeline, History(switches.iter().map(switch).collect())))
                .collect(),
            pieces: BTreeMap::new(),
            stored_bytes: BTreeMap::new(),
        }
    }

    fn names(segments: &[WalSegment]) -> Vec<(u32, u32)> {
        segments.iter().map(|segment| (segment.timeline, segment.segment)).collect()
    }

    #[test]
    fn timelines_part_where_the_first_of_them_was_left() {
        let chain =
            chain(&[(1, &[3]), (2, &[4]), (3, &[5])], &[(2, &[(1, 7)]), (3, &[(1, 7), (2, 9)]), (4, &[(1, 5)])]);
        let fork = |one, other| chain.fork(one, other).map(|lsn| lsn.0);
        assert_eq!(
            (fork(1, 2), fork(2, 1), fork(2, 3), fork(1, 3), fork(3, 4), fork(3, 3)),
            (Some(7), Some(7), Some(9), Some(7), Some(5), None)
        );
    }

    #[test]
    fn holes_are_named() {
        let chain = chain(&[(1, &[3, 4, 7, 8, 10])], &[]);
        let spans = chain.spans();
        assert_eq!(spans[0].count, 5);
        let holes: Vec<_> = spans[0].holes.iter().map(|hole| (hole.first.as_str(), hole.count)).collect();
        assert_eq!(holes, [("000000010000000000000005", 2), ("000000010000000000000009", 1)]);
        assert_eq!(chain.reach(1, Lsn(3 * MIB), 1).unwrap(), Some(Lsn(5 * MIB)));
        assert_eq!(chain.reach(1, Lsn(5 * MIB + 1), 1).unwrap(), None);
    }

    #[test]
    fn replay_takes_the_segment_of_a_switch_from_the_descendant() {
        // Timeline 2 left 1 within segment 5; timeline 3 left 2 exactly at the border of segment 7.
        let chain = chain(
            &[(1, &[3, 4, 5, 6]), (2, &[5, 6]), (3, &[7, 8])],
            &[(2, &[(1, 5 * MIB + 100)]), (3, &[(1, 5 * MIB + 100), (2, 7 * MIB)])],
        );
        let needed = chain.needed(1, Lsn(3 * MIB + 5), 3, Lsn(8 * MIB + 1)).unwrap();
        assert_eq!(names(&needed), [(1, 3), (1, 4), (2, 5), (2, 6), (3, 7), (3, 8)]);
        assert!(needed.iter().all(|segment| chain.has(*segment)));
        assert_eq!(names(&chain.needed(1, Lsn(3 * MIB), 3, Lsn(5 * MIB + 50)).unwrap()), [(1, 3), (1, 4), (1, 5)]);
        assert_eq!(names(&chain.needed(1, Lsn(3 * MIB), 1, Lsn(7 * MIB)).unwrap()), [(1, 3), (1, 4), (1, 5), (1, 6)]);
        assert_eq!(chain.reach(1, Lsn(3 * MIB), 3).unwrap(), Some(Lsn(9 * MIB)));
    }

    #[test]
    fn pieces_lengthen_the_chain() {
        let mut chain = chain(&[(1, &[3, 4])], &[]);
        chain.pieces.insert((1, 5), 4096);
        assert_eq!(chain.end(1), Some(Lsn(5 * MIB + 4096)));
        assert_eq!(chain.reach(1, Lsn(3 * MIB), 1).unwrap(), Some(Lsn(5 * MIB + 4096)));
        assert_eq!(chain.reach(1, Lsn(5 * MIB + 5000), 1).unwrap(), None);
        chain.pieces.insert((1, 7), 100);
        assert_eq!(chain.reach(1, Lsn(3 * MIB), 1).unwrap(), Some(Lsn(5 * MIB + 4096)), "6 is missing");
    }

    #[test]
    fn a_name_at_the_end_of_all_positions_costs_no_memory() {
        let chain = chain(&[(1, &[3, 4, (1 << 44) - 1])], &[]);
        let error = chain.needed(1, Lsn(3 * MIB), 1, chain.end(1).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incomplete);
        assert!(error.message().contains("00000001FFFFFFFF00000FFF"), "{error}");
        assert_eq!(chain.needed(1, Lsn(3 * MIB), 1, Lsn(5 * MIB)).unwrap().len(), 2);
    }

    #[test]
    fn a_timeline_that_parted_before_the_snapshot_is_refused() {
        let chain = chain(&[(1, &[3, 6]), (2, &[5])], &[(2, &[(1, 5 * MIB)])]);
        assert!(chain.needed(1, Lsn(6 * MIB), 2, Lsn(6 * MIB)).is_err(), "the snapshot is on the other branch");
        assert!(chain.ancestry(4).unwrap_err().to_string().contains("00000004.history"));
    }
}
