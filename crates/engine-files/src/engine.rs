//! The `files` engine: ties its parts to the contracts.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{
    DrillReport, Driller, Engine, EngineSetup, Preflight, RestorePlan, RestoreReport, RestoreTarget, Restorer, Source,
    SourceSummary, Verifier, VerifyReport,
};
use backup_core::error::{Error, Result};
use backup_core::manifest::SourceRecord;
use backup_core::{BackupReader, BackupWriter, RunContext};

use crate::config::FilesConfig;
use crate::filter::Rules;
use crate::{backup, drill, restore, verify};

/// One configured `files` source.
#[derive(Debug)]
struct Files {
    paths: Vec<PathBuf>,
    rules: Arc<Rules>,
}

/// Parses the configuration. Pure.
pub(crate) fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let config: FilesConfig = setup.config.parse()?;
    let paths = config.absolute_paths(setup.folder)?;
    let engine = Arc::new(Files { paths, rules: Arc::new(Rules::new(&config)?) });
    Ok(Engine {
        source: engine.clone(),
        restorer: engine.clone(),
        verifier: engine.clone(),
        driller: engine,
        follower: None,
    })
}

#[async_trait]
impl Source for Files {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        let roots = backup::resolve_roots(cx, &self.paths)?;
        let mut warnings = Vec::new();
        for root in &roots {
            let path = root.below("/".as_ref());
            let metadata = std::fs::metadata(&path).map_err(|source| Error::io("cannot read", &path, source))?;
            let readable = rustix::fs::access(&path, rustix::fs::Access::READ_OK);
            readable.map_err(|errno| Error::io("cannot read a path that the plan names", &path, errno.into()))?;
            if metadata.is_dir() && std::fs::read_dir(&path).is_ok_and(|mut items| items.next().is_none()) {
                warnings.push(format!("`{}` is empty", path.display()));
            }
        }
        if !rustix::process::geteuid().is_root() {
            warnings.push("not run as root: files of other users may be unreadable".to_owned());
        }
        let names: Vec<String> = roots.iter().map(|root| format!("/{root}")).collect();
        Ok(Preflight { description: format!("files below {}", names.join(", ")), expected_bytes: None, warnings })
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        backup::backup(cx, &self.paths, &self.rules, out).await
    }
}

#[async_trait]
impl Restorer for Files {
    async fn plan_restore(&self, cx: &RunContext, from: &BackupReader, to: &RestoreTarget) -> Result<RestorePlan> {
        restore::plan(cx, from, &self.paths, &self.rules, to).await
    }

    async fn restore(&self, cx: &RunContext, from: &BackupReader, plan: RestorePlan) -> Result<RestoreReport> {
        restore::restore(cx, from, &self.paths, &self.rules, plan).await
    }

    fn places(&self, _: Option<&SourceRecord>) -> Vec<PathBuf> {
        self.paths.clone()
    }
}

#[async_trait]
impl Verifier for Files {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        verify::verify(cx, from).await
    }
}

#[async_trait]
impl Driller for Files {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        drill::drill(cx, from).await
    }
}
