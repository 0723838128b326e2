//! Putting a cluster back: the whole of it, some databases, or one under another name; or as files into a folder.

use async_trait::async_trait;
use backup_core::engine::{Place, RestorePlan, RestoreReport, RestoreTarget, Restorer};
use backup_core::error::Result;
use backup_core::{BackupReader, RunContext};

use super::Logical;
use super::blueprint::{self, Blueprint, Item, Purpose, Standing};
use super::catalog;
use super::details::{Details, tables_group};
use super::export;
use super::load::Loader;
use crate::text::shown;

#[async_trait]
impl Restorer for Logical {
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        cx.unless_cancelled(async {
            let details = Details::of(from.record())?;
            let (steps, artifacts, warnings) = if let Place::Folder(folder) = &to.place {
                let artifacts = export::artifacts(from, &details, to)?;
                to.existing.check_folder(folder)?;
                let steps = artifacts.iter().map(|name| format!("write {}", folder.join(name.as_str()).display()));
                (steps.collect(), artifacts, Vec::new())
            } else {
                let mut connected = catalog::connect(&self.server, &self.tools).await?;
                let server = connected.server.clone();
                let blueprint = blueprint::draw(&server, &mut connected, &details, to, Purpose::Live).await?;
                connected.session.close().await?;
                let artifacts = blueprint.items.iter().map(|item| item.details.artifact.clone()).collect();
                (steps(&blueprint, &self.server.describe()), artifacts, blueprint.warnings)
            };
            let sizes = artifacts.iter().filter_map(|name| from.record().artifact(name)).map(|artifact| artifact.bytes);
            let bytes = sizes.fold(0, u64::saturating_add);
            Ok(RestorePlan { steps, bytes, target: to.clone(), warnings, changes: None })
        })
        .await
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        let details = Details::of(from.record())?;
        if let Place::Folder(folder) = &plan.target.place {
            let artifacts = export::artifacts(from, &details, &plan.target)?;
            plan.target.existing.check_folder(folder)?;
            return cx.unless_cancelled(export::write(cx, from, &artifacts, folder)).await;
        }
        // Drawn again: the server may have changed since the plan was shown.
        let drawn = cx.unless_cancelled(async {
            let mut connected = catalog::connect(&self.server, &self.tools).await?;
            let server = connected.server.clone();
            let blueprint = blueprint::draw(&server, &mut connected, &details, &plan.target, Purpose::Live).await?;
            Ok((connected, blueprint))
        });
        let (connected, blueprint) = drawn.await?;
        let (server, jobs) = (&connected.server, self.settings.jobs);
        let loader = Loader { cx, server, connected: &connected, from, jobs, blueprint: &blueprint };
        let outcome = loader.run().await?;
        let mut report = report(from, &outcome.items);
        report.warnings.extend(blueprint.warnings);
        report.warnings.extend(outcome.warnings);
        report.lacking.extend(outcome.lacking);
        if blueprint.globals.is_some() && !details.cluster.config_files.is_empty() {
            report
                .warnings
                .push("configuration files are never put over live ones; restore into a folder to get them".to_owned());
        }
        Ok(report)
    }
}

/// What a restore of `items` wrote.
pub(crate) fn report(from: &BackupReader, items: &[Item]) -> RestoreReport {
    let mut report = RestoreReport::default();
    for item in items {
        report.restored.push(format!("database {}", shown(&item.name)));
        report.bytes += from.record().artifact(&item.details.artifact).map_or(0, |artifact| artifact.bytes);
        report.items += from.record().fingerprint.total(&tables_group(&item.details.name));
    }
    report
}

fn steps(blueprint: &Blueprint, server: &str) -> Vec<String> {
    let mut steps = Vec::new();
    if blueprint.globals.is_some() {
        steps.push(format!("create the roles and tablespaces that {server} does not have, and set their attributes"));
    }
    for item in &blueprint.items {
        steps.push(format!("load the database `{}` under a temporary name", shown(&item.details.name)));
    }
    for item in &blueprint.items {
        steps.push(match item.standing {
            Standing::Nothing => format!("name it `{}`", shown(&item.name)),
            Standing::Replaced => format!("put it in the place of `{}`, and drop the old one", shown(&item.name)),
        });
    }
    steps
}
