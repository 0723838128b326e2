//! The append-only files of a server on this machine, saved while it writes them.
//!
//! A server with several files (Redis 7) lists them in a manifest, which it replaces whenever the set changes. So: read the
//! manifest, open every file of it, note the last one's length, and read the manifest again. When it is the same, all of
//! them were the set at that moment; open files cannot be taken away by a rewrite, and what is appended later is left out.
//! Invariant: nothing is changed on the server, so nothing needs to be set back, whatever happens to us.

mod check;

use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::host::Host;
use backup_core::sink::ChunkHint;
use backup_core::{ArtifactName, BackupReader, BackupWriter, RunContext};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::connection::Connection;
use crate::inspect::{Inspection, now_ms};
use crate::recover::first_second;
use crate::server::setting;

/// The folder of these artifacts.
const FOLDER: &str = "aof";
const DEFAULT_NAME: &str = "appendonly.aof";
pub(crate) const MANIFEST_ENDING: &str = ".manifest";
/// Within so many bytes the last file must tell the time, or it is not asked for it.
const TOLD_WITHIN_BYTES: u64 = 16 * 1024 * 1024;
/// A manifest lists a handful of files.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
/// How often we start again because a rewrite changed the set meanwhile.
const ATTEMPTS: usize = 10;

/// Where a server keeps its append-only files, as this machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// Several files and their manifest.
    Folder { folder: PathBuf, manifest: String },
    /// The one file of servers before 7.0.
    File(PathBuf),
}

/// Asks where they are, and looks whether they are there.
///
/// # Errors
/// When the server keeps none, does not tell, or runs where this machine does not see its files.
pub(crate) async fn locate(connection: &mut Connection, host: &dyn Host, data_dir: Option<&Path>) -> Result<Location> {
    if setting(connection, "appendonly").await?.as_deref() != Some("yes") {
        return Err(Error::new(ErrorKind::Unsupported, "the server keeps no append-only file, or does not tell")
            .hint("leave `aof` out of `modes`; or set `appendonly yes`, and allow +config|get to the plan's user"));
    }
    let folder = match data_dir {
        Some(folder) => folder.to_owned(),
        None => setting(connection, "dir").await?.map(PathBuf::from).unwrap_or_default(),
    };
    let name = setting(connection, "appendfilename").await?.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    let location = match setting(connection, "appenddirname").await? {
        Some(below) => {
            Location::Folder { folder: seen(host, &folder.join(below))?, manifest: format!("{name}{MANIFEST_ENDING}") }
        }
        None => Location::File(seen(host, &folder.join(name))?),
    };
    let path = match &location {
        Location::Folder { folder, manifest } => folder.join(manifest),
        Location::File(path) => path.clone(),
    };
    tokio::fs::metadata(&path).await.map_err(|source| {
        Error::io("cannot see the append-only files", &path, source).hint(
            "name the folder where this machine sees the server's files as `data_dir`, or leave `aof` out of `modes`",
        )
    })?;
    Ok(location)
}

fn seen(host: &dyn Host, path: &Path) -> Result<PathBuf> {
    host.local_path(path).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("{} of {} is not visible from here", path.display(), host.describe()),
        )
        .hint("name the folder that this machine sees as `data_dir`, or leave `aof` out of `modes`")
    })
}

/// The time that saved files can be cut back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// The first second that the last of them tells.
    pub(crate) from: Timestamp,
    /// Everything before this moment is in them.
    pub(crate) to: Timestamp,
}

/// Saves them under `aof/`; tells what they tell of the time.
pub(crate) async fn save(
    cx: &RunContext,
    out: &BackupWriter,
    connection: &mut Connection,
    host: &dyn Host,
    data_dir: Option<&Path>,
) -> Result<Option<Told>> {
    let to = Timestamp::now();
    cx.step("saving the append-only files");
    match locate(connection, host, data_dir).await? {
        Location::File(path) => {
            let file = Opened::open(&path).await?;
            store(out, DEFAULT_NAME, file).await.map(|()| None)
        }
        Location::Folder { folder, manifest } => {
            let (text, files) = open_set(&folder, &manifest).await?;
            let from = match files.last() {
                Some((_, last)) => last.first_second().await?,
                None => None,
            };
            for (name, file) in files {
                store(out, &name, file).await?;
            }
            let length = text.len() as u64;
            let name = artifact(&manifest)?;
            let mut artifact = out.artifact(name, ChunkHint::Stream).await?;
            artifact.write(text.into()).await?;
            artifact.seal(Evidence::ExactLength(length)).await?;
            Ok(from.map(|from| Told { from, to }))
        }
    }
}

/// Opens every file of the set, while it is the set.
async fn open_set(folder: &Path, manifest: &str) -> Result<(String, Vec<(String, Opened)>)> {
    let path = folder.join(manifest);
    for _ in 0..ATTEMPTS {
        let text = read_manifest(&path).await?;
        let mut files = Vec::new();
        for name in listed(&text) {
            match Opened::open(&folder.join(&name)).await {
                Ok(file) => files.push((name, file)),
                // Taken away since the manifest was read: the manifest has changed, too.
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        let complete = files.len() == listed(&text).count();
        if read_manifest(&path).await? == text {
            return if complete { Ok((text, files)) } else { Err(missing(&path)) };
        }
    }
    Err(Error::new(ErrorKind::Busy, "the server rewrote its append-only files all the time").retry_later())
}

fn missing(manifest: &Path) -> Error {
    Error::new(ErrorKind::Incomplete, format!("a file that {} lists is not there", manifest.display()))
        .hint("the server could not start from these files; look into its log")
}

async fn read_manifest(path: &Path) -> Result<String> {
    let failed = |source| Error::io("cannot read the manifest of the append-only files", path, source);
    let mut text = String::new();
    let file = File::open(path).await.map_err(failed)?;
    file.take(MAX_MANIFEST_BYTES).read_to_string(&mut text).await.map_err(failed)?;
    Ok(text)
}

/// Looks whether a backup has every file that its manifest of append-only files lists.
///
/// # Errors
/// [`ErrorKind::Incomplete`] when it has not.
pub(crate) async fn check(from: &BackupReader, manifest: &ArtifactName) -> Result<String> {
    let text = String::from_utf8_lossy(&from.read(manifest, MAX_MANIFEST_BYTES).await?).into_owned();
    for file in listed(&text) {
        let name = artifact(&file)?;
        if from.record().artifact(&name).is_none() {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("it lists `{file}`, which the backup does not have"),
            ));
        }
    }
    Ok(format!("read to its end, the {} files that it lists are there", listed(&text).count()))
}

/// Reads one of the files to its end.
///
/// # Errors
/// [`ErrorKind::Damaged`] for one that a server would refuse.
pub(crate) async fn check_file(cx: &RunContext, from: &BackupReader, name: &ArtifactName) -> Result<String> {
    let content = Inspection::of(|fed| check::read(fed, now_ms())).read(cx, from, name).await?;
    let preamble = content.preamble.map_or_else(String::new, |rdb| format!("an RDB of {} keys, then ", rdb.keys()));
    let torn = if content.torn { ", and one that is cut, which a server leaves out" } else { "" };
    Ok(format!("read to its end: {preamble}{} commands{torn}", content.commands))
}

/// The file names of the saved set, and the text of its manifest; `None` for the single file of servers before 7.0.
pub(crate) async fn set(from: &BackupReader) -> Result<(Vec<ArtifactName>, Option<String>)> {
    let names = from.record().artifacts.iter().map(|record| record.name.clone());
    let names: Vec<ArtifactName> = names.filter(is_of_the_set).collect();
    if names.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "the backup has no append-only files")
            .hint("they are saved by `modes: [rdb, aof]`; leave `--select aof` out to restore the RDB"));
    }
    let Some(manifest) = names.iter().find(|name| is_manifest(name)) else { return Ok((names, None)) };
    let text = String::from_utf8_lossy(&from.read(manifest, MAX_MANIFEST_BYTES).await?).into_owned();
    Ok((names.iter().filter(|name| !is_manifest(name)).cloned().collect(), Some(text)))
}

/// The name that an artifact's file had.
pub(crate) fn file_name(name: &ArtifactName) -> String {
    let escaped = name.as_str().rsplit('/').next().unwrap_or_default();
    unescaped(escaped)
}

/// The text that [`ArtifactName::escape`] was given.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = || u8::from_str_radix(std::str::from_utf8(after.get(..2)?).ok()?, 16).ok();
        let decoded = code().filter(|_| *first == b'%');
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A manifest without the files that wait to be deleted: those were not saved.
pub(crate) fn without_history(manifest: &str) -> String {
    manifest.lines().filter(|line| listed(line).next().is_some()).map(|line| line.to_owned() + "\n").collect()
}

/// Whether an artifact is one of the append-only files, or their manifest.
pub(crate) fn is_of_the_set(name: &ArtifactName) -> bool {
    name.as_str().strip_prefix(FOLDER).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether an artifact is a manifest of append-only files.
pub(crate) fn is_manifest(name: &ArtifactName) -> bool {
    name.as_str().starts_with(FOLDER) && name.as_str().ends_with(MANIFEST_ENDING)
}

pub(crate) fn artifact(file: &str) -> Result<ArtifactName> {
    ArtifactName::new(format!("{FOLDER}/{}", ArtifactName::escape(file)))
}

/// The files that a manifest lists: `file NAME seq N type b|i`. Those of the type `h` wait to be deleted.
pub(crate) fn listed(manifest: &str) -> impl Iterator<Item = String> {
    manifest.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let field = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied();
        let name = field("file")?.trim_matches('"');
        let plain = !name.contains('/') && name != "..";
        (plain && field("type") != Some("h")).then(|| name.to_owned())
    })
}

/// An open file, and the length that it had.
struct Opened {
    file: File,
    length: u64,
}

impl Opened {
    async fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io("cannot read an append-only file", path, source);
        let file = File::open(path).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len();
        Ok(Self { file, length })
    }

    /// The first second that it tells, when it tells any.
    async fn first_second(&self) -> Result<Option<Timestamp>> {
        let failed = |source| Error::from_io("cannot read an append-only file", source);
        let file = self.file.try_clone().await.map_err(failed)?.into_std().await;
        let reader = At { file, position: 0 }.take(self.length.min(TOLD_WITHIN_BYTES));
        let told = tokio::task::spawn_blocking(move || first_second(reader)).await;
        let lost = |source| Error::new(ErrorKind::Internal, "a reader panicked").caused_by(source);
        let second = told.map_err(lost)?.map_err(failed)?;
        Ok(second.and_then(|second| Timestamp::from_second(second).ok()))
    }
}

/// Reads a file without moving its place, which others share.
struct At {
    file: std::fs::File,
    position: u64,
}

impl std::io::Read for At {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(into, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

async fn store(out: &BackupWriter, name: &str, opened: Opened) -> Result<()> {
    let mut artifact = out.artifact(artifact(name)?, ChunkHint::Stream).await?;
    artifact.copy_from(opened.file.take(opened.length)).await?;
    artifact.seal(Evidence::ExactLength(opened.length)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_come_back() {
        for name in ["appendonly.aof.1.base.rdb", "my file.aof", ".hidden", "ünï%41"] {
            let artifact = artifact(name).unwrap();
            assert_eq!(file_name(&artifact), name);
            assert!(is_of_the_set(&artifact));
        }
    }

    #[test]
    fn a_manifest_lists_the_files_to_load() {
        let text = "file a.1.base.rdb seq 1 type b\nfile a.1.incr.aof seq 1 type i\nfile a.0.incr.aof seq 0 type h\n\
                    file ../x seq 2 type i\n# comment\n";
        assert_eq!(listed(text).collect::<Vec<_>>(), ["a.1.base.rdb", "a.1.incr.aof"]);
    }

    /// A thread replaces the set as a server does, as fast as it can: what is opened is always one whole set.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_set_is_opened_whole_or_not_at_all() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let write_set = move |generation: u64| {
            let files = [format!("a.{generation}.base.rdb"), format!("a.{generation}.incr.aof")];
            for file in &files {
                std::fs::write(path.join(file), generation.to_string()).unwrap();
            }
            let text = format!("file {} seq 1 type b\nfile {} seq 1 type i\n", files[0], files[1]);
            std::fs::write(path.join("next"), text).unwrap();
            std::fs::rename(path.join("next"), path.join("a.manifest")).unwrap();
            for old in [
                format!("a.{}.base.rdb", generation.wrapping_sub(1)),
                format!("a.{}.incr.aof", generation.wrapping_sub(1)),
            ] {
                let _none_before_the_first = std::fs::remove_file(path.join(old));
            }
        };
        write_set(1);
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            for generation in (2..).take_while(|_| !stopped.load(Ordering::Relaxed)) {
                write_set(generation);
            }
        });
        for _ in 0..2000 {
            let (text, mut files) = match open_set(folder.path(), "a.manifest").await {
                Err(error) if error.kind() == ErrorKind::Busy => continue,
                opened => opened.unwrap(),
            };
            assert_eq!(files.len(), 2);
            for (name, opened) in &mut files {
                let mut content = String::new();
                opened.file.read_to_string(&mut content).await.unwrap();
                assert!(name.contains(&format!(".{content}.")) && text.contains(name.as_str()), "{name}: {content}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }
}
