//! A base backup into a folder: `data`, `tablespaces/<oid>`, `config/…`. Nothing is started.

use std::path::Path;

use backup_core::engine::{RestorePlan, RestoreReport, RestoreTarget, VerifyReport};
use backup_core::error::Result;
use backup_core::{BackupReader, RunContext};

use super::backup::TREE;
use super::place::{Layout, place, place_config};
use super::{Physical, PhysicalDetails, verify};

impl Physical {
    /// What [`restore_into`](Self::restore_into) would do.
    pub(crate) fn plan_into(
        from: &BackupReader,
        details: &PhysicalDetails,
        to: &RestoreTarget,
        folder: &Path,
    ) -> RestorePlan {
        let layout = Layout::below(folder, details);
        let mut steps = vec![format!("write the data directory {}", layout.data.display())];
        for space in &details.tablespaces {
            let place = layout.tablespaces.get(&space.oid).map(|path| path.display().to_string()).unwrap_or_default();
            steps.push(format!("write the tablespace that was in {} to {place}", space.location));
        }
        if !details.config_files.is_empty() {
            steps.push(format!("write {} configuration files below {}", details.config_files.len(), folder.display()));
        }
        let tree = from.record().artifacts.iter().find(|artifact| artifact.name.as_str() == TREE);
        let bytes = tree.map_or(0, |artifact| artifact.bytes);
        RestorePlan { steps, bytes, target: to.clone(), warnings: damage(details) }
    }

    /// Writes everything below `folder`, the cluster by `layout`.
    pub(crate) async fn restore_into(
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        folder: &Path,
        layout: &Layout,
    ) -> Result<RestoreReport> {
        let placed = place(cx, from, layout).await?;
        let config = place_config(cx, from, details, folder).await?;
        let mut restored = vec![layout.data.display().to_string()];
        restored.extend(layout.tablespaces.values().map(|path| path.display().to_string()));
        let warnings = damage(details);
        Ok(RestoreReport { restored, bytes: placed.bytes, items: placed.files + config, warnings })
    }

    /// Checks the base backup of a snapshot; `None` when it has none.
    pub(crate) async fn verify(cx: &RunContext, from: &BackupReader) -> Result<Option<VerifyReport>> {
        let Some(details) = PhysicalDetails::of(from.record())? else { return Ok(None) };
        let mut report = VerifyReport::default();
        verify::verify(cx, from, &details, &mut report).await?;
        Ok(Some(report))
    }
}

fn damage(details: &PhysicalDetails) -> Vec<String> {
    if details.damaged_total == 0 {
        return Vec::new();
    }
    let first =
        details.damaged_pages.first().map_or_else(String::new, |page| format!(", one of them in {}", page.path));
    vec![format!("{} pages were damaged on the server already{first}", details.damaged_total)]
}
