//! Whatever operation a run dies at: earlier snapshots stay whole, no partial one shows, and the next run succeeds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backup_core::ErrorKind;
use backup_core::sink::{Sink, SnapshotFilter};
use backup_testkit::{Fault, FaultyStore};
use object_store::ObjectStore;
use storage::{Repository, keys};
use support::{Place, back_up, pages_source, read_stream, read_tree, stream_source, tree_source};

const FILES: &[usize] = &[10, 300, 70_000, 2_000_000];
const MORE_FILES: &[usize] = &[10, 301, 70_000, 2_000_000, 900_000];
/// The pages of database files; the second has more than a record of the page map holds.
const PAGES: &[usize] = &[3, 300];
/// Two packs, so that one can be lost after another was written.
const STREAM: usize = 18_000_000;

/// Runs a second backup over a faulty store, for every operation at which it can fail, and looks at what is left.
async fn at_every_operation(fault: impl Fn(u64) -> Fault, expected: ErrorKind) {
    let place = Place::new();
    place.create().await;
    let clean = place.open(&place.reading()).await.unwrap();
    let sources = [("tree", tree_source(FILES)), ("pages", pages_source(PAGES, 1))];
    let first = back_up(&clean, &sources).await.unwrap().id;
    let pristine = place.folder.path().join("pristine");
    support::copy_folder(&place.data(), &pristine);
    let mut failures = 0;
    for at in 0.. {
        // Every attempt starts from the same repository: leftovers would add operations for ever.
        std::fs::remove_dir_all(place.data()).unwrap();
        support::copy_folder(&pristine, &place.data());
        let faulty = Arc::new(FaultyStore::new(place.store(), fault(at)));
        let store: Arc<dyn ObjectStore> = Arc::clone(&faulty) as _;
        let result = match Repository::open(store, "a test", &place.options, &place.reading()).await {
            Ok(repository) => {
                let (tree, db) = (tree_source(MORE_FILES), stream_source(STREAM, 1));
                let sources = [("tree", tree), ("db", db), ("pages", pages_source(PAGES, 2))];
                back_up(&repository, &sources).await
            }
            Err(error) => Err(error),
        };
        let reached = faulty.operations() > at;
        let fresh = place.open(&place.reading()).await.unwrap();
        let visible = fresh.snapshots(&SnapshotFilter::default()).await.unwrap();
        assert_eq!(
            read_tree(&fresh, &first, "tree").await.unwrap().len(),
            FILES.len(),
            "the first snapshot, fault at {at}"
        );
        support::assert_pages(&fresh, &first, "pages", PAGES, 1).await;
        match result {
            Ok(manifest) => {
                support::assert_pages(&fresh, &manifest.id, "pages", PAGES, 2).await;
                assert_eq!(read_stream(&fresh, &manifest.id, "db").await.unwrap().len(), STREAM);
                if !reached {
                    break;
                }
            }
            Err(error) => {
                failures += 1;
                assert_eq!(error.kind(), expected, "fault at {at}: {error:?}");
                for summary in visible {
                    read_tree(&fresh, &summary.id, "tree").await.unwrap();
                }
                let sources = [("tree", tree_source(MORE_FILES)), ("pages", pages_source(PAGES, 3))];
                let retried = back_up(&fresh, &sources).await.unwrap();
                support::assert_tree(&fresh, &retried.id, "tree", MORE_FILES).await;
                support::assert_pages(&fresh, &retried.id, "pages", PAGES, 3).await;
            }
        }
    }
    assert!(failures >= 5, "only {failures} operations could fail");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_operation_nothing_is_lost() {
    at_every_operation(Fault::DeadFrom, ErrorKind::Io).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_any_write_loses_nothing_and_says_so() {
    at_every_operation(Fault::FullFrom, ErrorKind::NoSpace).await;
}

/// One operation that fails is a failed run, or harmless; never a damaged snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failure_at_any_operation_is_noticed_or_harmless() {
    at_every_operation(Fault::FailOnce, ErrorKind::Io).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_conditional_puts_is_found_out_at_creation() {
    let place = Place::new();
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(place.store(), Fault::IgnoreConditions));
    let created = Repository::create(store, "a test", &place.options).await.unwrap();
    assert!(created.created && created.notes[0].contains("conditional"), "{:?}", created.notes);
}

/// What a run stored before it died is not stored again, once it was listed in an index object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_run_stores_only_what_is_new() {
    let place = Place::new();
    place.create().await;
    let repository = place.open(&place.reading()).await.unwrap();
    let first = back_up(&repository, &[("db", stream_source(STREAM, 1))]).await.unwrap();
    assert!(first.stored_bytes() > STREAM as u64);
    let second = back_up(&repository, &[("db", stream_source(STREAM, 1))]).await.unwrap();
    assert_eq!(second.stored_bytes(), 0);
    assert_eq!(read_stream(&repository, &second.id, "db").await.unwrap(), backup_testkit::noise(STREAM, 1));
}

/// A connection that breaks, before the store has the object or after, is no failed backup; and half an object is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_loses_nothing() {
    for fault in [Fault::ResetBefore, Fault::ResetAfter] {
        let place = Place::new();
        let store = || -> Arc<dyn ObjectStore> { Arc::new(FaultyStore::new(place.store(), fault)) };
        Repository::create(store(), "a test", &place.options).await.unwrap();
        let repository = Repository::open(store(), "a test", &place.options, &place.reading()).await.unwrap();
        let made = back_up(&repository, &[("tree", tree_source(FILES))]).await.unwrap();
        let other = keys::generate();
        repository.add_recipient(&other.recipient).await.unwrap();
        let fresh = place.open(&place.reading()).await.unwrap();
        support::assert_tree(&fresh, &made.id, "tree", FILES).await;
        assert_eq!(fresh.snapshots(&SnapshotFilter::default()).await.unwrap().len(), 1, "{fault:?}");
        assert!(fresh.recipients().await.unwrap().iter().any(|known| known.recipient == other.recipient), "{fault:?}");
    }
    let place = Place::new();
    place.create().await;
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(place.store(), Fault::ResetHalfway));
    let repository = Repository::open(store, "a test", &place.options, &place.reading()).await.unwrap();
    back_up(&repository, &[("tree", tree_source(FILES))]).await.unwrap_err();
    let fresh = place.open(&place.reading()).await.unwrap();
    let retried = back_up(&fresh, &[("tree", tree_source(FILES))]).await.unwrap();
    support::assert_tree(&fresh, &retried.id, "tree", FILES).await;
}

#[tokio::test]
async fn a_store_that_refuses_says_what() {
    let place = Place::new();
    let store = |fault| -> Arc<dyn ObjectStore> { Arc::new(FaultyStore::new(place.store(), fault)) };
    for failed in [
        Repository::create(store(Fault::NoBucket), "a test", &place.options).await.map(drop).unwrap_err(),
        Repository::open(store(Fault::NoBucket), "a test", &place.options, &place.reading())
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(failed.kind(), ErrorKind::NoRepository);
        assert!(failed.to_string().contains("bucket"), "{failed}");
    }
    let failed = Repository::create(store(Fault::ReadOnly), "a test", &place.options).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::PermissionDenied);
}

/// Keys that may only append are what the threat model recommends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_deletes_nothing_can_hold_a_repository() {
    let place = Place::new();
    let store = || -> Arc<dyn ObjectStore> { Arc::new(FaultyStore::new(place.store(), Fault::KeepsAll)) };
    let created = Repository::create(store(), "a test", &place.options).await.unwrap();
    assert!(created.notes.iter().any(|note| note.contains("`probe/")), "{:?}", created.notes);
    let repository = Repository::open(store(), "a test", &place.options, &place.reading()).await.unwrap();
    let made = back_up(&repository, &[("tree", tree_source(FILES))]).await.unwrap();
    support::assert_tree(&repository, &made.id, "tree", FILES).await;
    // A creation that died after it had tried the store is none.
    let begun = Place::new();
    std::fs::create_dir(begun.data().join("probe")).unwrap();
    std::fs::write(begun.data().join("probe/0123456789abcdef"), "stackward").unwrap();
    begun.create().await;
}
