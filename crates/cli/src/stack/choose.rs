//! From what a user calls a snapshot to the snapshot.
//!
//! Invariant: `latest` for work on sources is the newest snapshot in which all of them are complete, never a broken one, and
//! never one from the future.

use backup_core::sink::{Sink, SnapshotFilter, SnapshotSummary};
use backup_core::{Error, ErrorKind, PlanName, Result, SnapshotId, SourceName};

use super::clock;
use crate::args::SnapshotName;
use crate::output;

/// So many candidates are named in the error about an ambiguous prefix.
const MAX_CANDIDATES: usize = 5;

/// The snapshot that `name` means, whatever is in it.
pub(crate) async fn choose(sink: &dyn Sink, plan: &PlanName, name: &SnapshotName) -> Result<SnapshotId> {
    match name {
        SnapshotName::Latest => latest(sink, plan).await,
        SnapshotName::Id(id) => Ok(id.clone()),
        SnapshotName::Prefix(prefix) => by_prefix(sink, prefix).await,
    }
}

/// Refuses to let `latest` decide what is restored while snapshots are ahead of this machine's clock: when it is this clock that
/// is wrong, as on a new machine, they are the newest, and an older one would be restored without a word.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the snapshots that may be meant.
pub(crate) async fn refuse_ahead(sink: &dyn Sink, plan: &PlanName) -> Result<()> {
    let (ahead, past): (Vec<_>, Vec<_>) =
        of_plan(sink, plan).await?.into_iter().partition(|summary| clock::is_ahead(summary.started));
    let Some(newest) = ahead.last() else { return Ok(()) };
    let mut hint = format!("set the clock of this machine, or name the snapshot: {}", newest.id);
    if let Some(other) = past.last() {
        hint.push_str(&format!(" or, when that one's clock was wrong, {}", other.id));
    }
    let message = clock::alarm(&format!("the newest snapshot {}", newest.id), newest.started);
    Err(Error::new(ErrorKind::NotFound, message).hint(hint))
}

/// The newest snapshot of the plan.
pub(crate) async fn latest(sink: &dyn Sink, plan: &PlanName) -> Result<SnapshotId> {
    let newest = past(of_plan(sink, plan).await?)?.pop().map(|summary| summary.id);
    refuse_older_than_damage(sink, newest.as_ref()).await?;
    newest.ok_or_else(|| none_yet(sink, plan))
}

/// `latest` must not quietly mean an older snapshot because the newest one is damaged.
async fn refuse_older_than_damage(sink: &dyn Sink, chosen: Option<&SnapshotId>) -> Result<()> {
    let is_newer =
        |id: &SnapshotId| !clock::is_id_ahead(id) && chosen.is_none_or(|chosen| id.second() >= chosen.second());
    let Some(damaged) = sink.unreadable().await?.into_iter().rev().find(|unreadable| is_newer(&unreadable.id)) else {
        return Ok(());
    };
    let message = format!("the newest snapshot {} cannot be read: {}", damaged.id, damaged.problem);
    let hint = match chosen {
        Some(chosen) => format!("name an older one to use it all the same: {chosen} is the newest that can be read"),
        None => "name an older one to use it all the same: `stackward list` shows them".to_owned(),
    };
    Err(Error::new(ErrorKind::Damaged, message).hint(hint))
}

/// The snapshot that `name` means for work on `sources`.
pub(crate) async fn choose_for(
    sink: &dyn Sink,
    plan: &PlanName,
    name: &SnapshotName,
    sources: &[&SourceName],
) -> Result<SnapshotId> {
    if *name != SnapshotName::Latest {
        return choose(sink, plan, name).await;
    }
    let snapshots = of_plan(sink, plan).await?;
    if snapshots.is_empty() {
        return Err(none_yet(sink, plan));
    }
    let snapshots = past(snapshots)?;
    let serves = |summary: &&SnapshotSummary| sources.iter().all(|source| summary.sources.contains(source));
    let found = snapshots.iter().rev().find(serves).map(|summary| summary.id.clone());
    refuse_older_than_damage(sink, found.as_ref()).await?;
    found.ok_or_else(|| {
        let names: Vec<String> = sources.iter().map(|source| format!("`{source}`")).collect();
        Error::new(ErrorKind::NotFound, format!("no snapshot holds all of {}", names.join(", ")))
            .hint("choose fewer with `--source NAME`; `stackward list` shows which sources each snapshot holds")
    })
}

/// Those that are not ahead of this machine's clock.
///
/// # Errors
/// [`ErrorKind::NotFound`] when all are: then it is more likely this clock that is wrong, and nothing is chosen by it.
fn past(snapshots: Vec<SnapshotSummary>) -> Result<Vec<SnapshotSummary>> {
    let (ahead, past): (Vec<_>, Vec<_>) = snapshots.into_iter().partition(|summary| clock::is_ahead(summary.started));
    match ahead.last() {
        Some(newest) if past.is_empty() => {
            let message = clock::alarm(&format!("the newest snapshot {}", newest.id), newest.started);
            Err(Error::new(ErrorKind::NotFound, message)
                .hint(format!("set the clock of this machine, or name the snapshot: {}", newest.id)))
        }
        _ => Ok(past),
    }
}

/// Oldest first. Ids sort by the second only; two runs may have begun within one.
async fn of_plan(sink: &dyn Sink, plan: &PlanName) -> Result<Vec<SnapshotSummary>> {
    let mut snapshots = sink.snapshots(&SnapshotFilter { plan: Some(plan.clone()) }).await?;
    snapshots.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    Ok(snapshots)
}

fn none_yet(sink: &dyn Sink, plan: &PlanName) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no snapshot of the plan `{plan}` in {}", output::the(&sink.describe())),
    )
    .hint("`stackward backup` makes one; `stackward list --all-plans` shows those of other plans")
}

async fn by_prefix(sink: &dyn Sink, prefix: &str) -> Result<SnapshotId> {
    let all = sink.snapshots(&SnapshotFilter::default()).await?;
    let mut found: Vec<SnapshotId> =
        all.into_iter().map(|summary| summary.id).filter(|id| id.as_str().starts_with(prefix)).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::new(ErrorKind::NotFound, format!("no snapshot's id begins with `{prefix}`"))
            .hint("`stackward list` shows the snapshots")),
        count => {
            let shown: Vec<&str> = found.iter().take(MAX_CANDIDATES).map(SnapshotId::as_str).collect();
            let more = if count > MAX_CANDIDATES { ", …" } else { "" };
            Err(Error::new(ErrorKind::Usage, format!("{count} snapshots' ids begin with `{prefix}`"))
                .hint(format!("write more of one of them: {}{more}", shown.join(", "))))
        }
    }
}
