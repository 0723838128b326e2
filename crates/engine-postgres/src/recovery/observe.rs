//! Looks for the record at which a recovery to a moment stops.

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use jiff::Timestamp;

use super::spaces::LogSpaces;
use crate::wal::{End, Observer, Record};

/// A moment in the terms of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The last record that there is.
    Latest,
    Time(Timestamp),
    Position(Lsn),
    Transaction(u32),
    Point(String),
}

impl Wanted {
    /// # Errors
    /// [`ErrorKind::Usage`] when a position is none of PostgreSQL's.
    pub(super) fn of(moment: &Moment) -> Result<Self> {
        Ok(match moment {
            Moment::Snapshot | Moment::Latest => Self::Latest,
            Moment::Time(time) => Self::Time(*time),
            Moment::Position(text) => Self::Position(text.parse().map_err(|why: String| {
                Error::new(ErrorKind::Usage, why).hint("`SELECT pg_current_wal_lsn()` shows the present one")
            })?),
            // The log has the lower half of what `pg_current_xact_id()` shows.
            Moment::Transaction(id) => Self::Transaction(*id as u32),
            Moment::Name(name) => Self::Point(name.clone()),
        })
    }
}

/// The record at which the server stops, and on which side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) record: (Lsn, Lsn),
    /// Whether it is replayed.
    pub(super) replayed: bool,
    /// The time of the last transaction that is replayed, when one was seen.
    pub(super) time: Option<Timestamp>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Search {
    wanted: Wanted,
    /// Moments before this position are in the midst of the base backup.
    consistent: Lsn,
    pub(super) found: Option<Mark>,
    /// The moment is before the base backup's end.
    pub(super) too_early: bool,
    /// The latest time that any record tells.
    pub(super) last_time: Option<Timestamp>,
    /// Where the last record that tells a time begins.
    pub(super) last_at: Option<Lsn>,
    pub(super) records: u64,
    pub(super) spaces: LogSpaces,
}

impl Search {
    pub(super) fn new(wanted: Wanted, consistent: Lsn) -> Self {
        Self {
            wanted,
            consistent,
            found: None,
            too_early: false,
            last_time: None,
            last_at: None,
            records: 0,
            spaces: LogSpaces::default(),
        }
    }

    /// Whether nothing that follows can change the answer.
    pub(super) fn is_over(&self) -> bool {
        let first_counts = !matches!(self.wanted, Wanted::Latest | Wanted::Point(_));
        first_counts && (self.found.is_some() || self.too_early)
    }

    /// Stop at this record; `replayed` says on which side.
    fn stop(&mut self, record: &Record, replayed: bool) {
        if record.start < self.consistent {
            self.too_early = true;
        } else {
            self.too_early = false;
            self.found = Some(Mark { record: (record.start, record.end), replayed, time: self.last_time });
        }
    }
}

impl Observer for Search {
    fn see(&mut self, record: &Record) {
        // Also of those behind the answer, up to the end of what is read.
        self.spaces.note(record);
        if self.is_over() {
            return;
        }
        self.records += 1;
        match (&self.wanted, &record.what) {
            (Wanted::Position(position), _) if record.start >= *position => self.stop(record, false),
            (Wanted::Time(wanted), End::Transaction { time, .. }) if time >= wanted => self.stop(record, false),
            (Wanted::Transaction(wanted), End::Transaction { id, .. }) if id == wanted => self.stop(record, false),
            (Wanted::Point(wanted), End::Point { name, .. }) if name == wanted => self.stop(record, true),
            _ => {}
        }
        if !self.is_over()
            && let End::Transaction { time, .. } | End::Point { time, .. } = &record.what
        {
            self.last_time = self.last_time.max(Some(*time));
            self.last_at = Some(record.start);
        }
    }
}
