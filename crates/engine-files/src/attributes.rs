//! What the file system knows of a file besides its content, read into a [`TreeEntry`].

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::owners::Owners;

/// However short the plan's `settle` is: the kernel stamps files with the time of its last tick (10 ms apart at
/// `CONFIG_HZ=100`, 4 ms at 250), so a file that changed less than this before we looked at it may change again without
/// its `ctime` moving. Git calls such files "racily clean".
const TICK: Duration = Duration::from_millis(10);

/// The largest value of an extended attribute that Linux allows (xattr(7)).
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Extended attributes by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What must be equal before and after a read for the content to be that of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    pub(crate) size: u64,
    modified: FileTime,
    changed: FileTime,
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, size: size(stat), modified: modified(stat), changed: changed(stat) }
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// Whether the file has fewer blocks than its length asks for: it has holes, or its file system compresses.
pub(crate) fn maybe_sparse(stat: &Stat) -> bool {
    u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512) < size(stat)
}

fn time(seconds: i64, nanos: impl TryInto<u32>) -> FileTime {
    FileTime { seconds, nanos: nanos.try_into().unwrap_or_default() }
}

pub(crate) fn modified(stat: &Stat) -> FileTime {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

fn changed(stat: &Stat) -> FileTime {
    time(stat.st_ctime, stat.st_ctime_nsec)
}

/// The identity of a file, or none when it may change again without a trace: the next run then reads it again. Writes
/// through memory (mmap(2)) move the times only when they are the first to a page since it was last written to disk, which
/// the kernel does half a minute later (`vm.dirty_expire_centisecs`); `settle` is how long we distrust a file for that.
fn identity(inode: u64, changed: FileTime, now: FileTime, settle: Duration) -> FileIdentity {
    let nanos = |time: FileTime| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let young = i128::try_from(settle.max(TICK).as_nanos()).unwrap_or(i128::MAX / 2);
    if nanos(changed) + young > nanos(now) {
        return FileIdentity::default();
    }
    FileIdentity { inode, changed }
}

/// The time by the clock that file systems stamp with.
fn now() -> FileTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    FileTime { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
}

/// Lets the next run recognise the file that `stat` describes as unchanged, unless it is younger than `settle`.
pub(crate) fn identify(entry: &mut TreeEntry, stat: &Stat, settle: Duration) {
    if matches!(entry.kind, EntryKind::File { .. }) {
        entry.identity = identity(stat.st_ino, changed(stat), now(), settle);
    }
}

/// The entry of what `stat` describes, without an identity.
pub(crate) fn entry(path: TreePath, kind: EntryKind, stat: &Stat, xattrs: Xattrs, owners: &Owners) -> TreeEntry {
    TreeEntry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        user: owners.user_name(stat.st_uid),
        group: owners.group_name(stat.st_gid),
        modified: modified(stat),
        xattrs,
        identity: FileIdentity::default(),
    }
}

/// Where attributes are read from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holder<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A path, whose last component is not followed.
    Path(&'a [u8]),
}

/// Reads all extended attributes, in the order of their names. `None` when the file system knows none.
///
/// # Errors
/// When the file vanished or cannot be looked at. An attribute that vanishes meanwhile is left out.
pub(crate) fn xattrs(of: Holder<'_>) -> Result<Option<Xattrs>, Errno> {
    let mut short = [0u8; 512];
    let mut long = Vec::new();
    let names: &[u8] = match list(of, &mut short) {
        Ok(count) => &short[..count],
        Err(Errno::RANGE) => {
            long.resize(MAX_XATTR_BYTES, 0);
            let count = list(of, &mut long)?;
            &long[..count]
        }
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = Xattrs::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = value(of, name)? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(Some(found))
}

fn list(of: Holder<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    match of {
        Holder::Open(fd) => rustix::fs::flistxattr(fd, buffer),
        Holder::Path(path) => rustix::fs::llistxattr(OsStr::from_bytes(path), buffer),
    }
}

fn value(of: Holder<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let name = OsStr::from_bytes(name);
    let get = |buffer: &mut [u8]| match of {
        Holder::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
        Holder::Path(path) => rustix::fs::lgetxattr(OsStr::from_bytes(path), name, buffer),
    };
    let mut buffer = vec![0u8; 256];
    let mut result = get(&mut buffer);
    if result == Err(Errno::RANGE) {
        buffer.resize(MAX_XATTR_BYTES, 0);
        result = get(&mut buffer);
    }
    match result {
        Ok(count) => {
            buffer.truncate(count);
            Ok(Some(buffer))
        }
        // It vanished, or this user may see its name but not its value.
        Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_a_moment_ago_has_no_identity() {
        let now = FileTime { seconds: 100, nanos: 5_000_000 };
        let (minute, none) = (Duration::from_mins(1), Duration::ZERO);
        let cases = [
            (FileTime { seconds: 99, nanos: 995_000_000 }, none, true),
            (FileTime { seconds: 99, nanos: 995_000_001 }, none, false),
            (FileTime { seconds: 101, nanos: 0 }, none, false),
            (FileTime { seconds: 40, nanos: 5_000_000 }, minute, true),
            (FileTime { seconds: 40, nanos: 5_000_001 }, minute, false),
            (FileTime { seconds: 101, nanos: 0 }, minute, false),
            (FileTime { seconds: 40, nanos: 0 }, Duration::MAX, false),
        ];
        for (changed, settle, known) in cases {
            assert_eq!(identity(7, changed, now, settle).inode != 0, known, "{changed:?} {settle:?}");
        }
    }
}
