//! A tree with every kind of entry, and everything that can be said of a tree, to compare it with its restored self.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use sha2::{Digest, Sha256};

/// So many stretches of data, each followed by a hole, that the file's list of extents has a list of its own.
const STRETCHES: u64 = 400;

pub(crate) fn set_times(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Makes the folder `root` with every kind of entry that the tests' user may make.
pub(crate) fn everything(root: &Path) {
    let at = |path: &str| root.join(path);
    std::fs::create_dir_all(at("dir/empty")).unwrap();
    std::fs::write(at("empty file"), "").unwrap();
    std::fs::write(at("dir/a"), "a\n").unwrap();
    std::fs::write(at("dir-b"), "sorts after dir/a").unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"caf\xe9\n")), "not UTF-8").unwrap();
    std::fs::write(at("large"), super::noise(3_500_000)).unwrap();
    std::fs::write(at("repetitive"), "the same line, again and again\n".repeat(50_000)).unwrap();
    symlink(OsStr::from_bytes(b"/nowhere/\xff"), at("dangling")).unwrap();
    symlink("dir", at("to-dir")).unwrap();
    std::fs::hard_link(at("dir/a"), at("zz-linked")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let holes = std::fs::File::create(at("holes")).unwrap();
    let noise = super::noise(4096 + STRETCHES as usize);
    for stretch in 0..STRETCHES {
        let data = &noise[stretch as usize..stretch as usize + 4096];
        holes.write_all_at(data, stretch * 65_536).unwrap();
    }
    holes.set_len(STRETCHES * 65_536 + 50_000_000).unwrap();
    for (path, mode) in [("setuid", 0o4755), ("none", 0o000), ("sticky", 0o1777), ("closed", 0o000)] {
        if mode == 0o4755 || path == "none" {
            std::fs::write(at(path), path).unwrap();
        } else {
            std::fs::create_dir(at(path)).unwrap();
            std::fs::write(at(path).join("inside"), path).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(at(path), Some(12345), Some(54321)).unwrap();
        }
        std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
        std::os::unix::fs::lchown(at("dangling"), Some(7), Some(8)).unwrap();
    }
    rustix::fs::lsetxattr(at("dir/a"), "user.comment", b"binary \0\xff", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(at("dir"), "user.empty", b"", XattrFlags::empty()).unwrap();
    for (path, seconds, nanos) in
        [("dir/a", 1, 1), ("dangling", 1_000_000_000, 999_999_999), ("fifo", -5, 7), ("holes", 4_000_000_000, 0)]
    {
        set_times(&at(path), seconds, nanos);
    }
    set_times(&at("dir"), 1_234_567_890, 123_456_789);
    set_times(root, 1_234_567_891, 987_654_321);
}

/// Everything that a restore must bring back, one line per entry: names, kinds, attributes, content, link groups.
pub(crate) fn describe(root: &Path) -> String {
    let mut text = String::new();
    entry(root, Path::new("."), &mut Vec::new(), &mut text);
    text
}

fn entry(path: &Path, shown: &Path, inodes: &mut Vec<u64>, text: &mut String) {
    let meta = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = meta.file_type();
    let mode = if kind.is_symlink() { 0o777 } else { meta.mode() & 0o7777 };
    write!(text, "{} {mode:o} {}:{} ", shown.as_os_str().as_bytes().escape_ascii(), meta.uid(), meta.gid()).unwrap();
    write!(text, "{}.{:09} ", meta.mtime(), meta.mtime_nsec()).unwrap();
    if !kind.is_dir() && meta.nlink() > 1 {
        let known = inodes.iter().position(|inode| *inode == meta.ino());
        let group = known.unwrap_or_else(|| {
            inodes.push(meta.ino());
            inodes.len() - 1
        });
        write!(text, "group {group} of {} ", meta.nlink()).unwrap();
    }
    attributes(path, text);
    if kind.is_symlink() {
        writeln!(text, "-> {}", std::fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii()).unwrap();
    } else if kind.is_file() {
        // A hole that was written out as zeros takes space.
        let sparse = meta.blocks() * 512 < meta.len() / 2;
        writeln!(text, "file {} sparse {sparse} {}", meta.len(), hash(path)).unwrap();
    } else if kind.is_dir() {
        writeln!(text, "dir").unwrap();
        let mut items: Vec<_> = std::fs::read_dir(path).unwrap().map(|item| item.unwrap().file_name()).collect();
        items.sort();
        for item in items {
            entry(&path.join(&item), &shown.join(&item), inodes, text);
        }
    } else {
        writeln!(text, "special {:x}", meta.rdev()).unwrap();
    }
}

fn attributes(path: &Path, text: &mut String) {
    let mut names = vec![0u8; 4096];
    let count = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> = names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0u8; 4096];
        let count = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        write!(text, "[{}={}] ", name.escape_ascii(), value[..count].escape_ascii()).unwrap();
    }
}

fn hash(path: &Path) -> String {
    let mut digest = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut digest).unwrap();
    hex::encode(digest.finalize())
}
