//! The folder in which a run writes, beside the finished snapshots, until it is renamed to its snapshot's id.
//!
//! Invariant: a snapshot's folder appears whole, by one rename, after everything in it is on disk; of two renames to
//! one id one succeeds. The folder is locked as long as its run lives.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backup_core::SnapshotId;
use backup_core::error::{Error, ErrorKind, Result};
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::names::PARTIAL;

/// Dumps hold the hashes of passwords, and the files of everybody: nobody else may read them.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What a killed run left behind is removed when it is older than this, and its lock is free.
const LEFTOVER_AGE: Duration = Duration::from_hours(24);

/// Makes folders that nobody else may enter. Those that exist stay as they are.
pub(super) fn make_folders(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// Makes a file that nobody else may read.
pub(super) fn make_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// A folder that is being written. Dropped before its commit, it is removed.
#[derive(Debug)]
pub(super) struct Partial {
    root: PathBuf,
    path: PathBuf,
    committed: std::sync::atomic::AtomicBool,
    /// Holds the lock.
    _locked: File,
}

impl Partial {
    /// Makes and locks a folder in `root`. Blocks.
    pub(super) fn begin(root: &Path, id: &SnapshotId) -> Result<Self> {
        let path = root.join(format!("{PARTIAL}{id}-{}", uuid::Uuid::new_v4().simple()));
        let failed = |source| Error::io("cannot make the folder of a snapshot", &path, source);
        DirBuilder::new().mode(FOLDER_MODE).create(&path).map_err(failed)?;
        let locked = File::open(&path).map_err(failed)?;
        // Where locks do not work, leftovers cannot be told from living runs, and are left alone.
        let _unlocked = rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { root: root.to_owned(), path, committed: false.into(), _locked: locked })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes every file but those of `keep`, paths below the folder, and the folders that become empty. Blocks.
    pub(super) fn keep_only(&self, keep: &BTreeMap<String, String>) -> Result<()> {
        prune(&self.path, "", keep).map(drop)
    }

    /// Writes a small file, to disk. Blocks.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let written = make_file(&path).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        written.map_err(|source| Error::io("cannot write the file", &path, source))
    }

    /// Makes the snapshot visible. Every file in the folder is on disk. Blocks.
    pub(super) fn commit(&self, id: &SnapshotId) -> Result<()> {
        sync_folders(&self.path)?;
        let to = self.root.join(id.as_str());
        rename_new(&self.path, &to).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                Error::new(ErrorKind::AlreadyExists, format!("there is a snapshot {id} already"))
                    .with("path", to.display())
            }
            _ => Error::io("cannot rename the folder of the snapshot", &to, source),
        })?;
        self.committed.store(true, std::sync::atomic::Ordering::Release);
        sync_folder(&self.root)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !*self.committed.get_mut() {
            // What cannot be removed is a leftover: invisible, and removed by a later run.
            let _left = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Renames a folder unless something is in its way. File systems without that flag never replace a folder that is
/// not empty, and a snapshot's is not.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => std::fs::rename(from, to),
        other => other.map_err(Into::into),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::io("cannot sync the folder", path, source))
}

fn sync_folders(path: &Path) -> Result<()> {
    for entry in entries(path)? {
        if is_folder(&entry)? {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(path)
}

/// Returns whether anything is left.
fn prune(path: &Path, below: &str, keep: &BTreeMap<String, String>) -> Result<bool> {
    let mut kept = false;
    for entry in entries(path)? {
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        let removed = if is_folder(&entry)? {
            if prune(&path, &format!("{name}/"), keep)? {
                kept = true;
                continue;
            }
            std::fs::remove_dir(&path)
        } else if keep.contains_key(&name) {
            kept = true;
            continue;
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|source| Error::io("cannot remove what a failed source left", &path, source))?;
    }
    Ok(kept)
}

/// What lies in a folder.
pub(super) fn entries(path: &Path) -> Result<Vec<std::fs::DirEntry>> {
    let read = std::fs::read_dir(path).and_then(Iterator::collect);
    read.map_err(|source| Error::io("cannot list the folder", path, source))
}

/// Whether an entry is a folder, and no link to one.
pub(super) fn is_folder(entry: &std::fs::DirEntry) -> Result<bool> {
    let kind = entry.file_type().map_err(|source| Error::io("cannot look at", entry.path(), source))?;
    Ok(kind.is_dir())
}

/// Removes what runs left that died more than a day ago. What cannot be removed stays; `check` tells of it.
pub(super) fn remove_leftovers(root: &Path) -> Result<()> {
    for entry in entries(root)? {
        let ours = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        if ours && is_folder(&entry)? && is_leftover(&entry.path()).unwrap_or(false) {
            let _left = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn is_leftover(path: &Path) -> io::Result<bool> {
    let folder = File::open(path)?;
    let age = SystemTime::now().duration_since(folder.metadata()?.modified()?).unwrap_or_default();
    Ok(age > LEFTOVER_AGE && rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok())
}
