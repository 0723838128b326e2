//! Where restores go: what they refuse, what they replace, and what they leave alone when they fail.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{Engine, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::manifest::Manifest;
use backup_core::{BackupReader, RunContext};
use backup_testkit::{Disturbance, DisturbedSink, MemorySink};
use tempfile::TempDir;

use crate::support::{back_up, describe, files, into_folder, name, reader, replacing, restore};

struct Saved {
    home: TempDir,
    engine: Engine,
    sink: MemorySink,
    manifest: Manifest,
}

impl Saved {
    /// Two folders and a file, saved as three paths.
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        fs::create_dir_all(at("live/one/sub")).unwrap();
        fs::create_dir_all(at("live/two")).unwrap();
        fs::write(at("live/one/a"), "a").unwrap();
        fs::write(at("live/one/sub/b"), "b").unwrap();
        fs::hard_link(at("live/one/a"), at("live/two/also-a")).unwrap();
        fs::hard_link(at("live/one/a"), at("live/two/also-a-2")).unwrap();
        fs::write(at("live/single"), "single").unwrap();
        let paths = ["one", "two", "single"].map(|name| at("live").join(name).display().to_string());
        let engine = files(&format!("paths: [{}]", paths.join(", ")));
        let sink = MemorySink::default();
        let manifest = back_up(&engine, &sink).await.unwrap();
        Self { home, engine, sink, manifest }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    async fn reader(&self) -> BackupReader {
        reader(&self.sink, &self.manifest).await
    }

    /// Where a restore into `folder` puts `path` of the home folder.
    fn below(&self, folder: &Path, path: &str) -> PathBuf {
        folder.join(self.at(path).strip_prefix("/").unwrap())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_empty_is_refused_before_the_first_write() {
    let saved = Saved::new().await;
    let from = saved.reader().await;
    let before = describe(saved.home.path());
    let cx = RunContext::new(name());
    let error = saved.engine.restorer.plan_restore(&cx, &from, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("live/one") && error.remedy().unwrap().contains("--force"));
    let error = saved.engine.restorer.plan_restore(&cx, &from, &into_folder(&saved.at("live"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(describe(saved.home.path()), before);
    // One of several paths in the way is enough.
    fs::remove_dir_all(saved.at("live/one")).unwrap();
    let error = restore(&saved.engine, &from, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(names(&saved.at("live")), ["single", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changes_nothing_and_says_what_will_happen() {
    let saved = Saved::new().await;
    let from = saved.reader().await;
    let before = describe(saved.home.path());
    let to = replacing(RestoreTarget::default());
    let plan = saved.engine.restorer.plan_restore(&RunContext::new(name()), &from, &to).await.unwrap();
    assert_eq!(plan.steps.len(), 6, "{:?}", plan.steps);
    assert!(plan.steps[1].contains("what is not in the snapshot stays"), "{:?}", plan.steps);
    assert_eq!(plan.bytes, 8);
    assert_eq!(describe(saved.home.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_places_are_restored_with_the_folders_above_them() {
    let saved = Saved::new().await;
    fs::set_permissions(saved.at("live"), std::os::unix::fs::PermissionsExt::from_mode(0o2750)).unwrap();
    let manifest = back_up(&saved.engine, &saved.sink).await.unwrap();
    let from = reader(&saved.sink, &manifest).await;
    let before = describe(&saved.at("live"));
    fs::remove_dir_all(saved.at("live")).unwrap();
    let report = restore(&saved.engine, &from, &RestoreTarget::default()).await.unwrap();
    assert_eq!(report.restored.len(), 3);
    let without_time = |text: &str| text.split_once(" dir\n").unwrap().1.to_owned();
    assert_eq!(without_time(&describe(&saved.at("live"))), without_time(&before), "links between the paths included");
    assert_eq!(fs::metadata(saved.at("live")).unwrap().mode() & 0o7777, 0o2750);
    assert_eq!(names(saved.home.path()), ["live"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_keeps_the_old_until_the_new_is_complete() {
    let saved = Saved::new().await;
    for path in ["live/one/a", "live/single", "live/two/new"] {
        fs::write(saved.at(path), "changed since").unwrap();
    }
    let changed = describe(saved.home.path());
    let to = replacing(RestoreTarget::default());
    let counting = DisturbedSink::new(Arc::new(saved.sink.clone()), Disturbance::None);
    let from = reader(&counting, &saved.manifest).await;
    let probe = into_folder(&saved.home.path().join("probe"));
    restore(&saved.engine, &from, &probe).await.unwrap();
    fs::remove_dir_all(saved.at("probe")).unwrap();
    let times = fs::metadata(saved.home.path()).unwrap().modified().unwrap();
    for moment in 1..=counting.operations() {
        let broken = DisturbedSink::new(Arc::new(saved.sink.clone()), Disturbance::Fail(moment));
        let from = reader(&broken, &saved.manifest).await;
        let error = restore(&saved.engine, &from, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "operation {moment}: {error:?}");
        assert_eq!(names(&saved.at("live")), ["one", "single", "two"], "operation {moment}");
    }
    fs::File::open(saved.home.path()).unwrap().set_modified(times).unwrap();
    let contents =
        |text: &str| text.lines().filter(|line| !line.ends_with("dir")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(contents(&describe(saved.home.path())), contents(&changed));
    restore(&saved.engine, &saved.reader().await, &to).await.unwrap();
    assert_eq!(fs::read_to_string(saved.at("live/one/a")).unwrap(), "a");
    assert_eq!(fs::read_to_string(saved.at("live/single")).unwrap(), "single");
    assert_eq!(names(&saved.at("live/two")), ["also-a", "also-a-2", "new"], "what the backup does not have stays");
    assert_eq!(names(&saved.at("live")), ["one", "single", "two"], "no temporary folder is left");
}

/// The second of three exchanges fails: the first is taken back.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_fails_takes_the_earlier_ones_back() {
    let saved = Saved::new().await;
    fs::write(saved.at("live/one/a"), "changed since").unwrap();
    let from = saved.reader().await;
    // An immutable folder cannot be renamed, not even by root; that shows only when it is tried.
    let immutable = |on: bool| {
        use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
        let folder = fs::File::open(saved.at("live/two")).unwrap();
        let mut flags = ioctl_getflags(&folder).unwrap();
        flags.set(IFlags::IMMUTABLE, on);
        ioctl_setflags(&folder, flags).unwrap();
    };
    immutable(true);
    let result = restore(&saved.engine, &from, &replacing(RestoreTarget::default())).await;
    immutable(false);
    result.unwrap_err();
    assert_eq!(fs::read_to_string(saved.at("live/one/a")).unwrap(), "changed since");
    assert_eq!(names(&saved.at("live")), ["one", "single", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_empty_keeps_what_the_restore_does_not_bring() {
    let saved = Saved::new().await;
    let from = saved.reader().await;
    let folder = saved.at("to");
    fs::create_dir_all(saved.below(&folder, "live/one")).unwrap();
    fs::write(folder.join("mine"), "mine").unwrap();
    fs::write(saved.below(&folder, "live/one/old"), "old").unwrap();
    let to = into_folder(&folder);
    assert_eq!(restore(&saved.engine, &from, &to).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    restore(&saved.engine, &from, &replacing(to)).await.unwrap();
    assert_eq!(fs::read_to_string(folder.join("mine")).unwrap(), "mine");
    assert_eq!(names(&saved.below(&folder, "live/one")), ["a", "old", "sub"]);
    assert_eq!(names(&saved.below(&folder, "live")), ["one", "single", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_is_filled_and_keeps_its_owner() {
    let saved = Saved::new().await;
    let folder = saved.at("to");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(4711), Some(4712)).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    restore(&saved.engine, &saved.reader().await, &into_folder(&folder)).await.unwrap();
    let metadata = fs::metadata(&folder).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (4711, 4712, 0o751));
    assert!(saved.below(&folder, "live/one/sub/b").exists());
    assert_eq!(names(saved.home.path()), ["live", "to"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_selected_is_restored() {
    let saved = Saved::new().await;
    let from = saved.reader().await;
    let select = |paths: &[&str]| paths.iter().map(|path| saved.at(path).display().to_string()).collect::<Vec<_>>();
    let to = RestoreTarget { select: select(&["live/one/sub", "live/single"]), ..into_folder(&saved.at("to")) };
    let report = restore(&saved.engine, &from, &to).await.unwrap();
    assert_eq!(report.bytes, 7);
    assert_eq!(names(&saved.below(&saved.at("to"), "live")), ["one", "single"]);
    assert_eq!(names(&saved.below(&saved.at("to"), "live/one")), ["sub"]);
    // In place: only the selected file is replaced.
    fs::write(saved.at("live/one/a"), "changed").unwrap();
    fs::write(saved.at("live/one/sub/b"), "changed").unwrap();
    let to = RestoreTarget { select: select(&["live/one/a"]), ..replacing(RestoreTarget::default()) };
    restore(&saved.engine, &from, &to).await.unwrap();
    assert_eq!(fs::read_to_string(saved.at("live/one/a")).unwrap(), "a");
    assert_eq!(fs::read_to_string(saved.at("live/one/sub/b")).unwrap(), "changed");
    assert_eq!(names(&saved.at("live/one")), ["a", "sub"]);
    for wrong in ["live/one/missing", "elsewhere"] {
        let to = RestoreTarget { select: select(&[wrong]), ..into_folder(&saved.at("nothing")) };
        assert_eq!(restore(&saved.engine, &from, &to).await.unwrap_err().kind(), ErrorKind::NotFound, "{wrong}");
    }
    let to = RestoreTarget { select: vec!["../x".into()], ..into_folder(&saved.at("nothing")) };
    assert_eq!(restore(&saved.engine, &from, &to).await.unwrap_err().kind(), ErrorKind::Usage);
    assert!(!saved.at("nothing").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_to_files_that_are_not_selected_get_the_content() {
    let saved = Saved::new().await;
    let times = fs::metadata(saved.at("live/two")).unwrap().modified().unwrap();
    let to = RestoreTarget { select: vec![saved.at("live/two").display().to_string()], ..into_folder(&saved.at("to")) };
    restore(&saved.engine, &saved.reader().await, &to).await.unwrap();
    let two = saved.below(&saved.at("to"), "live/two");
    assert_eq!(fs::read_to_string(two.join("also-a")).unwrap(), "a");
    let inode = |name: &str| fs::metadata(two.join(name)).unwrap().ino();
    assert_eq!(inode("also-a"), inode("also-a-2"), "they stay one file");
    assert_eq!(fs::metadata(&two).unwrap().modified().unwrap(), times);
    assert!(!saved.below(&saved.at("to"), "live/one").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_found_by_name() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("x"), "x").unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let daemon =
        passwd.lines().find(|line| line.starts_with("daemon:")).unwrap().split(':').nth(2).unwrap().parse().unwrap();
    std::os::unix::fs::chown(home.path().join("x"), Some(daemon), Some(0)).unwrap();
    let sink = MemorySink::default();
    let engine = files(&format!("paths: [{}]", home.path().display()));
    let manifest = back_up(&engine, &sink).await.unwrap();
    let entries = crate::support::entries(&reader(&sink, &manifest).await).await;
    assert_eq!(entries.last().unwrap().user.as_deref(), Some("daemon"));
}

/// A mounted file system cannot be renamed; what lies in it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_point_is_filled_in_place() {
    let saved = Saved::new().await;
    let mount = saved.at("live/one");
    fs::remove_dir_all(&mount).unwrap();
    fs::create_dir(&mount).unwrap();
    let run = |program: &'static str, arguments: Vec<String>| async move {
        let process = LocalHost.spawn(HostCommand::new(program).args(arguments)).await.unwrap();
        process.finish().await.expect("the tests run as root and may mount")
    };
    let path = mount.display().to_string();
    run("mount", vec!["-t".into(), "tmpfs".into(), "none".into(), path.clone()]).await;
    let outcome = async {
        let from = saved.reader().await;
        let select = RestoreTarget { select: vec![path.clone()], ..RestoreTarget::default() };
        fs::create_dir(mount.join("lost+found")).map_err(|source| source.to_string())?;
        restore(&saved.engine, &from, &select).await.map_err(|error| error.chain())?;
        let first = (names(&mount), fs::read_to_string(mount.join("a")).map_err(|source| source.to_string())?);
        fs::write(mount.join("a"), "changed").map_err(|source| source.to_string())?;
        fs::write(mount.join("new"), "new").map_err(|source| source.to_string())?;
        let refused = restore(&saved.engine, &from, &select).await.map_err(|error| error.kind());
        restore(&saved.engine, &from, &replacing(select)).await.map_err(|error| error.chain())?;
        let second = (names(&mount), fs::read_to_string(mount.join("a")).map_err(|source| source.to_string())?);
        Ok::<_, String>((first, refused.err(), second))
    }
    .await;
    run("umount", vec![path]).await;
    let expected = |names: &[&str]| (names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), "a".to_owned());
    let (first, second) = (expected(&["a", "lost+found", "sub"]), expected(&["a", "lost+found", "new", "sub"]));
    assert_eq!(outcome, Ok((first, Some(ErrorKind::AlreadyExists), second)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_leaves_the_target_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("data")).unwrap();
    fs::write(home.path().join("data/large"), vec![1u8; 6 << 20]).unwrap();
    let engine = files(&format!("paths: [{}/data]", home.path().display()));
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    let small = home.path().join("small");
    fs::create_dir(&small).unwrap();
    let run = |program: &'static str, arguments: Vec<String>| async move {
        LocalHost.spawn(HostCommand::new(program).args(arguments)).await.unwrap().finish().await.unwrap()
    };
    let path = small.display().to_string();
    run("mount", ["-t", "tmpfs", "-o", "size=4m", "none", &path].map(str::to_owned).to_vec()).await;
    let to = into_folder(&small.join("target"));
    let plan = engine.restorer.plan_restore(&RunContext::new(name()), &from, &to).await.map(|plan| plan.warnings);
    let result = restore(&engine, &from, &to).await.map_err(|error| error.kind());
    let left = names(&small);
    run("umount", vec![path]).await;
    assert!(plan.unwrap().iter().any(|warning| warning.contains("bytes")), "a dry run says so beforehand");
    assert_eq!(result.err(), Some(ErrorKind::NoSpace));
    assert_eq!(left, Vec::<String>::new());
}
