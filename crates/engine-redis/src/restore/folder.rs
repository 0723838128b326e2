//! Writing a backup as files, in the form that a server loads when it starts.
//!
//! A server with `appendonly yes` ignores `dump.rdb` and starts empty without a word. For such a server the same RDB is
//! also written as the base of a set of append-only files, which it does load.

use std::path::{Path, PathBuf};

use backup_core::engine::RestoreReport;
use backup_core::error::{Error, Result};
use backup_core::manifest::ServerRecord;
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::instructions;
use crate::aof::MANIFEST_ENDING;
use crate::details::Details;
use crate::dumps;
use crate::rdb::RdbSummary;
use crate::recover::AOF_FOLDER;
use crate::verify::compare;

/// The names that a server uses unless told otherwise.
pub(crate) const AOF_NAME: &str = "appendonly.aof";

/// The file names of a set of append-only files that begins with an RDB, and its manifest.
pub(crate) struct AofForm {
    pub(crate) base: String,
    /// Commands that follow the base, in sets that have any.
    pub(crate) increment: String,
    pub(crate) manifest: String,
    pub(crate) text: String,
}

impl AofForm {
    pub(crate) fn named(name: &str) -> Self {
        let base = format!("{name}.1.base.rdb");
        let text = format!("file {base} seq 1 type b\n");
        let increment = format!("{name}.1.incr.aof");
        Self { manifest: format!("{name}{MANIFEST_ENDING}"), base, increment, text }
    }

    /// A set whose commands are replayed after the base.
    pub(crate) fn with_increment(name: &str) -> Self {
        let mut form = Self::named(name);
        form.text.push_str(&format!("file {} seq 1 type i\n", form.increment));
        form
    }

    /// As a server of 7.0 takes over the single file of an older one: it becomes the base.
    pub(crate) fn of_a_single_file(name: &str) -> Self {
        let base = format!("{name}.1.base.aof");
        let text = format!("file {base} seq 1 type b\n");
        let increment = format!("{name}.1.incr.aof");
        Self { manifest: format!("{name}{MANIFEST_ENDING}"), base, increment, text }
    }
}

pub(crate) fn steps(from: &BackupReader, folder: &Path, details: &Details) -> Vec<String> {
    let names = from.record().artifacts.iter().map(|artifact| artifact.name.as_str());
    let mut steps: Vec<String> = names.map(|name| format!("write {}", folder.join(name).display())).collect();
    if details.append_only {
        steps
            .push("write the append-only form beside each RDB, because the server kept an append-only file".to_owned());
    }
    steps.push(format!("write {}", folder.join(instructions::FILE).display()));
    steps
}

/// Writes everything. Each file appears under its name only when it is whole.
pub(crate) async fn write(cx: &RunContext, from: &BackupReader, folder: &Path) -> Result<RestoreReport> {
    let mut report = RestoreReport::default();
    let details = Details::of(from.record())?;
    let dumps = dumps::names(&details)?;
    let mut total: Option<RdbSummary> = None;
    for artifact in &from.record().artifacts {
        let path = folder.join(artifact.name.as_str());
        let part = write_one(cx, from, &artifact.name, &path, &dumps, &mut total).await?;
        // The last RDB completes what was counted.
        if dumps.last() == Some(&artifact.name)
            && let Some(total) = &total
        {
            compare(from, total)?;
        }
        part.becomes(&path)?;
        report.restored.push(path.display().to_string());
        report.bytes += artifact.bytes;
    }
    for dump in dumps.iter().filter(|_| details.append_only) {
        let written = append_only(from, &folder.join(dump.as_str()))?;
        report.restored.push(written.display().to_string());
    }
    write_new(&folder.join(instructions::FILE), instructions::text(from, &details).as_bytes())?;
    report.items = from.record().fingerprint.0.values().flat_map(std::collections::BTreeMap::values).sum();
    report.items = report.items.max(report.restored.len() as u64);
    Ok(report)
}

/// Writes the same RDB once more, in the form that a server with append-only files loads; returns what it wrote.
fn append_only(from: &BackupReader, dump: &Path) -> Result<PathBuf> {
    if from.record().server.as_ref().is_some_and(keeps_one_file) {
        // Such a file may begin with an RDB, and need not go on after it.
        let file = dump.with_file_name(AOF_NAME);
        link_or_copy(dump, &file)?;
        return Ok(file);
    }
    let form = AofForm::named(AOF_NAME);
    let below = dump.with_file_name(AOF_FOLDER);
    make_folder(&below)?;
    link_or_copy(dump, &below.join(&form.base))?;
    write_new(&below.join(&form.manifest), form.text.as_bytes())?;
    Ok(below)
}

/// Whether its append-only file is a single one: that of every Redis before 7.0.
fn keeps_one_file(server: &ServerRecord) -> bool {
    let major = server.version.split('.').next().and_then(|major| major.parse().ok());
    server.product == "Redis" && major.is_some_and(|major: u32| major < 7)
}

/// Writes one artifact beside its place; an RDB is counted into `total`.
async fn write_one(
    cx: &RunContext,
    from: &BackupReader,
    name: &ArtifactName,
    path: &Path,
    dumps: &[ArtifactName],
    total: &mut Option<RdbSummary>,
) -> Result<Part> {
    make_folder(path.parent().unwrap_or(path))?;
    let part = Part::beside(path)?;
    if dumps.contains(name) {
        dumps::spool(cx, from, name, &part.path()).await?.add_to(total);
    } else {
        let failed = |source| Error::io("cannot write the file", path, source);
        // It may hold hashes of passwords: readable by its owner only.
        let mut options = tokio::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(part.path()).await.map_err(failed)?;
        from.stream(name).await?.copy_to(cx, file).await?;
    }
    Ok(part)
}

/// Writes one artifact that is no RDB to be counted.
pub(crate) async fn write_plain(cx: &RunContext, from: &BackupReader, name: &ArtifactName, path: &Path) -> Result<()> {
    write_one(cx, from, name, path, &[], &mut None).await?.becomes(path)
}

/// A file beside its later place; removed when dropped before it gets there.
pub(crate) struct Part {
    folder: tempfile::TempDir,
}

impl Part {
    pub(crate) fn beside(path: &Path) -> Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let folder = tempfile::Builder::new().prefix(".stackward-").tempdir_in(parent);
        Ok(Self { folder: folder.map_err(|source| Error::io("cannot write into the folder", parent, source))? })
    }

    /// Where to write it.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("part")
    }

    /// Puts it in its place.
    pub(crate) fn becomes(self, path: &Path) -> Result<()> {
        std::fs::rename(self.path(), path).map_err(|source| Error::io("cannot write the file", path, source))
    }
}

pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io("cannot make the folder", folder, source))
}

/// Servers replace these files and never change them in place, so one content may have two names.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    let part = Part::beside(to)?;
    if std::fs::hard_link(from, part.path()).is_err() {
        std::fs::copy(from, part.path()).map_err(|source| Error::io("cannot write the file", to, source))?;
    }
    part.becomes(to)
}

pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let part = Part::beside(path)?;
    std::fs::write(part.path(), content).map_err(|source| Error::io("cannot write the file", path, source))?;
    part.becomes(path)
}
