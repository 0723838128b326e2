//! Continuous logs: write-ahead logs, binary logs, replication streams, kept as chains of immutable segments.
//!
//! Invariant: a segment's name stands for one content for ever. Storing the same bytes again succeeds; storing other
//! bytes under a name that exists fails, and whoever was about to recycle the original learns it in time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::context::RunContext;
use crate::error::{Error, ErrorKind, Result};
use crate::names::{SegmentName, SourceName, Timeline};
use crate::sink::CheckDepth;

/// No segment is longer than this, in plain bytes (PostgreSQL's longest). What is stored of one is held in memory while
/// it is stored: about its compressed size.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// A segment has at most so many marks.
pub const MAX_MARKS: usize = 4096;

/// Which segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId {
    /// The timeline that it is a part of.
    pub timeline: Timeline,
    /// Its name there.
    pub name: SegmentName,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.timeline, self.name)
    }
}

/// At `time`, by the clock of the machine that received it, the log had grown to `position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The moment.
    pub time: Timestamp,
    /// The byte position.
    pub position: u64,
}

/// The part of a log that a segment covers, in bytes of the log: from `start` to just before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The position of the first byte.
    pub start: u64,
    /// The position after the last byte.
    pub end: u64,
}

/// What is known of a segment, besides its bytes. It is readable by the machine that writes: no user data belongs here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentMeta {
    /// The segment that must be applied just before this one; `None` for the first of a chain, and for files that are
    /// not part of the chain (histories).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<SegmentId>,
    /// What it covers, unless it is a file beside the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// For logs whose records name the one before: the position of the record that the first one that begins here follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// For such logs: the position of the last record that begins here. The next segment's first one follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_record: Option<u64>,
    /// When the log had grown to where, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
    /// What the engine must know of it: a server's identifier, a version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
}

/// A stored segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Which one.
    pub id: SegmentId,
    /// What is known of it.
    pub meta: SegmentMeta,
    /// Its plain bytes.
    pub bytes: u64,
    /// What it takes in the sink.
    pub stored_bytes: u64,
    /// When it was stored, by the clock of the machine that did.
    pub stored: Timestamp,
}

/// A segment in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SegmentEntry {
    /// Which one.
    pub id: SegmentId,
    /// What it takes in the sink.
    pub stored_bytes: u64,
}

/// What storing a segment did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is there now, durable.
    New {
        /// What it takes in the sink.
        stored_bytes: u64,
    },
    /// The same bytes were there already.
    Same,
    /// Something damaged had the name. It was set aside, and this is there now, durable.
    Repaired {
        /// What it takes in the sink.
        stored_bytes: u64,
    },
}

/// A damaged segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentDamage {
    /// Which one.
    pub id: SegmentId,
    /// What is wrong with it.
    pub problem: String,
}

/// Where a sink keeps logs.
///
/// An implementation MUST
/// - make a segment visible whole or not at all, and durable before [`LogStore::put`] returns;
/// - refuse other bytes under a name that exists, also when two writers race;
/// - say that the same bytes are there only when they can still be read;
/// - notice, on reading, that bytes are not those that were written.
#[async_trait]
pub trait LogStore: fmt::Debug + Send + Sync {
    /// Stores a segment whose bytes are read from `content` to its end, on a thread that may block.
    /// Dropping the future stores the segment or does not, never a part of it.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) when other bytes have this name, [`conflict`];
    /// [`Unsupported`](ErrorKind::Unsupported) when it is longer than [`MAX_SEGMENT_BYTES`].
    async fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: Box<dyn Read + Send>,
    ) -> Result<Stored>;

    /// The timelines of a source, sorted by name.
    async fn timelines(&self, source: &SourceName) -> Result<Vec<Timeline>>;

    /// The segments of a timeline, sorted by name. A listing that fails is an error, never an empty list.
    async fn segments(&self, source: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentEntry>>;

    /// What is known of a segment. Works without a private key on a machine that may write.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is none; [`Damaged`](ErrorKind::Damaged).
    async fn record(&self, source: &SourceName, id: &SegmentId) -> Result<SegmentRecord>;

    /// Writes a segment's bytes to `out`, on a thread that may block. Only when it returns are they known to be those
    /// that were stored: write to a temporary name and rename.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`Damaged`](ErrorKind::Damaged), [`WrongKey`](ErrorKind::WrongKey) without a
    /// private key; also when `out` fails.
    async fn read(&self, source: &SourceName, id: &SegmentId, out: Box<dyn Write + Send>) -> Result<SegmentRecord>;

    /// Whether a segment was made of these bytes, which are read to their end or to the first that differs. A store whose
    /// writers cannot read compares hashes; what is compared is what was stored, not whether it can still be read. The bytes
    /// are read on a thread that may block.
    ///
    /// # Errors
    /// As [`LogStore::record`].
    async fn holds(&self, source: &SourceName, id: &SegmentId, mut content: Box<dyn Read + Send>) -> Result<bool> {
        let stored = Bytes::default();
        self.read(source, id, Box::new(stored.clone())).await?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map(|_| bytes)
        });
        let lost = |error| Error::new(ErrorKind::Internal, "the thread of a segment was lost").caused_by(error);
        let bytes = reading.await.map_err(lost)?;
        let bytes = bytes.map_err(|error| Error::from_io(format!("cannot read the segment {id}"), error))?;
        Ok(*stored.0.lock().unwrap_or_else(PoisonError::into_inner) == bytes)
    }

    /// Keeps a short text beside the log of a source, durable, under a name that nothing has yet.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) when the name is taken: what is there stays.
    async fn add_note(&self, source: &SourceName, name: &SegmentName, text: &str) -> Result<()> {
        let (_, _) = (name, text);
        Err(Error::new(ErrorKind::Unsupported, format!("nothing can be noted beside the log of `{source}`")))
    }

    /// The notes beside the log of a source, sorted by name. Works without a private key on a machine that may write.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn notes(&self, source: &SourceName) -> Result<Vec<(SegmentName, String)>> {
        let _ = source;
        Ok(Vec::new())
    }

    /// Looks at every segment of a source: headers, sizes; with [`CheckDepth::Data`] every stored byte. Needs no private key.
    ///
    /// # Errors
    /// When it could not look. Damage is in the list.
    async fn check(&self, cx: &RunContext, source: &SourceName, depth: CheckDepth) -> Result<Vec<SegmentDamage>>;
}

/// Bytes that are kept to be compared.
#[derive(Debug, Clone, Default)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

impl Write for Bytes {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The error of a segment whose name is taken by other bytes.
#[must_use]
pub fn conflict(source: &SourceName, id: &SegmentId) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("the segment {id} of `{source}` is archived already, with other content"))
        .hint("two servers write under one source name, or a server was restored and went on: give it a source name of its own")
}

/// The error of an archive that lacks a segment.
#[must_use]
pub fn missing(source: &SourceName, id: &SegmentId) -> Error {
    Error::new(ErrorKind::NotFound, format!("the segment {id} of `{source}` is not in the archive"))
}

/// The log of one source, and which of its branches a recovery follows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SegmentLog {
    store: Arc<dyn LogStore>,
    source: SourceName,
    branch: Option<Timeline>,
}

impl SegmentLog {
    /// The log of `source` in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn LogStore>, source: SourceName) -> Self {
        Self { store, source, branch: None }
    }

    /// The same log for a recovery along this timeline instead of the one that the engine would choose. What is stored and
    /// read is the same; engines that know no branches refuse to recover with it.
    #[must_use]
    pub fn along(mut self, timeline: Timeline) -> Self {
        self.branch = Some(timeline);
        self
    }

    /// The timeline that a recovery is told to follow; `None` leaves it to the engine.
    #[must_use]
    pub fn branch(&self) -> Option<&Timeline> {
        self.branch.as_ref()
    }

    /// The source.
    #[must_use]
    pub fn source(&self) -> &SourceName {
        &self.source
    }

    /// See [`LogStore::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put(&self, id: &SegmentId, meta: SegmentMeta, content: Box<dyn Read + Send>) -> Result<Stored> {
        if meta.marks.len() > MAX_MARKS {
            return Err(Error::new(ErrorKind::Internal, format!("the segment {id} has more than {MAX_MARKS} marks")));
        }
        self.store.put(&self.source, id, meta, content).await
    }

    /// See [`LogStore::timelines`].
    ///
    /// # Errors
    /// As there.
    pub async fn timelines(&self) -> Result<Vec<Timeline>> {
        self.store.timelines(&self.source).await
    }

    /// See [`LogStore::segments`].
    ///
    /// # Errors
    /// As there.
    pub async fn segments(&self, timeline: &Timeline) -> Result<Vec<SegmentEntry>> {
        self.store.segments(&self.source, timeline).await
    }

    /// See [`LogStore::record`].
    ///
    /// # Errors
    /// As there.
    pub async fn record(&self, id: &SegmentId) -> Result<SegmentRecord> {
        self.store.record(&self.source, id).await
    }

    /// See [`LogStore::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&self, id: &SegmentId, out: Box<dyn Write + Send>) -> Result<SegmentRecord> {
        self.store.read(&self.source, id, out).await
    }

    /// See [`LogStore::holds`].
    ///
    /// # Errors
    /// As there.
    pub async fn holds(&self, id: &SegmentId, content: Box<dyn Read + Send>) -> Result<bool> {
        self.store.holds(&self.source, id, content).await
    }

    /// See [`LogStore::add_note`].
    ///
    /// # Errors
    /// As there.
    pub async fn add_note(&self, name: &SegmentName, text: &str) -> Result<()> {
        self.store.add_note(&self.source, name, text).await
    }

    /// See [`LogStore::notes`].
    ///
    /// # Errors
    /// As there.
    pub async fn notes(&self) -> Result<Vec<(SegmentName, String)>> {
        self.store.notes(&self.source).await
    }

    /// See [`LogStore::check`].
    ///
    /// # Errors
    /// As there.
    pub async fn check(&self, cx: &RunContext, depth: CheckDepth) -> Result<Vec<SegmentDamage>> {
        self.store.check(cx, &self.source, depth).await
    }
}

/// A place where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The segment before which something is missing.
    pub before: SegmentId,
    /// What is missing: the segment that `before` names as its predecessor, or positions.
    pub missing: String,
    /// Why nobody need be told of it any more; `None` as long as somebody should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

impl Gap {
    /// Whether somebody should be told of it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.accepted.is_none()
    }
}

/// Segments whose records do not go on from those of the segment before: another state of the server wrote them, a copy of
/// it, or the server after it was set back.
#[must_use]
pub fn breaks(records: &[SegmentRecord]) -> Vec<SegmentDamage> {
    let last: BTreeMap<&SegmentId, u64> =
        records.iter().filter_map(|record| Some((&record.id, record.meta.last_record?))).collect();
    let mut found = Vec::new();
    for record in records {
        let (Some(before), Some(after)) = (&record.meta.predecessor, record.meta.after) else { continue };
        if last.get(before).is_some_and(|last| *last != after) {
            let problem =
                format!("its records do not go on from those of {before}: another state of the server wrote it");
            found.push(SegmentDamage { id: record.id.clone(), problem });
        }
    }
    found
}

/// Looks for holes in the records of segments, in the order of their log: predecessors that are not there, and
/// positions that do not join. The first of a chain may name a predecessor that was never archived: that is where the
/// window begins, not a hole. A timeline may begin where a segment of the one before ends. Segments of a timeline may
/// overlap (what is archived in parts first, and as a whole later). Files beside the log, without a span, are passed over.
#[must_use]
pub fn gaps<'a>(records: impl IntoIterator<Item = &'a SegmentRecord>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut known: BTreeSet<&SegmentId> = BTreeSet::new();
    // What several name as missing is told once.
    let mut told: BTreeSet<&SegmentId> = BTreeSet::new();
    // Where the segments of this timeline, and of the one before it, end.
    let (mut ends, mut ends_before) = (BTreeSet::new(), BTreeSet::new());
    let mut last: Option<(&SegmentRecord, Span)> = None;
    for record in records {
        let Some(span) = record.meta.span else { continue };
        let begins = last.is_none_or(|(last, _)| last.id.timeline != record.id.timeline);
        if begins {
            ends_before = std::mem::take(&mut ends);
        }
        let gap = |missing: String| Gap { before: record.id.clone(), missing, accepted: None };
        if last.is_none() {
            // Where the archive begins. Other parts of the first segment name the same predecessor.
            known.extend(&record.meta.predecessor);
        }
        if let (Some((last, before)), Some(predecessor)) = (last, &record.meta.predecessor) {
            let reach = if last.id == *predecessor { Some(before.end) } else { ends.last().copied() };
            if !known.contains(predecessor) {
                let joins = begins && ends_before.contains(&span.start);
                if !joins && told.insert(predecessor) {
                    gaps.push(gap(format!("the segment {predecessor}")));
                }
            } else if let Some(reach) = reach
                && (reach < span.start || (last.id == *predecessor && reach != span.start))
            {
                gaps.push(gap(format!("the positions {reach} to {}", span.start)));
            }
        }
        known.insert(&record.id);
        ends.insert(span.end);
        last = Some((record, span));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, predecessor: Option<&str>, start: u64, end: u64) -> SegmentRecord {
        let id =
            |name: &str| SegmentId { timeline: Timeline::new("1").unwrap(), name: SegmentName::new(name).unwrap() };
        let meta =
            SegmentMeta { predecessor: predecessor.map(id), span: Some(Span { start, end }), ..SegmentMeta::default() };
        SegmentRecord { id: id(name), meta, bytes: end - start, stored_bytes: 1, stored: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn the_parts_of_the_first_segment_are_no_holes() {
        let part = |name: &str, start: u64, end: u64| record(name, Some("a"), start, end);
        let parts = [part("b", 10, 20), part("b.0-3", 10, 13), part("b.3-6", 13, 16)];
        assert!(gaps(&parts).is_empty() && gaps(&parts[1..]).is_empty());
        assert_eq!(gaps([&parts[1], &part("b.4-6", 14, 16)])[0].missing, "the positions 13 to 14");
        let next = record("d", Some("c"), 30, 40);
        assert_eq!(gaps(parts.iter().chain([&next]))[0].missing, "the segment 1/c");
    }

    #[test]
    fn records_that_do_not_go_on_are_a_break() {
        let with = |mut record: SegmentRecord, after, last_record| {
            (record.meta.after, record.meta.last_record) = (after, last_record);
            record
        };
        let first = with(record("b", Some("a"), 10, 20), Some(8), Some(17));
        let next = |after| with(record("c", Some("b"), 20, 30), after, Some(29));
        assert!(breaks(&[first.clone(), next(Some(17))]).is_empty());
        assert!(breaks(&[first.clone(), next(None)]).is_empty(), "what did not say is believed");
        let found = breaks(&[first, next(Some(16))]);
        assert!(found.len() == 1 && found[0].problem.contains("those of 1/b"), "{found:?}");
    }

    #[test]
    fn holes_are_found_and_the_beginning_is_none() {
        let whole = [record("b", Some("a"), 10, 20), record("c", Some("b"), 20, 30), record("d", Some("c"), 30, 31)];
        assert!(gaps(&whole).is_empty());
        let hole = gaps([&whole[0], &whole[2]]);
        assert_eq!(hole.len(), 1);
        assert_eq!((hole[0].before.name.as_str(), hole[0].missing.as_str()), ("d", "the segment 1/c"));
        let torn = [record("b", None, 10, 20), record("c", Some("b"), 21, 30)];
        assert_eq!(gaps(&torn)[0].missing, "the positions 20 to 21");
    }

    #[test]
    fn parts_of_segments_and_new_timelines_join() {
        // A whole segment after its parts, and the next one, of which there are parts only.
        let part = |name: &str, start: u64, end: u64| record(name, Some("b"), start, end);
        let parts = [record("b", Some("a"), 10, 20), record("c", Some("b"), 20, 30), part("c.0-5", 20, 25)];
        let next = [record("d.0-3", Some("c"), 30, 33), record("d.3-6", Some("c"), 33, 36)];
        assert!(gaps(parts.iter().chain(&next)).is_empty());
        assert_eq!(gaps(parts.iter().chain(&next[1..]))[0].missing, "the positions 30 to 33");
        // Another timeline leaves in the midst of `c`, or at its end, which it cannot name.
        let on_two = |mut record: SegmentRecord, predecessor: Option<&str>| {
            record.id.timeline = Timeline::new("2").unwrap();
            if let (Some(name), Some(before)) = (predecessor, &mut record.meta.predecessor) {
                (before.timeline, before.name) = (record.id.timeline.clone(), SegmentName::new(name).unwrap());
            }
            record
        };
        assert!(gaps(parts.iter().chain([&on_two(record("c", Some("b"), 20, 30), None)])).is_empty());
        assert!(gaps(parts.iter().chain([&on_two(record("d", Some("c"), 30, 40), Some("c"))])).is_empty());
        let later = on_two(record("e", Some("d"), 40, 50), Some("d"));
        assert_eq!(gaps(parts.iter().chain([&later]))[0].missing, "the segment 2/d");
    }
}
