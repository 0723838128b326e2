//! The chain of segments that follows a snapshot, link by link, across replication ids.
//!
//! Invariant: a link is given only when it follows the one before it byte by byte; a segment that is named as a
//! predecessor and is not there is an error with its name, never an early end.

use std::collections::{BTreeSet, VecDeque};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{SegmentEntry, SegmentId, SegmentRecord, Span, missing};
use backup_core::{RunContext, SegmentLog, Timeline};
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::follow::CONTINUES;

/// Records that are asked for at the same time.
const PARALLEL: usize = 16;

/// The offset that a segment begins at, from its name.
pub(crate) fn offset_of(id: &SegmentId) -> Option<u64> {
    id.name.as_str().parse().ok()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Chain<'a> {
    cx: &'a RunContext,
    log: &'a SegmentLog,
    /// What is left of the timeline that we are on, in order.
    entries: VecDeque<SegmentEntry>,
    records: VecDeque<SegmentRecord>,
    timeline: Timeline,
    visited: BTreeSet<Timeline>,
    /// The last link, once there was one.
    last: Option<SegmentId>,
    /// When that was stored.
    stored: Timestamp,
    offset: u64,
}

impl<'a> Chain<'a> {
    /// The chain that goes on from `offset` of the replication id `id`, the position of a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when its first segment is missing.
    pub(crate) async fn after(cx: &'a RunContext, log: &'a SegmentLog, id: &str, offset: u64) -> Result<Self> {
        let timeline = Timeline::new(id)?;
        let mut entries: VecDeque<SegmentEntry> = log.segments(&timeline).await?.into();
        let before = |entry: &SegmentEntry| offset_of(&entry.id).is_some_and(|start| start <= offset);
        let at_or_before = entries.iter().take_while(|entry| before(entry)).count();
        entries.drain(..at_or_before.saturating_sub(1));
        let mut chain = Self {
            cx,
            log,
            entries,
            records: VecDeque::new(),
            visited: BTreeSet::from([timeline.clone()]),
            timeline,
            last: None,
            stored: Timestamp::MIN,
            offset,
        };
        chain.begin(at_or_before > 0).await?;
        Ok(chain)
    }

    /// Drops a first segment that ends where the snapshot stands, or before.
    async fn begin(&mut self, has_earlier: bool) -> Result<()> {
        if !has_earlier {
            return Ok(());
        }
        self.fetch().await?;
        let ended = self.records.front().filter(|first| span(first).is_ok_and(|span| span.end <= self.offset));
        let Some(earlier) = ended.map(|record| (record.id.clone(), span(record))) else { return Ok(()) };
        self.records.pop_front();
        // Its successor need not be ours: the snapshot may be newer than all that was archived.
        if earlier.1?.end == self.offset {
            self.last = Some(earlier.0);
        }
        Ok(())
    }

    /// The next link; `None` at the end of the chain.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when a segment is missing, with its name.
    pub(crate) async fn next(&mut self) -> Result<Option<SegmentRecord>> {
        self.cx.check_cancelled()?;
        self.fetch().await?;
        let Some(record) = self.records.front() else { return self.cross().await };
        let reached = span(record)?;
        let fits = match (&self.last, &record.meta.predecessor) {
            (Some(last), Some(predecessor)) => last == predecessor && reached.start == self.offset,
            // The first after the snapshot may begin before it.
            (None, _) => reached.start <= self.offset && self.offset < reached.end,
            // Here begins what follows a later snapshot, after a break that was told.
            (Some(_), None) => false,
        };
        if fits {
            return Ok(self.take());
        }
        match &record.meta.predecessor {
            Some(predecessor) if self.last.as_ref() != Some(predecessor) && !self.is_there(predecessor).await? => {
                Err(hole(self.log, predecessor))
            }
            _ => Ok(None),
        }
    }

    fn take(&mut self) -> Option<SegmentRecord> {
        let record = self.records.pop_front()?;
        self.offset = record.meta.span.map_or(self.offset, |span| span.end);
        self.last = Some(record.id.clone());
        self.stored = record.stored;
        Some(record)
    }

    async fn is_there(&self, id: &SegmentId) -> Result<bool> {
        Ok(self.log.segments(&id.timeline).await?.iter().any(|entry| entry.id == *id))
    }

    /// Goes on where a server went on under another replication id.
    async fn cross(&mut self) -> Result<Option<SegmentRecord>> {
        for timeline in self.log.timelines().await? {
            if self.visited.contains(&timeline) {
                continue;
            }
            let entries = self.log.segments(&timeline).await?;
            let Some(first) = entries.first() else { continue };
            let first = self.log.record(&first.id).await?;
            // What was begun before is no continuation, whatever was taken away from it since.
            if first.stored < self.stored {
                continue;
            }
            let from_here = first.meta.details.get(CONTINUES).is_some_and(|before| before == self.timeline.as_str());
            match (&first.meta.predecessor, &self.last) {
                (Some(predecessor), Some(last)) if predecessor == last => {}
                // Renamed before anything was stored under the snapshot's own id.
                (None, None) if from_here && span(&first)?.start == self.offset => {}
                (Some(predecessor), _) if from_here || predecessor.timeline == timeline => {
                    if self.is_there(predecessor).await? {
                        continue;
                    }
                    return Err(hole(self.log, predecessor));
                }
                _ => continue,
            }
            self.visited.insert(timeline.clone());
            self.timeline = timeline;
            self.entries = entries.into_iter().skip(1).collect();
            self.records.push_back(first);
            return Ok(self.take());
        }
        Ok(None)
    }

    /// Reads the next records, when none is left.
    async fn fetch(&mut self) -> Result<()> {
        if !self.records.is_empty() {
            return Ok(());
        }
        let mut asked = JoinSet::new();
        let next: Vec<SegmentEntry> = self.entries.drain(..self.entries.len().min(PARALLEL)).collect();
        for (position, entry) in next.into_iter().enumerate() {
            let log = self.log.clone();
            asked.spawn(async move { (position, log.record(&entry.id).await) });
        }
        let mut found = Vec::new();
        while let Some(answer) = asked.join_next().await {
            let lost = |source| Error::new(ErrorKind::Internal, "a reader of segments was lost").caused_by(source);
            let (position, record) = answer.map_err(lost)?;
            found.push((position, record?));
        }
        found.sort_by_key(|(position, _)| *position);
        self.records.extend(found.into_iter().map(|(_, record)| record));
        Ok(())
    }
}

/// What a segment of a replication stream covers.
///
/// # Errors
/// [`ErrorKind::Damaged`] when it does not say.
pub(crate) fn span(record: &SegmentRecord) -> Result<Span> {
    let no_span = || Error::new(ErrorKind::Damaged, format!("the segment {} does not say what it covers", record.id));
    let span = record.meta.span.ok_or_else(no_span)?;
    if span.end.checked_sub(span.start) == Some(record.bytes) { Ok(span) } else { Err(no_span()) }
}

fn hole(log: &SegmentLog, id: &SegmentId) -> Error {
    Error::new(ErrorKind::Incomplete, missing(log.source(), id).message().to_owned())
        .hint("recover to a moment before it, or from a later snapshot; `stackward status` shows the windows")
}
