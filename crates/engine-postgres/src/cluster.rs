//! One server with all its modes: each saves its part into the same snapshot, and each puts its part back.
//!
//! Invariant: what a snapshot holds decides what can be restored from it, not what the plan says today.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::engine::{
    Candidate, DrillReport, Driller, Existing, LogState, Moment, Place, Preflight, RestorePlan, RestoreReport,
    RestoreTarget, Restorer, Source, SourceSummary, Verifier, VerifyReport,
};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::Host;
use backup_core::manifest::SourceRecord;
use backup_core::names::SnapshotId;
use backup_core::{BackupReader, BackupWriter, RunContext, SegmentLog};

use crate::config::{Mode, Settings};
use crate::logical::Logical;
use crate::physical::{ConfigFiles, Physical, PhysicalDetails, check_folder};
use crate::recovery::{self, Branch, Search, Way};
use crate::wal::{Chain, ServerView, Span};

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    modes: Vec<Mode>,
    logical: Logical,
    physical: Physical,
    known: Mutex<Option<Known>>,
    settings: Settings,
    host: Arc<dyn Host>,
}

/// Whether a snapshot has dumps.
fn has_logical(record: &SourceRecord) -> bool {
    record.details.contains_key("cluster")
}

impl Cluster {
    pub(crate) fn new(settings: Settings, host: &Arc<dyn Host>) -> Self {
        Self {
            modes: settings.modes.clone(),
            physical: Physical::new(settings.clone(), Arc::clone(host)),
            logical: Logical::new(settings.clone(), Arc::clone(host)),
            known: Mutex::default(),
            settings,
            host: Arc::clone(host),
        }
    }

    fn saves(&self, mode: Mode) -> bool {
        self.modes.contains(&mode)
    }
}

#[async_trait]
impl Source for Cluster {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        let physical = if self.saves(Mode::Physical) { Some(self.physical.look(cx).await?) } else { None };
        let logical = if self.saves(Mode::Logical) { Some(self.logical.preflight(cx).await?) } else { None };
        Ok(match (physical, logical) {
            (Some(physical), Some(logical)) => Preflight {
                description: physical.description,
                expected_bytes: physical.expected_bytes.zip(logical.expected_bytes).map(|(a, b)| a.saturating_add(b)),
                warnings: physical.warnings.into_iter().chain(logical.warnings).collect(),
            },
            (one, other) => one.or(other).unwrap_or_default(),
        })
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        if !self.saves(Mode::Physical) {
            return self.logical.backup(cx, out).await;
        }
        let both = self.saves(Mode::Logical);
        let config_files = if both { ConfigFiles::LeaveToOthers } else { ConfigFiles::Save };
        let save = Box::pin(self.physical.save(cx, out, config_files));
        let physical = cx.unless_cancelled(save).await?;
        if !both {
            return Ok(physical);
        }
        let logical = self.logical.backup(cx, out).await?;
        let mut details = physical.details;
        details.extend(logical.details);
        Ok(SourceSummary {
            mode: Some("physical, logical".into()),
            server: physical.server,
            position: physical.position,
            fingerprint: logical.fingerprint,
            details,
        })
    }

    async fn log_state(&self, cx: &RunContext, log: &SegmentLog) -> Result<Option<LogState>> {
        if self.settings.wal.is_none() {
            return Ok(None);
        }
        let view = cx.unless_cancelled(ServerView::of(&self.settings, &self.host, cx.source())).await?;
        let chain = Chain::read(log).await?;
        Ok(Some(view.log_state(chain.as_ref())))
    }
}

#[async_trait]
impl Restorer for Cluster {
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        let Some(details) = Self::whole(from, to)? else {
            return self.logical.plan_restore(cx, from, to).await;
        };
        if let Place::Folder(folder) = &to.place {
            check_folder(folder, to.existing)?;
        }
        let way = self.way(cx, from, &details, &to.moment).await?;
        let mut plan = self.physical.plan_put_back(cx, from, &details, to, way.as_ref()).await?;
        if brings_dumps(from, to) {
            let logical = self.logical.plan_restore(cx, from, to).await?;
            plan.steps.extend(logical.steps);
            plan.bytes = plan.bytes.saturating_add(logical.bytes);
            plan.warnings.extend(logical.warnings);
        }
        Ok(plan)
    }

    fn places(&self, saved: Option<&SourceRecord>) -> Vec<PathBuf> {
        self.physical.places(saved)
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        let to = &plan.target;
        let Some(details) = Self::whole(from, to)? else {
            return self.logical.restore(cx, from, plan).await;
        };
        if let Place::Folder(folder) = &to.place {
            check_folder(folder, to.existing)?;
        }
        let way = self.way(cx, from, &details, &to.moment).await?;
        let written = Box::pin(self.physical.write(cx, from, &details, to, way.as_ref())).await?;
        let mut dumps = RestoreReport::default();
        if brings_dumps(from, to) {
            // What stands there now is ours.
            let target = RestoreTarget { existing: Existing::Replace, ..to.clone() };
            dumps = self.logical.restore(cx, from, RestorePlan { target, ..plan.clone() }).await?;
        }
        cx.check_cancelled()?;
        let mut report = self.physical.complete(cx, from, &details, written, way.as_ref(), to.afterwards).await?;
        report.restored.extend(dumps.restored);
        report.bytes += dumps.bytes;
        report.items += dumps.items;
        report.warnings.extend(dumps.warnings);
        report.lacking.extend(dumps.lacking);
        Ok(report)
    }

    async fn choose(
        &self,
        cx: &RunContext,
        candidates: &[Candidate],
        log: Option<&SegmentLog>,
        moment: &Moment,
    ) -> Result<SnapshotId> {
        let log = log.ok_or_else(no_log)?;
        let chain = Chain::read(log).await?.ok_or_else(no_log)?;
        let (id, way) = recovery::choose(cx, candidates, log, &chain, moment).await?;
        self.remember(&id, moment, log, &chain, &way)?;
        Ok(id)
    }
}

/// A way that was found and checked: of which snapshot to which moment, and what the archive had then.
#[derive(Debug)]
struct Known {
    snapshot: SnapshotId,
    moment: Moment,
    branch: Branch,
    archive: Vec<Span>,
    way: Way,
}

impl Cluster {
    /// What is known of the base backup, when it is what is restored; `None` when the dumps are.
    fn whole(from: &BackupReader, to: &RestoreTarget) -> Result<Option<PhysicalDetails>> {
        let details = PhysicalDetails::of(from.record())?;
        let is_whole = to.select.is_empty() && to.rename.is_none();
        let to_moment = to.moment != Moment::Snapshot;
        match details {
            None if to_moment => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the snapshot {} has dumps only, which cannot be recovered to {}",
                    from.manifest().id,
                    to.moment
                ),
            )
            .hint("write `modes: [physical]` in the plan; base backups and the log lead to every moment")),
            None => Ok(None),
            Some(_) if !is_whole && to_moment => {
                Err(Error::new(ErrorKind::Unsupported, "only the whole cluster can be recovered to a moment").hint(
                    "recover it into a folder (`--target`), start it there, and take the database out with `pg_dump`",
                ))
            }
            Some(_) if !is_whole && !has_logical(from.record()) => Err(only_whole()),
            // Onto the running server go the dumps, when there are any.
            Some(_) if has_logical(from.record()) && !to_moment && to.place == Place::Original => Ok(None),
            Some(_) if !is_whole => Ok(None),
            Some(details) => Ok(Some(details)),
        }
    }

    /// The way to the moment, read and checked; `None` when it is that of the snapshot. What was read for the choice of the
    /// snapshot is not read again, as long as the archive is the same.
    async fn way(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        moment: &Moment,
    ) -> Result<Option<Way>> {
        if *moment == Moment::Snapshot {
            return Ok(None);
        }
        let log = from.log().ok_or_else(no_log)?;
        let chain = Chain::read(log).await?.ok_or_else(no_log)?;
        let id = &from.manifest().id;
        if let Some(way) = self.known(id, moment, Branch::of(log)?, &chain) {
            return Ok(Some(way));
        }
        let search = recovery::find(cx, details, log, &chain, moment, None).await?;
        let Search::Found(way) = search else {
            let error = recovery::out_of_reach(cx, &search, details, (log, &chain), moment).await?;
            return Err(error.with("snapshot", id));
        };
        self.remember(id, moment, log, &chain, &way)?;
        Ok(Some(way))
    }

    fn known(&self, id: &SnapshotId, moment: &Moment, branch: Branch, chain: &Chain) -> Option<Way> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |known: &&Known| {
            known.snapshot == *id && known.moment == *moment && known.branch == branch && known.archive == chain.spans()
        };
        known.as_ref().filter(fits).map(|known| known.way.clone())
    }

    fn remember(&self, id: &SnapshotId, moment: &Moment, log: &SegmentLog, chain: &Chain, way: &Way) -> Result<()> {
        let (snapshot, moment, archive) = (id.clone(), moment.clone(), chain.spans());
        let known = Known { snapshot, moment, branch: Branch::of(log)?, archive, way: way.clone() };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(())
    }
}

/// Whether the dumps of the snapshot are written beside the data directory: they are of its own moment only.
fn brings_dumps(from: &BackupReader, to: &RestoreTarget) -> bool {
    has_logical(from.record()) && to.moment == Moment::Snapshot && matches!(to.place, Place::Folder(_))
}

fn no_log() -> Error {
    Error::new(ErrorKind::NotFound, "there is no archived log to recover with").hint(
        "write `wal: stream` (or `push`) in the plan and let `stackward wal receive` run; snapshots can be restored as they are",
    )
}

fn only_whole() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "a base backup becomes a data directory of its own, not part of a running server",
    )
    .hint("restore the whole of it, best into a folder (`--target FOLDER`); single databases need the logical mode")
}

#[async_trait]
impl Verifier for Cluster {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        let Some(mut report) = Physical::verify(cx, from).await? else {
            return self.logical.verify(cx, from).await;
        };
        if has_logical(from.record()) {
            let logical = self.logical.verify(cx, from).await?;
            report.checked.extend(logical.checked);
            report.findings.extend(logical.findings);
        }
        Ok(report)
    }
}

#[async_trait]
impl Driller for Cluster {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        let details = match PhysicalDetails::of(from.record()) {
            Ok(details) => details,
            Err(error) => return Ok(DrillReport { findings: vec![error.chain()], ..DrillReport::default() }),
        };
        let Some(details) = details else { return self.logical.drill(cx, from).await };
        let mut drill = match self.way_to_the_end(cx, from, &details).await {
            Ok(way) => self.physical.drill(cx, from, &details, way.as_ref()).await?,
            // What would keep an operator from recovering.
            Err(error) if is_loss(&error) => {
                let mut drill = self.physical.drill(cx, from, &details, None).await?;
                drill.findings.push(format!("the log does not lead to its end: {}", error.chain()));
                drill
            }
            Err(error) => return Err(error),
        };
        if has_logical(from.record()) {
            let dumps = self.logical.drill(cx, from).await?;
            drill.restore_time += dumps.restore_time;
            drill.check_time += dumps.check_time;
            drill.bytes += dumps.bytes;
            drill.items += dumps.items;
            drill.checked.extend(dumps.checked);
            drill.findings.extend(dumps.findings);
        }
        Ok(drill)
    }
}

fn is_loss(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::Unsupported)
}

impl Cluster {
    /// The way to the end of the log, when there is one.
    async fn way_to_the_end(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
    ) -> Result<Option<Way>> {
        let Some(log) = from.log() else { return Ok(None) };
        match Chain::read(log).await? {
            Some(_) => self.way(cx, from, details, &Moment::Latest).await,
            None if log.branch().is_some() => Err(no_log()),
            None => Ok(None),
        }
    }
}
