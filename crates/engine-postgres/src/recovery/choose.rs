//! Which snapshot a recovery begins with: the newest that ended before the moment.

use backup_core::engine::{Candidate, Moment};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::names::SnapshotId;
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};
use jiff::Timestamp;

use super::branches::{holders, point, told};
use super::way::{Branch, Search, Way, find, timeline};
use crate::physical::PhysicalDetails;
use crate::wal::Chain;

/// The snapshot, and the way from it.
///
/// # Errors
/// [`ErrorKind::NotFound`] when no snapshot leads there, with the window; those of [`find`].
pub(crate) async fn choose(
    cx: &RunContext,
    candidates: &[Candidate],
    log: &SegmentLog,
    chain: &Chain,
    moment: &Moment,
) -> Result<(SnapshotId, Way)> {
    let mut physical = Vec::new();
    for candidate in candidates {
        if let Some(details) = PhysicalDetails::of(&candidate.record)? {
            physical.push((&candidate.id, details, 0));
        }
    }
    if physical.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            "there is no base backup to recover from: the snapshots have dumps only",
        )
        .hint(
            "write `modes: [physical]` in the plan, and back up; what was before then cannot be recovered to a moment",
        ));
    }
    // Snapshots of a server that was replaced since are of no use; when all are, `find` says so.
    let of_archive =
        |details: &PhysicalDetails| chain.system().is_none_or(|system| system == details.system_identifier);
    if physical.iter().any(|(_, details, _)| of_archive(details)) {
        physical.retain(|(_, details, _)| of_archive(details));
    }
    let branch = Branch::of(log)?;
    let mut apart = None;
    for (_, details, leads_to) in &mut physical {
        match timeline(chain, details, branch) {
            Ok(timeline) => *leads_to = timeline,
            // Taken on another branch: an earlier one may lead there. No timeline has the number zero.
            Err(error) if error.kind() == ErrorKind::NotFound => apart = Some(error),
            Err(error) => return Err(error),
        }
    }
    physical.retain(|(_, _, leads_to)| *leads_to > 0);
    if let Some(apart) = apart.filter(|_| physical.is_empty()) {
        return Err(apart);
    }
    let from = physical.iter().map(|(_, details, _)| details.stopped).min();
    // What leads to the newest timeline comes first: what was left behind is not what is meant, unless nothing else is there.
    physical.sort_by_key(|(_, details, leads_to)| (*leads_to, details.stop_lsn));
    let mut window = Window { from, to: None };
    let mut newer: Option<(u32, Lsn)> = None;
    let is_somewhere = matches!(moment, Moment::Name(_) | Moment::Transaction(_));
    for (id, details, leads_to) in physical.iter().rev() {
        // Behind the next snapshot was looked already.
        let until = newer.filter(|(timeline, _)| is_somewhere && timeline == leads_to).map(|(_, until)| until);
        match find(cx, details, log, chain, moment, until).await? {
            Search::Found(way) => {
                // What was left behind is not what is meant, unless somebody says so.
                let newest = physical.last().map_or(*leads_to, |(.., newest)| *newest);
                if *leads_to < newest && window.to.is_some() {
                    return Err(point(window.refuse(moment), &[*leads_to], &[newest]));
                }
                return Ok(((*id).clone(), way));
            }
            Search::TooEarly => {}
            Search::NotThere { time, .. } => {
                window.to = window.to.max(time);
                if !is_somewhere && physical.iter().all(|(_, _, other)| other == leads_to) {
                    break;
                }
            }
        }
        newer = Some((*leads_to, details.stop_lsn));
    }
    let backups: Vec<&PhysicalDetails> = physical.iter().map(|(_, details, _)| details).collect();
    let mut followed: Vec<u32> = physical.iter().map(|(.., leads_to)| *leads_to).collect();
    followed.dedup();
    let holders = holders(cx, &backups, log, chain, moment, &followed).await?;
    Err(point(window.refuse(moment), &holders, &followed))
}

/// What can be recovered to.
struct Window {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Window {
    fn refuse(&self, moment: &Moment) -> Error {
        let window = match (self.from, self.to) {
            (Some(from), Some(to)) => format!("from {} to {}", told(whole(from)), told(to)),
            (Some(from), None) => format!("from {} on", told(whole(from))),
            _ => "nothing".to_owned(),
        };
        Error::new(ErrorKind::NotFound, format!("{moment} lies outside of what can be recovered: {window}"))
            .hint("`stackward status` shows the window; `--to-latest` recovers all that is archived")
    }
}

/// The second that has begun when `time` has passed: a window must not seem to begin before it does.
fn whole(time: Timestamp) -> Timestamp {
    let past = time.subsec_nanosecond() > 0;
    Timestamp::from_second(time.as_second() + i64::from(past)).unwrap_or(time)
}

/// The error of a restore of one snapshot to a moment that cannot be reached from it.
///
/// # Errors
/// When it cannot be told where the moment is.
pub(crate) async fn out_of_reach(
    cx: &RunContext,
    search: &Search,
    details: &PhysicalDetails,
    (log, chain): (&SegmentLog, &Chain),
    moment: &Moment,
) -> Result<Error> {
    let to = if let Search::NotThere { time, .. } = search { *time } else { None };
    let error = Window { from: Some(details.stopped), to }.refuse(moment);
    let followed = [timeline(chain, details, Branch::of(log)?)?];
    Ok(point(error, &holders(cx, &[details], log, chain, moment, &followed).await?, &followed))
}
