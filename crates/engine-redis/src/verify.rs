//! Checking a backup without a server: every byte, and the RDB's whole structure against the counts of the manifest.
//!
//! Invariant: damage is a finding; an error means that it could not be looked at.

use async_trait::async_trait;
use backup_core::engine::{Finding, Verifier, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext};

use crate::Redis;
use crate::aof;
use crate::counts;
use crate::details::Details;
use crate::dumps;
use crate::inspect::{Inspection, now_ms};
use crate::rdb::{Checksum, RdbSummary};

#[async_trait]
impl Verifier for Redis {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut names: Vec<ArtifactName> = from.record().artifacts.iter().map(|record| record.name.clone()).collect();
        let details = Details::of(from.record()).unwrap_or_default();
        let dumps = dumps::names(&details)?;
        let missing: Vec<ArtifactName> = dumps.iter().filter(|dump| !names.contains(dump)).cloned().collect();
        names.extend(missing);
        let mut total: Option<RdbSummary> = None;
        for name in names {
            cx.step(format!("reading {name}"));
            let checked = if dumps.contains(&name) {
                let summary = Inspection::begin(now_ms()).read(cx, from, &name).await;
                summary.map(|summary| {
                    let checked = tell(&summary);
                    summary.add_to(&mut total);
                    checked
                })
            } else if is_rdb(&name) {
                Inspection::begin(now_ms()).read(cx, from, &name).await.map(|summary| tell(&summary))
            } else if aof::is_manifest(&name) {
                aof::check(from, &name).await
            } else if aof::is_of_the_set(&name) {
                aof::check_file(cx, from, &name).await
            } else {
                read(cx, from, &name).await
            };
            match checked {
                Ok(checked) => report.checked.push(format!("{name}: {checked}")),
                Err(error) if is_damage(&error) => report.findings.push(finding(from, name, &error)),
                Err(error) => return Err(error),
            }
        }
        // Only when every RDB could be counted: what is missing was found above.
        if report.findings.is_empty()
            && let (Some(total), Some(name)) = (total, dumps.first())
            && let Err(error) = compare(from, &total)
        {
            report.findings.push(finding(from, name.clone(), &error));
        }
        Ok(report)
    }
}

fn finding(from: &BackupReader, artifact: ArtifactName, error: &Error) -> Finding {
    let (snapshot, source) = (from.manifest().id.clone(), from.source().clone());
    Finding { snapshot, source, artifact, problem: error.chain() }
}

/// Whether an error says that the backup is not whole, rather than that it could not be looked at.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::NotFound)
}

/// The snapshot, or the base of the append-only files.
fn is_rdb(name: &ArtifactName) -> bool {
    std::path::Path::new(name.as_str()).extension().is_some_and(|extension| extension == "rdb")
}

fn tell(summary: &RdbSummary) -> String {
    let checksum = if summary.checksum == Checksum::Verified { "its CRC-64 fits" } else { "it has no checksum" };
    format!("read to its end, {checksum}, {} keys of RDB version {}", summary.keys(), summary.version)
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
