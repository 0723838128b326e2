//! Random histories of a few files against a model in memory: edits, truncations, extensions, holes, ranges that are kept.

use std::ops::Range;
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::sink::ChunkHint;
use backup_core::writer::FileWriter;
use backup_core::{BackupWriter, Evidence};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::support::{back_up, file, name, open_in_memory, read_tree};

const PAGE: usize = 4096;
/// Per run: packs, the listing, the page map, the extents.
const OVERHEAD: usize = 12_000;
/// Per page: its hash, and an extent of new pages between kept ones.
const PAGE_OVERHEAD: usize = 16 + 100;

/// What happens to a file between two runs, and how the second one learns of it.
#[derive(Debug, Clone)]
struct Change {
    edits: Vec<(usize, usize, Edit)>,
    length: usize,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Edit {
    Data,
    Zeros,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// All of it is read, in pieces of this length.
    Read(usize),
    /// Zeros are told as holes.
    Sparse(usize),
    /// What was not edited is kept.
    Keep,
    /// What was not edited is kept, after a first try that was given up.
    KeepAgain,
}

fn change() -> impl Strategy<Value = Change> {
    let edit = (0..60 * PAGE, 1..5 * PAGE, prop_oneof![3 => Just(Edit::Data), 1 => Just(Edit::Zeros)]);
    let aligned = (0..60usize, 1..5usize, prop_oneof![3 => Just(Edit::Data), 1 => Just(Edit::Zeros)])
        .prop_map(|(at, count, edit)| (at * PAGE, count * PAGE, edit));
    let edits = proptest::collection::vec(prop_oneof![edit, aligned], 0..6);
    let length =
        prop_oneof![3 => Just(usize::MAX), 1 => 0..70 * PAGE, 1 => (0..70usize).prop_map(|pages| pages * PAGE)];
    let how = prop_oneof![
        (1000..300_000usize).prop_map(How::Read),
        Just(How::Read(PAGE)),
        (1000..300_000usize).prop_map(How::Sparse),
        Just(How::Keep),
        Just(How::KeepAgain),
    ];
    (edits, length, how).prop_map(|(edits, length, how)| Change { edits, length, how })
}

/// A file as the model knows it.
#[derive(Debug, Clone, Default)]
struct Model {
    content: Vec<u8>,
    /// The pages whose hashes the page map must know.
    known: Vec<bool>,
}

/// One step of writing a file.
#[derive(Debug, Clone)]
enum Step {
    Keep(usize),
    Write(Range<usize>),
    Hole(usize),
}

impl Model {
    /// Changes the file; returns it, how it is written, and how many bytes may have to be stored.
    fn change(&self, change: &Change, seed: u64) -> (Self, Vec<Step>, usize) {
        let mut content = self.content.clone();
        let length = if change.length == usize::MAX { content.len() } else { change.length };
        let mut edited: Vec<Range<usize>> = Vec::new();
        if length > content.len() {
            edited.push(content.len()..length);
            content.extend_from_slice(&noise(length - content.len(), seed));
        }
        content.truncate(length);
        for (number, (at, count, edit)) in change.edits.iter().enumerate() {
            let range = (*at).min(length)..(at + count).min(length);
            match edit {
                Edit::Data => {
                    let data = noise(range.len(), seed + 1 + number as u64);
                    content[range.clone()].copy_from_slice(&data);
                }
                Edit::Zeros => content[range.clone()].fill(0),
            }
            edited.push(range);
        }
        let steps = match change.how {
            How::Read(piece) => in_pieces(0..length, piece),
            How::Sparse(piece) => sparse(&content, piece),
            How::Keep | How::KeepAgain => keeping(&edited, length),
        };
        let (known, cost) = self.known_and_cost(&content, &steps, change.how);
        (Self { content, known }, steps, cost)
    }

    fn known_and_cost(&self, content: &[u8], steps: &[Step], how: How) -> (Vec<bool>, usize) {
        let pages = content.len().div_ceil(PAGE);
        let page = |number: usize| number * PAGE..((number + 1) * PAGE).min(content.len());
        let was_known = |number: usize| self.known.get(number).copied().unwrap_or(false);
        if matches!(how, How::Read(_) | How::Sparse(_)) {
            let same = |number: usize| self.content.get(page(number)) == Some(&content[page(number)]);
            let last_grew =
                |number: usize| (number + 1) * PAGE > self.content.len() && self.content.len() != content.len();
            let stored = (0..pages).filter(|number| !same(*number) || !was_known(*number) || last_grew(*number));
            return (vec![true; pages], stored.map(|number| page(number).len()).sum());
        }
        let kept = |at: usize| {
            let mut from = 0;
            steps.iter().any(|step| {
                let count = match step {
                    Step::Keep(count) | Step::Hole(count) => *count,
                    Step::Write(range) => range.len(),
                };
                from += count;
                matches!(step, Step::Keep(_)) && (from - count..from).contains(&at)
            })
        };
        let known = (0..pages).map(|number| {
            let count = page(number).filter(|at| kept(*at)).count();
            let whole =
                count == page(number).len() && (page(number).end == self.content.len() || page(number).len() == PAGE);
            count == 0 || whole && was_known(number)
        });
        let written = steps.iter().map(|step| if let Step::Write(range) = step { range.len() } else { 0 }).sum();
        (known.collect(), written)
    }
}

fn in_pieces(range: Range<usize>, piece: usize) -> Vec<Step> {
    range.clone().step_by(piece).map(|at| Step::Write(at..(at + piece).min(range.end))).collect()
}

fn sparse(content: &[u8], piece: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = 0;
    for part in content.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
        let end = at + part.len();
        // A lone zero byte is no hole.
        match part[0] {
            0 if part.len() > 100 => steps.push(Step::Hole(part.len())),
            _ => steps.extend(in_pieces(at..end, piece)),
        }
        at = end;
    }
    steps
}

fn keeping(edited: &[Range<usize>], length: usize) -> Vec<Step> {
    let is_edited = |at: usize| edited.iter().any(|range| range.contains(&at));
    let mut bounds: Vec<usize> = edited.iter().flat_map(|range| [range.start, range.end]).chain([0, length]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let step = |pair: &[usize]| {
        if is_edited(pair[0]) { Step::Write(pair[0]..pair[1]) } else { Step::Keep(pair[1] - pair[0]) }
    };
    bounds.windows(2).map(step).collect()
}

async fn write(out: &BackupWriter, model: &[Model], steps: &[Vec<Step>], changes: &[Change]) -> Result<()> {
    let mut tree = out.tree_in_any_order(name("tree")).await?;
    // Names in another order than that of the work.
    for number in (0..model.len()).rev() {
        let entry = file(&format!("f{number}"), model[number].content.len());
        let mut writer = tree.file(entry.path.clone(), ChunkHint::Pages(PAGE as u32)).await?;
        if changes[number].how == How::KeepAgain {
            writer.write(Bytes::from_static(b"this was wrong")).await?;
            let _there_or_not = writer.keep(10).await;
            writer.restart().await?;
        }
        follow(&mut writer, &model[number].content, &steps[number]).await?;
        writer.finish(entry).await?;
    }
    tree.seal(Evidence::Listing { entries: model.len() as u64 }).await.map(drop)
}

async fn follow(writer: &mut FileWriter, content: &[u8], steps: &[Step]) -> Result<()> {
    for step in steps {
        match step {
            Step::Keep(count) => writer.keep(*count as u64).await?,
            Step::Write(range) => writer.write(Bytes::copy_from_slice(&content[range.clone()])).await?,
            Step::Hole(count) => writer.hole(*count as u64).await?,
        }
    }
    Ok(())
}

async fn live(first: Vec<usize>, history: Vec<Vec<Change>>) {
    let repository = open_in_memory().await;
    let mut models = vec![Model::default(); first.len()];
    let born =
        first.iter().map(|length| Change { edits: Vec::new(), length: *length, how: How::Read(100_000) }).collect();
    let mut snapshots = Vec::new();
    for (round, changes) in std::iter::once(&born).chain(&history).enumerate() {
        let seed = |number: usize| (1000 * round + 100 * number) as u64 + 1;
        let changed: Vec<_> =
            models.iter().zip(changes).enumerate().map(|(n, (model, change))| model.change(change, seed(n))).collect();
        models = changed.iter().map(|(model, ..)| model.clone()).collect();
        let steps: Vec<Vec<Step>> = changed.iter().map(|(_, steps, _)| steps.clone()).collect();
        let (now, plan, how) = (Arc::new(models.clone()), Arc::new(steps), Arc::new(changes.clone()));
        let script = ScriptedSource::new(move |out| {
            let (now, plan, how) = (Arc::clone(&now), Arc::clone(&plan), Arc::clone(&how));
            Box::pin(async move { write(&out, &now, &plan, &how).await })
        });
        let manifest = back_up(&repository, &[("db", script)]).await.unwrap();
        let pages: usize = models.iter().map(|model| model.known.len()).sum();
        let cost: usize = changed.iter().map(|(.., cost)| cost).sum();
        let bound = cost + pages * PAGE_OVERHEAD + OVERHEAD;
        let stored = manifest.stored_bytes();
        assert!(stored <= bound as u64, "round {round} stored {stored} bytes, {cost} of them changed");
        snapshots.push((manifest.id, models.clone()));
    }
    for (id, models) in &snapshots {
        let read = read_tree(&repository, id, "db").await.unwrap();
        for ((path, content), model) in read.iter().zip(models) {
            assert!(*content == model.content, "{path} in {id}");
        }
    }
}

proptest! {
    // Beside this file: proptest finds no folder of its own for tests that have no `main.rs`.
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_version_reads_back_exactly_and_costs_what_changed(
        first in proptest::collection::vec(0..60 * PAGE, 3), history in proptest::collection::vec(proptest::collection::vec(change(), 3), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live(first, history));
    }
}
