//! Where the archive ends, asked of the archive alone: a local note could be older, or newer, than what is durable.
//!
//! Invariant: the end is reachable: a snapshot lies on the chain of segments that leads to it, else nothing could be
//! recovered from what would be added.

use backup_core::engine::{Candidate, Snapshots};
use backup_core::error::Result;
use backup_core::log::SegmentRecord;
use backup_core::position::Position;
use backup_core::{RunContext, SegmentLog, Timeline};
use jiff::Timestamp;

use super::intake::Place;
use crate::recover::chain::offset_of;

/// Finds it; `None` when there is nothing to go on from.
pub(crate) async fn find(cx: &RunContext, log: &SegmentLog, snapshots: &dyn Snapshots) -> Result<Option<Place>> {
    let candidates = snapshots.candidates().await?;
    let mut newest: Option<SegmentRecord> = None;
    for timeline in log.timelines().await? {
        cx.check_cancelled()?;
        let Some(last) = log.segments(&timeline).await?.pop() else { continue };
        let record = log.record(&last.id).await?;
        if newest.as_ref().is_none_or(|newest| newest.stored < record.stored) {
            newest = Some(record);
        }
    }
    // The snapshot that a follower took last, before it stored the first segment after it.
    let fresh = candidates.iter().rev().find_map(|candidate| place(candidate, newest.as_ref().map(|last| last.stored)));
    if fresh.is_some() {
        return Ok(fresh);
    }
    let Some(newest) = newest else { return Ok(None) };
    let Some(span) = newest.meta.span else { return Ok(None) };
    if !is_reachable(log, &newest, &candidates).await? {
        cx.warn("no snapshot leads to the end of the archived log: a new one is taken");
        return Ok(None);
    }
    Ok(Some(Place { timeline: newest.id.timeline.clone(), offset: span.end, predecessor: Some(newest.id) }))
}

/// The end of a snapshot, when a follower took it after `stored`, or any was taken and nothing was ever stored.
fn place(candidate: &Candidate, stored: Option<Timestamp>) -> Option<Place> {
    let Some(Position::Replication { id, offset }) = &candidate.record.position else { return None };
    let followed = candidate.record.details.get("way").is_some_and(|way| way == "follow");
    let fresh = stored.is_none_or(|stored| followed && candidate.record.finished > stored);
    fresh.then(|| Some(Place { timeline: Timeline::new(id).ok()?, offset: *offset, predecessor: None }))?
}

/// Whether some snapshot lies on the chain that ends with `last`: goes back timeline by timeline.
async fn is_reachable(log: &SegmentLog, last: &SegmentRecord, candidates: &[Candidate]) -> Result<bool> {
    let timelines = log.timelines().await?.len();
    let mut timeline = last.id.timeline.clone();
    let mut until = last.meta.span.map_or(0, |span| span.end);
    for _ in 0..timelines {
        let Some(first) = log.segments(&timeline).await?.into_iter().next() else { return Ok(false) };
        let from = offset_of(&first.id).unwrap_or(u64::MAX);
        let on_it = |candidate: &Candidate| {
            matches!(&candidate.record.position, Some(Position::Replication { id, offset })
                if *id == timeline.as_str() && (from..=until).contains(offset))
        };
        if candidates.iter().any(on_it) {
            return Ok(true);
        }
        let first = log.record(&first.id).await?;
        let continues = first.meta.details.get(super::CONTINUES).and_then(|id| id.as_str());
        let Some(before) = continues.and_then(|id| Timeline::new(id).ok()) else { return Ok(false) };
        (timeline, until) = (before, from);
        // Renamed before its first segment: the snapshot itself is what comes before.
        if first.meta.predecessor.is_none() {
            let is_it = |candidate: &Candidate| {
                matches!(&candidate.record.position, Some(Position::Replication { id, offset })
                    if *id == timeline.as_str() && *offset == until)
            };
            return Ok(candidates.iter().any(is_it));
        }
    }
    Ok(false)
}
