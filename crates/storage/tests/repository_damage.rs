//! A damaged object of any kind is found and named, with what it hurts; the rest still restores; the next run heals.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};

use backup_core::sink::{CheckDepth, CheckReport, Sink, SnapshotFilter};
use backup_core::{ErrorKind, RunContext, SnapshotId};
use backup_testkit::noise;
use storage::{Repository, Unlock};
use support::{
    Place, back_up, pages_content, pages_source, read_stream, read_tree, source, stream_source, tree_source,
};

const FILES: &[usize] = &[10, 300, 70_000, 3_000_000, 5_000_000];
const PAGES: &[usize] = &[5, 290];
const STREAM: usize = 20_000_000;

/// Ways to damage an object.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// At so many thousandths of its length.
    Flip(usize),
    Cut,
    Empty,
    Remove,
}

const HARMS: [Harm; 6] = [Harm::Flip(0), Harm::Flip(400), Harm::Flip(999), Harm::Cut, Harm::Empty, Harm::Remove];

fn harm(path: &Path, harm: Harm) {
    let mut content = std::fs::read(path).unwrap();
    match harm {
        Harm::Flip(at) => {
            let position = content.len() * at / 1000;
            content[position] ^= 0x04;
        }
        Harm::Cut => drop(content.pop()),
        Harm::Empty => content.clear(),
        Harm::Remove => return std::fs::remove_file(path).unwrap(),
    }
    std::fs::write(path, content).unwrap();
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

struct Damaged {
    place: Place,
    first: SnapshotId,
    second: SnapshotId,
}

/// Two snapshots; in the second some pages changed, and it adds a stream in packs of its own.
async fn two_snapshots() -> Damaged {
    let place = Place::new();
    place.create().await;
    let repository = place.open(&place.reading()).await.unwrap();
    let sources = [("tree", tree_source(FILES)), ("pages", pages_source(PAGES, 1))];
    let first = back_up(&repository, &sources).await.unwrap().id;
    let (tree, db) = (tree_source(FILES), stream_source(STREAM, 1));
    let sources = [("tree", tree), ("db", db), ("pages", pages_source(PAGES, 2))];
    let second = back_up(&repository, &sources).await.unwrap().id;
    Damaged { place, first, second }
}

async fn check(repository: &Repository, of: &[SnapshotId]) -> CheckReport {
    repository.check(&RunContext::new(source("check")), CheckDepth::Data, of).await.unwrap()
}

/// Every kind of object, damaged in every way: found and named; whatever reads at all reads right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_every_kind_of_object_is_named_and_never_read_as_good() {
    let Damaged { place, first, second } = two_snapshots().await;
    let mut kinds = std::collections::BTreeSet::new();
    for object in objects(&place.data()) {
        let relative = object.strip_prefix(place.data()).unwrap().to_str().unwrap().to_owned();
        kinds.insert(relative.split(['/', '-']).next().unwrap().to_owned());
        let good = std::fs::read(&object).unwrap();
        for how in HARMS {
            harm(&object, how);
            let what = format!("{relative} {how:?}");
            match place.open(&place.reading()).await {
                Err(error) => {
                    let kinds = [
                        ErrorKind::Damaged,
                        ErrorKind::NoRepository,
                        ErrorKind::NotFound,
                        ErrorKind::Unsupported,
                        ErrorKind::WrongKey,
                    ];
                    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                    assert!(relative == "config", "{what}: {error:?}");
                }
                Ok(repository) => {
                    let report = check(&repository, &[first.clone(), second.clone()]).await;
                    // Without an index object packs tell what is in them; without its copy a key still opens.
                    let noted = |what: &str| report.notes.iter().any(|note| note.contains(what));
                    let named = match (how, relative.split('/').next().unwrap()) {
                        (Harm::Remove, "index") => noted("no index object") && report.damage.is_empty(),
                        (Harm::Remove, "key-copies") => noted("second copy") && report.damage.is_empty(),
                        _ => report.damage.iter().any(|damage| relative.starts_with(&damage.object)),
                    };
                    assert!(named, "{what} is not named: {:?}", report.damage);
                    assert_reads_right_or_not_at_all(&repository, &first, &second, &what).await;
                }
            }
            std::fs::write(&object, &good).unwrap();
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["config", "index", "key", "keys", "packs", "snapshots"]);
}

async fn assert_reads_right_or_not_at_all(
    repository: &Repository,
    first: &SnapshotId,
    second: &SnapshotId,
    what: &str,
) {
    if let Ok(stream) = read_stream(repository, second, "db").await {
        assert!(stream == noise(STREAM, 1), "{what}: the stream was read wrong");
    }
    for id in [first, second] {
        if let Ok(files) = read_tree(repository, id, "tree").await {
            let right = files.iter().zip(FILES).all(|((_, content), size)| *content == noise(*size, *size as u64));
            assert!(right && files.len() == FILES.len(), "{what}: the tree was read wrong");
        }
    }
    for (id, version) in [(first, 1), (second, 2)] {
        if let Ok(files) = read_tree(repository, id, "pages").await {
            let mut right =
                files.iter().zip(PAGES).map(|((_, content), pages)| *content == pages_content(*pages, version));
            assert!(right.all(|right| right) && files.len() == PAGES.len(), "{what}: the pages were read wrong");
        }
    }
}

/// The report names exactly the snapshots and artifacts that a lost pack hurts, and the others still restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pack_hurts_what_the_report_says_and_nothing_else() {
    let Damaged { place, first, second } = two_snapshots().await;
    let repository = place.open(&place.reading()).await.unwrap();
    assert!(check(&repository, &[first.clone(), second.clone()]).await.damage.is_empty());
    let mut hurt_tree = 0;
    let mut hurt_db = 0;
    for pack in objects(&place.data().join("packs")) {
        let good = std::fs::read(&pack).unwrap();
        harm(&pack, Harm::Flip(500));
        let repository = place.open(&place.reading()).await.unwrap();
        let report = check(&repository, &[first.clone(), second.clone()]).await;
        assert_eq!(report.damage.len(), 1);
        let hurts = |id: &SnapshotId, from: &str| {
            report.damage[0]
                .hurts
                .iter()
                .any(|hurt| hurt.snapshot == *id && hurt.source.as_ref().is_some_and(|name| name.as_str() == from))
        };
        // A flipped bit hits one chunk of the pack; the report speaks of the whole pack, so it may warn of too much.
        if !hurts(&second, "db") {
            assert_eq!(read_stream(&repository, &second, "db").await.unwrap(), noise(STREAM, 1));
        }
        for id in [&first, &second] {
            if !hurts(id, "tree") {
                support::assert_tree(&repository, id, "tree", FILES).await;
            }
        }
        hurt_db += usize::from(hurts(&second, "db"));
        hurt_tree += usize::from(hurts(&first, "tree"));
        assert_eq!(hurts(&first, "tree"), hurts(&second, "tree"), "both snapshots share the tree's packs");
        std::fs::write(&pack, good).unwrap();
    }
    assert!(hurt_tree > 0 && hurt_db > 0, "{hurt_tree} packs hurt the tree, {hurt_db} the stream");
}

/// A damaged snapshot hides no other one, and is not hidden itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_named_and_the_others_are_listed() {
    let Damaged { place, first, second } = two_snapshots().await;
    harm(&place.data().join("snapshots").join(first.as_str()), Harm::Flip(500));
    let repository = place.open(&place.reading()).await.unwrap();
    let listed = repository.snapshots(&SnapshotFilter::default()).await.unwrap();
    assert_eq!(listed.iter().map(|summary| &summary.id).collect::<Vec<_>>(), [&second]);
    assert_eq!(repository.unreadable().await.unwrap().iter().map(|one| &one.id).collect::<Vec<_>>(), [&first]);
    let report = check(&repository, std::slice::from_ref(&second)).await;
    assert!(report.damage.iter().any(|damage| damage.object.ends_with(first.as_str())), "{:?}", report.damage);
    assert_eq!(read_stream(&repository, &second, "db").await.unwrap(), noise(STREAM, 1));
    harm(&place.data().join("snapshots").join(second.as_str()), Harm::Cut);
    let error = repository.snapshots(&SnapshotFilter::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "nothing but damage is no empty list");
}

/// Content whose pack is gone is stored again by the next run, also for files that did not change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_run_heals_a_lost_pack() {
    let Damaged { place, .. } = two_snapshots().await;
    for pack in objects(&place.data().join("packs")) {
        std::fs::remove_file(pack).unwrap();
    }
    let repository = place.open(&place.reading()).await.unwrap();
    let healed = back_up(&repository, &[("tree", tree_source(FILES)), ("db", stream_source(STREAM, 1))]).await.unwrap();
    support::assert_tree(&repository, &healed.id, "tree", FILES).await;
    assert_eq!(read_stream(&repository, &healed.id, "db").await.unwrap(), noise(STREAM, 1));
}

/// Index objects that are damaged or gone are made up for by the packs' own tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_mended_from_the_packs() {
    let Damaged { place, first, second } = two_snapshots().await;
    for how in [Harm::Flip(500), Harm::Remove] {
        for object in objects(&place.data().join("index")) {
            harm(&object, how);
        }
        let repository = place.open(&place.reading()).await.unwrap();
        support::assert_tree(&repository, &first, "tree", FILES).await;
        assert_eq!(read_stream(&repository, &second, "db").await.unwrap(), noise(STREAM, 1));
    }
}

/// The check needs no private key: the machine that backs up can watch over what it wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writing_machine_checks_everything_without_a_private_key() {
    let Damaged { place, first, second } = two_snapshots().await;
    let writer = place.open(&Unlock::default()).await.unwrap();
    let report = check(&writer, &[first.clone(), second.clone()]).await;
    assert!(report.damage.is_empty() && report.bytes > STREAM as u64, "{report:?}");
    for pack in objects(&place.data().join("packs")) {
        harm(&pack, Harm::Cut);
    }
    let writer = place.open(&Unlock::default()).await.unwrap();
    assert!(!check(&writer, &[first, second]).await.damage.is_empty());
}
