//! Restoring into a folder: the dumps, the globals and the configuration as ordinary files, for hands and other tools.
//!
//! Invariant: a file gets its name only when it was read to its end and found undamaged; nothing leaves the folder.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backup_core::engine::{RestoreReport, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, ArtifactRecord};
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::blueprint::chosen;
use super::details::Details;
use crate::physical::is_memo;

/// The artifacts that `target` asks for: everything, or the dumps of the selected databases.
pub(crate) fn artifacts(from: &BackupReader, details: &Details, target: &RestoreTarget) -> Result<Vec<ArtifactName>> {
    if target.rename.is_some() {
        return Err(Error::new(ErrorKind::Usage, "a dump in a folder cannot be given another name")
            .hint("rename the database when you load it, or restore onto the server"));
    }
    if target.select.is_empty() {
        let own = |artifact: &&ArtifactRecord| artifact.kind == ArtifactKind::Stream && !is_memo(&artifact.name);
        return Ok(from.record().artifacts.iter().filter(own).map(|artifact| artifact.name.clone()).collect());
    }
    Ok(chosen(details, target)?.into_iter().map(|item| item.details.artifact).collect())
}

/// Writes the artifacts below `folder`.
pub(crate) async fn write(
    cx: &RunContext,
    from: &BackupReader,
    artifacts: &[ArtifactName],
    folder: &Path,
) -> Result<RestoreReport> {
    let mut report = RestoreReport::default();
    for name in artifacts {
        let path = folder.join(name.as_str());
        let parent = path.parent().unwrap_or(folder);
        let failed = |source| Error::io("cannot make the folder", parent, source);
        tokio::fs::create_dir_all(parent).await.map_err(failed)?;
        // Named only when complete; removed when dropped before.
        let part = tempfile::Builder::new().prefix(".stackward-").tempfile_in(parent).map_err(failed)?;
        let (file, part) = part.into_parts();
        let bytes = from.stream(name).await?.copy_to(cx, tokio::fs::File::from_std(file)).await?;
        // It holds password hashes: readable by its owner only.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&part, mode).map_err(|source| Error::io("cannot set the mode", &path, source))?;
        part.persist(&path).map_err(|error| Error::io("cannot write the file", &path, error.error))?;
        report.restored.push(path.display().to_string());
        report.bytes += bytes;
        report.items += 1;
    }
    Ok(report)
}
