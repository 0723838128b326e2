//! Putting trees back: staged beside their targets, moved into place when everything is there.
//!
//! Invariant: until the whole restore is staged and on disk, nothing that stood there before is touched.

mod apply;
mod build;
mod content;
mod links;
mod place;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use backup_core::engine::{Place, RestorePlan, RestoreReport, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::ArtifactKind;
use backup_core::tree::TreePath;
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::runtime::Handle;

use crate::backup::{ROOTS, TREE, panicked};

pub(crate) use place::remove_tree;

/// The saved paths, from the manifest.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the manifest does not list them, or lists what cannot be a path.
pub(crate) fn roots(from: &BackupReader) -> Result<Vec<TreePath>> {
    let listed = from.record().details.get(ROOTS).and_then(|roots| roots.as_array());
    let damaged =
        || Error::new(ErrorKind::Damaged, format!("the manifest does not say which paths `{}` saved", from.source()));
    let roots = listed.ok_or_else(damaged)?;
    roots.iter().map(|root| TreePath::new(root.as_str().ok_or_else(damaged)?.trim_start_matches('/'))).collect()
}

/// The saved paths, for a restore to `to`. A manifest alone does not decide which files of this machine are written:
/// to go back to their original place, the paths must be (in) those that the plan names.
fn allowed_roots(from: &BackupReader, paths: &[PathBuf], to: &RestoreTarget) -> Result<Vec<TreePath>> {
    let roots = roots(from)?;
    if to.place != Place::Original {
        return Ok(roots);
    }
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let named: Vec<PathBuf> = paths.iter().cloned().chain(paths.iter().map(real)).collect();
    for root in &roots {
        let place = root.below("/".as_ref());
        if !named.iter().any(|path| place.starts_with(path)) {
            return Err(Error::new(
                ErrorKind::Plan,
                format!("the plan does not name `{}`, which was saved", place.display()),
            )
            .hint("name it in `paths`, or restore into a folder"));
        }
    }
    Ok(roots)
}

/// Decides what a restore would do. Changes nothing.
pub(crate) async fn plan(
    cx: &RunContext,
    from: &BackupReader,
    paths: &[PathBuf],
    to: &RestoreTarget,
) -> Result<RestorePlan> {
    let name = ArtifactName::new(TREE)?;
    let record = from.record().artifact(&name).filter(|record| record.kind == ArtifactKind::Tree);
    let mut bytes = record.map(|record| record.bytes).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("`{}` has no tree in {}", from.source(), from.manifest().id))
    })?;
    let units = target::decide(&allowed_roots(from, paths, to)?, to)?;
    let selection = target::selection(to)?;
    if !selection.is_empty() {
        bytes = survey(cx, from, &selection).await?;
    }
    let mut plan = RestorePlan { steps: Vec::new(), bytes, target: to.clone(), warnings: Vec::new() };
    for unit in &units {
        unit.check_writable()?;
        plan.steps.extend(unit.steps());
        plan.warnings.extend(unit.warnings(bytes));
    }
    if !rustix::process::geteuid().is_root() {
        plan.warnings.push("not run as root: owners, devices and some attributes cannot be put back".to_owned());
    }
    Ok(plan)
}

/// The bytes of what was selected.
async fn survey(cx: &RunContext, from: &BackupReader, selection: &[TreePath]) -> Result<u64> {
    let mut found: BTreeMap<&TreePath, bool> = selection.iter().map(|path| (path, false)).collect();
    let mut tree = from.tree(&ArtifactName::new(TREE)?).await?;
    let mut bytes = 0;
    while let Some(stored) = cx.unless_cancelled(tree.next()).await? {
        for (path, seen) in &mut found {
            if stored.entry.path.starts_with(path) {
                *seen = true;
                bytes += stored.entry.size();
            }
        }
    }
    match found.iter().find(|(_, seen)| !**seen) {
        Some((path, _)) => {
            Err(Error::new(ErrorKind::NotFound, format!("`/{path}` is not in the backup of `{}`", from.source()))
                .hint("`stackward ls` shows what is"))
        }
        None => Ok(bytes),
    }
}

/// Carries the plan out.
pub(crate) async fn restore(
    cx: &RunContext,
    from: &BackupReader,
    paths: &[PathBuf],
    plan: RestorePlan,
) -> Result<RestoreReport> {
    let units = target::decide(&allowed_roots(from, paths, &plan.target)?, &plan.target)?;
    // Also cancelled when this future is dropped: the threads must clean up, not go on for nobody.
    let stop = cx.cancellation().child_token();
    let _guard = stop.clone().drop_guard();
    let restore = build::Restore {
        cx: cx.clone().cancelled_by(stop),
        from: from.clone(),
        runtime: Handle::current(),
        units,
        existing: plan.target.existing,
        applier: Arc::new(apply::Applier::for_this_process()),
    };
    let report = tokio::task::spawn_blocking(move || restore.run()).await.map_err(panicked)??;
    for warning in &report.warnings {
        cx.warn(warning.clone());
    }
    Ok(report)
}
