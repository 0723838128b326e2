//! Restores into what is there already: what they bring, what stays, what is removed when that was asked for, and what
//! no restore ever touches.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use backup_core::RunContext;
use backup_core::engine::{Changes, Claim, Engine, Existing, Neighbour, RestorePlan, RestoreTarget, Unknown};
use backup_core::error::{ErrorKind, Result};
use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::manifest::Manifest;
use backup_testkit::MemorySink;
use tempfile::TempDir;

use crate::support::{back_up, describe, files, into_folder, name, reader, replacing, restore};

struct Saved {
    home: TempDir,
    engine: Engine,
    sink: MemorySink,
    manifest: Manifest,
}

impl Saved {
    /// The folder `d` of a fresh home, with these files, saved with these further settings.
    async fn new(settings: &str, contents: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for path in contents {
            let path = home.path().join("d").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "saved").unwrap();
        }
        let engine = files(&format!("{{ paths: [{}/d], {settings} }}", home.path().display()));
        let sink = MemorySink::default();
        let manifest = back_up(&engine, &sink).await.unwrap();
        Self { home, engine, sink, manifest }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.home.path().join("d").join(path)
    }

    fn write(&self, path: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), "mine").unwrap();
    }

    async fn plan(&self, to: &RestoreTarget) -> Result<RestorePlan> {
        let from = reader(&self.sink, &self.manifest).await;
        self.engine.restorer.plan_restore(&RunContext::new(name()), &from, to).await
    }

    async fn restore(&self, to: &RestoreTarget) -> Result<()> {
        restore(&self.engine, &reader(&self.sink, &self.manifest).await, to).await.map(drop)
    }

    /// The files and links of `d`, with their content.
    fn state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut folders = vec![self.at("")];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(&folder).unwrap() {
                let path = item.unwrap().path();
                let shown = path.strip_prefix(self.at("")).unwrap().display().to_string();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else {
                    lines.push(format!("{shown}: {}", fs::read_to_string(&path).unwrap_or_else(|_| "-".to_owned())));
                }
            }
        }
        lines.sort();
        lines
    }
}

fn over() -> RestoreTarget {
    replacing(RestoreTarget::default())
}

fn deleting() -> RestoreTarget {
    RestoreTarget { unknown: Unknown::Delete, ..over() }
}

fn neighbour(path: PathBuf, claim: Claim) -> Neighbour {
    Neighbour { path, owner: "the source `other`".to_owned(), claim }
}

fn relative(changes: &Changes, home: &Path) -> [Vec<String>; 4] {
    let home = format!("{}/d/", fs::canonicalize(home).unwrap().display());
    [&changes.overwritten, &changes.newer, &changes.removed, &changes.kept]
        .map(|listed| listed.paths.iter().map(|path| path.trim_start_matches(&home).to_owned()).collect())
}

/// The one that the issue is about: what a restore does not bring, it does not take.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_snapshot_does_not_have_stays_and_a_dry_run_names_it() {
    let saved = Saved::new("exclude: ['*.tmp']", &["a", "sub/b", "gone/c"]).await;
    let before_times = fs::metadata(saved.at("sub")).unwrap().modified().unwrap();
    saved.write("a");
    saved.write("sub/new");
    saved.write("sub/x.tmp");
    fs::remove_dir_all(saved.at("gone")).unwrap();
    let plan = saved.plan(&over()).await.unwrap();
    let changes = relative(&plan.changes.unwrap(), saved.home.path());
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(changes, [list(&["a"]), list(&["a"]), list(&[]), list(&["sub/new"])]);
    let inode = fs::metadata(saved.at("sub")).unwrap().ino();
    saved.restore(&over()).await.unwrap();
    assert_eq!(saved.state(), ["a: saved", "gone/c: saved", "sub/b: saved", "sub/new: mine", "sub/x.tmp: mine"]);
    assert_eq!(fs::metadata(saved.at("sub")).unwrap().ino(), inode, "the folder itself is the one that stood there");
    assert_eq!(fs::metadata(saved.at("sub")).unwrap().modified().unwrap(), before_times);
    assert_eq!(fs::read_dir(saved.home.path()).unwrap().count(), 1, "no temporary folder is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_removes_what_the_plan_would_have_saved_and_nothing_else() {
    let saved = Saved::new("exclude: ['*.tmp']", &["a", "sub/b", ".stackignore"]).await;
    fs::write(saved.at(".stackignore"), "*.log\n").unwrap();
    let manifest = back_up(&saved.engine, &saved.sink).await.unwrap();
    let saved = Saved { manifest, ..saved };
    for path in ["sub/new", "sub/x.tmp", "sub/y.log", "deep/er/new", "mixed/new", "mixed/x.tmp"] {
        saved.write(path);
    }
    let _socket = std::os::unix::net::UnixListener::bind(saved.at("sub/socket")).unwrap();
    let times = fs::metadata(saved.at("sub")).unwrap().modified().unwrap();
    let plan = saved.plan(&deleting()).await.unwrap();
    let [overwritten, newer, removed, kept] = relative(&plan.changes.unwrap(), saved.home.path());
    let expected = ["deep", "deep/er", "deep/er/new", "mixed", "mixed/new", "sub/new"];
    assert_eq!((overwritten, kept), (Vec::new(), Vec::new()));
    assert_eq!(removed, expected);
    assert_eq!(newer, ["deep/er/new", "mixed/new", "sub/new"]);
    saved.restore(&deleting()).await.unwrap();
    let expected = [
        ".stackignore: *.log\n",
        "a: saved",
        "mixed/x.tmp: mine",
        "sub/b: saved",
        "sub/socket: -",
        "sub/x.tmp: mine",
        "sub/y.log: mine",
    ];
    assert_eq!(saved.state(), expected);
    assert!(!saved.at("deep").exists());
    assert!(fs::metadata(saved.at("sub")).unwrap().modified().unwrap() <= times, "a folder keeps its saved time");
}

/// What today's plan would save, yesterday's left out: it was never in a backup, so it cannot come back.
#[tokio::test(flavor = "multi_thread")]
async fn delete_spares_what_the_snapshot_left_out_when_it_was_made() {
    let saved = Saved::new("exclude: ['*.tmp']", &["a"]).await;
    for path in ["x.tmp", "y.log", "new"] {
        saved.write(path);
    }
    let plan_of_today = format!("{{ paths: [{}], exclude: ['*.log'] }}", saved.at("").display());
    let saved = Saved { engine: files(&plan_of_today), ..saved };
    saved.restore(&deleting()).await.unwrap();
    assert_eq!(saved.state(), ["a: saved", "x.tmp: mine", "y.log: mine"]);
}

/// The ignore file that a restore brings back counts, and so does the one that stood there.
#[tokio::test(flavor = "multi_thread")]
async fn delete_spares_what_an_ignore_file_of_either_state_leaves_out() {
    let saved = Saved::new("exclude: []", &["a", ".stackignore"]).await;
    fs::write(saved.at(".stackignore"), "*.log\n").unwrap();
    let manifest = back_up(&saved.engine, &saved.sink).await.unwrap();
    let saved = Saved { manifest, ..saved };
    fs::write(saved.at(".stackignore"), "*.tmp\n").unwrap();
    for path in ["x.tmp", "y.log", "new"] {
        saved.write(path);
    }
    saved.restore(&deleting()).await.unwrap();
    assert_eq!(saved.state(), [".stackignore: *.log\n", "a: saved", "x.tmp: mine", "y.log: mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_is_refused_where_it_cannot_know() {
    let saved = Saved::new("unreadable: skip", &["a"]).await;
    let select = RestoreTarget { select: vec![saved.at("a").display().to_string()], ..deleting() };
    assert_eq!(saved.restore(&select).await.unwrap_err().kind(), ErrorKind::Usage);
    let details = serde_json::json!({ "roots": ["/d"] });
    let from = crate::hostile::hand_made_reader(vec![crate::hostile::dir("d")], details).await;
    let plan = files("paths: [/d]").restorer.plan_restore(&RunContext::new(name()), &from, &deleting()).await.unwrap();
    assert!(plan.warnings.iter().any(|warning| warning.contains("today's plan")), "{:?}", plan.warnings);
    let details = serde_json::json!({ "roots": ["/d"], "left_out_unreadable": 1 });
    let from = crate::hostile::hand_made_reader(vec![crate::hostile::dir("d")], details).await;
    let error = restore(&files("paths: [/d]"), &from, &deleting()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("could not be read"), "{error}");
}

/// A folder where the snapshot has a file, and the other way round: what is not in the snapshot would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn sorts_that_exclude_one_another_are_refused_by_name() {
    let saved = Saved::new("exclude: ['*.tmp']", &["file", "folder/b", "z"]).await;
    saved.write("z");
    fs::remove_file(saved.at("file")).unwrap();
    fs::create_dir(saved.at("file")).unwrap();
    saved.restore(&over()).await.expect("an empty folder is nothing that could be lost");
    fs::remove_file(saved.at("file")).unwrap();
    saved.write("file/mine");
    saved.write("z");
    let refused = |error: &backup_core::Error, path: &str| {
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        let named = error.context().iter().any(|(_, value)| value.ends_with(path));
        assert!(named && error.remedy().is_some(), "{error:?}");
    };
    let before = saved.state();
    refused(&saved.plan(&over()).await.unwrap_err(), "d/file");
    refused(&saved.restore(&over()).await.unwrap_err(), "d/file");
    saved.write("file/x.tmp");
    refused(&saved.restore(&deleting()).await.unwrap_err(), "d/file");
    fs::remove_file(saved.at("file/x.tmp")).unwrap();
    assert_eq!(saved.state(), before);
    saved.restore(&deleting()).await.unwrap();
    assert_eq!(saved.state(), ["file: saved", "folder/b: saved", "z: saved"]);
    fs::remove_dir_all(saved.at("folder")).unwrap();
    saved.write("folder");
    refused(&saved.restore(&over()).await.unwrap_err(), "d/folder");
    assert_eq!(fs::read_to_string(saved.at("folder")).unwrap(), "mine");
    saved.restore(&deleting()).await.unwrap();
    assert_eq!(saved.state(), ["file: saved", "folder/b: saved", "z: saved"]);
}

/// A user who may write below the saved root puts a link where the restore must pass.
#[tokio::test(flavor = "multi_thread")]
async fn no_link_below_a_root_is_followed() {
    let saved = Saved::new("exclude: []", &["u/sub/passwd", "u/plain"]).await;
    let etc = saved.home.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), "root's").unwrap();
    fs::rename(saved.at("u/sub"), saved.at("u/aside")).unwrap();
    symlink(&etc, saved.at("u/sub")).unwrap();
    let before = describe(&etc);
    let select = vec![saved.at("u/sub/passwd").display().to_string()];
    let one = RestoreTarget { select, ..over() };
    for to in [&one, &over(), &RestoreTarget { select: vec![saved.at("u").display().to_string()], ..over() }] {
        for error in [saved.plan(to).await.unwrap_err(), saved.restore(to).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
            assert!(error.context().iter().any(|(_, value)| value.ends_with("u/sub")), "{error:?}");
        }
    }
    assert_eq!(describe(&etc), before);
    saved.restore(&deleting()).await.unwrap();
    assert_eq!(describe(&etc), before, "the link goes, not what it leads to");
    assert_eq!(saved.state(), ["u/plain: saved", "u/sub/passwd: saved"]);
    // A file that has another name elsewhere is exchanged, not written.
    fs::remove_file(saved.at("u/plain")).unwrap();
    fs::hard_link(etc.join("passwd"), saved.at("u/plain")).unwrap();
    saved.restore(&over()).await.unwrap();
    assert_eq!(fs::read_to_string(etc.join("passwd")).unwrap(), "root's");
    // The root itself.
    fs::rename(saved.at(""), saved.home.path().join("moved")).unwrap();
    symlink(&etc, saved.home.path().join("d")).unwrap();
    assert_eq!(saved.restore(&over()).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_dir(&etc).unwrap().count(), 1);
}

/// Somebody else prepared the folder that is restored into.
#[tokio::test(flavor = "multi_thread")]
async fn no_link_in_a_prepared_target_is_followed() {
    let saved = Saved::new("exclude: []", &["a"]).await;
    let (etc, to) = (saved.home.path().join("etc"), saved.home.path().join("to"));
    fs::create_dir(&etc).unwrap();
    let first = saved.home.path().strip_prefix("/").unwrap().components().next().unwrap();
    fs::create_dir(&to).unwrap();
    symlink(&etc, to.join(first)).unwrap();
    let error = saved.restore(&replacing(into_folder(&to))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    symlink(&etc, saved.home.path().join("link")).unwrap();
    let error = saved.restore(&replacing(into_folder(&saved.home.path().join("link")))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert_eq!(fs::read_dir(&etc).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_is_left_alone_or_never_removed() {
    let saved = Saved::new("exclude: []", &["a", "in/b", "db"]).await;
    for path in ["in/b", "in/new", "db", "db-wal"] {
        saved.write(path);
    }
    let around = |to: RestoreTarget, claim| RestoreTarget {
        neighbours: ["in", "db", "db-wal"].map(|path| neighbour(saved.at(path), claim)).to_vec(),
        ..to
    };
    fs::remove_file(saved.at("a")).unwrap();
    let free = RestoreTarget { existing: Existing::Refuse, ..around(over(), Claim::LeaveAlone) };
    saved.restore(&free).await.expect("what belongs to others is not in the way");
    let untouched = ["a: saved", "db-wal: mine", "db: mine", "in/b: mine", "in/new: mine"];
    assert_eq!(saved.state(), untouched);
    saved.restore(&around(deleting(), Claim::LeaveAlone)).await.unwrap();
    assert_eq!(saved.state(), untouched);
    let plan = saved.plan(&around(over(), Claim::LeaveAlone)).await.unwrap();
    assert!(plan.steps.iter().any(|step| step.contains("the source `other`")), "{:?}", plan.steps);
    saved.restore(&around(deleting(), Claim::Write)).await.unwrap();
    assert_eq!(saved.state(), ["a: saved", "db-wal: mine", "db: saved", "in/b: saved", "in/new: mine"]);
    // Who selects what is a neighbour's asks for it by name.
    saved.write("in/b");
    let select = RestoreTarget { select: vec![saved.at("in/b").display().to_string()], ..over() };
    saved.restore(&around(select, Claim::LeaveAlone)).await.unwrap();
    assert_eq!(fs::read_to_string(saved.at("in/b")).unwrap(), "saved");
}

/// The log of a database that is replaced is not the new one's.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_database_leaves_no_log_of_the_old_one() {
    let saved = Saved::new("exclude: []", &["a"]).await;
    let open = || rusqlite::Connection::open(saved.at("w.db")).unwrap();
    let first = "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1);";
    open().execute_batch(first).unwrap();
    let manifest = back_up(&saved.engine, &saved.sink).await.unwrap();
    let select = RestoreTarget { select: vec![saved.at("w.db").display().to_string()], ..over() };
    for to in [over(), select] {
        // An application that dies: its log stays.
        let copy = tempfile::tempdir().unwrap();
        let more = "CREATE TABLE u AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
                    SELECT i FROM n;";
        let connection = open();
        connection.execute_batch(more).unwrap();
        for name in ["w.db", "w.db-wal"] {
            fs::copy(saved.at(name), copy.path().join(name)).unwrap();
        }
        drop(connection);
        for name in ["w.db", "w.db-wal"] {
            fs::copy(copy.path().join(name), saved.at(name)).unwrap();
        }
        let from = reader(&saved.sink, &manifest).await;
        let plan = saved.engine.restorer.plan_restore(&RunContext::new(name()), &from, &to).await.unwrap();
        let [_, _, removed, kept] = relative(&plan.changes.unwrap(), saved.home.path());
        assert_eq!((removed, kept), (vec!["w.db-wal".to_owned()], Vec::new()));
        if to.select.is_empty() {
            // A companion of somebody else is not removed, and what was set aside before is back.
            let before = saved.state();
            let claimed =
                RestoreTarget { neighbours: vec![neighbour(saved.at("w.db-wal"), Claim::LeaveAlone)], ..over() };
            let error = restore(&saved.engine, &from, &claimed).await.unwrap_err();
            assert!(error.to_string().contains("belongs to another source"), "{error}");
            assert_eq!(saved.state(), before);
            fs::write(saved.at("w.db-shm"), "index").unwrap();
            let claimed =
                RestoreTarget { neighbours: vec![neighbour(saved.at("w.db-shm"), Claim::LeaveAlone)], ..over() };
            let before = fs::read(saved.at("w.db-wal")).unwrap();
            restore(&saved.engine, &from, &claimed).await.unwrap_err();
            assert!(fs::read(saved.at("w.db-wal")).unwrap() == before, "the log was set aside, and is back");
            fs::remove_file(saved.at("w.db-shm")).unwrap();
        }
        let report = restore(&saved.engine, &from, &to).await.unwrap();
        assert!(report.warnings.iter().any(|text| text.contains("w.db-wal")), "{:?}", report.warnings);
        assert!(!saved.at("w.db-wal").exists());
        let tables: i64 = open().query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1, "the database is the one that was saved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_refused_by_name() {
    let saved = Saved::new("exclude: []", &["a"]).await;
    let to = RestoreTarget { existing: Existing::Update, ..RestoreTarget::default() };
    let error = saved.plan(&to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("--delta") && error.remedy().unwrap().contains("--force"), "{error}");
}

/// An ACL of the folder that stands there would let in whom the snapshot's did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_merged_folder_has_the_attributes_of_the_snapshot() {
    let saved = Saved::new("exclude: []", &["sub/b"]).await;
    fs::set_permissions(saved.at("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    let manifest = back_up(&saved.engine, &saved.sink).await.unwrap();
    let saved = Saved { manifest, ..saved };
    let before = describe(&saved.at(""));
    fs::set_permissions(saved.at("sub"), fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(saved.at("sub"), Some(4711), Some(4712)).unwrap();
    rustix::fs::setxattr(saved.at("sub"), "user.extra", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    saved.restore(&over()).await.unwrap();
    assert_eq!(describe(&saved.at("")), before);
}

/// The second root cannot be changed: what was done to the first is taken back, its folders' attributes included.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_fails_is_taken_back() {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let saved = Saved::new("exclude: []", &["a/file", "a/gone", "b/file", "z/file"]).await;
    fs::remove_file(saved.at("a/gone")).unwrap();
    for path in ["a/file", "a/new", "b/file", "z/file"] {
        saved.write(path);
    }
    fs::set_permissions(saved.at("a"), fs::Permissions::from_mode(0o711)).unwrap();
    let before = describe(&saved.at(""));
    let immutable = |on: bool| {
        let file = fs::File::open(saved.at("z/file")).unwrap();
        let mut flags = ioctl_getflags(&file).unwrap();
        flags.set(IFlags::IMMUTABLE, on);
        ioctl_setflags(&file, flags).unwrap();
    };
    immutable(true);
    let result = saved.restore(&over()).await;
    immutable(false);
    assert!(result.unwrap_err().context().iter().any(|(_, value)| value.ends_with("d/z/file")));
    assert_eq!(describe(&saved.at("")), before);
    assert_eq!(fs::read_dir(saved.home.path()).unwrap().count(), 1, "no temporary folder is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_restore_left_is_removed_by_the_next() {
    let saved = Saved::new("exclude: []", &["a"]).await;
    let folder = |name: &str, mode| {
        let path = saved.home.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("old"), "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let left = folder(".d.stackward-0123abcd", 0o700);
    let alive = folder(".d.stackward-89abcdef", 0o700);
    let users = folder(".d.stackward-89abcd00", 0o755);
    let lock = fs::File::open(&alive).unwrap();
    lock.try_lock().unwrap();
    saved.restore(&over()).await.unwrap();
    assert_eq!((left.exists(), alive.exists(), users.exists()), (false, true, true));
}

async fn run(program: &'static str, arguments: &[&str]) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let process = LocalHost.spawn(HostCommand::new(program).args(arguments)).await.unwrap();
    process.finish().await.expect("the tests run as root, and may mount");
}

/// A file system that is mounted below the root is never moved and never emptied; what was saved of it goes into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_below_the_root_stays_and_is_restored_into() {
    let saved = Saved::new("exclude: []", &["a", "mnt/b", "mnt/deep/c", "other/x"]).await;
    fs::remove_dir_all(saved.at("mnt")).unwrap();
    for path in ["mnt", "fresh"] {
        fs::create_dir(saved.at(path)).unwrap();
        run("mount", &["-t", "tmpfs", "none", &saved.at(path).display().to_string()]).await;
    }
    // Not asserted on the way: the mounts must go.
    let mounted = || fs::metadata(saved.at("mnt")).unwrap().dev() != fs::metadata(saved.at("")).unwrap().dev();
    let refused = saved.restore(&RestoreTarget::default()).await.map_err(|error| error.kind());
    fs::remove_file(saved.at("a")).unwrap();
    fs::remove_file(saved.at("other/x")).unwrap();
    let over_empty_mounts = saved.restore(&RestoreTarget::default()).await.map_err(|error| error.chain());
    let first = saved.state();
    for path in ["mnt/b", "mnt/new", "mnt/deep/new", "fresh/new", "new"] {
        saved.write(path);
    }
    let merged = saved.restore(&over()).await.map_err(|error| error.chain());
    let second = saved.state();
    let deleted = saved.restore(&deleting()).await.map_err(|error| error.chain());
    let third = saved.state();
    let still_mounted = mounted();
    for path in ["mnt", "fresh"] {
        run("umount", &[&saved.at(path).display().to_string()]).await;
    }
    assert_eq!(refused, Err(ErrorKind::AlreadyExists));
    assert_eq!((over_empty_mounts, merged, deleted, still_mounted), (Ok(()), Ok(()), Ok(()), true));
    let all = ["a: saved", "mnt/b: saved", "mnt/deep/c: saved", "other/x: saved"];
    assert_eq!(first, all);
    let mut kept: Vec<&str> =
        all.into_iter().chain(["fresh/new: mine", "mnt/new: mine", "mnt/deep/new: mine"]).collect();
    kept.sort_unstable();
    assert_eq!(third, kept, "never across a mount");
    kept.push("new: mine");
    kept.sort_unstable();
    assert_eq!(second, kept);
    assert_eq!(fs::read_dir(saved.home.path()).unwrap().count(), 1, "no temporary folder is left");
}
