//! The RDBs of a backup: one, or one for each master of a cluster.
//!
//! Invariant: together they hold what the manifest's fingerprint counts, or the backup is damaged.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext};

use crate::backup::DUMP;
use crate::details::Details;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::RdbSummary;
use crate::verify::compare;

/// The names of the RDBs that a backup should have.
pub(crate) fn names(details: &Details) -> Result<Vec<ArtifactName>> {
    if details.shards.is_empty() {
        return Ok(vec![ArtifactName::new(DUMP)?]);
    }
    details.shards.iter().map(|shard| ArtifactName::new(&*shard.artifact)).collect()
}

/// The plain bytes of all of them.
///
/// # Errors
/// [`ErrorKind::NotFound`] when one is missing.
pub(crate) fn bytes(from: &BackupReader, details: &Details) -> Result<u64> {
    let mut bytes = 0;
    for name in names(details)? {
        let record = from.record().artifact(&name);
        bytes += record
            .map(|record| record.bytes)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the backup has no {name}")))?;
    }
    Ok(bytes)
}

/// RDBs in a scratch folder, read to the end and counted.
#[derive(Debug)]
pub(crate) struct Spooled {
    /// Each file, in the manifest's order.
    pub(crate) files: Vec<PathBuf>,
    /// What is in all of them.
    pub(crate) summary: RdbSummary,
}

/// Writes all of them into `folder`, each scanned on its way.
///
/// # Errors
/// [`ErrorKind::Damaged`] when an artifact is not what was written, is no whole RDB, or not what was counted.
pub(crate) async fn spool_all(
    cx: &RunContext,
    from: &BackupReader,
    details: &Details,
    folder: &Path,
) -> Result<Spooled> {
    let (mut files, mut total): (Vec<PathBuf>, Option<RdbSummary>) = (Vec::new(), None);
    for (position, name) in names(details)?.iter().enumerate() {
        let path = folder.join(format!("{position}.rdb"));
        let summary = spool(cx, from, name, &path).await?;
        files.push(path);
        summary.add_to(&mut total);
    }
    let summary = total.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the backup has no {DUMP}")))?;
    compare(from, &summary)?;
    Ok(Spooled { files, summary })
}

/// Writes one of them to `path`, scanned on its way.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the artifact is not what was written, or no whole RDB.
pub(crate) async fn spool(
    cx: &RunContext,
    from: &BackupReader,
    name: &ArtifactName,
    path: &Path,
) -> Result<RdbSummary> {
    use tokio::io::AsyncWriteExt;
    let failed = |source| Error::io("cannot write the RDB", path, source);
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).await.map_err(failed)?;
    let mut inspection = Inspection::begin(now_ms());
    let mut reader = from.stream(name).await?;
    while let Some(piece) = cx.unless_cancelled(reader.next()).await? {
        file.write_all(&piece).await.map_err(failed)?;
        cx.progress(piece.len() as u64, 0);
        inspection.push(piece).await?;
    }
    file.flush().await.map_err(failed)?;
    inspection.finish().await
}
