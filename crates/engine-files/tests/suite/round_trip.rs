//! What is saved comes back as it was: every kind of entry, with every attribute.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backup_core::RunContext;
use backup_core::engine::RestoreTarget;
use backup_testkit::MemorySink;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tempfile::TempDir;

use crate::support::{back_up, describe, files, into_folder, name, reader, restore};

/// Backs `folder` up, verifies and drills it, restores it below `to`, and returns where it is then.
async fn round_trip(folder: &Path, to: &TempDir) -> PathBuf {
    let engine = files(&format!("paths: [{}]", folder.display()));
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    let cx = RunContext::new(name()).scratch_in(to.path());
    assert_eq!(engine.verifier.verify(&cx, &from).await.unwrap().findings, []);
    assert_eq!(engine.driller.drill(&cx, &from).await.unwrap().findings, Vec::<String>::new());
    let target = to.path().join("restored");
    let report = restore(&engine, &from, &into_folder(&target)).await.unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(to.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, ["restored"], "nothing but the target is left");
    target.join(folder.strip_prefix("/").unwrap())
}

fn set_times(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A POSIX ACL as the kernel keeps it (linux/posix_acl_xattr.h): version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Gives user 4711 access besides owner, group and others.
fn some_acl() -> Vec<u8> {
    let nobody = u32::MAX;
    acl(&[(1, 6, nobody), (2, 7, 4711), (4, 4, nobody), (16, 7, nobody), (32, 0, nobody)])
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn everything(root: &Path) {
    let at = |path: &str| root.join(path);
    std::fs::create_dir_all(at("dir/empty")).unwrap();
    for (path, content) in
        [("empty file", ""), ("dir/a", "a"), ("dir-b", "sorts after dir/a"), ("new\nline", "x"), ("ümläut", "ü")]
    {
        std::fs::write(at(path), content).unwrap();
    }
    for raw in [&b"caf\xe9"[..], b"\xff\xfe", b" ", b"-rf", b"*"] {
        std::fs::write(root.join(OsStr::from_bytes(raw)), raw).unwrap();
    }
    std::fs::create_dir(root.join(OsStr::from_bytes(b"dir\x80"))).unwrap();
    std::os::unix::fs::symlink(OsStr::from_bytes(b"/nowhere/\xff"), at("dangling")).unwrap();
    std::os::unix::fs::symlink("dir", at("to-dir")).unwrap();
    std::fs::write(at("linked"), "one inode").unwrap();
    std::fs::hard_link(at("linked"), at("dir/zz-linked")).unwrap();
    std::fs::hard_link(at("linked"), at("a-linked")).unwrap();
    std::os::unix::fs::symlink("x", at("link")).unwrap();
    std::fs::hard_link(at("link"), at("link-again")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rustix::fs::mknodat(
        CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    rustix::fs::mknodat(
        CWD,
        at("loop"),
        FileType::BlockDevice,
        Mode::from_raw_mode(0o600),
        rustix::fs::makedev(7, 300),
    )
    .unwrap();
    for (path, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0o000), ("all", 0o777)] {
        std::fs::write(at(path), path).unwrap();
        chown(&at(path), 12345, 54321);
        set_mode(&at(path), mode);
    }
    for (path, mode) in [("sticky", 0o1777), ("shared", 0o2770), ("closed", 0o000)] {
        std::fs::create_dir(at(path)).unwrap();
        std::fs::write(at(path).join("inside"), path).unwrap();
        chown(&at(path), 1, 2);
        set_mode(&at(path), mode);
    }
    chown(&at("dangling"), 7, 8);
    set_xattr(&at("dir/a"), "user.comment", b"binary \0\xff");
    set_xattr(&at("dir/a"), "user.empty", b"");
    set_xattr(&at("dir"), "user.large", &[b'x'; 2000]);
    set_xattr(&at("dangling"), "trusted.of-a-link", b"1");
    set_xattr(&at("all"), "system.posix_acl_access", &some_acl());
    set_xattr(&at("sticky"), "system.posix_acl_default", &some_acl());
    set_xattr(&at("setgid"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let times = [("dir/a", 1, 1), ("empty file", 1_700_000_000, 999_999_999), ("dangling", 1_000, 5), ("fifo", 7, 7)];
    for (path, seconds, nanos) in
        times.into_iter().chain([("dir/empty", -1, 500_000_000), ("dir", 4_000_000_000, 1), ("setuid", -86_400, 0)])
    {
        set_times(&at(path), seconds, nanos);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_entry_comes_back() {
    let (home, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = home.path().join("data");
    std::fs::create_dir(&root).unwrap();
    everything(&root);
    let before = describe(&root);
    for expected in [
        "caf\\xe9",
        "group 0 of 3",
        "fifo",
        "device 103",
        "4755 12345:54321",
        "-1.500000000",
        "posix_acl_default",
        "-> /nowhere/\\xff",
    ] {
        assert!(before.contains(expected), "the test has {expected}: {before}");
    }
    let restored = round_trip(&root, &to).await;
    assert_eq!(describe(&restored), before);
    assert_eq!(describe(&root), before, "a backup changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn default_acls_around_the_target_do_not_leak_into_it() {
    let (home, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.path().join("data/file"), "x").unwrap();
    set_xattr(to.path(), "system.posix_acl_default", &some_acl());
    let before = describe(&home.path().join("data"));
    assert_eq!(describe(&round_trip(&home.path().join("data"), &to).await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_stay_holes() {
    let (home, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let make = |name: &str, size: u64, data: &[u64]| {
        let file = std::fs::File::create(home.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for position in data {
            file.write_all_at(b"data", *position).unwrap();
        }
    };
    make("all-hole", 50_000_000, &[]);
    make("begins-with-data", 50_000_000, &[0]);
    make("ends-with-data", 50_000_003, &[49_999_999]);
    make("in-between", 5_000_000_000, &[1_000_000, 3_000_000_000]);
    make("small", 200_000, &[100_000]);
    let before = describe_sizes(home.path());
    let restored = round_trip(home.path(), &to).await;
    assert_eq!(describe_sizes(&restored), before);
    for name in ["all-hole", "begins-with-data", "ends-with-data", "in-between", "small"] {
        let blocks = |folder: &Path| std::fs::metadata(folder.join(name)).unwrap().blocks();
        assert!(blocks(&restored) <= blocks(home.path()), "{name} takes no more blocks than before");
        let mut byte = [1u8; 4];
        std::fs::File::open(restored.join(name)).unwrap().read_exact_at(&mut byte, 110_000).unwrap();
        assert_eq!(byte, [0; 4]);
    }
}

/// Sizes and the data at known places: reading gigabytes of zero bytes would prove little more.
fn describe_sizes(folder: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let mut sizes: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|item| {
            let item = item.unwrap();
            let file = std::fs::File::open(item.path()).unwrap();
            let size = file.metadata().unwrap().len();
            let mut data = Vec::new();
            for position in [0, 100_000, 1_000_000, 49_999_999, 3_000_000_000] {
                let mut piece = [0u8; 4];
                let count = file.read_at(&mut piece, position).unwrap();
                data.extend_from_slice(&piece[..count]);
            }
            (item.file_name().into_string().unwrap(), size, data)
        })
        .collect();
    sizes.sort();
    sizes
}

/// A folder in memory where there is room: making tens of thousands of files on a busy disk takes a minute.
fn fast_folder() -> TempDir {
    const ENOUGH: u64 = 512 << 20;
    let memory = Path::new("/dev/shm");
    let roomy = rustix::fs::statvfs(memory).is_ok_and(|space| space.f_bavail * space.f_frsize > ENOUGH);
    if roomy { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_and_deep_folders_come_back() {
    let (home, to) = (fast_folder(), fast_folder());
    for folder in 0..100 {
        let folder = home.path().join(format!("folder-{folder}"));
        std::fs::create_dir(&folder).unwrap();
        for file in 0..100 {
            std::fs::write(folder.join(format!("{file}")), format!("{} {file}", folder.display())).unwrap();
        }
    }
    let mut deep = home.path().to_owned();
    for level in 0..300 {
        deep.push(format!("d{level}"));
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "here").unwrap();
    let before = describe(home.path());
    let restored = round_trip(home.path(), &to).await;
    assert!(describe(&restored) == before, "10,000 files and 300 levels are the same");
}

#[tokio::test]
async fn one_thread_is_enough() {
    let (home, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for number in 0..200 {
        std::fs::write(home.path().join(format!("{number}")), vec![b'x'; number * 100]).unwrap();
    }
    let before = describe(home.path());
    assert_eq!(describe(&round_trip(home.path(), &to).await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_of_what_was_not_selected_come_back_whatever_they_name() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join("saved").join(name);
    std::fs::create_dir_all(at("a")).unwrap();
    std::fs::create_dir_all(at("b")).unwrap();
    std::fs::write(at("a/file"), "content").unwrap();
    std::os::unix::fs::symlink("nowhere", at("a/link")).unwrap();
    let make = |name: &str, kind| {
        let (mode, device) = (rustix::fs::Mode::from_raw_mode(0o640), rustix::fs::makedev(1, 3));
        rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, mode, device).unwrap();
    };
    make("a/pipe", rustix::fs::FileType::Fifo);
    make("a/null", rustix::fs::FileType::CharacterDevice);
    for name in ["file", "link", "pipe", "null"] {
        for other in ["one", "two"] {
            std::fs::hard_link(at(&format!("a/{name}")), at(&format!("b/{name}-{other}"))).unwrap();
        }
    }
    let engine = files(&format!("paths: [{}]", home.path().join("saved").display()));
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let to = home.path().join("to");
    let target = RestoreTarget { select: vec![at("b").display().to_string()], ..into_folder(&to) };
    let report = restore(&engine, &reader(&sink, &manifest).await, &target).await.unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    let restored = describe(&to.join(at("b").strip_prefix("/").unwrap()));
    // Each has one name less now.
    assert_eq!(restored, describe(&at("b")).replace(" of 3 ", " of 2 "));
}
