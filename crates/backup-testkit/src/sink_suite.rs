//! The conformance suite of sinks. `sink_conformance!(make)` runs all of it; the names of the tests are the contract.

use std::sync::Arc;

use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::{Manifest, Outcome};
use backup_core::plan::OnFailure;
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::{CheckDepth, ChunkHint, Piece, Sink, SnapshotFilter, SnapshotHeader};
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, BackupWriter, Evidence, PlanName, RunContext, SnapshotId, SourceName};
use bytes::Bytes;
use futures::future::BoxFuture;

mod continued;
mod given_up;

pub use continued::{
    a_memo_is_read_again_by_the_next_run, a_tree_in_any_order_round_trips, one_run_has_one_earlier_snapshot,
    what_is_kept_is_exactly_what_was,
};
pub use given_up::a_write_that_is_given_up_spoils_no_other;

type Script = dyn Fn(BackupWriter) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// A source that does what a test tells it to.
#[derive(Clone)]
pub struct ScriptedSource(Arc<Script>);

impl ScriptedSource {
    /// A source whose backup is `script`.
    pub fn new(script: impl Fn(BackupWriter) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(script))
    }

    /// Runs it as the only source `test` of the plan `test` into `sink`.
    pub async fn run_into(&self, sink: &dyn Sink) -> Result<Manifest> {
        run(vec![self.task("test")], sink, &RunOptions::new(plan(), "host")).await
    }

    /// It as a task of this name.
    ///
    /// # Panics
    /// When `name` is no source name.
    #[must_use]
    pub fn task(&self, name: &str) -> Task {
        let name = SourceName::new(name).expect("a valid name");
        Task { name, engine: "scripted".to_owned(), source: Arc::new(self.clone()), on_failure: OnFailure::Continue }
    }
}

impl std::fmt::Debug for ScriptedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedSource")
    }
}

#[async_trait::async_trait]
impl Source for ScriptedSource {
    async fn preflight(&self, _: &RunContext) -> Result<Preflight> {
        Ok(Preflight::default())
    }

    async fn backup(&self, _: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        (self.0)(out.clone()).await.map(|()| SourceSummary::default())
    }
}

/// Makes the suite's tests; `$make` is an async function that returns a fresh `Arc<dyn Sink>` and whatever keeps it alive.
#[macro_export]
macro_rules! sink_conformance {
    ($make:path) => {
        $crate::sink_conformance!(@tests $make,
            streams_round_trip, trees_round_trip, unfinished_artifact_is_invisible, unfinished_file_fails_its_tree,
            a_restarted_file_has_its_last_content, an_abandoned_file_is_left_out, commit_has_one_winner,
            an_unchanged_file_is_not_read_again, two_runs_at_once_both_succeed, a_partial_snapshot_keeps_the_rest,
            snapshots_are_listed_by_time_and_plan, a_missing_snapshot_is_not_found, check_finds_nothing_wrong,
            a_tree_in_any_order_round_trips, a_memo_is_read_again_by_the_next_run, what_is_kept_is_exactly_what_was,
            one_run_has_one_earlier_snapshot, a_write_that_is_given_up_spoils_no_other
        );
    };
    (@tests $make:path, $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (sink, _keep) = $make().await;
                $crate::sink_suite::$name(sink).await;
            }
        )+
    };
}

fn plan() -> PlanName {
    PlanName::new("test").expect("a valid name")
}

fn source() -> SourceName {
    SourceName::new("test").expect("a valid name")
}

fn artifact(name: &str) -> ArtifactName {
    ArtifactName::new(name).expect("a valid name")
}

/// Bytes that neither repeat nor compress well, the same for the same seed.
#[must_use]
pub fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

fn entry(path: &str, kind: EntryKind) -> TreeEntry {
    TreeEntry {
        path: TreePath::new(path).expect("a safe path"),
        kind,
        mode: 0o640,
        uid: 12,
        gid: 34,
        user: Some("someone".to_owned()),
        group: None,
        modified: FileTime { seconds: -1, nanos: 999_999_999 },
        xattrs: vec![(b"user.a".to_vec(), b"\0\xff".to_vec())],
        identity: FileIdentity { inode: 7, changed: FileTime { seconds: 1, nanos: 2 } },
    }
}

fn file(path: &str, size: usize) -> TreeEntry {
    entry(path, EntryKind::File { size: size as u64 })
}

async fn reader(sink: &Arc<dyn Sink>, id: &SnapshotId) -> BackupReader {
    BackupReader::new(sink.open(id).await.expect("the snapshot opens"), source()).expect("the source is complete")
}

async fn write_stream(out: &BackupWriter, name: &str, content: Bytes) -> Result<()> {
    let mut writer = out.artifact(artifact(name), ChunkHint::Stream).await?;
    for piece in content.chunks(300_000) {
        writer.write(content.slice_ref(piece)).await?;
    }
    writer.seal(Evidence::ExactLength(content.len() as u64)).await.map(drop)
}

async fn read_tree(sink: &Arc<dyn Sink>, id: &SnapshotId, name: &str) -> Vec<(TreeEntry, Vec<u8>)> {
    let mut tree = reader(sink, id).await.tree(&artifact(name)).await.expect("the tree opens");
    let mut read = Vec::new();
    while let Some(stored) = tree.next().await.expect("the listing is whole") {
        let mut content = Vec::new();
        if let Some(file) = stored.content {
            let mut pieces = file.open().await.expect("the file opens");
            while let Some(piece) = pieces.next().await.expect("the file is whole") {
                match piece {
                    Piece::Data(data) => content.extend_from_slice(&data),
                    Piece::Hole(length) => content.resize(content.len() + length as usize, 0),
                }
            }
        }
        read.push((stored.entry, content));
    }
    read
}

/// Streams of all sizes come back byte for byte.
pub async fn streams_round_trip(sink: Arc<dyn Sink>) {
    let sizes = [0, 1, 65_536, 1_000_000, 21_000_000];
    let script = ScriptedSource::new(move |out| {
        Box::pin(async move {
            for size in sizes {
                write_stream(&out, &format!("streams/{size}"), noise(size, size as u64)).await?;
            }
            Ok(())
        })
    });
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    assert_eq!(sink.manifest(&manifest.id).await.expect("the manifest is readable"), manifest);
    let reader = reader(&sink, &manifest.id).await;
    for size in sizes {
        let name = artifact(&format!("streams/{size}"));
        assert_eq!(
            reader.read(&name, u64::MAX).await.expect("the stream is whole"),
            noise(size, size as u64),
            "{size} bytes"
        );
    }
}

/// Every kind of entry and every shape of content comes back, also when files end in another order than they began.
pub async fn trees_round_trip(sink: Arc<dyn Sink>) {
    let entries = || {
        let device = EntryKind::CharDevice { major: 5, minor: 1 };
        vec![
            entry("", EntryKind::Directory),
            entry("a", EntryKind::Directory),
            file("a/empty", 0),
            file("a/large", 9_000_000),
            entry("a/link", EntryKind::Symlink { target: b"../\xff".to_vec() }),
            entry("a-b", EntryKind::Hardlink { target: TreePath::new("a/large").expect("safe") }),
            file("b", 100),
            entry("c", EntryKind::Fifo),
            entry("d", device),
            entry("e", EntryKind::BlockDevice { major: 8, minor: 0 }),
            file("sparse", 50_000_000),
        ]
    };
    let script = ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let mut files = Vec::new();
            for entry in entries() {
                match entry.kind {
                    EntryKind::File { .. } => {
                        files.push((tree.file(entry.path.clone(), ChunkHint::Stream).await?, entry));
                    }
                    _ => tree.entry(entry).await?,
                }
            }
            while let Some((mut writer, entry)) = files.pop() {
                if entry.path.as_bytes() == b"sparse" {
                    writer.write(noise(1000, 1)).await?;
                    writer.hole(entry.size() - 2000).await?;
                    writer.write(noise(1000, 2)).await?;
                } else {
                    writer.write(noise(entry.size() as usize, entry.size())).await?;
                }
                writer.finish(entry).await?;
            }
            tree.seal(Evidence::Listing { entries: 11 }).await.map(drop)
        })
    });
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    let read = read_tree(&sink, &manifest.id, "tree").await;
    assert_eq!(read.iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>(), entries());
    for (entry, content) in read {
        let expected = match entry.path.as_bytes() {
            b"sparse" => [&noise(1000, 1)[..], &vec![0; 49_998_000], &noise(1000, 2)].concat(),
            _ => noise(entry.size() as usize, entry.size()).to_vec(),
        };
        assert!(content == expected, "the content of {}", entry.path);
    }
}

/// A run that was given up leaves nothing to see.
pub async fn unfinished_artifact_is_invisible(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            write_stream(&out, "whole", noise(100, 1)).await?;
            let mut writer = out.artifact(artifact("unsealed"), ChunkHint::Stream).await?;
            writer.write(noise(5_000_000, 2)).await
        })
    });
    let error = script.run_into(&*sink).await.expect_err("an unsealed artifact fails its source");
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    assert!(sink.snapshots(&SnapshotFilter::default()).await.expect("listing works").is_empty());
}

/// A file that was begun and dropped fails its tree.
pub async fn unfinished_file_fails_its_tree(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let mut writer = tree.file(TreePath::new("a")?, ChunkHint::Stream).await?;
            writer.write(noise(10, 1)).await?;
            drop(writer);
            tree.seal(Evidence::Listing { entries: 0 }).await.map(drop)
        })
    });
    let error = script.run_into(&*sink).await.expect_err("the tree must fail");
    assert_eq!(error.kind(), ErrorKind::Incomplete);
}

/// After a restart only what came later counts.
pub async fn a_restarted_file_has_its_last_content(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let mut writer = tree.file(TreePath::new("a")?, ChunkHint::Stream).await?;
            writer.write(noise(3_000_000, 1)).await?;
            writer.restart().await?;
            writer.write(noise(20, 2)).await?;
            writer.finish(file("a", 20)).await?;
            tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
        })
    });
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    assert_eq!(read_tree(&sink, &manifest.id, "tree").await, [(file("a", 20), noise(20, 2).to_vec())]);
}

/// A file that vanished is not in the tree.
pub async fn an_abandoned_file_is_left_out(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let gone = tree.file(TreePath::new("a")?, ChunkHint::Stream).await?;
            let kept = tree.file(TreePath::new("b")?, ChunkHint::Stream).await?;
            kept.finish(file("b", 0)).await?;
            gone.abandon().await?;
            tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
        })
    });
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    assert_eq!(read_tree(&sink, &manifest.id, "tree").await, [(file("b", 0), Vec::new())]);
}

/// Of two commits under one id, exactly one succeeds, and its content is what is read.
pub async fn commit_has_one_winner(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(1000, 1)).await }));
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    let header =
        SnapshotHeader { id: manifest.id.clone(), plan: plan(), host: "other".to_owned(), started: manifest.started };
    let again = async {
        let writer = sink.begin(header).await?;
        let out = BackupWriter::new(RunContext::new(source()), Arc::clone(&writer));
        write_stream(&out, "a", noise(1000, 2)).await?;
        let mut second = manifest.clone();
        second.sources[0].artifacts = out.close()?;
        writer.commit(second).await
    };
    assert_eq!(again.await.expect_err("the id is taken").kind(), ErrorKind::AlreadyExists);
    let read = reader(&sink, &manifest.id).await.read(&artifact("a"), 5000).await.expect("the stream is whole");
    assert_eq!(read, noise(1000, 1));
}

/// The second run takes an unchanged file from the first, and reads a changed one.
pub async fn an_unchanged_file_is_not_read_again(sink: Arc<dyn Sink>) {
    let changed = |entry: TreeEntry| TreeEntry { modified: FileTime { seconds: 99, nanos: 0 }, ..entry };
    let first = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            for (name, size) in [("a", 2_000_000), ("b", 50), ("c", 50)] {
                assert!(!tree.reuse(&file(name, size)).await?, "nothing can be reused yet");
                let mut writer = tree.file(TreePath::new(name)?, ChunkHint::Stream).await?;
                writer.write(noise(size, size as u64)).await?;
                writer.finish(file(name, size)).await?;
            }
            tree.seal(Evidence::Listing { entries: 3 }).await.map(drop)
        })
    });
    first.run_into(&*sink).await.expect("the first run succeeds");
    let second = ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree(artifact("tree")).await?;
            let reusable = tree.reuse(&file("a", 2_000_000)).await?;
            if !reusable {
                let mut writer = tree.file(TreePath::new("a")?, ChunkHint::Stream).await?;
                writer.write(noise(2_000_000, 2_000_000)).await?;
                writer.finish(file("a", 2_000_000)).await?;
            }
            assert!(!tree.reuse(&changed(file("b", 50))).await?, "a changed file must be read");
            let mut writer = tree.file(TreePath::new("b")?, ChunkHint::Stream).await?;
            writer.write(noise(50, 99)).await?;
            writer.finish(changed(file("b", 50))).await?;
            assert!(!tree.reuse(&file("bb", 50)).await?, "a new file must be read");
            assert_eq!(tree.reuse(&file("c", 50)).await?, reusable);
            let entries = if reusable { 3 } else { 2 };
            tree.seal(Evidence::Listing { entries }).await.map(drop)
        })
    });
    let manifest = second.run_into(&*sink).await.expect("the second run succeeds");
    let read = read_tree(&sink, &manifest.id, "tree").await;
    assert_eq!(read[0], (file("a", 2_000_000), noise(2_000_000, 2_000_000).to_vec()));
    assert_eq!(read[1], (changed(file("b", 50)), noise(50, 99).to_vec()));
}

/// Two runs at the same time do not get in each other's way.
pub async fn two_runs_at_once_both_succeed(sink: Arc<dyn Sink>) {
    let script = |seed: u64| {
        ScriptedSource::new(move |out| {
            Box::pin(async move {
                write_stream(&out, "shared", noise(3_000_000, 7)).await?;
                write_stream(&out, "own", noise(3_000_000, seed)).await
            })
        })
    };
    let (a, b) = (script(1), script(2));
    let (first, second) = tokio::join!(a.run_into(&*sink), b.run_into(&*sink));
    for (manifest, seed) in [(first, 1), (second, 2)] {
        let id = manifest.expect("both runs succeed").id;
        let reader = reader(&sink, &id).await;
        assert_eq!(reader.read(&artifact("own"), u64::MAX).await.expect("whole"), noise(3_000_000, seed));
        assert_eq!(reader.read(&artifact("shared"), u64::MAX).await.expect("whole"), noise(3_000_000, 7));
    }
}

/// A source that fails, or panics, takes nothing from the others.
pub async fn a_partial_snapshot_keeps_the_rest(sink: Arc<dyn Sink>) {
    let good = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(100_000, 1)).await }));
    let late = ScriptedSource::new(|out| {
        Box::pin(async move {
            write_stream(&out, "a", noise(100, 2)).await?;
            Err(backup_core::Error::new(ErrorKind::Tool, "it died after its last byte"))
        })
    });
    let panics = ScriptedSource::new(|_| Box::pin(async { panic!("a defect") }));
    let tasks = vec![late.task("late"), good.task("test"), panics.task("panics")];
    let manifest = run(tasks, &*sink, &RunOptions::new(plan(), "host")).await.expect("the run is partial");
    assert_eq!(manifest.outcome, Outcome::Partial);
    let summary = &sink.snapshots(&SnapshotFilter::default()).await.expect("listing works")[0];
    assert_eq!(summary.failed.iter().map(SourceName::as_str).collect::<Vec<_>>(), ["late", "panics"]);
    let read = reader(&sink, &manifest.id).await.read(&artifact("a"), u64::MAX).await;
    assert_eq!(read.expect("the good source is whole"), noise(100_000, 1));
    let failed =
        BackupReader::new(sink.open(&manifest.id).await.expect("opens"), SourceName::new("late").expect("valid"));
    assert_eq!(failed.expect_err("a failed source cannot be read").kind(), ErrorKind::Incomplete);
}

/// Lists are in the order of time, and can be limited to a plan.
pub async fn snapshots_are_listed_by_time_and_plan(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(10, 1)).await }));
    let other = PlanName::new("other").expect("valid");
    for name in [plan(), other.clone(), plan()] {
        run(vec![script.task("test")], &*sink, &RunOptions::new(name, "host")).await.expect("the run succeeds");
    }
    let all = sink.snapshots(&SnapshotFilter::default()).await.expect("listing works");
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted_by_key(|summary| summary.started));
    let some = sink.snapshots(&SnapshotFilter { plan: Some(other.clone()) }).await.expect("listing works");
    assert_eq!(some.iter().map(|summary| &summary.plan).collect::<Vec<_>>(), [&other]);
}

/// Asking for a snapshot that is not there is `NotFound`.
pub async fn a_missing_snapshot_is_not_found(sink: Arc<dyn Sink>) {
    let id = SnapshotId::new("20200101-000000-aaaaaaaa").expect("valid");
    assert_eq!(sink.manifest(&id).await.expect_err("there is none").kind(), ErrorKind::NotFound);
    assert_eq!(sink.open(&id).await.expect_err("there is none").kind(), ErrorKind::NotFound);
}

/// A whole snapshot passes the thorough check.
pub async fn check_finds_nothing_wrong(sink: Arc<dyn Sink>) {
    let script = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(2_000_000, 1)).await }));
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    let report =
        sink.check(&RunContext::new(source()), CheckDepth::Data, &[manifest.id]).await.expect("it can be checked");
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert!(report.objects > 0);
}
