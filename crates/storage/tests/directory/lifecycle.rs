//! From the first byte to the rename: what others see meanwhile, what a dead run leaves, and a full disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::plan::CompressionConfig;
use backup_core::sink::{CheckDepth, ChunkHint, Piece, Sink, SnapshotFilter, SnapshotHeader, TreeOrder};
use backup_core::tree::{EntryKind, TreePath};
use backup_core::{Error, ErrorKind, PlanName, SnapshotId};
use backup_testkit::{ScriptedSource, noise};
use rustix::fs::{AtFlags, FlockOperation, Timespec, Timestamps};
use storage::Unlock;

use super::support::{
    COMPRESSIONS, artifact, config, cx, entry, files, open, read_snapshot, run, snapshot, source, write_stream,
    write_tree,
};

fn header() -> SnapshotHeader {
    SnapshotHeader {
        id: SnapshotId::new("20200101-000000-aaaaaaaa").expect("a valid id"),
        plan: PlanName::new("test").expect("a valid name"),
        host: "host".to_owned(),
        started: "2020-01-01T00:00:00Z".parse().expect("a time"),
    }
}

fn partials(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("it can be listed").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))).collect()
}

#[tokio::test]
async fn a_missing_folder_is_no_repository() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for name in ["missing", "file"] {
        let sink = config(&folder.path().join(name), CompressionConfig::Zstd);
        let error = storage::open(&sink, folder.path(), &Unlock::default()).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::NoRepository, "{error:?}");
        assert!(error.remedy().is_some());
    }
}

#[tokio::test]
async fn nobody_else_can_read_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("sink");
    let sink = open(&root, CompressionConfig::Zstd).await;
    let id = snapshot(&*sink).await.unwrap().id;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for path in ["", id.as_str(), &format!("{id}/test")] {
        assert_eq!(mode(&root.join(path)), 0o700, "{path}");
    }
    for path in files(&root) {
        assert_eq!(mode(&root.join(&path)), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_run_that_is_given_up_leaves_nothing_and_a_failed_source_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open(folder.path(), CompressionConfig::Gzip).await;
    let writer = sink.begin(header()).await.unwrap();
    let mut stream = writer.stream(&source(), &artifact("a/b/c"), ChunkHint::Stream).await.unwrap();
    stream.write(noise(5_000_000, 1)).await.unwrap();
    let mut tree = writer.tree(&source(), &artifact("tree"), TreeOrder::ByPath).await.unwrap();
    let mut file = tree.file(TreePath::new("a").unwrap(), ChunkHint::Stream).await.unwrap();
    file.write(noise(5_000_000, 2)).await.unwrap();
    assert_eq!(partials(folder.path()).len(), 1);
    assert!(sink.snapshots(&SnapshotFilter::default()).await.unwrap().is_empty());
    drop((file, tree, stream, writer));
    assert_eq!(partials(folder.path()), Vec::<PathBuf>::new());

    let late = ScriptedSource::new(|out| {
        Box::pin(async move {
            write_stream(&out, "a/b", noise(100, 2)).await?;
            Err(Error::new(ErrorKind::Tool, "it died after its last byte"))
        })
    });
    let good = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(100, 1)).await }));
    let options = backup_core::run::RunOptions::new(PlanName::new("test").unwrap(), "host");
    let id = backup_core::run::run(vec![late.task("late"), good.task("good")], &*sink, &options).await.unwrap().id;
    let found = files(&folder.path().join(id.as_str()));
    assert_eq!(found, ["SHA256SUMS", "good/a.gz", "manifest.json"].map(PathBuf::from));
    assert!(!folder.path().join(id.as_str()).join("late").exists());
}

fn age(path: &Path) {
    let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty()).expect("its times can be set");
}

#[tokio::test]
async fn what_a_killed_run_left_is_invisible_and_goes_when_it_is_old_and_nobody_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open(folder.path(), CompressionConfig::None).await;
    let writer = sink.begin(header()).await.unwrap();
    let mut stream = writer.stream(&source(), &artifact("a"), ChunkHint::Stream).await.unwrap();
    stream.write(noise(5_000_000, 1)).await.unwrap();
    let running = partials(folder.path()).remove(0);
    // A copy of a running one is what is left when it is killed now.
    let killed = folder.path().join(".partial-20200101-000000-bbbbbbbb-x");
    run("cp", &["-a", running.to_str().unwrap(), killed.to_str().unwrap()], folder.path()).await;
    let held = folder.path().join(".partial-20200101-000000-cccccccc-x");
    run("cp", &["-a", running.to_str().unwrap(), held.to_str().unwrap()], folder.path()).await;
    let lock = std::fs::File::open(&held).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();

    drop(sink.begin(header()).await.unwrap());
    assert!(killed.exists(), "it is not old");
    for path in [&killed, &held, &running] {
        age(path);
    }
    let manifest = snapshot(&*sink).await.unwrap();
    assert!(!killed.exists());
    assert!(held.exists() && running.exists(), "somebody holds them");
    drop(lock);
    age(&held);
    drop(sink.begin(header()).await.unwrap());
    assert!(!held.exists() && running.exists());
    let listed = sink.snapshots(&SnapshotFilter::default()).await.unwrap();
    assert_eq!(listed.iter().map(|summary| &summary.id).collect::<Vec<_>>(), [&manifest.id]);
    let report = sink.check(&cx(), CheckDepth::Data, &[manifest.id]).await.unwrap();
    assert_eq!(report.damage, []);
    assert!(report.notes.iter().any(|note| note.contains(".partial-")), "{:?}", report.notes);
    drop((stream, writer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_entries_than_may_wait_and_more_bytes_than_memory_holds() {
    let folder = tempfile::tempdir().unwrap();
    let sink = open(folder.path(), CompressionConfig::Zstd).await;
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let mut first = tree.file(TreePath::new("0000")?, ChunkHint::Stream).await?;
            first.write(noise(40_000_000, 0)).await?;
            let ends =
                tokio::spawn(async move { first.finish(entry(b"0000", EntryKind::File { size: 40_000_000 })).await });
            for number in 1..6000u64 {
                let path = format!("{number:04}");
                let mut file = tree.file(TreePath::new(path.clone())?, ChunkHint::Stream).await?;
                file.write(noise(10_000, number)).await?;
                file.finish(entry(path.as_bytes(), EntryKind::File { size: 10_000 })).await?;
            }
            ends.await.expect("it ends")?;
            tree.seal(backup_core::Evidence::Listing { entries: 6000 }).await.map(drop)
        })
    });
    let id = script.run_into(&*sink).await.unwrap().id;
    let reader = backup_core::BackupReader::new(sink.open(&id).await.unwrap(), source()).unwrap();
    let mut tree = reader.tree(&artifact("tree")).await.unwrap();
    let mut number = 0;
    while let Some(stored) = tree.next().await.unwrap() {
        let mut pieces = stored.content.unwrap().open().await.unwrap();
        let mut content = Vec::new();
        while let Some(piece) = pieces.next().await.unwrap() {
            let Piece::Data(data) = piece else { panic!("no holes") };
            content.extend_from_slice(&data);
        }
        assert!(content == noise(stored.entry.size() as usize, number), "{number}");
        number += 1;
    }
    assert_eq!(number, 6000);
}

/// A small file system in memory, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    async fn mount() -> Self {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root: a full disk needs a mount");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("UTF-8").to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "stackward-test", &path], folder.path()).await;
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = self.0.path().to_str().expect("UTF-8").to_owned();
        let unmount = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run("umount", &["-l", &path], Path::new("/")));
        };
        std::thread::spawn(unmount).join().expect("it is unmounted");
    }
}

#[tokio::test]
async fn a_full_disk_at_any_moment_costs_nothing_that_was_complete() {
    for compression in COMPRESSIONS {
        let disk = SmallDisk::mount().await;
        let root = disk.0.path().join("sink");
        let sink: Arc<dyn Sink> = open(&root, compression).await;
        let first = snapshot(&*sink).await.unwrap().id;
        let (mut full, mut whole) = (0, 0);
        // What is left is about 530 kB; in steps of a page, every write meets the end of the disk once.
        for size in (400_000..600_000).step_by(4096) {
            let script = ScriptedSource::new(move |out| {
                Box::pin(async move {
                    write_stream(&out, "stream", noise(size / 2, 1)).await?;
                    let file = entry(b"a", EntryKind::File { size: size as u64 / 2 });
                    write_tree(&out, "tree", vec![(file, vec![Piece::Data(noise(size / 2, 2))])]).await
                })
            });
            match script.run_into(&*sink).await {
                Ok(manifest) => {
                    whole += 1;
                    let report = sink.check(&cx(), CheckDepth::Data, std::slice::from_ref(&manifest.id)).await.unwrap();
                    assert_eq!(report.damage, []);
                    std::fs::remove_dir_all(root.join(manifest.id.as_str())).unwrap();
                }
                Err(error) => {
                    full += 1;
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{size}: {error:?}");
                    assert!(error.remedy().is_some());
                }
            }
            assert_eq!(partials(&root), Vec::<PathBuf>::new());
            let listed = sink.snapshots(&SnapshotFilter::default()).await.unwrap();
            assert_eq!(listed.iter().map(|summary| &summary.id).collect::<Vec<_>>(), [&first]);
        }
        assert!(full > 5 && whole > 5, "{compression:?}: {full} full, {whole} whole");
        // Contents that wait beside the snapshot need space too.
        let script = ScriptedSource::new(|out| {
            Box::pin(async move {
                let file = entry(b"a", EntryKind::File { size: 3_000_000 });
                write_tree(&out, "tree", vec![(file, vec![Piece::Data(noise(3_000_000, 2))])]).await
            })
        });
        let error = script.run_into(&*sink).await.expect_err("the disk is too small");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        read_snapshot(&*sink, &first).await.unwrap();
    }
}
