//! Checks a directory and says what damage hurts: the file, and the snapshot and the artifact that need it.
//!
//! Invariant: every folder with a snapshot's id is looked at, also those that are too damaged to be listed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactRecord, SourceRecord};
use backup_core::sink::{CheckDepth, CheckReport, Damage, Hurt};
use backup_core::{RunContext, SnapshotId};
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};

use super::names::{MANIFEST, PARTIAL, SUMS, Sums};
use super::read::{DirectoryReader, file_of, open_plain};
use super::{Directory, load_sums, partial};
use crate::blocking;

/// Files are read in pieces of this size; between two of them the check can be cancelled.
const PIECE_BYTES: usize = 256 * 1024;
/// So many files that nobody knows are named.
const NAMED_FILES: usize = 20;

pub(super) async fn check(
    directory: &Directory,
    cx: &RunContext,
    depth: CheckDepth,
    of: &[SnapshotId],
) -> Result<CheckReport> {
    let mut checker = Checker { directory, cx, depth, report: CheckReport::default() };
    let listed = directory.clone();
    let mut ids: BTreeSet<SnapshotId> = blocking(move || listed.ids()).await?.into_iter().collect();
    for id in of {
        cx.check_cancelled()?;
        ids.remove(id);
        checker.snapshot(id).await?;
    }
    for id in ids {
        cx.check_cancelled()?;
        let (directory, wanted) = (directory.clone(), id.clone());
        if let Err(error) = blocking(move || directory.load(&wanted)).await {
            checker.broken(&id, error)?;
        }
    }
    if of.is_empty() {
        checker.report.notes.push("no snapshot was looked at".to_owned());
    }
    checker.leftovers()?;
    Ok(checker.report)
}

struct Checker<'a> {
    directory: &'a Directory,
    cx: &'a RunContext,
    depth: CheckDepth,
    report: CheckReport,
}

/// A file to look at.
struct Target {
    /// Below the snapshot's folder.
    path: String,
    full: PathBuf,
    /// Its length, where that is known.
    bytes: Option<u64>,
    /// Its digest, when it shall be read.
    sha256: Option<String>,
    hurt: Hurt,
}

impl Checker<'_> {
    async fn snapshot(&mut self, id: &SnapshotId) -> Result<()> {
        let (directory, wanted) = (self.directory.clone(), id.clone());
        self.report.objects += 1;
        let reader = match blocking(move || directory.load(&wanted)).await {
            Ok(reader) => reader,
            Err(error) => return self.broken(id, error),
        };
        let folder = reader.folder.clone();
        let sums = match blocking(move || load_sums(&folder)).await {
            Ok(sums) => sums,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.damage(format!("{id}/{SUMS}"), error.chain(), whole(id));
                Sums::default()
            }
            Err(error) => return Err(error),
        };
        let targets = self.targets(&reader, &sums);
        let known: BTreeSet<String> = targets.iter().map(|target| target.path.clone()).collect();
        self.files(id, targets).await?;
        let folder = reader.folder;
        let unknown = blocking(move || unknown_files(&folder, &known)).await?;
        if !unknown.is_empty() {
            let named: Vec<&str> = unknown.iter().take(NAMED_FILES).map(String::as_str).collect();
            let (count, named) = (unknown.len(), named.join(", "));
            self.report.notes.push(format!("{id} holds {count} files that are not of the snapshot: {named}"));
        }
        Ok(())
    }

    /// What the manifest and the sums name. What only one of them names is damage.
    fn targets(&mut self, reader: &DirectoryReader, sums: &Sums) -> Vec<Target> {
        let id = &reader.manifest.id;
        let mut targets = BTreeMap::new();
        for (source, artifact) in
            reader.manifest.sources.iter().flat_map(|source| source.artifacts.iter().map(move |one| (source, one)))
        {
            let hurt = hurt(id, source, artifact);
            let path = match file_of(artifact) {
                Ok((path, ..)) => path.to_string(),
                Err(error) => {
                    self.damage(format!("{id}/{MANIFEST}"), error.chain(), hurt);
                    continue;
                }
            };
            if !sums.0.is_empty() && !sums.0.contains_key(&path) {
                self.damage(format!("{id}/{SUMS}"), format!("it has no line for {path}"), hurt.clone());
            }
            let bytes = Some(artifact.stored_bytes);
            targets.insert(path, (bytes, hurt));
        }
        for path in sums.0.keys() {
            targets.entry(path.clone()).or_insert_with(|| (None, whole(id)));
        }
        if !sums.0.is_empty() && !sums.0.contains_key(MANIFEST) {
            self.damage(format!("{id}/{SUMS}"), format!("it has no line for {MANIFEST}"), whole(id));
        }
        let target = |(path, (bytes, hurt)): (String, (Option<u64>, Hurt))| Target {
            full: reader.folder.join(&path),
            bytes,
            sha256: sums.0.get(&path).filter(|_| self.depth == CheckDepth::Data).cloned(),
            path,
            hurt,
        };
        // A line that someone wrote to make us read elsewhere is not followed.
        let (inside, outside): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|(path, _)| backup_core::ArtifactName::new(path.as_str()).is_ok());
        let targets = inside.into_iter().map(target).collect();
        for (path, (_, hurt)) in outside {
            self.damage(format!("{id}/{SUMS}"), format!("it names `{}`", path.escape_debug()), hurt);
        }
        targets
    }

    async fn files(&mut self, id: &SnapshotId, targets: Vec<Target>) -> Result<()> {
        let mut checks = stream::iter(targets)
            .map(|target| {
                let cx = self.cx.clone();
                blocking(move || look_at(&cx, &target).map(|found| (target, found)))
            })
            .buffer_unordered(self.cx.jobs());
        let mut damage = Vec::new();
        while let Some(checked) = checks.next().await {
            let (target, (bytes, problem)) = checked?;
            self.report.objects += 1;
            self.report.bytes += bytes;
            self.cx.progress(0, 1);
            damage.extend(problem.map(|problem| (format!("{id}/{}", target.path), problem, target.hurt)));
        }
        drop(checks);
        damage.sort_by(|a, b| a.0.cmp(&b.0));
        for (object, problem, hurt) in damage {
            self.damage(object, problem, hurt);
        }
        Ok(())
    }

    /// A snapshot whose manifest cannot be read.
    fn broken(&mut self, id: &SnapshotId, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported => {
                self.damage(format!("{id}/{MANIFEST}"), error.chain(), whole(id));
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn leftovers(&mut self) -> Result<()> {
        for entry in partial::entries(&self.directory.path)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PARTIAL) {
                self.report.notes.push(format!("{name} belongs to no finished run: left by one that died, or running"));
            } else if SnapshotId::new(name.as_str()).is_err() || !partial::is_folder(&entry)? {
                self.report.notes.push(format!("{} is not ours", name.escape_debug()));
            }
        }
        Ok(())
    }

    fn damage(&mut self, object: String, problem: String, hurt: Hurt) {
        match self.report.damage.iter_mut().find(|damage| damage.object == object && damage.problem == problem) {
            Some(damage) => damage.hurts.push(hurt),
            None => self.report.damage.push(Damage { object, problem, hurts: vec![hurt] }),
        }
    }
}

fn whole(id: &SnapshotId) -> Hurt {
    Hurt::whole(id.clone())
}

fn hurt(id: &SnapshotId, source: &SourceRecord, artifact: &ArtifactRecord) -> Hurt {
    let (source, artifact) = (Some(source.name.clone()), Some(artifact.name.clone()));
    Hurt { snapshot: id.clone(), source, artifact, files: Vec::new() }
}

/// Looks at a file; returns the bytes that were read, and what is wrong. Blocks.
fn look_at(cx: &RunContext, target: &Target) -> Result<(u64, Option<String>)> {
    let mut file = match open_plain(&target.full) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::Damaged => return Ok((0, Some(error.message().to_owned()))),
        Err(error) => return Err(error),
    };
    let failed = |source| Error::io("cannot read the file", &target.full, source);
    let length = file.metadata().map_err(failed)?.len();
    if let Some(bytes) = target.bytes.filter(|bytes| *bytes != length) {
        return Ok((0, Some(format!("it has {length} bytes where {bytes} were written"))));
    }
    let Some(expected) = &target.sha256 else { return Ok((0, None)) };
    let mut digest = Sha256::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut read = 0;
    loop {
        cx.check_cancelled()?;
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            // A disk that cannot read a file is what a check is there to find.
            Err(source) => return Ok((read, Some(failed(source).chain()))),
        };
        digest.update(&buffer[..count]);
        read += count as u64;
        cx.progress(count as u64, 0);
    }
    let same = hex::encode(digest.finalize()) == *expected;
    Ok((read, (!same).then(|| format!("it does not have its SHA-256 of {SUMS}"))))
}

/// The files of a snapshot's folder that are not its own. Blocks.
fn unknown_files(folder: &Path, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut unknown = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        for entry in partial::entries(&folder.join(&below))? {
            let path = format!("{below}{}", entry.file_name().to_string_lossy());
            if partial::is_folder(&entry)? {
                folders.push(format!("{path}/"));
            } else if path != SUMS && path != MANIFEST && !known.contains(&path) {
                unknown.push(path.escape_debug().to_string());
            }
        }
    }
    unknown.sort();
    Ok(unknown)
}
