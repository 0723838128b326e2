//! Putting a backup back: into the running server by commands, by files with the server stopped, or into a folder.
//!
//! Invariant: nothing is changed before the whole RDB was read, compared with its manifest and scanned; what stood in the
//! target is kept until the new data is there, and comes back when that fails.

mod acl;
mod commands;
mod files;
pub(crate) mod folder;
mod instructions;
pub(crate) mod load;
mod running;
mod selection;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backup_core::engine::{Candidate, Moment, Place, RestorePlan, RestoreReport, RestoreTarget, Restorer};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::SourceRecord;
use backup_core::{BackupReader, RunContext, SegmentLog, SnapshotId};

use crate::Redis;
use crate::details::Details;
use crate::dumps::{self, Spooled};
use crate::rdb::{Flavour, Target};
use crate::recover::{self, Way};

use running::Running;
use selection::{Selection, What};

/// What the RDB of a moment is called in a scratch folder.
const MOMENT: &str = "moment.rdb";

#[async_trait]
impl Restorer for Redis {
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        let planned = async {
            let mut plan = self.plan(cx, from, to).await?;
            if to.moment != Moment::Snapshot {
                plan.steps.splice(0..0, self.plan_recovery(cx, from, to).await?);
            }
            Ok(plan)
        };
        cx.unless_cancelled(planned).await
    }

    async fn choose(
        &self,
        cx: &RunContext,
        candidates: &[Candidate],
        log: Option<&SegmentLog>,
        moment: &Moment,
    ) -> Result<SnapshotId> {
        cx.unless_cancelled(recover::choose::choose(cx, candidates, log, moment)).await
    }

    fn places(&self, _: Option<&SourceRecord>) -> Vec<PathBuf> {
        self.settings.data_dir.iter().cloned().collect()
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        // Planned again: the target may have changed since the plan was shown.
        let RestorePlan { target, warnings, .. } = cx.unless_cancelled(self.plan(cx, from, &plan.target)).await?;
        let mut report = match &target.place {
            Place::Folder(folder) => cx.unless_cancelled(self.write_folder(cx, from, folder, &target)).await?,
            Place::Original => self.put_back(cx, from, &target).await?,
        };
        report.warnings.extend(warnings);
        Ok(report)
    }
}

impl Redis {
    async fn plan(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        if to.rename.is_some() {
            return Err(Error::new(ErrorKind::Usage, "databases of Redis have numbers, not names")
                .hint("restore into a scratch server, and move the keys from there"));
        }
        to.refuse_comparison("what Redis holds")?;
        let details = Details::of(from.record())?;
        let selection = Selection::parse(&to.select)?;
        refuse_at_a_moment(&selection, &to.moment)?;
        let mut plan =
            RestorePlan { steps: Vec::new(), bytes: 0, target: to.clone(), warnings: Vec::new(), changes: None };
        if let Place::Folder(folder) = &to.place {
            plan_folder(from, to, &selection, folder, &mut plan)?;
            return Ok(plan);
        }
        match selection.what {
            What::Acl => {
                let rules = acl::saved(from).await?;
                plan.bytes = rules.len() as u64;
                let mut connection = self.server.connect(cx).await?;
                plan.steps = acl::plan(&mut connection, &rules, to.existing).await?;
                return Ok(plan);
            }
            What::Commands(_) => {
                return Err(Error::new(ErrorKind::Usage, "a file of commands needs a folder to go to")
                    .hint("add `--target FOLDER`; a restore without `--select` loads the server by such commands"));
            }
            What::AppendOnlyFiles if self.settings.service.is_none() => {
                return Err(Error::new(ErrorKind::Usage, "append-only files go to a stopped server")
                    .hint("name `stop` and `start` in the plan, or restore into a folder with `--target FOLDER`"));
            }
            What::Data | What::Functions | What::AppendOnlyFiles => {}
        }
        plan.bytes = dumps::bytes(from, &details)?;
        plan.steps.push("read the whole backup, and check it".to_owned());
        if self.goes_by_files(&selection) {
            let files = self.files(cx, from, &details, selection.what).await?;
            files.check(to.existing)?;
            plan.steps.extend(files.steps());
            return Ok(plan);
        }
        for mut target in self.targets(cx).await? {
            plan.warnings.extend(target.warnings(&details));
            target.check(to, &selection).await?;
            plan.steps.extend(target.steps(&selection).await?);
        }
        Ok(plan)
    }

    /// Whether the server is stopped for it.
    fn goes_by_files(&self, selection: &Selection) -> bool {
        self.settings.service.is_some() && (selection.is_everything() || selection.what == What::AppendOnlyFiles)
    }

    async fn put_back(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestoreReport> {
        let selection = Selection::parse(&to.select)?;
        if selection.what == What::Acl {
            let rules = acl::saved(from).await?;
            let mut connection = cx.unless_cancelled(self.server.connect(cx)).await?;
            // Not cancelled half-way: it is a matter of moments.
            return acl::put(&mut connection, &rules).await;
        }
        let work = tempfile::Builder::new().prefix("swrestore-").tempdir_in(cx.scratch());
        let work = work.map_err(|source| Error::io("cannot make a scratch folder", cx.scratch(), source))?;
        let mut details = Details::of(from.record())?;
        let spooling = self.spool(cx, from, &details, &to.moment, work.path());
        let (spooled, reached) = cx.unless_cancelled(spooling).await?;
        details.rdb_version = spooled.summary.version;
        let bytes = spooled.summary.bytes;
        let mut report = if self.goes_by_files(&selection) {
            let files = self.files(cx, from, &details, selection.what).await?;
            files.put(self, cx, from, &spooled).await?
        } else {
            self.load_running(cx, &spooled, to, &selection, work).await?
        };
        report.bytes = bytes;
        report.restored.extend(reached);
        if selection.is_everything() {
            report.warnings.push(
                "access rules and configuration are not put over those of a live server: `--select acl` sets the rules, \
                 a restore into a folder has both"
                    .to_owned(),
            );
        }
        Ok(report)
    }

    async fn write_folder(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        folder: &Path,
        to: &RestoreTarget,
    ) -> Result<RestoreReport> {
        let selection = Selection::parse(&to.select)?;
        match selection.what {
            What::Commands(target) => self.write_commands(cx, from, folder, &selection, target, &to.moment).await,
            _ if to.moment != Moment::Snapshot => recover::files::write(cx, self, from, &to.moment, folder).await,
            _ => folder::write(cx, from, folder).await,
        }
    }

    /// The backup as a file of commands.
    async fn write_commands(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        folder: &Path,
        selection: &Selection,
        target: Option<Target>,
        moment: &Moment,
    ) -> Result<RestoreReport> {
        let options = selection.options(commands_for(from, target)?);
        let work = tempfile::Builder::new().prefix("swrestore-").tempdir_in(cx.scratch());
        let work = work.map_err(|source| Error::io("cannot make a scratch folder", cx.scratch(), source))?;
        let details = Details::of(from.record())?;
        let (spooled, reached) = self.spool(cx, from, &details, moment, work.path()).await?;
        let mut report = commands::write(cx, spooled, options, folder).await?;
        report.restored.extend(reached);
        Ok(report)
    }

    /// The RDBs of a backup; or the one RDB of a moment, and what that is.
    async fn spool(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &Details,
        moment: &Moment,
        work: &Path,
    ) -> Result<(Spooled, Option<String>)> {
        cx.step("reading the backup");
        if *moment == Moment::Snapshot {
            return Ok((dumps::spool_all(cx, from, details, work).await?, None));
        }
        let file = work.join(MOMENT);
        let (summary, told) = self.make(cx, from, moment, work, &file).await?;
        Ok((Spooled { files: vec![file], summary }, Some(told)))
    }

    /// What a recovery reads, and the moment that it reaches. Reads every segment, so that damage is found here.
    async fn plan_recovery(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<Vec<String>> {
        let way = Way::find(cx, from.record(), from.log(), &to.moment).await?;
        let mut steps = way.survey(cx, self, from).await?;
        if to.place == Place::Original {
            let program = self.recovery_program(from).await?;
            steps.push(format!("make the data of the moment in a scratch server ({})", program.shown));
        }
        Ok(steps)
    }
}

/// Fails for what a moment does not change.
fn refuse_at_a_moment(selection: &Selection, moment: &Moment) -> Result<()> {
    match selection.what {
        What::Acl | What::AppendOnlyFiles if *moment != Moment::Snapshot => {
            Err(Error::new(ErrorKind::Usage, format!("only data can be recovered to {moment}"))
                .hint("leave `--select` out, or select databases, keys or functions"))
        }
        _ => Ok(()),
    }
}

fn plan_folder(
    from: &BackupReader,
    to: &RestoreTarget,
    selection: &Selection,
    folder: &Path,
    plan: &mut RestorePlan,
) -> Result<()> {
    let details = Details::of(from.record())?;
    to.existing.check_folder(folder)?;
    plan.bytes = dumps::bytes(from, &details)?;
    if let What::Commands(target) = selection.what {
        let target = commands_for(from, target)?;
        let file = folder.join(commands::FILE);
        plan.steps.push(format!("write {} as commands for {target}: {}", selection.describe(), file.display()));
        return Ok(());
    }
    if !selection.is_everything() {
        return Err(Error::new(ErrorKind::Usage, "an RDB is written whole into a folder")
            .hint("select nothing, or `commands`: keys and databases can be chosen for a file of commands"));
    }
    if to.moment != Moment::Snapshot {
        plan.steps = recover::files::steps(from, folder);
        return Ok(());
    }
    plan.steps = folder::steps(from, folder, &details);
    plan.bytes = from.record().artifacts.iter().map(|artifact| artifact.bytes).sum();
    Ok(())
}

/// For which server commands are written: the one that was asked for, or that which was saved.
fn commands_for(from: &BackupReader, wanted: Option<Target>) -> Result<Target> {
    if let Some(target) = wanted {
        return Ok(target);
    }
    let saved = from.record().server.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Usage, "the backup does not say which server it is of")
            .hint("say which server the commands are for: `--select commands=redis-6.2`")
    })?;
    let flavour = if saved.product == "Valkey" { Flavour::Valkey } else { Flavour::Redis };
    Target::parse(flavour, &saved.version)
}
