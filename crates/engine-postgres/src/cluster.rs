//! One server with all its modes: each saves its part into the same snapshot, and each puts its part back.
//!
//! Invariant: what a snapshot holds decides what can be restored from it, not what the plan says today.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{
    DrillReport, Driller, Place, Preflight, RestorePlan, RestoreReport, RestoreTarget, Restorer, Source, SourceSummary,
    Verifier, VerifyReport,
};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::Host;
use backup_core::manifest::SourceRecord;
use backup_core::{BackupReader, BackupWriter, RunContext};

use crate::config::{Mode, Settings};
use crate::logical::Logical;
use crate::physical::{ConfigFiles, Layout, Physical, PhysicalDetails};

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    modes: Vec<Mode>,
    logical: Logical,
    physical: Physical,
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
            logical: Logical::new(settings, Arc::clone(host)),
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
}

#[async_trait]
impl Restorer for Cluster {
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        let Some(details) = PhysicalDetails::of(from.record())? else {
            return self.logical.plan_restore(cx, from, to).await;
        };
        match &to.place {
            Place::Folder(folder) if to.select.is_empty() && to.rename.is_none() => {
                to.existing.check_folder(folder)?;
                let mut plan = Physical::plan_into(from, &details, to, folder);
                if has_logical(from.record()) {
                    let logical = self.logical.plan_restore(cx, from, to).await?;
                    plan.steps.extend(logical.steps);
                    plan.bytes = plan.bytes.saturating_add(logical.bytes);
                    plan.warnings.extend(logical.warnings);
                }
                Ok(plan)
            }
            _ if has_logical(from.record()) => self.logical.plan_restore(cx, from, to).await,
            _ => Err(only_into_a_folder()),
        }
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        let Some(details) = PhysicalDetails::of(from.record())? else {
            return self.logical.restore(cx, from, plan).await;
        };
        match &plan.target.place {
            Place::Folder(folder) if plan.target.select.is_empty() && plan.target.rename.is_none() => {
                plan.target.existing.check_folder(folder)?;
                let layout = Layout::below(folder, &details);
                let logical = has_logical(from.record());
                // First the dumps: they go beside the data directory, and check for themselves that nothing is there.
                let mut report = RestoreReport::default();
                if logical {
                    report = self.logical.restore(cx, from, plan.clone()).await?;
                }
                let placed = Physical::restore_into(cx, from, &details, folder, &layout).await?;
                report.restored.extend(placed.restored);
                report.bytes += placed.bytes;
                report.items += placed.items;
                report.warnings.extend(placed.warnings);
                Ok(report)
            }
            _ if has_logical(from.record()) => self.logical.restore(cx, from, plan).await,
            _ => Err(only_into_a_folder()),
        }
    }
}

fn only_into_a_folder() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "a base backup becomes a data directory of its own, not part of a running server",
    )
    .hint(
        "restore it into a folder (`--target FOLDER`) and start a server on it; single databases need the logical mode",
    )
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
        if has_logical(from.record()) {
            return self.logical.drill(cx, from).await;
        }
        Err(Error::new(ErrorKind::Unsupported, "base backups cannot be drilled in this version")
            .hint("`modes: [physical, logical]` drills the dumps; `stackward verify` checks the base backup"))
    }
}
