//! What stands where a cluster shall go: a running server is never touched, and only what is a cluster's is ever removed.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::engine::Existing;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;

use super::inventory::{Control, Inventory, Listed};
use super::layout::{DATA, LINKS, Layout};
use super::receiver::crc32c;
use crate::recovery::{broke_off, is_running};

/// Every data directory has it, the first file that a restore writes is a file of one, too.
const VERSION: &str = "PG_VERSION";
/// Says that a restore began here, so that another may begin anew when it broke off.
const BEGUN: &str = "stackward-restore.incomplete";
/// The folder of the log, which may be a link to another disk.
const LOG: &str = "pg_wal";
/// Folders of a server within it, and ours.
const LOG_FOLDERS: [&str; 3] = ["archive_status", "summaries", "stackward"];
/// Where a segment of the log has the number of its system (`access/xlog_internal.h`).
const SEGMENT_SYSTEM: std::ops::Range<usize> = 24..32;
const READ_BYTES: usize = 1024 * 1024;

/// Looks whether the cluster may be written.
///
/// # Errors
/// [`ErrorKind::Busy`] when a server runs there; [`ErrorKind::AlreadyExists`] when something stands there that may not be
/// replaced, or is no cluster.
pub(super) fn check(layout: &Layout, existing: Existing, inventory: &Inventory) -> Result<()> {
    if is_running(&layout.data) {
        return Err(Error::new(ErrorKind::Busy, format!("a server runs on {}", layout.data.display()))
            .hint("stop it, or restore into another folder with `--target`"));
    }
    refuse_broken_off(&layout.data, existing)?;
    for folder in layout.folders() {
        existing.check_folder(folder)?;
    }
    if existing != Existing::Refuse && !is_empty(&layout.data)? && !is_cluster(&layout.data) {
        let message = format!("{} is not empty, and is no data directory of a server", layout.data.display());
        return Err(Error::new(ErrorKind::AlreadyExists, message)
            .hint("choose another folder, or remove yourself what is in it"));
    }
    match log_link(&layout.data) {
        Some(folder) if existing != Existing::Refuse => check_log(&layout.data, &folder, inventory),
        _ => Ok(()),
    }
}

/// The folder that `pg_wal` of the data directory that stands there leads to, when it is a link.
pub(super) fn log_link(data: &Path) -> Option<PathBuf> {
    let link = data.join(LOG);
    (link.is_symlink() && link.is_dir()).then(|| link.canonicalize().ok()).flatten()
}

/// The number of the system of a data directory, as text.
pub(super) fn system_of(data: &Path) -> Option<String> {
    let bytes = std::fs::read(data.join("global/pg_control")).ok()?;
    Control::read(&bytes).map(|control| control.system.to_string())
}

/// Looks whether what lies in `folder`, to which `pg_wal` leads, is the log of this cluster, or of the one that stands there.
fn check_log(data: &Path, folder: &Path, inventory: &Inventory) -> Result<()> {
    let failed = |source| Error::io("cannot look into the folder of the log", folder, source);
    let own = [system_of(data), inventory.control().map(|control| control.system.to_string())];
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().len() != 24 || !is_of_log(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let mut start = [0; SEGMENT_SYSTEM.end];
        let read = std::fs::File::open(entry.path()).and_then(|mut file| file.read_exact(&mut start));
        let Ok(number) = start[SEGMENT_SYSTEM].try_into().map(u64::from_le_bytes) else { continue };
        // A segment that is made in advance has nothing in it yet.
        if read.is_err() || number == 0 || own.contains(&Some(number.to_string())) {
            continue;
        }
        let message = format!(
            "{} leads to {}, where {} is of the server {number}",
            data.join(LOG).display(),
            folder.display(),
            entry.file_name().display()
        );
        return Err(Error::new(ErrorKind::AlreadyExists, message)
            .hint("remove the link, or lead it to a folder of this server's own"));
    }
    Ok(())
}

/// Whether a server has an entry of this name in its folder of the log.
fn is_of_log(name: &str) -> bool {
    let (stem, kind) = name.split_once('.').unwrap_or((name, ""));
    let is_number = matches!(stem.len(), 8 | 24) && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    LOG_FOLDERS.contains(&name)
        || name.starts_with("xlogtemp.")
        || (is_number
            && (kind.is_empty() && stem.len() == 24
                || kind == "history"
                || kind == "partial"
                || kind.ends_with("backup")))
}

/// Looks whether the folder of a restore is free, or may be written to.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when it may not.
pub(crate) fn check_folder(folder: &Path, existing: Existing) -> Result<()> {
    refuse_broken_off(&folder.join(DATA), existing)?;
    existing.check_folder(folder)
}

/// What a recovery left behind is told from other things that stand there.
fn refuse_broken_off(data: &Path, existing: Existing) -> Result<()> {
    if existing != Existing::Refuse || !broke_off(data) {
        return Ok(());
    }
    let message = format!("a recovery into {} broke off before it reached its moment", data.display());
    Err(Error::new(ErrorKind::AlreadyExists, message)
        .hint("run the restore again with `--delta`, which takes over what is whole already"))
}

/// Whether its folders can be written under other names first: not when one is a file system of its own.
pub(super) fn can_be_staged(layout: &Layout) -> bool {
    let device = |folder: &Path| std::fs::metadata(folder).ok().map(|metadata| metadata.dev());
    let is_mounted = |folder: &PathBuf| match (device(folder), folder.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        (Some(_), None) => true,
        (None, _) => false,
    };
    !layout.folders().any(is_mounted)
}

fn is_cluster(data: &Path) -> bool {
    data.join(VERSION).is_file() || data.join(BEGUN).is_file()
}

fn is_empty(folder: &Path) -> Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(Error::io("cannot look into the folder", folder, source)),
    }
}

/// Removes what may not stay: everything, or what the snapshot does not have.
pub(super) fn clear(layout: &Layout, existing: Existing, inventory: &Inventory) -> Result<()> {
    // Again: somebody may have started a server since it was planned.
    check(layout, existing, inventory)?;
    let make = |source| Error::io("cannot begin to restore into the folder", &layout.data, source);
    std::fs::create_dir_all(&layout.data).map_err(make)?;
    std::fs::write(layout.data.join(BEGUN), b"").map_err(make)?;
    match existing {
        Existing::Refuse => Ok(()),
        Existing::Replace => {
            let link = log_link(&layout.data);
            remove_entries(&layout.data, |name| {
                name != BEGUN.as_bytes() && (link.is_none() || name != LOG.as_bytes())
            })?;
            link.map_or(Ok(()), |folder| empty_log(&folder))?;
            for folder in layout.tablespaces.values().filter(|folder| folder.is_dir()) {
                remove_entries(folder, |name| inventory.owns(name))?;
            }
            Ok(())
        }
        Existing::Update => {
            tidy(&layout.data, &mut Vec::new(), inventory)?;
            for (oid, folder) in layout.tablespaces.iter().filter(|(_, folder)| folder.is_dir()) {
                tidy_space(folder, *oid, inventory)?;
            }
            Ok(())
        }
    }
}

/// Removes what a server had in a folder of the log, and nothing else: it may be a disk of its own.
fn empty_log(folder: &Path) -> Result<()> {
    remove_entries(folder, |name| std::str::from_utf8(name).is_ok_and(is_of_log))
}

/// What lies in folders of tablespaces and is not this cluster's, by its paths in the data directory.
pub(super) fn others(layout: &Layout, inventory: &Inventory) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for (oid, folder) in layout.tablespaces.iter().filter(|(_, folder)| folder.is_dir()) {
        let failed = |source| Error::io("cannot look into the folder", folder, source);
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !inventory.owns(name.as_bytes()) {
                others.push(format!("{LINKS}/{oid}/{}", name.display()));
            }
        }
    }
    Ok(others)
}

/// Tidies this cluster's own folder in a tablespace. What other versions have there stays.
fn tidy_space(folder: &Path, oid: u32, inventory: &Inventory) -> Result<()> {
    let failed = |source| Error::io("cannot tidy the folder", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if !inventory.owns(name.as_bytes()) || !entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        let mut prefix = format!("{LINKS}/{oid}/").into_bytes();
        prefix.extend_from_slice(name.as_bytes());
        prefix.push(b'/');
        tidy(&entry.path(), &mut prefix, inventory)?;
    }
    Ok(())
}

/// The restore has ended.
pub(super) fn ended(layout: &Layout) -> Result<()> {
    let path = layout.data.join(BEGUN);
    std::fs::remove_file(&path).map_err(|source| Error::io("cannot remove the file", &path, source))
}

fn remove_entries(folder: &Path, which: impl Fn(&[u8]) -> bool) -> Result<()> {
    let failed = |source| Error::io("cannot empty the folder", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !which(entry.file_name().as_bytes()) {
            continue;
        }
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let path = entry.path();
        if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.map_err(failed)?;
    }
    Ok(())
}

/// Removes below `folder`, whose entries have paths of the tree that begin with `prefix`, what the tree does not have; links
/// and `pg_control` always.
fn tidy(folder: &Path, prefix: &mut Vec<u8>, inventory: &Inventory) -> Result<()> {
    let failed = |source| Error::io("cannot tidy the folder", folder, source);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let length = prefix.len();
        prefix.extend_from_slice(entry.file_name().as_bytes());
        let kind = entry.file_type().map_err(failed)?;
        let known = TreePath::new(prefix.clone()).is_ok_and(|path| inventory.has(path.as_bytes()));
        let path = entry.path();
        if prefix.as_slice() == BEGUN.as_bytes() {
            // Ours.
        } else if prefix.as_slice() == LOG.as_bytes() && kind.is_symlink() && path.is_dir() {
            empty_log(&path)?;
        } else if kind.is_dir() && known {
            prefix.push(b'/');
            tidy(&path, prefix, inventory)?;
        } else if kind.is_dir() {
            std::fs::remove_dir_all(&path).map_err(failed)?;
        } else if !kind.is_file() || !known || prefix.as_slice() == b"global/pg_control" {
            std::fs::remove_file(&path).map_err(failed)?;
        }
        prefix.truncate(length);
    }
    Ok(())
}

/// Whether the file at `path` is the one that would be written: as long, and with the checksum that the server told. A file
/// without one is written anew.
pub(super) async fn is_same(path: &Path, size: u64, listed: Option<Listed>) -> Result<bool> {
    let Some(Listed { crc: Some(crc), .. }) = listed else { return Ok(false) };
    if !std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size) {
        return Ok(false);
    }
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        let mut file = std::fs::File::open(&path)?;
        let (mut buffer, mut digest) = (vec![0; READ_BYTES], crc32c());
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(digest.finalize() as u32 == crc);
            }
            digest.update(&buffer[..count]);
        }
    });
    // A file that cannot be read is written anew.
    reading
        .await
        .map(|read| read.unwrap_or(false))
        .map_err(|source| Error::new(ErrorKind::Internal, "a file was lost").caused_by(source))
}

/// Looks whether there is room for so many bytes in each of these folders, which may share a disk, and may not be there yet.
///
/// # Errors
/// [`ErrorKind::NoSpace`].
pub(super) fn check_space<'a>(needed: impl IntoIterator<Item = (&'a Path, u64)>) -> Result<()> {
    let mut disks: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (folder, bytes) in needed {
        let Some(standing) = folder.ancestors().find(|folder| folder.exists()) else { continue };
        // Where it cannot be asked, writing will tell.
        let Ok(metadata) = std::fs::metadata(standing) else { continue };
        let (_, sum) = disks.entry(metadata.dev()).or_insert_with(|| (standing.to_owned(), 0));
        *sum = sum.saturating_add(bytes);
    }
    for (standing, bytes) in disks.into_values() {
        let Ok(room) = rustix::fs::statvfs(&standing) else { continue };
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < bytes {
            let message = format!("{bytes} bytes do not fit into {}, which has {free}", standing.display());
            return Err(Error::new(ErrorKind::NoSpace, message).hint(
                "free some space, or choose another place with `--target`, for a tablespace with `--tablespace`",
            ));
        }
    }
    Ok(())
}
