//! What was received of the stream and is not archived yet: files without a name in the scratch folder, one per segment.
//!
//! Invariant: the bytes of one timeline follow each other without a hole, and each segment names the one before it.

use std::collections::BTreeMap;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup_core::error::{Error, Result};
use backup_core::log::{MAX_MARKS, Mark, SegmentId, SegmentMeta, Span};
use backup_core::{SegmentName, Timeline};
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;

use super::Limits;

/// Marks of one segment are at least so far apart.
const MARK_EVERY: Duration = Duration::from_millis(200);
/// A segment that holds nothing but the server's PINGs may get so old: an idle server needs no segment every few seconds.
const IDLE_AGE: Duration = Duration::from_mins(1);
/// What the server sends when it has nothing to say.
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// The segment name of an offset: names sort as offsets do.
pub(crate) fn segment_name(offset: u64) -> Result<SegmentName> {
    SegmentName::new(format!("{offset:020}"))
}

/// A segment that waits to be stored.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: SegmentId,
    pub(crate) meta: SegmentMeta,
    pub(crate) span: Span,
    /// Grows with every full snapshot: offsets of different epochs have nothing to do with each other.
    pub(crate) epoch: u64,
    file: std::fs::File,
}

impl Waiting {
    /// Its bytes, from the beginning; may be asked for again.
    pub(crate) fn content(&self) -> Result<Box<dyn std::io::Read + Send>> {
        let failed = |source| Error::from_io(format!("cannot read the spooled segment {}", self.id), source);
        let mut file = self.file.try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        Ok(Box::new(file))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.span.end - self.span.start
    }
}

/// Where the stream goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) timeline: Timeline,
    /// Everything up to this offset is known.
    pub(crate) offset: u64,
    /// The last segment before it.
    pub(crate) predecessor: Option<SegmentId>,
}

/// Takes the stream and cuts it into segments.
#[derive(Debug)]
pub(crate) struct Intake {
    folder: PathBuf,
    limits: Limits,
    place: Place,
    epoch: u64,
    /// For every segment: the server's version, its run id.
    details: BTreeMap<String, serde_json::Value>,
    /// For the next segment alone: why there is a break.
    once: BTreeMap<String, serde_json::Value>,
    filling: Option<Filling>,
}

#[derive(Debug)]
struct Filling {
    file: tokio::fs::File,
    start: u64,
    begun: Instant,
    marks: Marks,
    pings: Pings,
}

impl Intake {
    pub(crate) fn new(folder: &Path, limits: Limits, place: Place, epoch: u64) -> Self {
        let (details, once) = (BTreeMap::new(), BTreeMap::new());
        Self { folder: folder.to_owned(), limits, place, epoch, details, once, filling: None }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What every segment from now on says of the server.
    pub(crate) fn describe(&mut self, details: BTreeMap<String, serde_json::Value>) {
        self.details = details;
    }

    /// Appends; gives a segment back when it is full.
    pub(crate) async fn push(&mut self, now: Timestamp, data: &[u8]) -> Result<Option<Waiting>> {
        let failed = |source| Error::from_io("cannot spool the replication stream", source);
        if self.filling.is_none() {
            self.filling = Some(Filling::begin(&self.folder, self.place.offset)?);
        }
        let Some(filling) = &mut self.filling else { return Ok(None) };
        if let Err(source) = filling.file.write_all(data).await {
            // What is in the file is not known any more: it will be asked for again.
            self.place.offset = filling.start;
            self.filling = None;
            return Err(failed(source));
        }
        self.place.offset += data.len() as u64;
        filling.marks.received(Mark { time: now, position: self.place.offset });
        filling.pings.see(data);
        let full = self.place.offset - filling.start >= self.limits.bytes || filling.marks.is_full();
        if full { self.cut().await } else { Ok(None) }
    }

    /// When the segment that is being filled is old enough to be stored.
    pub(crate) fn due(&self) -> Option<Instant> {
        let filling = self.filling.as_ref()?;
        let age = if filling.pings.only() { IDLE_AGE.max(self.limits.age) } else { self.limits.age };
        Some(filling.begun + age)
    }

    /// The bytes of the segment that is being filled.
    pub(crate) fn bytes(&self) -> u64 {
        self.filling.as_ref().map_or(0, |filling| self.place.offset - filling.start)
    }

    /// Ends the segment that is being filled; the next byte begins another one.
    pub(crate) async fn cut(&mut self) -> Result<Option<Waiting>> {
        let Some(mut filling) = self.filling.take() else { return Ok(None) };
        if let Err(source) = filling.file.flush().await {
            self.place.offset = filling.start;
            return Err(Error::from_io("cannot spool the replication stream", source));
        }
        let span = Span { start: filling.start, end: self.place.offset };
        let id = SegmentId { timeline: self.place.timeline.clone(), name: segment_name(span.start)? };
        let mut details = self.details.clone();
        details.append(&mut self.once);
        let predecessor = self.place.predecessor.replace(id.clone());
        let meta = SegmentMeta {
            predecessor,
            span: Some(span),
            marks: filling.marks.finish(),
            details,
            ..SegmentMeta::default()
        };
        Ok(Some(Waiting { id, meta, span, epoch: self.epoch, file: filling.file.into_std().await }))
    }

    /// Goes on under another replication id: the server that goes on shares the history so far.
    pub(crate) async fn rename(&mut self, timeline: Timeline) -> Result<Option<Waiting>> {
        let last = self.cut().await?;
        let before = std::mem::replace(&mut self.place.timeline, timeline);
        self.once.insert(super::CONTINUES.to_owned(), before.as_str().into());
        Ok(last)
    }
}

impl Filling {
    fn begin(folder: &Path, start: u64) -> Result<Self> {
        // Without a name: gone with us, however we end.
        let file = tempfile::tempfile_in(folder);
        let file = file.map_err(|source| Error::io("cannot make a spool file", folder, source))?;
        let file = tokio::fs::File::from_std(file);
        Ok(Self { file, start, begun: Instant::now(), marks: Marks::default(), pings: Pings::default() })
    }
}

/// When the stream had grown to where, thinned out so that a moment between two marks that stand apart is quiet.
#[derive(Debug, Default)]
struct Marks {
    kept: Vec<Mark>,
    /// The newest, when it is not among them.
    newest: Option<Mark>,
}

impl Marks {
    fn received(&mut self, mark: Mark) {
        let apart = |last: &Mark| mark.time.duration_since(last.time).unsigned_abs() >= MARK_EVERY;
        if self.kept.last().is_none_or(apart) {
            // What came between the two came by then: a quiet time after it must not make it younger.
            self.kept.extend(self.newest.take());
            self.kept.push(mark);
        } else {
            self.newest = Some(mark);
        }
    }

    /// Whether another two might be too many.
    fn is_full(&self) -> bool {
        self.kept.len() + 3 > MAX_MARKS
    }

    fn finish(mut self) -> Vec<Mark> {
        self.kept.extend(self.newest);
        self.kept
    }
}

/// Whether a segment holds nothing but PINGs.
#[derive(Debug)]
struct Pings {
    /// How far into a PING we are; `None` once anything else came.
    at: Option<usize>,
}

impl Default for Pings {
    fn default() -> Self {
        Self { at: Some(0) }
    }
}

impl Pings {
    fn see(&mut self, data: &[u8]) {
        for byte in data {
            let Some(at) = self.at else { return };
            self.at = (PING[at] == *byte).then_some((at + 1) % PING.len());
        }
    }

    fn only(&self) -> bool {
        self.at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap()
    }

    fn place(offset: u64) -> Place {
        Place { timeline: Timeline::new("a").unwrap(), offset, predecessor: None }
    }

    fn intake(folder: &Path, bytes: u64) -> Intake {
        Intake::new(folder, Limits { bytes, age: Duration::from_secs(10), spool: 1000 }, place(7), 1)
    }

    #[tokio::test]
    async fn segments_join_and_hold_what_came() {
        let folder = tempfile::tempdir().unwrap();
        let mut intake = intake(folder.path(), 10);
        let mut segments = Vec::new();
        for part in ["abc", "defghijkl", "m", "nopqrstuvwxyz"] {
            segments.extend(intake.push(at(0), part.as_bytes()).await.unwrap());
        }
        intake.push(at(5), b"!").await.unwrap();
        segments.extend(intake.rename(Timeline::new("b").unwrap()).await.unwrap());
        intake.push(at(6), b"?").await.unwrap();
        segments.extend(intake.cut().await.unwrap());
        assert!(intake.cut().await.unwrap().is_none());
        let mut text = String::new();
        for pair in segments.windows(2) {
            assert_eq!(pair[0].span.end, pair[1].span.start);
            assert_eq!(pair[1].meta.predecessor.as_ref(), Some(&pair[0].id));
        }
        for segment in &segments {
            segment.content().unwrap().read_to_string(&mut text).unwrap();
        }
        assert_eq!(text, "abcdefghijklmnopqrstuvwxyz!?");
        let names: Vec<String> = segments.iter().map(|segment| segment.id.to_string()).collect();
        assert_eq!(names[0], "a/00000000000000000007");
        assert_eq!(names.last().unwrap(), "b/00000000000000000034");
        assert_eq!(segments.last().unwrap().meta.details[super::super::CONTINUES], "a");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "spool files have no names");
    }

    #[test]
    fn marks_are_thin_and_keep_what_came_before_a_quiet_time() {
        let mut marks = Marks::default();
        for (position, millis) in [(1, 0), (2, 50), (3, 150), (4, 5000), (5, 5100)] {
            marks.received(Mark { time: at(millis), position });
        }
        let kept: Vec<_> = marks.finish().iter().map(|mark| (mark.position, mark.time)).collect();
        assert_eq!(kept, [(1, at(0)), (3, at(150)), (4, at(5000)), (5, at(5100))]);
    }

    #[tokio::test]
    async fn a_segment_of_pings_may_wait() {
        let folder = tempfile::tempdir().unwrap();
        let mut intake = intake(folder.path(), 1000);
        intake.push(at(0), &PING[..5]).await.unwrap();
        intake.push(at(0), &[&PING[5..], PING].concat()).await.unwrap();
        let idle = intake.due().unwrap();
        intake.push(at(0), b"*1\r\n$4\r\nQUIT\r\n").await.unwrap();
        assert_eq!(idle.duration_since(intake.due().unwrap()) + Duration::from_secs(10), IDLE_AGE);
    }
}
