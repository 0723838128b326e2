//! Segments and pieces on their way into the archive, a few at a time, reported in the order of the log.
//!
//! Invariant: a position is reported when everything before it is durable.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{Mark, SegmentId, SegmentMeta, Span};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};
use serde_json::json;
use tokio::task::JoinHandle;

use super::RETRY;
use super::stage::Range;
use crate::wal::join::Edges;
use crate::wal::names::{SegmentSize, WalFile, WalSegment};
use crate::wal::page::{PAGE_HEADER_BYTES, PageHeader};
use crate::wal::push::{predecessor, segment_meta};

/// So many segments are compressed and stored at the same time; then receiving waits.
const MOST: usize = 2;

/// What is archived: a whole segment, or a piece of one.
pub(super) struct Parcel {
    pub(super) segment: WalSegment,
    pub(super) size: SegmentSize,
    pub(super) range: Range,
    pub(super) marks: Vec<Mark>,
}

impl Parcel {
    fn is_whole(&self) -> bool {
        self.range.from == 0 && self.range.to == self.size.bytes()
    }

    fn end(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0 + self.range.to)
    }

    /// The segment's first page header.
    fn header(&self) -> Result<PageHeader> {
        let header = PageHeader::parse(&self.range.beginning::<PAGE_HEADER_BYTES>()?)?;
        header.check(self.segment).map(|()| header)
    }

    /// Its name, and what the archive is told of it.
    fn label(&self, system: u64) -> Result<(SegmentId, SegmentMeta)> {
        let start = self.segment.start(self.size).0;
        if self.is_whole() {
            let header = self.header()?;
            if header.system != system {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    format!("the segment {} is of another server", self.segment),
                ));
            }
            let mut meta = SegmentMeta { marks: self.marks.clone(), ..segment_meta(self.segment, &header)? };
            Edges::read(&mut self.range.clone(), self.segment, self.size, system)?.tell(&mut meta);
            return Ok((WalFile::Segment(self.segment).id()?, meta));
        }
        let (from, to) = (self.range.from, self.range.to);
        let header = self.header()?;
        let details =
            [("system".to_owned(), json!(system.to_string())), ("segment_size".to_owned(), json!(self.size.bytes()))];
        let meta = SegmentMeta {
            span: Some(Span { start: start + from, end: start + to }),
            marks: self.marks.clone(),
            details: details.into(),
            predecessor: predecessor(self.segment, &header)?,
            ..SegmentMeta::default()
        };
        Ok((WalFile::Piece(self.segment, from as u32, to as u32).id()?, meta))
    }
}

/// See the module.
pub(super) struct Depot {
    cx: RunContext,
    log: SegmentLog,
    system: u64,
    under_way: VecDeque<(Lsn, JoinHandle<Result<()>>)>,
    /// How many of them failed and are tried again.
    failing: Arc<AtomicUsize>,
}

impl Depot {
    pub(super) fn new(cx: RunContext, log: SegmentLog, system: u64) -> Self {
        Self { cx, log, system, under_way: VecDeque::new(), failing: Arc::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether more should be received.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < MOST
    }

    /// Whether something could not be archived so far.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed) > 0
    }

    /// Begins to archive.
    pub(super) fn push(&mut self, parcel: Parcel) {
        let (cx, log, system, failing) = (self.cx.clone(), self.log.clone(), self.system, Arc::clone(&self.failing));
        let end = parcel.end();
        let work = tokio::spawn(async move { archive(&cx, &log, system, &parcel, &failing).await });
        self.under_way.push_back((end, work));
    }

    /// The next position before which everything is durable. Cancel safe.
    ///
    /// # Errors
    /// What cannot pass by itself: other bytes are archived under the name, above all.
    pub(super) async fn next(&mut self) -> Result<Lsn> {
        let Some((end, work)) = self.under_way.front_mut() else { return std::future::pending().await };
        let (end, ended) = (*end, work.await);
        self.under_way.pop_front();
        ended.map_err(|source| {
            Error::new(ErrorKind::Internal, "the thread of a segment was lost").caused_by(source)
        })??;
        Ok(end)
    }
}

impl Drop for Depot {
    fn drop(&mut self) {
        self.under_way.iter().for_each(|(_, work)| work.abort());
    }
}

/// Stores it, however long the sink is away; the server keeps the log meanwhile.
async fn archive(cx: &RunContext, log: &SegmentLog, system: u64, parcel: &Parcel, failing: &AtomicUsize) -> Result<()> {
    let (id, meta) = parcel.label(system)?;
    let (mut wait, mut failed) = (RETRY.0, 0);
    loop {
        let content: Box<dyn Read + Send> = Box::new(parcel.range.clone());
        match log.put(&id, meta.clone(), content).await {
            Ok(_) => {
                failing.fetch_sub(failed, Ordering::Relaxed);
                cx.progress(0, 1);
                cx.archived(&id);
                return Ok(());
            }
            Err(error) if super::is_passing(&error) && cx.check_cancelled().is_ok() => {
                if failed == 0 {
                    failing.fetch_add(1, Ordering::Relaxed);
                    failed = 1;
                }
                cx.warn(format!(
                    "{} is not archived: {}; trying again in {} s",
                    id.name,
                    error.chain(),
                    wait.as_secs()
                ));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = cx.cancellation().cancelled() => return Err(error),
                }
                wait = (wait * 2).min(RETRY.1);
            }
            Err(error) => return Err(error),
        }
    }
}

impl std::fmt::Debug for Depot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Depot").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}
