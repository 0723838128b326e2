//! Putting trees back: staged beside their targets, moved into place when everything is there.
//!
//! Invariant: until the whole restore is staged and on disk, nothing that stood there before is touched; what is not in
//! the snapshot stays, unless its removal was asked for.

mod apply;
mod build;
mod content;
mod links;
mod location;
mod merge;
mod place;
mod prune;
mod spool;
mod staging;
mod survey;
mod target;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{Place, RestorePlan, RestoreReport, RestoreTarget, Unknown};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::ArtifactKind;
use backup_core::tree::TreePath;
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::runtime::Handle;

pub(crate) use self::location::{Location, Reach, enter, in_the_way};
pub(crate) use self::merge::{At, exchange};
pub(crate) use self::staging::Staging;
use self::target::{Root, Unit};
use crate::backup::{ROOTS, RULES, TREE, UNREADABLE, panicked};
use crate::filter::Rules;

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
fn allowed_roots(from: &BackupReader, paths: &[PathBuf], to: &RestoreTarget) -> Result<Vec<Root>> {
    let roots = roots(from)?;
    if to.place != Place::Original {
        return Ok(roots.into_iter().map(|stored| Root { named: stored.clone(), stored }).collect());
    }
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let named: Vec<PathBuf> = paths.iter().cloned().chain(paths.iter().map(real)).collect();
    let mut allowed = Vec::new();
    for stored in roots {
        let place = stored.below("/".as_ref());
        let around = named.iter().filter(|path| place.starts_with(path));
        let Some(outermost) = around.min_by_key(|path| path.components().count()) else {
            return Err(Error::new(
                ErrorKind::Plan,
                format!("the plan does not name `{}`, which was saved", place.display()),
            )
            .hint("name it in `paths`, or restore into a folder"));
        };
        let levels = outermost.components().count() - 1;
        let components: Vec<&[u8]> = stored.components().take(levels).collect();
        allowed.push(Root { named: TreePath::new(components.join(&b'/'))?, stored });
    }
    Ok(allowed)
}

/// What may not be removed, and how it is looked at.
#[derive(Debug)]
pub(crate) struct Asked {
    cx: RunContext,
    /// Without anybody who listens: walking over what stands there must not sound like a backup.
    quiet: RunContext,
    from: BackupReader,
    runtime: Handle,
    units: Vec<Unit>,
    target: RestoreTarget,
    /// The plan's.
    rules: Arc<Rules>,
}

impl Asked {
    fn new(
        cx: RunContext,
        from: &BackupReader,
        paths: &[PathBuf],
        rules: &Arc<Rules>,
        target: &RestoreTarget,
    ) -> Result<Self> {
        let unreadable = from.record().details.get(UNREADABLE).and_then(serde_json::Value::as_u64).unwrap_or_default();
        if target.unknown == Unknown::Delete && unreadable > 0 {
            let message = format!("{unreadable} entries could not be read when the snapshot was made");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("`--delete` would remove them, for the snapshot does not have them: restore without it"));
        }
        let units = target::decide(&allowed_roots(from, paths, target)?, target)?;
        let quiet = RunContext::new(cx.source().clone()).cancelled_by(cx.cancellation().clone());
        Ok(Self {
            cx,
            quiet,
            from: from.clone(),
            runtime: Handle::current(),
            units,
            target: target.clone(),
            rules: Arc::clone(rules),
        })
    }

    fn quiet(&self) -> &RunContext {
        &self.quiet
    }

    /// The rules of the snapshot, when they are known and differ from the plan's.
    fn recorded_rules(&self) -> Result<Option<Rules>> {
        match self.from.record().details.get(RULES) {
            Some(record) if *record != self.rules.record => Rules::recorded(record).map(Some),
            _ => Ok(None),
        }
    }

    /// The tree from its beginning.
    fn tree(&self) -> Result<backup_core::reader::TreeReader> {
        self.runtime.block_on(self.from.tree(&ArtifactName::new(TREE)?))
    }
}

/// Decides what a restore would do. Changes nothing.
pub(crate) async fn plan(
    cx: &RunContext,
    from: &BackupReader,
    paths: &[PathBuf],
    rules: &Arc<Rules>,
    to: &RestoreTarget,
) -> Result<RestorePlan> {
    let name = ArtifactName::new(TREE)?;
    let record = from.record().artifact(&name).filter(|record| record.kind == ArtifactKind::Tree);
    let mut bytes = record.map(|record| record.bytes).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("`{}` has no tree in {}", from.source(), from.manifest().id))
    })?;
    let mut plan = RestorePlan { steps: Vec::new(), bytes, target: to.clone(), warnings: Vec::new(), changes: None };
    let stop = cx.cancellation().child_token();
    let _guard = stop.clone().drop_guard();
    let mut asked = Asked::new(cx.clone().cancelled_by(stop), from, paths, rules, to)?;
    if asked.units.iter().any(Unit::is_merged) || !to.select.is_empty() {
        let survey;
        (asked, survey) = tokio::task::spawn_blocking(move || {
            let survey = survey::survey(&asked)?;
            Ok::<_, Error>((asked, survey))
        })
        .await
        .map_err(panicked)??;
        if !to.select.is_empty() {
            bytes = survey.bytes;
            plan.bytes = bytes;
        }
        survey.drop_unused(&mut asked.units)?;
        if asked.units.iter().any(Unit::is_merged) {
            plan.changes = Some(survey.changes);
        }
    }
    for unit in &asked.units {
        unit.check_writable()?;
        plan.steps.extend(unit.steps(to.unknown));
        plan.warnings.extend(unit.warnings(bytes)?);
    }
    if to.unknown == Unknown::Delete && !from.record().details.contains_key(RULES) {
        let text =
            "the snapshot does not say what was left out of it: the rules of today's plan decide what is removed";
        plan.warnings.push(text.to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        plan.warnings.push("not run as root: owners, devices and some attributes cannot be put back".to_owned());
    }
    Ok(plan)
}

/// Carries the plan out.
pub(crate) async fn restore(
    cx: &RunContext,
    from: &BackupReader,
    paths: &[PathBuf],
    rules: &Arc<Rules>,
    plan: RestorePlan,
) -> Result<RestoreReport> {
    // Also cancelled when this future is dropped: the threads must clean up, not go on for nobody.
    let stop = cx.cancellation().child_token();
    let _guard = stop.clone().drop_guard();
    let asked = Asked::new(cx.clone().cancelled_by(stop), from, paths, rules, &plan.target)?;
    let applier = Arc::new(apply::Applier::for_this_process());
    let restore = build::Restore { asked, applier, doomed: None };
    let report = tokio::task::spawn_blocking(move || restore.run()).await.map_err(panicked)??;
    for warning in &report.warnings {
        cx.warn(warning.clone());
    }
    Ok(report)
}

/// Removes a tree. What is mounted in it stays, and is an error.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = std::fs::File::open(above).map_err(|source| Error::io("cannot open the folder", above, source))?;
    staging::remove_beneath(parent.as_fd(), name)
}
