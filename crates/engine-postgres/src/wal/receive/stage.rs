//! The segment that is being received: in a temporary file without a name, until it is full or waited long enough.
//!
//! Invariant: memory does not depend on the length of segments; the file is read only where it was written.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{MAX_MARKS, Mark};
use backup_core::position::Lsn;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::depot::{Depot, Parcel};
use crate::wal::names::{SegmentSize, WalSegment};

/// Marks are at least so far apart at first; a segment that takes hours has fewer.
const MARK_EVERY: SignedDuration = SignedDuration::from_secs(1);

/// See the module.
pub(super) struct Stage {
    file: Arc<File>,
    folder: Arc<Path>,
    segment: WalSegment,
    size: SegmentSize,
    /// Bytes of the segment that are in the file.
    filled: u64,
    /// Bytes of it that were handed over in pieces.
    shipped: u64,
    /// Since when bytes wait that were not.
    waiting: Option<Instant>,
    marks: Marks,
}

impl Stage {
    /// Begins `segment`, of which the archive has so many bytes in pieces.
    pub(super) fn new(folder: &Path, segment: WalSegment, size: SegmentSize, archived: u32) -> Result<Self> {
        Ok(Self {
            file: temporary(folder)?,
            folder: folder.into(),
            segment,
            size,
            filled: 0,
            shipped: u64::from(archived),
            waiting: None,
            marks: Marks::default(),
        })
    }

    /// The position after the last byte that was received.
    pub(super) fn position(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0 + self.filled)
    }

    /// Since when bytes wait to be archived.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting
    }

    /// Takes bytes of the log; full segments go to the depot.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the server left bytes out: another session begins at the segment's start again.
    pub(super) fn write(&mut self, start: Lsn, data: &[u8], depot: &mut Depot) -> Result<()> {
        if start != self.position() {
            let message = format!("the server sent the log from {start} on, after {}", self.position());
            return Err(Error::new(ErrorKind::Unreachable, message));
        }
        let mut rest = data;
        while !rest.is_empty() {
            let room = usize::try_from(self.size.bytes() - self.filled).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            let written = self.file.write_all_at(now, self.filled);
            written.map_err(|error| Error::io("cannot keep the log until it is archived", &self.folder, error))?;
            self.filled += now.len() as u64;
            self.marks.add(Mark { time: Timestamp::now(), position: self.position().0 });
            rest = later;
            if self.filled == self.size.bytes() {
                self.ship_segment(depot)?;
            }
        }
        if self.filled > self.shipped {
            self.waiting.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn ship_segment(&mut self, depot: &mut Depot) -> Result<()> {
        let marks = std::mem::take(&mut self.marks).0;
        depot.push(Parcel { segment: self.segment, size: self.size, range: self.range(0), marks });
        self.segment = self.segment.next(self.size);
        self.file = temporary(&self.folder)?;
        (self.filled, self.shipped, self.waiting) = (0, 0, None);
        Ok(())
    }

    /// Hands over what was received since the last piece, if anything.
    pub(super) fn ship_piece(&mut self, depot: &mut Depot) {
        self.waiting = None;
        if self.filled > self.shipped {
            let marks = self.marks.0.clone();
            depot.push(Parcel { segment: self.segment, size: self.size, range: self.range(self.shipped), marks });
            self.shipped = self.filled;
        }
    }

    fn range(&self, from: u64) -> Range {
        Range { file: Arc::clone(&self.file), from, to: self.filled }
    }
}

fn temporary(folder: &Path) -> Result<Arc<File>> {
    let made = tempfile::tempfile_in(folder);
    made.map(Arc::new).map_err(|error| Error::io("cannot make a temporary file for the log", folder, error))
}

/// Bytes of a staged segment. Can be read again, should the archive fail.
#[derive(Debug, Clone)]
pub(super) struct Range {
    file: Arc<File>,
    /// Where it begins in the segment.
    pub(super) from: u64,
    /// Where it ends.
    pub(super) to: u64,
}

impl Range {
    /// The first bytes of the segment.
    pub(super) fn beginning<const N: usize>(&self) -> Result<[u8; N]> {
        let mut head = [0; N];
        let read = self.file.read_exact_at(&mut head, 0);
        read.map_err(|error| Error::from_io("cannot read the segment that was received", error))?;
        Ok(head)
    }
}

impl Read for Range {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.to - self.from).unwrap_or(usize::MAX).min(out.len());
        let count = self.file.read_at(&mut out[..left], self.from)?;
        self.from += count as u64;
        Ok(count)
    }
}

/// When the log had grown to where; spread out when there are many.
#[derive(Default)]
struct Marks(Vec<Mark>);

impl Marks {
    fn add(&mut self, mark: Mark) {
        // The clock may have been set back: then the time is not told again before it has caught up.
        let span = |marks: &[Mark]| match marks {
            [first, .., last] => last.time.duration_since(first.time),
            _ => SignedDuration::ZERO,
        };
        let every = MARK_EVERY.max(span(&self.0) / (MAX_MARKS as i32 / 2));
        if let [.., before, last] = &mut self.0[..]
            && last.time.duration_since(before.time) < every
        {
            // The last mark moves on until it is far enough from the one before.
            *last = mark;
            return;
        }
        if self.0.len() == MAX_MARKS {
            let mut keep = false;
            self.0.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.0.push(mark);
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("segment", &self.segment).field("filled", &self.filled).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_the_last_position_is_known() {
        let mut marks = Marks::default();
        for second in 0..20_000i64 {
            marks.add(Mark { time: Timestamp::from_second(second).unwrap(), position: second as u64 });
            marks.add(Mark { time: Timestamp::from_second(second).unwrap(), position: second as u64 + 1 });
        }
        assert!(marks.0.len() <= MAX_MARKS && marks.0.len() > MAX_MARKS / 4, "{}", marks.0.len());
        assert_eq!(marks.0.last().unwrap().position, 20_000);
        assert!(marks.0.is_sorted_by(|a, b| a.time <= b.time && a.position < b.position));
    }
}
