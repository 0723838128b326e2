//! What the manifest tells of a saved database: one object per database in the detail `databases`.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader};
use serde::{Deserialize, Serialize};

/// The name of the detail.
pub(crate) const DATABASES: &str = "databases";

/// One saved database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatabaseRecord {
    /// The artifact that holds it.
    pub(crate) artifact: ArtifactName,
    /// Where it was.
    pub(crate) path: PathBuf,
    pub(crate) page_size: u32,
    pub(crate) journal_mode: String,
    pub(crate) encoding: String,
    pub(crate) application_id: i64,
    pub(crate) user_version: i64,
    /// Permission bits of the file.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    /// What was damaged in it when it was saved. Not in the manifests of earlier versions, which did not look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) faults: Vec<String>,
}

impl DatabaseRecord {
    /// The group of the fingerprint that counts its rows.
    pub(crate) fn group(&self) -> String {
        format!("rows in {}", self.path.display())
    }

    /// The name of its file.
    pub(crate) fn file_name(&self) -> &Path {
        self.path.file_name().map_or(Path::new("database"), Path::new)
    }
}

/// The name of the artifact for the database at `path`.
///
/// # Errors
/// [`ErrorKind::Usage`] when the path is longer than a name may be.
pub(crate) fn artifact_name(path: &Path) -> Result<ArtifactName> {
    let text = path.to_string_lossy();
    let parts: Vec<String> = text.split('/').filter(|part| !part.is_empty()).map(ArtifactName::escape).collect();
    ArtifactName::new(parts.join("/"))
}

/// The saved databases.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the manifest does not describe them in a way that can be restored.
pub(crate) fn databases(from: &BackupReader) -> Result<Vec<DatabaseRecord>> {
    let damaged = |why: &str| {
        Error::new(
            ErrorKind::Damaged,
            format!("the manifest does not describe the databases of `{}`: {why}", from.source()),
        )
    };
    let detail = from.record().details.get(DATABASES).cloned().ok_or_else(|| damaged("the detail is missing"))?;
    let records: Vec<DatabaseRecord> =
        serde_json::from_value(detail).map_err(|source| damaged("it cannot be read").caused_by(source))?;
    for record in &records {
        let plain = record
            .path
            .components()
            .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
        if !record.path.is_absolute() || record.path.file_name().is_none() || !plain {
            return Err(damaged(&format!("`{}` is not the path of a file", record.path.display()))
                .hint("whoever wrote this manifest wanted to write outside its target; do not restore it"));
        }
    }
    if records.is_empty() {
        return Err(damaged("there is none"));
    }
    Ok(records)
}
