//! Which snapshot a recovery begins with: the newest that its moment can be reached from.

use backup_core::engine::{Candidate, Moment};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{RunContext, SegmentLog, SnapshotId};

use super::aof::AofMoment;
use super::{Recovery, parse_position, position, position_time, refuse_branch};

/// Chooses it.
///
/// # Errors
/// As [`Restorer::choose`](backup_core::engine::Restorer::choose).
pub(crate) async fn choose(
    cx: &RunContext,
    candidates: &[Candidate],
    log: Option<&SegmentLog>,
    moment: &Moment,
) -> Result<SnapshotId> {
    refuse_branch(log)?;
    let mut followed: Vec<&Candidate> =
        candidates.iter().filter(|candidate| position(&candidate.record).is_some()).collect();
    followed.sort_by_key(|candidate| (position_time(&candidate.record), candidate.id.clone()));
    // The append-only files of a backup tell of moments before it; the stream has them more finely.
    let told = candidates.iter().rev().find(|candidate| AofMoment::of(&candidate.record, moment).is_some());
    let Some(newest) = followed.last() else {
        if let Some(told) = told {
            return Ok(told.id.clone());
        }
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no snapshot of `{}` has a place in its stream", cx.source()),
        )
        .hint("`follow: true` in the plan and `stackward follow` take the first one"));
    };
    // What no snapshot could ever reach is said as it is.
    if let Moment::Position(text) = moment {
        parse_position(text)?;
    }
    let mut outside = None;
    for candidate in followed.iter().rev() {
        match Recovery::find(cx, &candidate.record, log, moment).await {
            Ok(_) => return Ok(candidate.id.clone()),
            Err(error) if error.kind() == ErrorKind::NotFound => outside = outside.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if let Some(told) = told {
        return Ok(told.id.clone());
    }
    let oldest = followed.first().unwrap_or(newest);
    let begins = format!("{:.0}", position_time(&oldest.record));
    let error = Error::new(ErrorKind::NotFound, format!("`{}` cannot be recovered to {moment}", cx.source()));
    let error = match outside {
        Some(why) => error.caused_by(why.to_string()),
        None => error,
    };
    Err(error.with("the oldest snapshot is of", begins).hint("`stackward status` shows the windows"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backup_core::{SourceName, Timeline};
    use backup_testkit::MemoryLog;

    use super::*;

    #[tokio::test]
    async fn a_stream_has_no_branches_to_choose_from() {
        let source = SourceName::new("cache").unwrap();
        let log = SegmentLog::new(Arc::<MemoryLog>::default(), source.clone());
        let cx = RunContext::new(source);
        let of = async |log: &SegmentLog| choose(&cx, &[], Some(log), &Moment::Latest).await.unwrap_err();
        let error = of(&log.clone().along(Timeline::new("2").unwrap())).await;
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("timeline 2"), "{error:?}");
        assert_eq!(of(&log).await.kind(), ErrorKind::NotFound, "without one, it is only that there is no snapshot");
    }
}
