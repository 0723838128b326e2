//! Snapshots that say that they are from the future: a clock was wrong when they were taken, or is wrong here and now.
//!
//! Invariant: such a snapshot is never the latest, and never makes anything look younger than it is.

use std::time::Duration;

use backup_core::sink::{Sink, SnapshotFilter, SnapshotSummary};
use backup_core::{PlanName, Result, SnapshotId};
use jiff::Timestamp;

use crate::output;

/// Clocks of machines that keep the time differ by less.
const TOLERANCE: Duration = Duration::from_mins(10);

/// Whether `time` is ahead of this machine's clock.
pub(crate) fn is_ahead(time: Timestamp) -> bool {
    horizon() < time
}

/// Whether a snapshot's id says so.
pub(crate) fn is_id_ahead(id: &SnapshotId) -> bool {
    SnapshotId::generate(horizon()).second() < id.second()
}

fn horizon() -> Timestamp {
    Timestamp::now().checked_add(TOLERANCE).unwrap_or(Timestamp::MAX)
}

/// What is to be said of a snapshot, or an archive, whose time is ahead.
pub(crate) fn alarm(what: &str, time: Timestamp) -> String {
    let (time, now) = (output::moment(time), output::moment(Timestamp::now()));
    format!(
        "{what} says that it is from {time}, and it is {now} here: a clock is, or was, wrong; it does not count as the latest"
    )
}

/// Alarms about the snapshots of a plan.
///
/// # Errors
/// When they cannot be listed.
pub(crate) async fn alarms(sink: &dyn Sink, plan: &PlanName) -> Result<Vec<String>> {
    let snapshots = sink.snapshots(&SnapshotFilter { plan: Some(plan.clone()) }).await?;
    let ahead = snapshots.iter().filter(|summary| is_ahead(summary.started));
    Ok(ahead.map(|SnapshotSummary { id, started, .. }| alarm(&format!("the snapshot {id}"), *started)).collect())
}
