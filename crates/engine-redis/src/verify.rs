//! Checking a backup without a server: every byte, and the RDB's whole structure against the counts of the manifest.
//!
//! Invariant: damage is a finding; an error means that it could not be looked at.

use async_trait::async_trait;
use backup_core::engine::{Finding, Verifier, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext};

use crate::Redis;
use crate::aof;
use crate::backup::DUMP;
use crate::counts;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Checksum, RdbSummary};

#[async_trait]
impl Verifier for Redis {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut names: Vec<ArtifactName> = from.record().artifacts.iter().map(|record| record.name.clone()).collect();
        if !names.iter().any(|name| name.as_str() == DUMP) {
            names.push(ArtifactName::new(DUMP)?);
        }
        for name in names {
            cx.step(format!("reading {name}"));
            let checked = if is_rdb(&name) {
                check_rdb(cx, from, &name).await
            } else if aof::is_manifest(&name) {
                aof::check(from, &name).await
            } else {
                read(cx, from, &name).await
            };
            match checked {
                Ok(checked) => report.checked.push(format!("{name}: {checked}")),
                Err(error) if is_damage(&error) => report.findings.push(Finding {
                    snapshot: from.manifest().id.clone(),
                    source: from.source().clone(),
                    artifact: name,
                    problem: error.chain(),
                }),
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}

/// Whether an error says that the backup is not whole, rather than that it could not be looked at.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::NotFound)
}

/// The snapshot, or the base of the append-only files.
fn is_rdb(name: &ArtifactName) -> bool {
    std::path::Path::new(name.as_str()).extension().is_some_and(|extension| extension == "rdb")
}

async fn check_rdb(cx: &RunContext, from: &BackupReader, name: &ArtifactName) -> Result<String> {
    let mut inspection = Inspection::begin(now_ms());
    let mut reader = from.stream(name).await?;
    while let Some(piece) = cx.unless_cancelled(reader.next()).await? {
        cx.progress(piece.len() as u64, 0);
        inspection.push(piece).await?;
    }
    let summary = inspection.finish().await?;
    if name.as_str() == DUMP {
        compare(from, &summary)?;
    }
    let checksum = if summary.checksum == Checksum::Verified { "its CRC-64 fits" } else { "it has no checksum" };
    Ok(format!("read to its end, {checksum}, {} keys of RDB version {}", summary.keys(), summary.version))
}

/// Fails unless the scan counts what was counted at the backup.
pub(crate) fn compare(from: &BackupReader, summary: &RdbSummary) -> Result<()> {
    let differences = from.record().fingerprint.differences(&counts::fingerprint(summary));
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Damaged, format!("it does not hold what was counted: {}", differences.join("; "))))
}

async fn read(cx: &RunContext, from: &BackupReader, name: &ArtifactName) -> Result<String> {
    let mut reader = from.stream(name).await?;
    while let Some(piece) = cx.unless_cancelled(reader.next()).await? {
        cx.progress(piece.len() as u64, 0);
    }
    Ok("read to its end".to_owned())
}
