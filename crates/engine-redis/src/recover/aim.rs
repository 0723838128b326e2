//! What a recovery aims at, in the terms of the stream: an offset, a time of its marks, its end.
//!
//! Invariant: what is aimed at by time is what had come by then, never later.

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::Mark;
use jiff::Timestamp;

use super::Recovery;

/// A moment in the terms of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    End,
    Offset(u64),
    Time(Timestamp),
}

impl Aim {
    pub(super) fn of(moment: &Moment, id: &str, base: u64, begins: Timestamp) -> Result<Self> {
        let before = |what: String| {
            Error::new(ErrorKind::NotFound, format!("{what} comes before the snapshot, which stands at offset {base}"))
                .hint("choose no snapshot, or an earlier one")
        };
        match moment {
            Moment::Snapshot => Ok(Self::Offset(base)),
            Moment::Latest => Ok(Self::End),
            Moment::Time(time) if *time < begins => Err(before(moment.to_string())),
            Moment::Time(time) => Ok(Self::Time(*time)),
            Moment::Position(text) => match parse_position(text)? {
                (Some(other), _) if other != id => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the snapshot is of the replication id {id}, not of {other}"),
                )),
                (_, offset) if offset < base => Err(before(moment.to_string())),
                (_, offset) => Ok(Self::Offset(offset)),
            },
            Moment::Transaction(_) | Moment::Name(_) => {
                Err(Error::new(ErrorKind::Unsupported, format!("Redis cannot be recovered to {moment}"))
                    .hint("it knows times and offsets: `--to-time`, `--to-offset`, `--to-latest`"))
            }
        }
    }

    pub(super) fn is_met_by(self, recovery: &Recovery) -> bool {
        matches!(self, Self::Offset(offset) if offset == recovery.limit)
    }

    /// Moves the limit as far as a segment with these marks allows; whether the aim lies within it.
    pub(super) fn advance(self, recovery: &mut Recovery, marks: &[Mark], end: u64) -> bool {
        let known = |position: u64| marks.iter().find(|mark| mark.position >= position).map(|mark| mark.time);
        match self {
            Self::End => recovery.limit = end,
            Self::Offset(offset) => recovery.limit = offset.min(end),
            Self::Time(time) => {
                for mark in marks {
                    if mark.time > time {
                        return true;
                    }
                    (recovery.limit, recovery.time) = (mark.position, Some(mark.time));
                }
                return marks.last().is_some_and(|last| last.time == time);
            }
        }
        recovery.time = known(recovery.limit).or(recovery.time);
        matches!(self, Self::Offset(offset) if offset <= end)
    }
}

/// `OFFSET`, or `REPLICATION-ID:OFFSET`.
pub(crate) fn parse_position(text: &str) -> Result<(Option<&str>, u64)> {
    let (id, offset) = match text.split_once(':') {
        Some((id, offset)) => (Some(id), offset),
        None => (None, text),
    };
    let offset = offset.parse().map_err(|_| {
        Error::new(ErrorKind::Usage, format!("`{}` is no replication offset", text.escape_debug()))
            .hint("write a number, as `master_repl_offset` of INFO has it; or REPLICATION-ID:NUMBER")
    })?;
    Ok((id, offset))
}
