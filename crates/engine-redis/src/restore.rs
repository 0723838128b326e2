//! Putting a backup back: into the running server by commands, by files with the server stopped, or into a folder.
//!
//! Invariant: nothing is changed before the whole RDB was read, compared with its manifest and scanned; what stood in the
//! target is kept until the new data is there, and comes back when that fails.

mod files;
pub(crate) mod folder;
mod load;
mod selection;

use std::path::Path;

use async_trait::async_trait;
use backup_core::engine::{Candidate, Existing, Moment, Place, RestorePlan, RestoreReport, RestoreTarget, Restorer};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext, SegmentLog, SnapshotId};

use crate::Redis;
use crate::backup::DUMP;
use crate::connection::Connection;
use crate::details::Details;
use crate::drill::spool;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Flavour, RdbSummary, Target};
use crate::recover::{self, Way};
use crate::server::{Info, Server, allowed, unknown_version};
use crate::snapshot::Snapshot;
use crate::verify::compare;

use selection::Selection;

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

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        // Planned again: the target may have changed since the plan was shown.
        let RestorePlan { target, warnings, .. } = cx.unless_cancelled(self.plan(cx, from, &plan.target)).await?;
        let mut report = match &target.place {
            Place::Folder(folder) if target.moment != Moment::Snapshot => {
                cx.unless_cancelled(recover::files::write(cx, self, from, &target.moment, folder)).await?
            }
            Place::Folder(folder) => cx.unless_cancelled(folder::write(cx, from, folder)).await?,
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
        let details = Details::of(from.record())?;
        let selection = Selection::parse(&to.select)?;
        let bytes = dump_bytes(from)?;
        let mut plan = RestorePlan { steps: Vec::new(), bytes, target: to.clone(), warnings: Vec::new() };
        if let Place::Folder(folder) = &to.place {
            selection.refuse_in_folder()?;
            to.existing.check_folder(folder)?;
            if to.moment != Moment::Snapshot {
                plan.steps = recover::files::steps(from, folder);
                return Ok(plan);
            }
            plan.steps = folder::steps(from, folder, &details);
            plan.bytes = from.record().artifacts.iter().map(|artifact| artifact.bytes).sum();
            return Ok(plan);
        }
        plan.steps.push("read the whole backup, and check it".to_owned());
        if self.settings.service.is_some() && selection.is_everything() {
            let files = self.files(cx, &details).await?;
            files.check(to.existing)?;
            plan.steps.extend(files.steps());
            return Ok(plan);
        }
        let mut target = Running::look(self, cx).await?;
        plan.warnings = target.warnings(&details);
        target.check(to, &selection).await?;
        plan.steps.extend(target.steps(&selection, &self.server.describe()).await?);
        Ok(plan)
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

    async fn put_back(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestoreReport> {
        let work = tempfile::Builder::new().prefix("swrestore-").tempdir_in(cx.scratch());
        let work = work.map_err(|source| Error::io("cannot make a scratch folder", cx.scratch(), source))?;
        let selection = Selection::parse(&to.select)?;
        let dump = work.path().join(DUMP);
        cx.step("reading the backup");
        let mut details = Details::of(from.record())?;
        let (summary, reached) = if to.moment == Moment::Snapshot {
            let spooled = async {
                let summary = spool(cx, from, &dump).await?;
                compare(from, &summary).map(|()| summary)
            };
            (cx.unless_cancelled(spooled).await?, None)
        } else {
            let made = self.make(cx, from, &to.moment, work.path(), &dump);
            let (summary, told) = cx.unless_cancelled(made).await?;
            details.rdb_version = summary.version;
            (summary, Some(told))
        };
        let mut report = if self.settings.service.is_some() && selection.is_everything() {
            let files = self.files(cx, &details).await?;
            files.put(self, cx, &dump, &summary).await?
        } else {
            self.load_running(cx, &dump, to, &selection, work).await?
        };
        report.bytes = summary.bytes;
        report.restored.extend(reached);
        report.warnings.push(
            "access rules and configuration are not put over those of a live server; restore into a folder to get them"
                .to_owned(),
        );
        Ok(report)
    }

    /// Loads a running server by commands. What it holds is kept in a safety copy meanwhile.
    async fn load_running(
        &self,
        cx: &RunContext,
        dump: &Path,
        to: &RestoreTarget,
        selection: &Selection,
        mut work: tempfile::TempDir,
    ) -> Result<RestoreReport> {
        let mut target = cx.unless_cancelled(Running::look(self, cx)).await?;
        cx.unless_cancelled(target.check(to, selection)).await?;
        let safety = if cx.unless_cancelled(target.holds(selection)).await? {
            let path = work.path().join("before.rdb");
            cx.step("saving what the server holds now");
            let held = cx.unless_cancelled(self.keep(cx, &self.server, &path)).await?;
            if !held.modules.is_empty() {
                let message = "the server holds data of modules, which could not be put back by commands";
                return Err(Error::new(ErrorKind::Unsupported, message)
                    .hint("save it as files and empty the server yourself, or name `stop` and `start` in the plan"));
            }
            Some(path)
        } else {
            None
        };
        // Whatever becomes of us: the safety copy outlives us until the server has its data.
        work.disable_cleanup(safety.is_some());
        let loaded = async {
            if safety.is_some() {
                cx.step("emptying the server");
                selection.clear(&mut target.connection).await?;
            }
            cx.step(format!("loading {}", self.server.describe()));
            load::load(cx, &self.server, dump, &selection.options(target.product), &mut target.connection).await
        };
        let loaded = cx.unless_cancelled(loaded).await;
        let result = match loaded {
            Ok(loaded) => Ok(RestoreReport {
                restored: loaded.restored(&self.server.describe()),
                items: loaded.keys(),
                warnings: loaded.warnings(),
                ..RestoreReport::default()
            }),
            Err(error) => Err(self.undo(cx, error, safety.as_deref(), selection, target.product).await?),
        };
        work.disable_cleanup(false);
        result
    }

    /// Writes what `server` holds to `path`, checked.
    pub(crate) async fn keep(&self, cx: &RunContext, server: &Server, path: &Path) -> Result<RdbSummary> {
        use tokio::io::AsyncWriteExt;
        let failed = |source| Error::io("cannot write the safety copy", path, source);
        let mut snapshot = Snapshot::begin(cx, server, &*self.host, self.settings.data_dir.as_deref()).await?;
        let mut file =
            tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await.map_err(failed)?;
        let mut inspection = Inspection::begin(now_ms());
        while let Some(piece) = snapshot.next().await? {
            file.write_all(&piece).await.map_err(failed)?;
            inspection.push(piece).await?;
        }
        file.sync_all().await.map_err(failed)?;
        inspection.finish().await.map_err(|error| error.during("save what the server holds now"))
    }

    /// After a load that failed with `error`: empties the target again, and puts back what it held. Not cancelled.
    ///
    /// # Errors
    /// `error`, with where the safety copy is, when it could not be put back.
    async fn undo(
        &self,
        cx: &RunContext,
        error: Error,
        safety: Option<&Path>,
        selection: &Selection,
        product: Target,
    ) -> Result<Error> {
        cx.step("taking back what was loaded");
        let cx = RunContext::new(cx.source().clone()).scratch_in(cx.scratch());
        let undone = async {
            let mut connection = self.server.connect(&cx).await?;
            selection.clear(&mut connection).await?;
            if let Some(path) = safety {
                load::load(&cx, &self.server, path, &selection.options(product), &mut connection).await?;
            }
            Ok(())
        };
        match (undone.await, safety) {
            (Ok(()), _) => Ok(error),
            (Err::<(), Error>(_), None) => {
                Ok(error.hint("a part of the backup may be in the server: empty it before the next attempt"))
            }
            (Err(why), Some(path)) => Err(error.hint(format!(
                "what the server held could not be put back ({}): it is in {}, an RDB that the server loads when it starts",
                why.message(),
                path.display()
            ))),
        }
    }
}

fn dump_bytes(from: &BackupReader) -> Result<u64> {
    let name = ArtifactName::new(DUMP)?;
    let record = from.record().artifact(&name);
    record
        .map(|record| record.bytes)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the backup has no {DUMP}")))
}

/// A running server that a backup shall be loaded into.
struct Running {
    connection: Connection,
    info: Info,
    product: Target,
}

impl Running {
    async fn look(redis: &Redis, cx: &RunContext) -> Result<Self> {
        let mut connection = redis.server.connect(cx).await?;
        let info = Info::ask(&mut connection, None).await?;
        info.refuse_sentinel()?;
        let product = info.product().ok_or_else(unknown_version)?;
        let flavour = if product.product == "Valkey" { Flavour::Valkey } else { Flavour::Redis };
        let product = Target::parse(flavour, &product.version)?;
        Ok(Self { connection, info, product })
    }

    /// Everything that can be known to fail.
    async fn check(&mut self, to: &RestoreTarget, selection: &Selection) -> Result<()> {
        if self.info.get("role") == Some("slave") {
            return Err(Error::new(ErrorKind::Unsupported, "the target is a replica, which takes no data")
                .hint("name its master in the plan, or make it one: REPLICAOF NO ONE"));
        }
        for command in selection.commands_to_clear() {
            allowed(&mut self.connection, command).await?;
        }
        if to.existing == Existing::Refuse && self.holds(selection).await? {
            let what = selection.describe();
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the server holds {what} already"))
                .hint("restore to an empty server, or replace what it holds with `--force`"));
        }
        Ok(())
    }

    /// Whether the server holds anything that the restore would replace.
    async fn holds(&mut self, selection: &Selection) -> Result<bool> {
        selection.is_held(&mut self.connection).await
    }

    fn warnings(&self, details: &Details) -> Vec<String> {
        let mut warnings = Vec::new();
        let limit = self.info.number("maxmemory").filter(|limit| *limit > 0);
        if let (Some(limit), Some(used)) = (limit, details.used_memory)
            && used > limit
        {
            warnings.push(format!("the data took {used} bytes of memory, and the target's `maxmemory` is {limit}"));
        }
        if self.info.is_on("cluster_enabled") {
            warnings
                .push("the target is a node of a cluster: it takes only keys of the slots that it serves".to_owned());
        }
        if self.info.get("connected_slaves").is_some_and(|count| count != "0") {
            warnings.push("the replicas of the target will follow what the restore does".to_owned());
        }
        warnings
    }

    async fn steps(&mut self, selection: &Selection, server: &str) -> Result<Vec<String>> {
        let mut steps = Vec::new();
        let what = selection.describe();
        if self.holds(selection).await? {
            steps.push(format!("save what {server} holds now, to put it back should the restore fail"));
            steps.push(format!("delete {what} from {server}"));
        }
        steps.push(format!("load {what} by commands, so that they are in its append-only file, too, if it has one"));
        Ok(steps)
    }
}
