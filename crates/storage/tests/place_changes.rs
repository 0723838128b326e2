//! Another place stands where the sink was opened: an empty mount point, another repository, a copy. Every kind of writer
//! notices, stores nothing there, and goes on when the place is back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::log::{LogStore, SegmentId, SegmentMeta, Stored};
use backup_core::plan::{CompressionConfig, DirectoryConfig, EncryptionConfig, RepositoryConfig, SinkConfig};
use backup_core::sink::{ChunkHint, Sink, SnapshotFilter, SnapshotHeader, SnapshotWriter, TreeOrder};
use backup_core::{Error, ErrorKind, PlanName, Result, SegmentName, SnapshotId, Timeline};
use backup_testkit::noise;
use storage::{QuickLog, Repository, Unlock, keys};
use support::{back_up, copy_folder, source, stream_source};

/// A sink on a disk that can be exchanged.
struct Disk {
    folder: tempfile::TempDir,
    sink: SinkConfig,
    unlock: Unlock,
}

impl Disk {
    async fn repository() -> Self {
        let pair = keys::generate();
        let folder = tempfile::tempdir().unwrap();
        let state = Some(folder.path().join("state"));
        let sink = SinkConfig::Repository(RepositoryConfig {
            requests: backup_core::plan::RequestsConfig::default(),
            url: "./mounted/here".to_owned(),
            encryption: EncryptionConfig::Age,
            recipients: vec![pair.recipient],
            passphrase: None,
            compression_level: 1,
            state,
        });
        Self { folder, sink, unlock: Unlock { identities: vec![pair.identity], passphrase: None } }.made().await
    }

    async fn directory() -> Self {
        let sink = DirectoryConfig { path: PathBuf::from("./mounted/here"), compression: CompressionConfig::None };
        let sink = SinkConfig::Directory(sink);
        Self { folder: tempfile::tempdir().unwrap(), sink, unlock: Unlock::default() }.made().await
    }

    async fn made(self) -> Self {
        storage::create(&self.sink, self.folder.path()).await.unwrap();
        self
    }

    async fn open(&self) -> Result<Arc<dyn Sink>> {
        storage::open(&self.sink, self.folder.path(), &self.unlock).await
    }

    async fn open_repository(&self) -> Repository {
        storage::open_repository(self.config(), self.folder.path(), &self.unlock).await.unwrap()
    }

    fn config(&self) -> &RepositoryConfig {
        let SinkConfig::Repository(config) = &self.sink else { panic!("it is a directory") };
        config
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("mounted/here")
    }

    fn aside(&self) -> PathBuf {
        self.folder.path().join("aside")
    }

    /// Takes the disk away and lets `other` stand in its place.
    async fn exchange(&self, other: Other) {
        std::fs::rename(self.place(), self.aside()).unwrap();
        match other {
            Other::Nothing => {}
            Other::Empty => std::fs::create_dir(self.place()).unwrap(),
            Other::Copy => copy_folder(&self.aside(), &self.place()),
            Other::Another => drop(storage::create(&self.sink, self.folder.path()).await.unwrap()),
        }
    }

    fn bring_back(&self) {
        if self.place().exists() {
            std::fs::remove_dir_all(self.place()).unwrap();
        }
        std::fs::rename(self.aside(), self.place()).unwrap();
    }
}

/// What stands there after the disk was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Nothing,
    Empty,
    Copy,
    Another,
}

const OTHERS: [Other; 4] = [Other::Nothing, Other::Empty, Other::Copy, Other::Another];

/// Everything below `folder`.
fn names(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

fn assert_noticed(error: &Error, other: Other) {
    assert_eq!(error.kind(), ErrorKind::NoRepository, "{other:?}: {error:?}");
    assert!(error.remedy().is_some_and(|hint| hint.contains("mount")), "{other:?}: {error:?}");
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        id: SnapshotId::new("20200101-000000-aaaaaaaa").unwrap(),
        plan: PlanName::new("test").unwrap(),
        host: "host".to_owned(),
        started: "2020-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn segment(number: u64) -> SegmentId {
    SegmentId {
        timeline: Timeline::new("00000001").unwrap(),
        name: SegmentName::new(format!("{number:024X}")).unwrap(),
    }
}

async fn put(log: &dyn LogStore, number: u64) -> Result<Stored> {
    let content = Box::new(std::io::Cursor::new(noise(10_000, number)));
    log.put(&source("db"), &segment(number), SegmentMeta::default(), content).await
}

/// Whatever a run is doing when the disk goes: it fails, and what stands there instead stays as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_stores_nothing_in_another_place() {
    for disk in [Disk::repository().await, Disk::directory().await] {
        let sink = disk.open().await.unwrap();
        for other in OTHERS {
            // Before the run.
            disk.exchange(other).await;
            let before = names(&disk.place());
            assert_noticed(&sink.begin(header()).await.map(drop).unwrap_err(), other);
            assert_eq!(names(&disk.place()), before, "{other:?}");
            disk.bring_back();
            // In the middle of it.
            let writer = sink.begin(header()).await.unwrap();
            disk.exchange(other).await;
            let before = names(&disk.place());
            assert_noticed(&write_and_commit(&*sink, &*writer).await.unwrap_err(), other);
            assert_eq!(names(&disk.place()), before, "{other:?}");
            disk.bring_back();
            assert!(sink.snapshots(&SnapshotFilter::default()).await.unwrap().is_empty(), "{other:?}");
        }
        back_up(&*sink, &[("db", stream_source(1000, 1))]).await.unwrap();
        assert_eq!(sink.snapshots(&SnapshotFilter::default()).await.unwrap().len(), 1);
    }
}

async fn write_and_commit(_: &dyn Sink, writer: &dyn SnapshotWriter) -> Result<()> {
    let name = source("db");
    let mut stream = writer.stream(&name, &"dump".parse().unwrap(), ChunkHint::Stream).await?;
    stream.write(noise(20_000_000, 3)).await?;
    stream.finish().await?;
    drop(writer.tree(&name, &"tree".parse().unwrap(), TreeOrder::ByPath).await?);
    writer.commit(empty_manifest()).await.map(drop)
}

fn empty_manifest() -> backup_core::manifest::Manifest {
    let header = header();
    serde_json::from_value(serde_json::json!({
        "format_version": 1, "id": header.id, "plan": header.plan, "host": header.host, "tool_version": "test",
        "started": header.started, "finished": header.started, "outcome": "complete", "sources": [],
    }))
    .unwrap()
}

/// What a server would be told is archived, and may remove, is in the repository that was opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_goes_on_in_no_other_place() {
    let disk = Disk::repository().await;
    let sink = disk.open().await.unwrap();
    let log = sink.logs().unwrap();
    put(&*log, 1).await.unwrap();
    for (number, other) in (2..).zip(OTHERS) {
        let quick = QuickLog::open(disk.config(), disk.folder.path()).unwrap().unwrap();
        disk.exchange(other).await;
        let before = names(&disk.place());
        assert_noticed(&put(&*log, number).await.unwrap_err(), other);
        // One that is there already in the copy as well: it is not confirmed from there.
        assert_noticed(&put(&*log, 1).await.unwrap_err(), other);
        let mut content = std::io::Cursor::new(noise(10_000, number));
        let quick = quick.put(&source("db"), &segment(number), SegmentMeta::default(), &mut content);
        assert_noticed(&quick.unwrap_err(), other);
        assert_eq!(names(&disk.place()), before, "{other:?}");
        disk.bring_back();
        assert!(matches!(put(&*log, number).await.unwrap(), Stored::New { .. }), "{other:?}");
    }
    let timeline = Timeline::new("00000001").unwrap();
    assert_eq!(log.segments(&source("db"), &timeline).await.unwrap().len(), 5);
}

/// Keys are wrapped anew in the repository that was opened only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipients_change_in_no_other_place() {
    let disk = Disk::repository().await;
    let repository = disk.open_repository().await;
    for other in OTHERS {
        let recipient = keys::generate().recipient;
        disk.exchange(other).await;
        let before = names(&disk.place());
        assert_noticed(&repository.add_recipient(&recipient).await.unwrap_err(), other);
        assert_eq!(names(&disk.place()), before, "{other:?}");
        disk.bring_back();
    }
    repository.add_recipient(&keys::generate().recipient).await.unwrap();
}

/// A plain folder where a directory was is not made one by writing into it.
#[tokio::test]
async fn an_empty_mount_point_is_no_directory_and_an_old_directory_is_adopted() {
    let disk = Disk::directory().await;
    let sink = disk.open().await.unwrap();
    back_up(&*sink, &[("db", stream_source(1000, 1))]).await.unwrap();
    disk.exchange(Other::Empty).await;
    let error = disk.open().await.unwrap_err();
    assert_noticed(&error, Other::Empty);
    assert!(error.remedy().unwrap().contains("stackward init"));
    disk.bring_back();
    // As it was before directories knew themselves.
    let marker = disk.place().join("stackward-directory.json");
    std::fs::remove_file(&marker).unwrap();
    let sink = disk.open().await.unwrap();
    assert!(!marker.exists(), "reading changes nothing");
    back_up(&*sink, &[("db", stream_source(1000, 1))]).await.unwrap();
    assert!(marker.exists());
    back_up(&*sink, &[("db", stream_source(1000, 1))]).await.unwrap();
    disk.open().await.unwrap();
}
