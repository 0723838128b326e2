//! Files that do not change are not read again; files that change, vanish or cannot be read are told.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::manifest::Manifest;
use backup_core::tree::TreeEntry;
use backup_testkit::{Action, Disturbance, DisturbedSink, MemorySink};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{back_up, describe, entries, files, into_folder, reader, restore, stored_below};

/// Waits until the files' `ctime` is old enough to be trusted: a condition, not a pause of a guessed length.
fn until_settled(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(path).unwrap();
    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    let now = || i128::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap();
    while now() < changed + 20_000_000 {
        std::thread::yield_now();
    }
}

async fn operations(engine: &backup_core::engine::Engine, memory: &MemorySink) -> u64 {
    let counting = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::None);
    back_up(engine, &counting).await.unwrap();
    counting.operations()
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_files_are_not_read_again() {
    let home = tempfile::tempdir().unwrap();
    for number in 0..20 {
        fs::write(home.path().join(format!("file-{number}")), "content").unwrap();
    }
    until_settled(&home.path().join("file-19"));
    let engine = files(&format!("paths: [{}]\nsettle: 0s", home.path().display()));
    let memory = MemorySink::default();
    let first = operations(&engine, &memory).await;
    let folders = home.path().components().count() as u64 - 1;
    // Each file read costs a place, a write and an end; then there is the end of the tree.
    assert_eq!(first, folders + 20 * 3 + 1);
    assert_eq!(operations(&engine, &memory).await, folders + 1, "no file is read");
    // Same length, same modification time: only the status change tells.
    let changed = home.path().join("file-7");
    let modified = fs::metadata(&changed).unwrap().modified().unwrap();
    fs::write(&changed, "CONTENT").unwrap();
    fs::File::options().write(true).open(&changed).unwrap().set_modified(modified).unwrap();
    until_settled(&changed);
    assert_eq!(operations(&engine, &memory).await, folders + 3 + 1, "only the changed file is read");
    let manifest = back_up(&engine, &memory).await.unwrap();
    let to = tempfile::tempdir().unwrap();
    let from = reader(&memory, &manifest).await;
    restore(&engine, &from, &into_folder(&to.path().join("x"))).await.unwrap();
    let restored = to.path().join("x").join(home.path().strip_prefix("/").unwrap());
    assert_eq!(describe(&restored), describe(home.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_say_that_they_are_empty_are_read_to_their_end() {
    let path = Path::new("/proc/sys/kernel/ostype");
    assert_eq!(fs::metadata(path).unwrap().len(), 0, "the kernel does not tell its length");
    let engine = files(&format!("paths: [{}]\nsettle: 0s", path.display()));
    let memory = MemorySink::default();
    let first = back_up(&engine, &memory).await.unwrap();
    let manifest = back_up(&engine, &memory).await.unwrap();
    for manifest in [first, manifest] {
        assert_eq!(restored(&manifest, &memory, path).await, b"Linux\n");
        assert_eq!(manifest.sources[0].fingerprint.0["entries"]["bytes"], 6, "what is counted is what was read");
        let from = reader(&memory, &manifest).await;
        let cx = backup_core::RunContext::new(crate::support::name());
        assert_eq!(engine.verifier.verify(&cx, &from).await.unwrap().findings, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_behind_a_length_of_nothing_is_not_stored_as_empty() {
    // Reading the memory at address 0 of a process fails.
    let path = PathBuf::from(format!("/proc/{}/mem", std::process::id()));
    let manifest = back_up(&files(&format!("paths: [{}]\nunreadable: skip", path.display())), &MemorySink::default())
        .await
        .unwrap();
    let source = &manifest.sources[0];
    assert_eq!(source.details["left_out_unreadable"], 1);
    assert_eq!(source.fingerprint.0["entries"]["files"], 0);
    assert!(source.warnings.iter().any(|warning| warning.contains("/mem` cannot be read")), "{:?}", source.warnings);
}

/// Writes `1`, then `2` once its input ends, to a page of the file that stays in memory.
const MAPPED_WRITER: &str = "
import mmap, sys
file = open(sys.argv[1], 'r+b')
page = mmap.mmap(file.fileno(), 0)
page[0:1] = b'1'
print('written', flush=True)
sys.stdin.read()
page[0:1] = b'2'
page.close()
";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_memory_that_leaves_no_trace_is_saved_next_time() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mapped");
    fs::write(&path, vec![b'0'; 4096]).unwrap();
    let arguments = [OsStr::new("-c"), OsStr::new(MAPPED_WRITER), path.as_os_str()];
    let mut writer = LocalHost.spawn(HostCommand::new("python3").args(arguments).piped_stdin()).await.unwrap();
    let mut lines = BufReader::new(writer.take_stdout().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("written"));
    until_settled(&path);
    let engine = files(&format!("paths: [{}]", home.path().display()));
    let memory = MemorySink::default();
    back_up(&engine, &memory).await.unwrap();
    drop(writer.take_stdin());
    while lines.next_line().await.unwrap().is_some() {}
    writer.finish().await.unwrap();
    let manifest = back_up(&engine, &memory).await.unwrap();
    assert_eq!(restored(&manifest, &memory, &path).await[0], b'2');
}

/// Backs up `folder` while `act` is called at every operation of the sink; returns the manifest and what is stored.
async fn disturbed(folder: &Path, act: impl Fn(u64) + Send + Sync + 'static) -> (Manifest, MemorySink) {
    let memory = MemorySink::default();
    let sink = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Act(Action::new(act)));
    let manifest = back_up(&files(&format!("paths: [{}]", folder.display())), &sink).await.unwrap();
    (manifest, memory)
}

async fn restored(manifest: &Manifest, memory: &MemorySink, file: &Path) -> Vec<u8> {
    let to = tempfile::tempdir().unwrap();
    let from = reader(memory, manifest).await;
    let engine = files(&format!("paths: [{}]", file.display()));
    restore(&engine, &from, &into_folder(&to.path().join("x"))).await.unwrap();
    fs::read(to.path().join("x").join(file.strip_prefix("/").unwrap())).unwrap()
}

/// Runs `first` the first time only.
fn once(first: impl Fn() + Send + Sync + 'static) -> impl Fn() + Send + Sync + 'static {
    let calls = AtomicUsize::new(0);
    move || {
        if calls.fetch_add(1, Ordering::AcqRel) == 0 {
            first();
        }
    }
}

fn large_file(home: &Path) -> (PathBuf, u64) {
    let path = home.join("large");
    fs::write(&path, vec![b'a'; 3 << 20]).unwrap();
    // Its first operation is that which reserves its place; the first write follows.
    let first_write = home.components().count() as u64 - 1 + 2;
    (path, first_write)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_once_is_read_again() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("appended to", |path| fs::File::options().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("truncated", |path| fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap()),
        ("rewritten in place", |path| fs::write(path, vec![b'b'; 3 << 20]).unwrap()),
        ("emptied", |path| fs::write(path, "").unwrap()),
    ];
    for (what, change) in changes {
        let home = tempfile::tempdir().unwrap();
        let (path, first_write) = large_file(home.path());
        let target = path.clone();
        let act = once(move || change(&target));
        let (manifest, memory) = disturbed(home.path(), move |number| {
            if number >= first_write {
                act();
            }
        })
        .await;
        assert_eq!(manifest.sources[0].warnings, Vec::<String>::new(), "{what}");
        assert!(restored(&manifest, &memory, &path).await == fs::read(&path).unwrap(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_rests_is_kept_with_a_warning_and_read_again_next_time() {
    let home = tempfile::tempdir().unwrap();
    let (path, first_write) = large_file(home.path());
    let target = path.clone();
    let (manifest, memory) = disturbed(home.path(), move |number| {
        if number >= first_write {
            fs::File::options().append(true).open(&target).unwrap().write_all(b"x").unwrap();
        }
    })
    .await;
    let warnings = &manifest.sources[0].warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("large") && warnings[0].contains("changing"), "{warnings:?}");
    let stored = restored(&manifest, &memory, &path).await;
    assert!(stored.len() >= 3 << 20 && fs::read(&path).unwrap().starts_with(&stored));
    let entries = entries(&reader(&memory, &manifest).await).await;
    let entry: &TreeEntry = entries.last().unwrap();
    assert_eq!(entry.identity.inode, 0, "its content is not of one moment: the next run must read it");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanish_or_turn_into_something_else_are_told() {
    let home = tempfile::tempdir().unwrap();
    for name in ["first", "gone", "now-a-fifo", "now-a-link", "twin-1", "twin-3", "zz"] {
        fs::write(home.path().join(name), name).unwrap();
    }
    fs::create_dir(home.path().join("gone-dir")).unwrap();
    fs::hard_link(home.path().join("twin-1"), home.path().join("twin-2")).unwrap();
    fs::hard_link(home.path().join("twin-3"), home.path().join("twin-4")).unwrap();
    // The folder was listed when its own entry reached the sink.
    let listed = home.path().components().count() as u64 - 1;
    let folder = home.path().to_owned();
    let (manifest, memory) = disturbed(home.path(), move |number| {
        if number == listed {
            fs::remove_file(folder.join("gone")).unwrap();
            fs::remove_dir(folder.join("gone-dir")).unwrap();
            fs::remove_file(folder.join("twin-1")).unwrap();
            for name in ["now-a-fifo", "now-a-link"] {
                fs::remove_file(folder.join(name)).unwrap();
            }
            rustix::fs::mknodat(CWD, folder.join("now-a-fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
                .unwrap();
            std::os::unix::fs::symlink("/etc/passwd", folder.join("now-a-link")).unwrap();
        }
    })
    .await;
    let from = reader(&memory, &manifest).await;
    assert_eq!(
        stored_below(&from, home.path()).await,
        ["first", "now-a-fifo", "now-a-link", "twin-2", "twin-3", "twin-4", "zz"]
    );
    assert_eq!(manifest.sources[0].warnings.len(), 3, "{:?}", manifest.sources[0].warnings);
    assert_eq!(manifest.sources[0].details["left_out_vanished"], 3);
    let to = tempfile::tempdir().unwrap();
    let engine = files(&format!("paths: [{}]", home.path().display()));
    restore(&engine, &from, &into_folder(&to.path().join("x"))).await.unwrap();
    let twin = to.path().join("x").join(home.path().strip_prefix("/").unwrap()).join("twin-2");
    assert_eq!(fs::read_to_string(twin).unwrap(), "twin-1");
}

/// A file that is swapped after the walk saw it and before it is read, at the place of a name that was seen already.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_swapped_between_listing_and_reading_is_never_followed_out() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("bait"), "bait").unwrap();
    fs::write(home.path().join("zz"), "zz").unwrap();
    // The second operation after the listing reserves the place of `bait`: the walk has looked at it, nobody opened it.
    let reserved = home.path().components().count() as u64 - 1 + 1;
    let bait = home.path().join("bait");
    let target = bait.clone();
    let (manifest, memory) = disturbed(home.path(), move |number| {
        if number == reserved {
            fs::remove_file(&target).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", &target).unwrap();
        }
    })
    .await;
    assert_eq!(stored_below(&reader(&memory, &manifest).await, home.path()).await, ["zz"]);
    assert!(manifest.sources[0].warnings[0].contains("bait"));
}

/// The first of three names vanishes between the look at it and its reading: the second takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn links_to_a_file_that_vanished_get_its_content() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("twin-1"), "twins").unwrap();
    for name in ["twin-2", "twin-3"] {
        fs::hard_link(home.path().join("twin-1"), home.path().join(name)).unwrap();
    }
    let reserved = home.path().components().count() as u64 - 1 + 1;
    let first = home.path().join("twin-1");
    let (manifest, memory) = disturbed(home.path(), move |number| {
        if number == reserved {
            fs::remove_file(&first).unwrap();
        }
    })
    .await;
    assert_eq!(stored_below(&reader(&memory, &manifest).await, home.path()).await, ["twin-2", "twin-3"]);
    assert_eq!(restored(&manifest, &memory, &home.path().join("twin-2")).await, b"twins");
    assert_eq!(manifest.sources[0].fingerprint.0["entries"]["hard links"], 1);
}

/// Backs up as the user `nobody`: a runtime of its own, all of whose threads give root up.
pub(crate) fn as_nobody<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let become_nobody = || {
        let nobody = 65_534;
        let (uid, gid) = (rustix::fs::Uid::from_raw(nobody), rustix::fs::Gid::from_raw(nobody));
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
    };
    let thread = std::thread::spawn(move || {
        become_nobody();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(become_nobody)
            .enable_all()
            .build();
        runtime.unwrap().block_on(work)
    });
    thread.join().unwrap()
}

#[test]
fn a_folder_on_the_way_need_only_be_passable() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir_all(at("closed/mine")).unwrap();
    fs::write(at("closed/mine/file"), "x").unwrap();
    for folder in [home.path().to_owned(), at("closed")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).unwrap();
    }
    let (path, mine) = (home.path().to_owned(), at("closed/mine"));
    let stored = as_nobody(async move {
        let sink = MemorySink::default();
        let manifest = back_up(&files(&format!("paths: [{}]", mine.display())), &sink).await.unwrap();
        assert_eq!(manifest.sources[0].warnings, Vec::<String>::new());
        stored_below(&reader(&sink, &manifest).await, &path).await
    });
    assert_eq!(stored, ["closed", "closed/mine", "closed/mine/file"]);
}

#[test]
fn a_drill_without_root_reads_what_its_owner_may_not() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("closed")).unwrap();
    for name in ["closed/inside", "secret", "open"] {
        fs::write(at(name), name).unwrap();
    }
    for (name, mode) in [("closed/inside", 0o200), ("secret", 0), ("closed", 0o200)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    // Saved by root, drilled by somebody else.
    let (engine, memory) = (files(&format!("paths: [{}]", home.path().display())), MemorySink::default());
    let saving = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let manifest = saving.block_on(back_up(&engine, &memory)).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let folder = scratch.path().to_owned();
    let report = as_nobody(async move {
        let from = reader(&memory, &manifest).await;
        let cx = backup_core::RunContext::new(crate::support::name()).scratch_in(folder);
        engine.driller.drill(&cx, &from).await.unwrap()
    });
    assert_eq!(report.findings, Vec::<String>::new());
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn what_cannot_be_read_is_named_and_fails_the_source() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(at("open"), "x").unwrap();
    fs::write(at("secret"), "x").unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("closed/inside"), "x").unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    let (path, closed) = (home.path().to_owned(), at("closed"));
    as_nobody(async move {
        let sink = MemorySink::default();
        let all = format!("paths: [{}]", path.display());
        let error = back_up(&files(&all), &sink).await.unwrap_err();
        assert_eq!(error.kind(), backup_core::ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.to_string().contains("2 files or folders cannot be read"), "{error:?}");
        assert!(error.remedy().unwrap().contains("exclude"));
        let skipping = back_up(&files(&format!("{all}\nunreadable: skip")), &sink).await.unwrap();
        // The closed folder itself can be seen, what is in it cannot.
        assert_eq!(stored_below(&reader(&sink, &skipping).await, &path).await, ["closed", "open"]);
        assert_eq!(skipping.sources[0].details["left_out_unreadable"], 2);
        assert_eq!(skipping.sources[0].warnings.len(), 2);
        let manifest = back_up(&files(&format!("{all}\nexclude: [secret, closed]")), &sink).await.unwrap();
        assert_eq!(stored_below(&reader(&sink, &manifest).await, &path).await, ["open"]);
        assert_eq!(manifest.sources[0].warnings, Vec::<String>::new());
        let error = back_up(&files(&format!("paths: [{}]", closed.display())), &sink).await.unwrap_err();
        assert_eq!(error.kind(), backup_core::ErrorKind::PermissionDenied, "{error:?}");
    });
}

#[test]
fn a_restore_without_root_says_what_it_could_not_do() {
    let (home, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| home.path().join(name);
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(at("setuid"), "x").unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    rustix::fs::mknodat(
        CWD,
        at("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    fs::create_dir(at("read-only")).unwrap();
    fs::write(at("read-only/x"), "x").unwrap();
    fs::set_permissions(at("read-only"), fs::Permissions::from_mode(0o555)).unwrap();
    let (path, to) = (home.path().to_owned(), to.path().to_owned());
    let target = to.join("x");
    let restored = target.join(path.strip_prefix("/").unwrap());
    let warnings = as_nobody(async move {
        let sink = MemorySink::default();
        let engine = files(&format!("paths: [{}]", path.display()));
        let manifest = back_up(&engine, &sink).await.unwrap();
        let from = reader(&sink, &manifest).await;
        let report = restore(&engine, &from, &into_folder(&target)).await.unwrap();
        let cx = backup_core::RunContext::new(crate::support::name()).scratch_in(&to);
        let drill = engine.driller.drill(&cx, &from).await.unwrap();
        assert_eq!(drill.findings, Vec::<String>::new(), "a drill without root asks what a user can answer");
        report.warnings
    });
    assert_eq!(fs::read_to_string(restored.join("read-only/x")).unwrap(), "x");
    let mode = fs::metadata(restored.join("setuid")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "a program does not run as a user that it does not belong to");
    assert!(!restored.join("null").exists());
    assert!(
        warnings.iter().any(|warning| warning.contains("owner"))
            && warnings.iter().any(|warning| warning.contains("device")),
        "{warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_time_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("x");
    fs::write(&path, "x").unwrap();
    let time = Timespec { tv_sec: 1000, tv_nsec: 1 };
    rustix::fs::utimensat(CWD, &path, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
        .unwrap();
    back_up(&files(&format!("paths: [{}]", home.path().display())), &MemorySink::default()).await.unwrap();
    let accessed = fs::metadata(&path).unwrap().accessed().unwrap();
    assert_eq!(accessed.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1000);
}
