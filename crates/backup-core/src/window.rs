//! What the log of a source amounts to: unbroken chains of segments, and the windows of time that they, together with
//! snapshots, can be recovered to. Knows nothing of any engine.
//!
//! Invariant: a window spans no hole; what cannot be read is named, and ends the chain that it is in.

use jiff::Timestamp;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::context::RunContext;
use crate::engine::Candidate;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Gap, SegmentDamage, SegmentEntry, SegmentId, SegmentLog, SegmentRecord, breaks, gaps};
use crate::names::SegmentName;
use crate::position::Position;

/// Records that are read at the same time.
const PARALLEL: usize = 16;

/// Segments that follow each other without a hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The first of them.
    pub first: SegmentId,
    /// The last of them.
    pub last: SegmentId,
    /// The position that it begins at.
    pub start: u64,
    /// The position that it ends at.
    pub end: u64,
    /// When its first bytes were received.
    pub from: Option<Timestamp>,
    /// When its last bytes were received.
    pub to: Option<Timestamp>,
    /// When the last segment was stored.
    pub stored: Timestamp,
    /// How many segments it has.
    pub segments: u64,
    /// What they take in the sink.
    pub stored_bytes: u64,
}

/// A span of time that a source can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Its beginning: the end of the first snapshot in it.
    pub from: Timestamp,
    /// Its end: the last moment that the archive has.
    pub to: Timestamp,
}

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LogOverview {
    /// Its chains, oldest first. More than one: there are holes, or breaks that were bridged by a new snapshot.
    pub chains: Vec<Chain>,
    /// Segments that are missing.
    pub gaps: Vec<Gap>,
    /// Segments that cannot be read, or whose records do not go on from those before.
    pub damage: Vec<SegmentDamage>,
}

/// What the names of notes begin with that accept a gap; the place of the gap follows.
const GAP_NOTE: &str = "gap-";

/// The name of the note that accepts the gap before `before`.
///
/// # Errors
/// When the name of the segment is too long for it.
pub fn gap_note(before: &SegmentId) -> Result<SegmentName> {
    SegmentName::new(format!("{GAP_NOTE}{}-{}", before.timeline, before.name))
}

/// Reads the records of every segment of `log`. Works without a private key on a machine that may write.
///
/// # Errors
/// When the log cannot be listed or read; a damaged segment is no error.
pub async fn overview(cx: &RunContext, log: &SegmentLog) -> Result<LogOverview> {
    let mut damage = Vec::new();
    let mut timelines = Vec::new();
    for timeline in log.timelines().await? {
        let mut records = Vec::new();
        for entries in log.segments(&timeline).await?.chunks(PARALLEL) {
            cx.check_cancelled()?;
            read_some(log, entries, &mut records, &mut damage).await?;
        }
        timelines.push(records);
    }
    // In the order in which they were begun.
    timelines.retain(|records| !records.is_empty());
    timelines.sort_by_key(|records| records[0].stored);
    let records: Vec<SegmentRecord> = timelines.into_iter().flatten().collect();
    let (mut gaps, breaks) = (gaps(&records), breaks(&records));
    if !gaps.is_empty() {
        let notes = log.notes().await?;
        for gap in &mut gaps {
            let name = gap_note(&gap.before)?;
            gap.accepted = notes.iter().find(|(note, _)| *note == name).map(|(_, text)| text.clone());
        }
    }
    let chains = chains(&records, &gaps, &breaks);
    damage.extend(breaks);
    Ok(LogOverview { chains, gaps, damage })
}

async fn read_some(
    log: &SegmentLog,
    entries: &[SegmentEntry],
    records: &mut Vec<SegmentRecord>,
    damage: &mut Vec<SegmentDamage>,
) -> Result<()> {
    let mut asked = JoinSet::new();
    for (position, entry) in entries.iter().enumerate() {
        let (log, id) = (log.clone(), entry.id.clone());
        asked.spawn(async move { (position, log.record(&id).await, id) });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asked.join_next().await {
        let lost = |source| Error::new(ErrorKind::Internal, "a reader of segments was lost").caused_by(source);
        answers.push(answer.map_err(lost)?);
    }
    answers.sort_by_key(|(position, ..)| *position);
    for (_, record, id) in answers {
        match record {
            Ok(record) => records.push(thinned(record)),
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                damage.push(SegmentDamage { id, problem: error.chain() });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Only its first and last mark: there may be very many segments.
fn thinned(mut record: SegmentRecord) -> SegmentRecord {
    let marks = &mut record.meta.marks;
    if let [first, .., last] = marks[..] {
        *marks = vec![first, last];
    }
    record.meta.details.clear();
    record
}

fn chains(records: &[SegmentRecord], gaps: &[Gap], breaks: &[SegmentDamage]) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    for record in records {
        // Files beside the log have no span.
        let Some(span) = record.meta.span else { continue };
        let is_broken = record.meta.predecessor.is_none()
            || gaps.iter().any(|gap| gap.before == record.id)
            || breaks.iter().any(|broken| broken.id == record.id);
        let (from, to) = (record.meta.marks.first(), record.meta.marks.last());
        match chains.last_mut().filter(|_| !is_broken) {
            Some(chain) => {
                chain.stored_bytes += record.stored_bytes;
                // A part of what is there as a whole adds nothing. What a timeline had after another one left it is lost.
                if span.end <= chain.end && record.id.timeline == chain.last.timeline {
                    continue;
                }
                chain.last = record.id.clone();
                chain.end = span.end;
                chain.from = chain.from.or(from.map(|mark| mark.time));
                chain.to = to.map(|mark| mark.time).or(chain.to);
                chain.stored = record.stored;
                chain.segments += 1;
            }
            None => chains.push(Chain {
                first: record.id.clone(),
                last: record.id.clone(),
                start: span.start,
                end: span.end,
                from: from.map(|mark| mark.time),
                to: to.map(|mark| mark.time),
                stored: record.stored,
                segments: 1,
                stored_bytes: record.stored_bytes,
            }),
        }
    }
    chains
}

impl LogOverview {
    /// The windows that the log opens, oldest first: each begins with the first snapshot whose position its chain has. It
    /// may begin a moment late (when that snapshot was finished), never early.
    #[must_use]
    pub fn windows(&self, candidates: &[Candidate]) -> Vec<Window> {
        self.windows_of_chains(candidates).into_iter().map(|(_, window)| window).collect()
    }

    /// Accepts the gaps after which there is a snapshot to begin with: what lies before them is behind.
    pub fn accept_bridged(&mut self, candidates: &[Candidate]) {
        let Some((last, _)) = self.windows_of_chains(candidates).pop() else { return };
        for gap in self.gaps.iter_mut().filter(|gap| gap.is_open()) {
            if self.chains[..=last].iter().any(|chain| chain.first == gap.before) {
                gap.accepted = Some("a snapshot was taken after it".to_owned());
            }
        }
    }

    /// The windows, each with the number of the chain that it lies in.
    fn windows_of_chains(&self, candidates: &[Candidate]) -> Vec<(usize, Window)> {
        let mut windows = Vec::new();
        for (index, chain) in self.chains.iter().enumerate() {
            let begins = chain.from.unwrap_or(chain.stored);
            let ends = chain.to.unwrap_or(chain.stored);
            // Positions may begin anew: a snapshot before the end of the chain before is not of this one.
            let after = index.checked_sub(1).map(|before| self.chains[before].stored);
            let in_chain = |candidate: &&Candidate| {
                let record = &candidate.record;
                let later = after.is_none_or(|after| record.finished > after);
                let inside = match record.position.as_ref().and_then(number) {
                    Some(position) => (chain.start..=chain.end).contains(&position),
                    None => record.finished >= begins,
                };
                later && inside && record.started <= ends
            };
            if let Some(first) = candidates.iter().find(in_chain) {
                windows.push((index, Window { from: first.record.finished.min(ends), to: ends }));
            }
        }
        windows
    }

    /// The newest moment that the archive has.
    #[must_use]
    pub fn end(&self) -> Option<Timestamp> {
        self.chains.last().map(|chain| chain.to.unwrap_or(chain.stored))
    }
}

/// A position in bytes of its log, for servers that count so.
fn number(position: &Position) -> Option<u64> {
    match position {
        Position::Wal { lsn, .. } => Some(lsn.0),
        Position::Replication { offset, .. } => Some(*offset),
        Position::Binlog { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::log::{Mark, SegmentMeta, Span};
    use crate::manifest::{Fingerprint, SourceOutcome, SourceRecord};
    use crate::names::{SnapshotId, SourceName, Timeline};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn id(position: u64) -> SegmentId {
        SegmentId { timeline: Timeline::new("t").unwrap(), name: SegmentName::new(format!("{position:09}")).unwrap() }
    }

    /// Seconds are positions.
    fn segment(start: u64, end: u64, predecessor: Option<u64>) -> SegmentRecord {
        let marks = vec![
            Mark { time: at(start as i64), position: start + 1 },
            Mark { time: at(end as i64 - 1), position: end },
        ];
        let meta = SegmentMeta {
            predecessor: predecessor.map(id),
            span: Some(Span { start, end }),
            marks,
            ..SegmentMeta::default()
        };
        SegmentRecord { id: id(start), meta, bytes: end - start, stored_bytes: 1, stored: at(end as i64) }
    }

    fn snapshot(started: i64, finished: i64, position: u64) -> Candidate {
        let record = SourceRecord {
            name: SourceName::new("x").unwrap(),
            engine: "x".into(),
            mode: None,
            outcome: SourceOutcome::Complete,
            started: at(started),
            finished: at(finished),
            server: None,
            position: Some(Position::Replication { id: "t".into(), offset: position }),
            artifacts: Vec::new(),
            fingerprint: Fingerprint::default(),
            details: BTreeMap::new(),
            warnings: Vec::new(),
        };
        Candidate { id: SnapshotId::generate(at(finished)), record }
    }

    fn overview_of(records: &[SegmentRecord]) -> LogOverview {
        let (gaps, breaks) = (gaps(records), breaks(records));
        LogOverview { chains: chains(records, &gaps, &breaks), gaps, damage: breaks }
    }

    #[test]
    fn windows_begin_with_a_snapshot_and_span_no_hole() {
        // 10–20–30, a hole, 40–50, a break, 60–70.
        let records =
            [segment(10, 20, None), segment(20, 30, Some(10)), segment(40, 50, Some(30)), segment(60, 70, None)];
        let log = overview_of(&records);
        assert_eq!((log.chains.len(), log.gaps.len()), (3, 1));
        let spans = |candidates: &[Candidate]| {
            let seconds = |time: Timestamp| time.as_second() - 1_800_000_000;
            let windows = log.windows(candidates);
            windows.iter().map(|window| (seconds(window.from), seconds(window.to))).collect::<Vec<_>>()
        };
        assert_eq!(spans(&[]), []);
        assert_eq!(spans(&[snapshot(8, 9, 10)]), [(9, 29)], "the chain begins where the snapshot stands");
        assert_eq!(spans(&[snapshot(5, 6, 6), snapshot(8, 12, 10), snapshot(24, 25, 24)]), [(12, 29)]);
        assert_eq!(spans(&[snapshot(24, 25, 24)]), [(25, 29)], "nothing before the first snapshot");
        assert_eq!(spans(&[snapshot(55, 62, 60)]), [(62, 69)], "after the hole there is no snapshot to begin with");
        let each = [snapshot(8, 9, 10), snapshot(44, 45, 44), snapshot(58, 59, 60)];
        assert_eq!(spans(&each), [(9, 29), (45, 49), (59, 69)]);
        assert_eq!(spans(&[snapshot(30, 31, 15)]), [], "another history, in which positions began anew");
    }

    #[test]
    fn a_gap_is_accepted_when_a_snapshot_follows_it_and_a_break_ends_a_window() {
        let mut strange = segment(60, 70, Some(50));
        let mut records = vec![
            segment(10, 20, None),
            segment(20, 30, Some(10)),
            segment(40, 50, Some(30)),
            segment(50, 60, Some(40)),
        ];
        let open = |records: &[SegmentRecord], candidates: &[Candidate]| {
            let mut log = overview_of(records);
            log.accept_bridged(candidates);
            log.gaps.iter().filter(|gap| gap.is_open()).count()
        };
        assert_eq!(open(&records, &[snapshot(8, 9, 10)]), 1);
        assert_eq!(open(&records, &[snapshot(8, 9, 10), snapshot(44, 45, 44)]), 0);
        records[3].meta.last_record = Some(58);
        strange.meta.after = Some(57);
        records.push(strange);
        let log = overview_of(&records);
        let windows = log.windows(&[snapshot(8, 9, 10), snapshot(44, 45, 44)]);
        assert_eq!((windows.len(), log.damage.len(), windows[1].to), (2, 1, at(59)));
    }
}
