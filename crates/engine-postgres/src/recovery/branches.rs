//! What other timelines have of a moment than the one that a recovery follows. After a recovery, or the loss of a primary, there are
//! two histories of one time: the one that was left behind, and the one that the server went on with.
//!
//! Invariant: a recovery never ends far before the moment, for want of it on its timeline, while another one has it.

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog, Timeline};
use jiff::Timestamp;

use super::way::{Branch, Search, Stop, Way, seek};
use crate::physical::PhysicalDetails;
use crate::wal::{Chain, WalSegment, last_mark};

/// The timelines, other than `followed`, on which the moment can be reached from one of the base backups.
///
/// # Errors
/// That it was cancelled. A timeline that cannot be followed has nothing.
pub(super) async fn holders(
    cx: &RunContext,
    backups: &[&PhysicalDetails],
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
    followed: &[u32],
) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for timeline in chain.timelines().into_iter().filter(|timeline| !followed.contains(timeline)) {
        let along = log.clone().along(Timeline::new(timeline.to_string())?);
        for details in backups.iter().rev() {
            cx.check_cancelled()?;
            match seek(cx, details, &along, chain, moment, None).await {
                Ok((Search::Found(_), None)) => {
                    found.push(timeline);
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }
    Ok(found)
}

/// Adds to the error of a moment that cannot be reached where it can be.
pub(super) fn point(error: Error, holders: &[u32], followed: &[u32]) -> Error {
    let Some(best) = holders.last() else { return error };
    let (has, followed) = (list(holders), list(followed));
    let message = format!("{}; {has} has it, and {followed} is followed", error.message());
    Error::new(error.kind(), message).hint(format!("recover along the timeline that has it: `--timeline {best}`"))
}

fn list(timelines: &[u32]) -> String {
    let numbers: Vec<String> = timelines.iter().map(ToString::to_string).collect();
    format!("timeline {}", numbers.join(", timeline "))
}

/// Refuses a way on which nothing happened at the moment, because its server was not there yet, when another timeline has it.
pub(super) async fn refuse_skipped(
    cx: &RunContext,
    details: &PhysicalDetails,
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
    way: &Way,
    left: Lsn,
) -> Result<()> {
    let holders = holders(cx, &[details], log, chain, moment, &[way.timeline]).await?;
    if holders.is_empty() {
        return Ok(());
    }
    let message = format!(
        "timeline {} has nothing of {moment}: it goes on from {left}, before which the last transaction is of {}",
        way.timeline,
        told(way.reached)
    );
    let error = point(Error::new(ErrorKind::NotFound, message), &holders, &[way.timeline]);
    let hint = error.remedy().unwrap_or_default().to_owned();
    Err(error.hint(format!("{hint}; to end where timeline {} begins: `--to-lsn {left}`", way.timeline)))
}

/// Tells which other timelines reach beyond the moment, when nobody has chosen one. By what is known of segments: nothing is read.
pub(super) async fn tell_others(
    cx: &RunContext,
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
    way: &Way,
) -> Result<()> {
    if Branch::of(log)? != Branch::Newest {
        return Ok(());
    }
    let stop = match way.stop {
        Stop::Consistent => return Ok(()),
        Stop::After(lsn) | Stop::Before(lsn) => lsn,
    };
    let mut others = Vec::new();
    for timeline in chain.timelines().into_iter().filter(|timeline| *timeline != way.timeline) {
        // Up to where they part they are the same.
        let Some(fork) = chain.fork(timeline, way.timeline).filter(|fork| stop >= *fork) else { continue };
        let Some(end) = chain.end(timeline).filter(|end| *end > fork) else { continue };
        let reaches = match moment {
            Moment::Time(time) => {
                let last = WalSegment::containing(timeline, Lsn(end.0.saturating_sub(1)), chain.segment_size());
                last_mark(log, chain, last).await?.is_some_and(|mark| mark >= *time)
            }
            Moment::Position(text) => text.parse::<Lsn>().is_ok_and(|lsn| lsn > fork && lsn <= end),
            _ => false,
        };
        if reaches {
            others.push(timeline);
        }
    }
    if let Some(last) = others.last() {
        cx.warn(format!(
            "{} reaches {moment}, too; timeline {} is followed, which is newer: `--timeline {last}` takes the other",
            list(&others),
            way.timeline
        ));
    }
    Ok(())
}

/// To the second, as `--to-time` takes it.
pub(super) fn told(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
