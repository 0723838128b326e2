//! A backup as a file of commands (RESP), for `redis-cli --pipe`: the way to older and to other servers.
//!
//! Invariant: the file appears under its name only when every key that was asked for is in it, or is named as refused.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backup_core::RunContext;
use backup_core::engine::RestoreReport;
use backup_core::error::{Error, ErrorKind, Result};

use super::folder::{Part, make_folder};
use crate::dumps::Spooled;
use crate::rdb::{ExportOptions, ExportSummary, Functions, RefusedKey, export};

/// The name of the file.
pub(crate) const FILE: &str = "commands.resp";
/// How many keys that are not in the file are named, and how many that lack something.
const NAMED: usize = 20;

/// Writes the commands of all RDBs, one after the other, into `folder`.
pub(crate) async fn write(
    cx: &RunContext,
    spooled: Spooled,
    options: ExportOptions,
    folder: &Path,
) -> Result<RestoreReport> {
    make_folder(folder)?;
    let path = folder.join(FILE);
    let part = Part::beside(&path)?;
    let (target, temporary) = (options.target, part.path());
    cx.step(format!("writing commands for {target}"));
    let exporting = tokio::task::spawn_blocking(move || export_all(&spooled.files, options, &temporary));
    let summaries = exporting
        .await
        .map_err(|source| Error::new(ErrorKind::Internal, "the export of the RDB panicked").caused_by(source))??;
    let bytes = std::fs::metadata(part.path()).map_err(|source| Error::io("cannot write the file", &path, source))?;
    part.becomes(&path)?;
    let mut report =
        RestoreReport { bytes: bytes.len(), restored: vec![path.display().to_string()], ..RestoreReport::default() };
    for summary in summaries {
        report.items += summary.keys.values().sum::<u64>() + summary.functions;
        report.warnings.extend(lines("not in the file", &summary.refused, summary.refused_total));
        report.warnings.extend(lines("incomplete", &summary.incomplete, summary.incomplete_total));
    }
    Ok(report)
}

fn export_all(files: &[PathBuf], mut options: ExportOptions, path: &Path) -> Result<Vec<ExportSummary>> {
    let failed = |source| Error::io("cannot write the commands", path, source);
    let mut out = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut summaries = Vec::new();
    for file in files {
        let rdb = File::open(file).map_err(|source| Error::io("cannot read the RDB", file, source))?;
        summaries.push(export(rdb, &options, &mut out)?);
        // Every master of a cluster has the same libraries.
        options.functions = Functions::Never;
    }
    out.sync_all().map_err(failed)?;
    Ok(summaries)
}

fn lines(what: &str, keys: &[RefusedKey], total: u64) -> Vec<String> {
    let line = |key: &RefusedKey| format!("{what}: db{}: `{}`: {}", key.database, key.key, key.why);
    let mut lines: Vec<String> = keys.iter().take(NAMED).map(line).collect();
    if total > NAMED as u64 {
        lines.push(format!("{what}: {total} keys in all"));
    }
    lines
}
