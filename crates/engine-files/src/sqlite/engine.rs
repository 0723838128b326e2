//! The `sqlite` engine: ties its parts to the contracts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backup_core::engine::{
    DrillReport, Driller, Engine, EngineSetup, Existing, Place, Preflight, RestorePlan, RestoreReport, RestoreTarget,
    Restorer, Source, SourceSummary, Verifier, VerifyReport,
};
use backup_core::error::Result;
use backup_core::manifest::SourceRecord;
use backup_core::{BackupReader, BackupWriter, RunContext};

use super::apart;
use super::backup::{beside, locate, scratch};
use super::connection::{blocking, explain, open_live};
use super::record::databases;
use super::{SqliteConfig, backup, restore, verify};
use crate::verify::is_damage;

/// One configured `sqlite` source.
#[derive(Debug)]
struct Sqlite {
    paths: Vec<PathBuf>,
    busy_timeout: Duration,
}

/// Parses the configuration. Pure.
pub(crate) fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let config: SqliteConfig = setup.config.parse()?;
    let engine = Arc::new(Sqlite { paths: config.absolute_paths(setup.folder)?, busy_timeout: config.busy_timeout() });
    Ok(Engine {
        source: engine.clone(),
        restorer: engine.clone(),
        verifier: engine.clone(),
        driller: engine,
        follower: None,
    })
}

#[async_trait]
impl Source for Sqlite {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        let (paths, busy_timeout) = (self.paths.clone(), self.busy_timeout);
        let sizes = blocking(cx, move |cx, interrupts| {
            let mut sizes = Vec::new();
            for path in &paths {
                cx.check_cancelled()?;
                let (real, metadata) = locate(path)?;
                let live = open_live(&real, busy_timeout)?;
                interrupts.watch(&live);
                let sql = "SELECT count(*) FROM sqlite_schema";
                match live.query_row(sql, [], |row| row.get::<_, i64>(0)) {
                    Err(why) if !apart::is_needed(&why, &real) => return Err(explain(why, &real)),
                    _readable_here_or_apart => {}
                }
                sizes.push(metadata.len() + std::fs::metadata(beside(&real, "-wal")).map_or(0, |wal| wal.len()));
            }
            Ok(sizes)
        })
        .await?;
        let mut warnings = Vec::new();
        let largest = sizes.iter().max().copied().unwrap_or_default();
        if let Ok(space) = rustix::fs::statvfs(cx.scratch())
            && space.f_bavail.saturating_mul(space.f_frsize) < largest
        {
            warnings.push(format!("a copy needs {largest} bytes, more than `{}` has free", cx.scratch().display()));
        }
        let names: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
        let description = format!("SQLite {} on {}", rusqlite::version(), names.join(", "));
        Ok(Preflight { description, expected_bytes: Some(sizes.iter().sum()), warnings })
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        backup::backup(cx, &self.paths, self.busy_timeout, out).await
    }
}

#[async_trait]
impl Restorer for Sqlite {
    async fn plan_restore(&self, _: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        restore::plan(from, &self.paths, to)
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        restore::restore(cx, from, &self.paths, plan).await
    }

    fn places(&self, _: Option<&SourceRecord>) -> Vec<PathBuf> {
        let whole = |path: &PathBuf| {
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            [""].iter().chain(&restore::COMPANIONS).map(|ending| beside(&path, ending)).collect::<Vec<_>>()
        };
        self.paths.iter().flat_map(whole).collect()
    }
}

#[async_trait]
impl Verifier for Sqlite {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        verify::verify(cx, from).await
    }
}

#[async_trait]
impl Driller for Sqlite {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        let mut report = DrillReport::default();
        let folder = Arc::new(scratch(cx)?);
        for record in databases(from)? {
            // One at a time, each in a folder of its own: their names may be the same.
            let own = folder.path().join(report.checked.len().to_string());
            let place = Place::Folder(own.clone());
            let select = vec![record.path.display().to_string()];
            let to = RestoreTarget { place, existing: Existing::Refuse, select, ..RestoreTarget::default() };
            let started = Instant::now();
            let plan = restore::plan(from, &self.paths, &to)?;
            let restored = match restore::restore(cx, from, &self.paths, plan).await {
                Err(error) if is_damage(&error) => {
                    report.findings.push(format!("the restore of {} failed: {}", record.path.display(), error.chain()));
                    continue;
                }
                result => result?,
            };
            report.restore_time += started.elapsed();
            report.bytes += restored.bytes;
            let Some(path) = restored.restored.first().map(PathBuf::from) else { continue };
            let started = Instant::now();
            let (saved, kept) = (from.record().fingerprint.clone(), Arc::clone(&folder));
            let answers = blocking(cx, move |cx, interrupts| {
                let _until_the_end = kept;
                verify::examine(cx, interrupts, &path, &record, &saved)
            })
            .await?;
            report.check_time += started.elapsed();
            report.items += answers.rows;
            report.checked.extend(answers.checked);
            report.findings.extend(answers.faults);
            let inherited = answers.inherited.into_iter();
            report.findings.extend(inherited.map(|fault| format!("{fault} (as it was when it was saved)")));
        }
        Ok(report)
    }
}
