//! Objects that are gone, late, or said to be there when they are not: the index serves from the packs, keys from their
//! second copies, and no run is complete over what nobody can read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::log::{SegmentId, SegmentMeta};
use backup_core::sink::{CheckDepth, CheckReport, Sink, SnapshotFilter};
use backup_core::{ErrorKind, RunContext, SegmentName, SnapshotId, Timeline};
use backup_testkit::{Fault, FaultyStore, noise};
use storage::{Repository, Unlock};
use support::{Place, assert_tree, back_up, copy_folder, read_stream, source, stream_source, tree_source};

const FILES: &[usize] = &[10, 300, 70_000, 900_000];
const STREAM: usize = 2_000_000;

async fn run(repository: &Repository) -> SnapshotId {
    back_up(repository, &[("tree", tree_source(FILES)), ("db", stream_source(STREAM, 1))]).await.unwrap().id
}

async fn one_snapshot() -> (Place, SnapshotId) {
    let place = Place::new();
    place.create().await;
    let id = run(&place.open(&Unlock::default()).await.unwrap()).await;
    (place, id)
}

async fn check(repository: &Repository) -> CheckReport {
    let listed = repository.snapshots(&SnapshotFilter::default()).await.unwrap();
    let ids: Vec<SnapshotId> = listed.into_iter().map(|summary| summary.id).collect();
    repository.check(&RunContext::new(source("check")), CheckDepth::Data, &ids).await.unwrap()
}

/// Everything is read with the private key, where there is no state of the machine that wrote.
async fn assert_restores(place: &Place, at: &Path, id: &SnapshotId) {
    let store = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(at).unwrap());
    let options = storage::RepositoryOptions { state: Some(at.join("no-state")), ..place.options.clone() };
    let reader = Repository::open(store, "a test", &options, &place.reading()).await.unwrap();
    assert_tree(&reader, id, "tree", FILES).await;
    assert!(read_stream(&reader, id, "db").await.unwrap() == noise(STREAM, 1));
    assert_eq!(check(&reader).await.damage, []);
}

/// The files in a folder of the repository whose names begin so.
fn objects(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).collect()
}

fn remove(folder: &Path, start: &str) {
    let found = objects(folder, start);
    assert!(!found.is_empty(), "nothing in {} begins with {start}", folder.display());
    for path in found {
        std::fs::remove_file(path).unwrap();
    }
}

/// A lost index object costs nothing, and the next run lists in its own what was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_index_is_served_by_the_packs_and_written_anew_by_the_next_run() {
    let (place, first) = one_snapshot().await;
    remove(&place.data().join("index"), "");
    let repository = place.open(&Unlock::default()).await.unwrap();
    let report = check(&repository).await;
    assert_eq!(report.damage, []);
    assert!(report.notes.iter().any(|note| note.contains("no index object")), "{:?}", report.notes);
    assert_restores(&place, &place.data(), &first).await;
    let repository = place.open(&Unlock::default()).await.unwrap();
    let second = back_up(&repository, &[("tree", tree_source(FILES)), ("db", stream_source(STREAM, 1))]).await.unwrap();
    assert!(second.stored_bytes() < 100_000, "what the packs hold is not stored again: {}", second.stored_bytes());
    assert_eq!(check(&place.open(&Unlock::default()).await.unwrap()).await.notes, Vec::<String>::new());
    for id in [&first, &second.id] {
        assert_restores(&place, &place.data(), id).await;
    }
}

/// A mirror as docs/threat-model.md says to make it, with a run between any two of its steps; and one made in the order of
/// names, whose index objects came too late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_taken_during_a_backup_is_whole() {
    let (place, first) = one_snapshot().await;
    let (data, mirror) = (place.data(), place.folder.path().join("mirror"));
    let repository = place.open(&Unlock::default()).await.unwrap();
    let more = async |seed: u64| {
        back_up(&repository, &[("more", stream_source(300_000, seed))]).await.unwrap();
    };
    let before: Vec<PathBuf> = objects(&data.join("snapshots"), "");
    std::fs::create_dir(&mirror).unwrap();
    let mut seed = 10;
    for folder in ["config", "index", "key-copies", "keys", "packs"] {
        more(seed).await;
        seed += 1;
        match folder {
            "config" => drop(std::fs::copy(data.join(folder), mirror.join(folder)).unwrap()),
            _ => copy_folder(&data.join(folder), &mirror.join(folder)),
        }
    }
    more(seed).await;
    std::fs::create_dir(mirror.join("snapshots")).unwrap();
    for snapshot in before {
        std::fs::copy(&snapshot, mirror.join("snapshots").join(snapshot.file_name().unwrap())).unwrap();
    }
    assert_restores(&place, &mirror, &first).await;
    // In the order of names: the last run's keys and packs are there, its index object is not.
    std::fs::remove_dir_all(&mirror).unwrap();
    std::fs::create_dir(&mirror).unwrap();
    copy_folder(&data.join("index"), &mirror.join("index"));
    let late = run(&repository).await;
    std::fs::copy(data.join("config"), mirror.join("config")).unwrap();
    for folder in ["key-copies", "keys", "packs", "snapshots"] {
        copy_folder(&data.join(folder), &mirror.join(folder));
    }
    assert_restores(&place, &mirror, &late).await;
}

/// A run relies on no session whose key nobody has any more, and puts back those of which there is a copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_keys_are_put_back_or_their_content_is_stored_again() {
    let (place, first) = one_snapshot().await;
    let (keys, copies) = (place.data().join("keys"), place.data().join("key-copies"));
    for start in ["session-", "repository-"] {
        remove(&keys, start);
        assert_restores_but_for_a_missing_key(&place, &first).await;
        run(&place.open(&Unlock::default()).await.unwrap()).await;
        assert_restores(&place, &place.data(), &first).await;
    }
    // A flipped bit, too.
    for key in objects(&keys, "") {
        let mut bytes = std::fs::read(&key).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&key, bytes).unwrap();
    }
    let report = check(&place.open(&Unlock::default()).await.unwrap()).await;
    assert_eq!(report.damage.len(), objects(&keys, "").len(), "without a private key: {report:?}");
    assert!(report.damage.iter().all(|damage| damage.hurts.is_empty()), "{report:?}");
    run(&place.open(&Unlock::default()).await.unwrap()).await;
    assert_restores(&place, &place.data(), &first).await;
    // Both are gone: what is sealed is lost, and a later run has all of its own.
    remove(&keys, "session-");
    remove(&copies, "session-");
    let report = check(&place.open(&Unlock::default()).await.unwrap()).await;
    let hurt: BTreeSet<_> = report.damage.iter().flat_map(|damage| &damage.hurts).map(|hurt| &hurt.snapshot).collect();
    assert!(hurt.contains(&first), "{report:?}");
    let last = run(&place.open(&Unlock::default()).await.unwrap()).await;
    let reader = place.open(&place.reading()).await.unwrap();
    assert_tree(&reader, &last, "tree", FILES).await;
    assert!(read_stream(&reader, &last, "db").await.unwrap() == noise(STREAM, 1));
}

async fn assert_restores_but_for_a_missing_key(place: &Place, id: &SnapshotId) {
    let reader = place.open(&place.reading()).await.unwrap();
    assert_tree(&reader, id, "tree", FILES).await;
    let report = check(&reader).await;
    assert!(report.damage.iter().all(|damage| damage.problem.contains("it is missing") && damage.hurts.is_empty()));
    assert_eq!(report.damage.len(), 1, "{report:?}");
}

/// A repository without keys is half a one, whoever took them away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_whose_keys_are_all_gone_is_refused() {
    let (place, first) = one_snapshot().await;
    let kept = place.folder.path().join("kept");
    std::fs::rename(place.data().join("keys"), &kept).unwrap();
    let writer = place.open(&Unlock::default()).await.unwrap();
    let error = back_up(&writer, &[("tree", tree_source(FILES))]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRepository, "{error:?}");
    assert!(!place.data().join("keys").exists());
    let report = check(&writer).await;
    assert_eq!(report.damage.len(), 2, "{report:?}");
    for damage in &report.damage {
        assert!(damage.problem.contains("by hand") && !damage.problem.contains("next backup"), "{report:?}");
    }
    std::fs::rename(&kept, place.data().join("keys")).unwrap();
    run(&place.open(&Unlock::default()).await.unwrap()).await;
    assert_restores(&place, &place.data(), &first).await;
}

/// The private key of a recipient is not the wrong one, whatever does not open with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_damaged_with_its_copy_is_no_wrong_key() {
    let (place, first) = one_snapshot().await;
    for start in ["session-", "repository-"] {
        let folders = [place.data().join("keys"), place.data().join("key-copies")];
        for path in folders.iter().flat_map(|folder| objects(folder, start)) {
            let mut bytes = std::fs::read(&path).unwrap();
            let share = bytes.windows(10).position(|window| window == b"-> X25519 ").unwrap() + 15;
            bytes[share] = if bytes[share] == b'A' { b'B' } else { b'A' };
            std::fs::write(path, bytes).unwrap();
        }
        let error = match place.open(&place.reading()).await {
            Ok(reader) => read_stream(&reader, &first, "db").await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Damaged, "{start}: {error:?}");
        let other = Unlock { identities: vec![storage::keys::generate().identity], passphrase: None };
        assert_eq!(place.open(&other).await.unwrap_err().kind(), ErrorKind::WrongKey);
    }
}

/// Before there were copies: the first run makes them. The pair of a log that lost its private half is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_without_copies_gets_them_and_a_log_goes_on_with_a_key_that_is_there() {
    let (place, _) = one_snapshot().await;
    let copies = place.data().join("key-copies");
    std::fs::remove_dir_all(&copies).unwrap();
    run(&place.open(&Unlock::default()).await.unwrap()).await;
    assert_eq!(objects(&copies, "").len(), objects(&place.data().join("keys"), "").len());
    let put = async |number: u64| {
        let repository = place.open(&place.reading()).await.unwrap();
        let log = repository.logs().unwrap();
        let name = SegmentName::new(format!("{number:024X}")).unwrap();
        let id = SegmentId { timeline: Timeline::new("1").unwrap(), name };
        let content = Box::new(std::io::Cursor::new(noise(1000, number)));
        log.put(&source("db"), &id, SegmentMeta::default(), content).await.unwrap();
        log.read(&source("db"), &id, Box::new(std::io::sink())).await.unwrap();
    };
    put(1).await;
    remove(&place.data().join("keys"), "log-");
    put(2).await;
    assert_eq!(objects(&place.data().join("keys"), "log-").len(), 1, "it was put back");
    remove(&place.data().join("keys"), "log-");
    remove(&copies, "log-");
    put(3).await;
}

/// "It is there already" is believed when it is read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_calls_names_taken_is_read_back() {
    for fault in [Fault::ConflictFirst, Fault::AnswerLost] {
        let place = Place::new();
        place.create().await;
        let store = Arc::new(FaultyStore::new(place.store(), fault));
        let repository = Repository::open(store, "a test", &place.options, &Unlock::default()).await.unwrap();
        let id = run(&repository).await;
        assert_restores(&place, &place.data(), &id).await;
    }
}
