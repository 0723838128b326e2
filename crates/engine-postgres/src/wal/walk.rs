//! One segment of the archive through the walker, whole or in the pieces that there are.
//!
//! Invariant: what was seen counts only when the archive found every byte of the segment to be what was stored.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::SegmentLog;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::SegmentRecord;
use backup_core::position::Lsn;
use jiff::Timestamp;

use super::chain::Chain;
use super::fetch::pieces;
use super::names::{WalFile, WalSegment};
use super::records::{Record, Walker};

/// Who looks at the records that pass.
pub(crate) trait Observer: std::fmt::Debug + Send + 'static {
    /// A record that is whole.
    fn see(&mut self, record: &Record);
}

/// A walker and who watches.
#[derive(Debug)]
struct Pair<O> {
    walker: Walker,
    observer: O,
}

/// The pair, shared with what the archive writes to.
pub(super) struct Shared<O>(Arc<Mutex<Option<Pair<O>>>>);

impl<O: Observer> Shared<O> {
    pub(super) fn new(walker: Walker, observer: O) -> Self {
        Self(Arc::new(Mutex::new(Some(Pair { walker, observer }))))
    }

    /// Takes bytes for the walker, without the first `skip` of them.
    pub(super) fn tap(&self, skip: u64) -> Tap<O> {
        Tap { pair: Arc::clone(&self.0), skip }
    }

    /// So many bytes of what begins at `begin` passed already.
    pub(super) fn passed(&self, begin: Lsn) -> u64 {
        let pair = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pair.as_ref().map_or(0, |pair| pair.walker.position().0.saturating_sub(begin.0))
    }

    pub(super) fn take(&self) -> Result<(Walker, O)> {
        let pair = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || Error::new(ErrorKind::Internal, "a walk through the log was lost");
        pair.map(|Pair { walker, observer }| (walker, observer)).ok_or_else(lost)
    }
}

/// Takes the bytes of a segment, without those that passed already.
pub(super) struct Tap<O> {
    pair: Arc<Mutex<Option<Pair<O>>>>,
    skip: u64,
}

impl<O: Observer> Write for Tap<O> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        self.skip -= skipped as u64;
        let mut pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Pair { walker, observer }) = &mut *pair {
            walker.push(&data[skipped..], &mut |record| observer.see(record));
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lets `segment` pass through `walker`, and hands both back.
///
/// # Errors
/// [`NotFound`](backup_core::ErrorKind::NotFound) when it is not in the archive, [`Damaged`](backup_core::ErrorKind::Damaged).
pub(crate) async fn walk<O: Observer>(
    log: &SegmentLog,
    chain: &Chain,
    segment: WalSegment,
    walker: Walker,
    observer: O,
) -> Result<(Walker, O)> {
    let start = segment.start(chain.segment_size());
    let pair = Shared::new(walker, observer);
    let tap = |skip| Box::new(pair.tap(skip));
    if chain.has(segment) {
        log.read(&WalFile::Segment(segment).id()?, tap(0)).await?;
    } else {
        for piece in pieces(log, segment).await? {
            let WalFile::Piece(_, from, _) = piece else { continue };
            let begin = Lsn(start.0 + u64::from(from));
            log.read(&piece.id()?, tap(pair.passed(begin))).await?;
        }
    }
    pair.take()
}

/// When the last bytes of a segment were received, by the clock of whoever received them.
///
/// # Errors
/// Those of reading its record.
pub(crate) async fn last_mark(log: &SegmentLog, chain: &Chain, segment: WalSegment) -> Result<Option<Timestamp>> {
    let file = if chain.has(segment) { Some(WalFile::Segment(segment)) } else { pieces(log, segment).await?.pop() };
    let Some(file) = file else { return Ok(None) };
    let record: SegmentRecord = log.record(&file.id()?).await?;
    Ok(record.meta.marks.last().map(|mark| mark.time))
}
