//! The part of the sinks' contract that engines need which continue from their last backup: trees in a server's order,
//! memos, and content that is kept without being read.

use std::sync::Arc;

use backup_core::BackupWriter;
use backup_core::error::{ErrorKind, Result};
use backup_core::sink::{ChunkHint, Sink};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use bytes::Bytes;

use super::{Evidence, ScriptedSource, artifact, entry, file, noise, read_tree, reader, write_stream};

const PAGE: usize = 8192;
const PAGES: ChunkHint = ChunkHint::Pages(PAGE as u32);

fn path(text: &str) -> TreePath {
    TreePath::new(text).expect("a safe path")
}

/// Entries come back whole in whatever order they came; repositories sort them.
pub async fn a_tree_in_any_order_round_trips(sink: Arc<dyn Sink>) {
    const FILES: usize = 300;
    let entries = || {
        let mut entries = vec![
            file("global/1", 70_000),
            file("base/1/2", 0),
            entry("", EntryKind::Directory),
            entry("base-x", EntryKind::Symlink { target: b"elsewhere".to_vec() }),
            entry("base", EntryKind::Directory),
            entry("z", EntryKind::Hardlink { target: path("global/1") }),
        ];
        entries.extend((0..FILES).map(|number| file(&format!("base/1/{}", number * 7919 % 10_007 + 10), number)));
        entries
    };
    let script = ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree_in_any_order(artifact("tree")).await?;
            let mut open = None;
            for entry in entries() {
                if !matches!(entry.kind, EntryKind::File { .. }) {
                    tree.entry(entry).await?;
                    continue;
                }
                let mut writer = tree.file(entry.path.clone(), PAGES).await?;
                writer.write(noise(entry.size() as usize, entry.size())).await?;
                // Every file but the first ends after the next one began.
                if let Some((before, entry)) = open.replace((writer, entry)) {
                    finish(before, entry).await?;
                }
            }
            if let Some((last, entry)) = open {
                finish(last, entry).await?;
            }
            let early = entry("a-link", EntryKind::Hardlink { target: path("global/1") });
            let refused = tree.entry(early).await.expect_err("readers would meet it before its target");
            assert_eq!(refused.kind(), ErrorKind::Internal);
            tree.seal(Evidence::Listing { entries: 6 + FILES as u64 }).await.map(drop)
        })
    });
    let manifest = script.run_into(&*sink).await.expect("the run succeeds");
    let mut read = read_tree(&sink, &manifest.id, "tree").await;
    read.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    let mut expected = entries();
    expected.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(read.iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>(), expected);
    for (entry, content) in read {
        assert!(content == noise(entry.size() as usize, entry.size()), "the content of {}", entry.path);
    }
}

async fn finish(writer: backup_core::writer::FileWriter, entry: TreeEntry) -> Result<()> {
    writer.finish(entry).await
}

/// A memo is an ordinary stream to readers; where the next run can continue from a snapshot, it reads it.
pub async fn a_memo_is_read_again_by_the_next_run(sink: Arc<dyn Sink>) {
    const BYTES: usize = 3_000_000;
    let first = ScriptedSource::new(|out| {
        Box::pin(async move {
            assert!(out.earlier().await?.is_none(), "there is no earlier snapshot yet");
            let mut memo = out.memo(artifact("memo")).await?;
            memo.write(noise(BYTES, 1)).await?;
            memo.seal(Evidence::ExactLength(BYTES as u64)).await?;
            write_stream(&out, "a", noise(1000, 2)).await
        })
    });
    let manifest = first.run_into(&*sink).await.expect("the first run succeeds");
    let read = reader(&sink, &manifest.id).await.read(&artifact("memo"), u64::MAX).await.expect("the memo is whole");
    assert!(read == noise(BYTES, 1));
    let id = manifest.id.clone();
    let second = ScriptedSource::new(move |out| {
        let id = id.clone();
        Box::pin(async move {
            if let Some(earlier) = out.earlier().await? {
                assert_eq!(*earlier.snapshot(), id);
                assert_eq!(earlier.record().artifacts.len(), 2);
                let mut memo = earlier.memo(&artifact("memo")).await?;
                let mut read = Vec::new();
                while let Some(data) = memo.next().await? {
                    read.extend_from_slice(&data);
                }
                assert!(read == noise(BYTES, 1));
                let error = earlier.memo(&artifact("none")).await.expect_err("there is none");
                assert_eq!(error.kind(), ErrorKind::NotFound);
            }
            write_stream(&out, "a", noise(1000, 2)).await
        })
    });
    second.run_into(&*sink).await.expect("the second run succeeds");
}

/// What the second run of [`what_is_kept_is_exactly_what_was`] does with a file.
#[derive(Debug, Clone, Copy)]
enum Step {
    Keep(usize),
    Write(usize, u64),
    Hole(usize),
}

use Step::{Hole, Keep, Write};

/// The steps of each file, and the length of its earlier content.
const KEPT: &[(&str, usize, &[Step])] = &[
    ("all", 40 * PAGE, &[Keep(40 * PAGE)]),
    ("ends", 40 * PAGE, &[Write(PAGE, 1), Keep(38 * PAGE), Write(PAGE, 2)]),
    ("grown", 4 * PAGE, &[Keep(4 * PAGE), Write(3 * PAGE, 3), Hole(2 * PAGE)]),
    ("odd", 5 * PAGE + 77, &[Keep(100), Write(50, 4), Keep(PAGE), Hole(1000), Keep(3 * PAGE), Write(99, 5)]),
    ("pieces", 9 * PAGE + 1, &[Keep(PAGE), Keep(10), Keep(8 * PAGE - 9)]),
    ("shrunk", 40 * PAGE, &[Keep(7 * PAGE)]),
    ("sparse", 600 * PAGE, &[Keep(300 * PAGE), Write(PAGE, 6), Keep(299 * PAGE)]),
];

/// The earlier content of a file: some of it a hole, for the one that is called so.
fn before(name: &str, length: usize) -> Vec<u8> {
    let mut content = noise(length, length as u64).to_vec();
    if name == "sparse" {
        content[10 * PAGE..500 * PAGE].fill(0);
    }
    content
}

fn after(name: &str, length: usize, steps: &[Step]) -> Vec<u8> {
    let before = before(name, length);
    let mut content = Vec::new();
    for step in steps {
        match *step {
            Keep(count) => content.extend_from_slice(&before[content.len()..content.len() + count]),
            Write(count, seed) => content.extend_from_slice(&noise(count, seed)),
            Hole(count) => content.resize(content.len() + count, 0),
        }
    }
    content
}

/// Bytes that are kept are those of the earlier snapshot, at any position and of any length; where nothing can be kept,
/// nothing pretends to be.
pub async fn what_is_kept_is_exactly_what_was(sink: Arc<dyn Sink>) {
    for (hint, from_order) in [(PAGES, false), (ChunkHint::Stream, false), (PAGES, true)] {
        let name = format!("{hint:?}-{from_order}").replace(['(', ')'], "");
        keep_and_compare(&sink, &name, hint, from_order).await;
    }
}

async fn begin(out: &BackupWriter, name: &str, in_order: bool) -> Result<backup_core::writer::TreeWriter> {
    let name = artifact(name);
    if in_order { out.tree(name).await } else { out.tree_in_any_order(name).await }
}

fn files(in_order: bool) -> Vec<&'static (&'static str, usize, &'static [Step])> {
    let mut files: Vec<_> = KEPT.iter().collect();
    if !in_order {
        files.rotate_left(3);
    }
    files
}

async fn keep_and_compare(sink: &Arc<dyn Sink>, name: &str, hint: ChunkHint, in_order: bool) {
    let tree_name = name.to_owned();
    let first = ScriptedSource::new(move |out| {
        let name = tree_name.clone();
        Box::pin(async move {
            let mut tree = begin(&out, &name, in_order).await?;
            for (name, length, _) in files(in_order) {
                let mut writer = tree.file(path(name), hint).await?;
                if name != &"sparse" {
                    let error = writer.keep(1).await.expect_err("nothing can be kept yet");
                    assert_eq!(error.kind(), ErrorKind::Incomplete);
                }
                writer.write(Bytes::from(before(name, *length))).await?;
                writer.finish(file(name, *length)).await?;
            }
            tree.seal(Evidence::Listing { entries: KEPT.len() as u64 }).await.map(drop)
        })
    });
    first.run_into(&**sink).await.expect("the first run succeeds");
    let tree_name = name.to_owned();
    let second = ScriptedSource::new(move |out| {
        let name = tree_name.clone();
        Box::pin(async move {
            let can_keep = out.earlier().await?.is_some();
            let mut tree = begin(&out, &name, in_order).await?;
            for (name, length, steps) in files(in_order) {
                let size = after(name, *length, steps).len();
                let earlier = tree.earlier_length(&path(name)).await?;
                assert_eq!(earlier, can_keep.then_some(*length as u64), "{name}");
                let mut writer = tree.file(path(name), hint).await?;
                if can_keep {
                    follow(&mut writer, steps, *length).await?;
                } else {
                    let error = writer.keep(1).await.expect_err("this sink keeps nothing");
                    assert_eq!(error.kind(), ErrorKind::Incomplete);
                    writer.write(Bytes::from(after(name, *length, steps))).await?;
                }
                writer.finish(file(name, size)).await?;
            }
            assert_eq!(tree.earlier_length(&path("zzz")).await?, None, "there was no such file");
            tree.seal(Evidence::Listing { entries: KEPT.len() as u64 }).await.map(drop)
        })
    });
    let manifest = second.run_into(&**sink).await.expect("the second run succeeds");
    let read = read_tree(sink, &manifest.id, name).await;
    assert_eq!(read.len(), KEPT.len());
    for (entry, content) in read {
        let (name, length, steps) =
            KEPT.iter().find(|(name, ..)| entry.path == path(name)).expect("one of those that were written");
        assert!(content == after(name, *length, steps), "{name}, {hint:?}");
    }
}

/// Follows the steps, after a first try that asked for too much.
async fn follow(writer: &mut backup_core::writer::FileWriter, steps: &[Step], length: usize) -> Result<()> {
    writer.write(noise(10, 1)).await?;
    let error = writer.keep(length as u64).await.expect_err("it ends ten bytes before");
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    writer.restart().await?;
    for step in steps {
        match *step {
            Keep(count) => writer.keep(count as u64).await?,
            Write(count, seed) => writer.write(noise(count, seed)).await?,
            Hole(count) => writer.hole(count as u64).await?,
        }
    }
    Ok(())
}

/// Whatever is committed while a run goes on, it sees the same earlier snapshot, and keeps from that one: the latest in
/// which its source is complete.
pub async fn one_run_has_one_earlier_snapshot(sink: Arc<dyn Sink>) {
    let write = |seed: u64| {
        ScriptedSource::new(move |out| Box::pin(async move { write_pages(&out, noise(3 * PAGE, seed)).await }))
    };
    write(1).run_into(&*sink).await.expect("the first run succeeds");
    let base = write(2).run_into(&*sink).await.expect("the second run succeeds");
    let failing = ScriptedSource::new(|out| {
        Box::pin(async move {
            write_pages(&out, noise(3 * PAGE, 3)).await?;
            Err(backup_core::Error::new(ErrorKind::Tool, "it failed in the end"))
        })
    });
    let other = ScriptedSource::new(|out| Box::pin(async move { write_stream(&out, "a", noise(9, 9)).await }));
    let options = backup_core::run::RunOptions::new(super::plan(), "host");
    let tasks = vec![failing.task("test"), other.task("other")];
    backup_core::run::run(tasks, &*sink, &options).await.expect("a partial snapshot");

    let between = Arc::clone(&sink);
    let continued = ScriptedSource::new(move |out| {
        let (sink, base) = (Arc::clone(&between), base.id.clone());
        Box::pin(async move {
            let Some(earlier) = out.earlier().await? else {
                return write_pages(&out, noise(3 * PAGE, 2)).await;
            };
            assert_eq!(*earlier.snapshot(), base);
            write(4).run_into(&*sink).await?;
            let again = out.earlier().await?.expect("it was there before");
            assert_eq!(again.snapshot(), earlier.snapshot());
            let mut tree = out.tree_in_any_order(artifact("tree")).await?;
            assert_eq!(tree.earlier_length(&path("f")).await?, Some(3 * PAGE as u64));
            let mut writer = tree.file(path("f"), PAGES).await?;
            writer.keep(3 * PAGE as u64).await?;
            writer.finish(file("f", 3 * PAGE)).await?;
            tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
        })
    });
    let manifest = continued.run_into(&*sink).await.expect("the run succeeds");
    let read = read_tree(&sink, &manifest.id, "tree").await;
    assert!(read[0].1 == noise(3 * PAGE, 2), "the content of the second run");
}

async fn write_pages(out: &BackupWriter, content: Bytes) -> Result<()> {
    let mut tree = out.tree_in_any_order(artifact("tree")).await?;
    let mut writer = tree.file(path("f"), PAGES).await?;
    let length = content.len();
    writer.write(content).await?;
    writer.finish(file("f", length)).await?;
    tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
}
