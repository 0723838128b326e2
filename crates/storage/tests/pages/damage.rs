//! What is lost is never taken over, and is stored again; a page map that is lost costs nothing else.

use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::{Content, Extent, Manifest};
use backup_core::sink::{CheckDepth, Sink, SnapshotFilter, SnapshotHeader};
use backup_core::{BackupWriter, Evidence, RunContext, SnapshotId};
use backup_testkit::ScriptedSource;
use jiff::Timestamp;
use storage::Unlock;

use super::support::{PAGE, PAGES, Place, assert_pages, back_up, file, name, pages_source, source};
use super::{packs, stored_bytes};

const SIZES: &[usize] = &[3, 300];

async fn place() -> Place {
    let place = Place::new();
    place.create().await;
    place
}

async fn save(place: &Place, version: u64) -> Manifest {
    let repository = place.open(&Unlock::default()).await.unwrap();
    back_up(&repository, &[("db", pages_source(SIZES, version))]).await.unwrap()
}

/// Keeps both files of the tree as they are.
fn keeping() -> ScriptedSource {
    ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree_in_any_order(name("tree")).await?;
            for (number, pages) in SIZES.iter().enumerate() {
                let entry = file(&format!("f{number:04}"), pages * PAGE);
                let there = tree.earlier_length(&entry.path).await?;
                let mut writer = tree.file(entry.path.clone(), PAGES).await?;
                let kept = writer.keep(entry.size()).await;
                assert_eq!(there.is_some(), kept.is_ok(), "what was promised holds");
                kept?;
                writer.finish(entry).await?;
            }
            tree.seal(Evidence::Listing { entries: SIZES.len() as u64 }).await.map(drop)
        })
    })
}

/// Pages whose packs are gone are stored again, though their hashes say that they did not change; those of other runs are
/// not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_lost_packs_are_stored_again_and_only_those() {
    let place = place().await;
    save(&place, 1).await;
    let first: Vec<_> = packs(&place.data());
    save(&place, 2).await;
    let all = stored_bytes(&place.data().join("packs"));
    // The packs with listings, too: then nothing is recognised, and everything is stored again.
    for lost in first.iter().filter(|pack| std::fs::read(pack).unwrap()[5] == 0) {
        std::fs::remove_file(lost).unwrap();
    }
    let left = stored_bytes(&place.data().join("packs"));
    let healed = save(&place, 2).await;
    let reading = place.open(&place.reading()).await.unwrap();
    assert_pages(&reading, &healed.id, "db", SIZES, 2).await;
    // Every seventh page was in the second run's pack.
    let lost = all - left;
    let expected = lost * 6 / 7;
    let stored = healed.stored_bytes();
    assert!(stored.abs_diff(expected) < lost / 20, "{stored} bytes stored again, {expected} expected");
    assert_eq!(save(&place, 2).await.stored_bytes(), 0, "it is whole again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_cannot_be_kept() {
    let place = place().await;
    let first = save(&place, 1).await;
    let repository = place.open(&Unlock::default()).await.unwrap();
    let kept = back_up(&repository, &[("db", keeping())]).await.unwrap();
    assert_pages(&place.open(&place.reading()).await.unwrap(), &kept.id, "db", SIZES, 1).await;
    for class in [0, 1] {
        let folder = place.folder.path().join(format!("copy-{class}"));
        super::support::copy_folder(&place.data(), &folder);
        for pack in packs(&place.data()).iter().filter(|pack| std::fs::read(pack).unwrap()[5] == class) {
            std::fs::remove_file(pack).unwrap();
        }
        let repository = place.open(&Unlock::default()).await.unwrap();
        let error = back_up(&repository, &[("db", keeping())]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
        assert!(error.remedy().is_some_and(|hint| hint.contains("full")), "{error:?}");
        let listed = repository.snapshots(&SnapshotFilter::default()).await.unwrap();
        assert_eq!(listed.iter().map(|one| &one.id).collect::<Vec<_>>(), [&first.id, &kept.id]);
        std::fs::remove_dir_all(place.data()).unwrap();
        super::support::copy_folder(&folder, &place.data());
    }
}

/// Commits what `pages_source` writes under a manifest whose page map was put where nothing is.
async fn save_without_map(place: &Place, version: u64) -> SnapshotId {
    let repository = place.open(&Unlock::default()).await.unwrap();
    let model = back_up(&repository, &[("db", pages_source(SIZES, version))]).await.unwrap();
    let id = SnapshotId::generate(Timestamp::now());
    let header = SnapshotHeader {
        id: id.clone(),
        plan: model.plan.clone(),
        host: model.host.clone(),
        started: Timestamp::now(),
    };
    let writer = repository.begin(header.clone()).await.unwrap();
    let out = BackupWriter::new(RunContext::new(source("db")), writer.clone());
    write(&out, version).await.unwrap();
    let mut manifest = Manifest { id: id.clone(), started: header.started, ..model };
    manifest.sources[0].artifacts = out.close().unwrap();
    let nowhere = Extent { chunk: "ab".repeat(32), offset: 0, length: 5000 };
    let map = manifest.sources[0].artifacts[0].page_map.replace(Content::Extents { depth: 0, extents: vec![nowhere] });
    assert!(map.is_some(), "there was one");
    writer.commit(manifest).await.unwrap();
    id
}

async fn write(out: &BackupWriter, version: u64) -> Result<()> {
    use backup_core::engine::Source;
    pages_source(SIZES, version).backup(&RunContext::new(source("db")), out).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_page_map_costs_storing_again_and_nothing_else() {
    let place = place().await;
    let id = save_without_map(&place, 1).await;
    let reading = place.open(&place.reading()).await.unwrap();
    let checked = reading.check(&RunContext::new(source("check")), CheckDepth::Data, std::slice::from_ref(&id)).await;
    let report = checked.unwrap();
    assert_eq!(report.damage, [], "it hurts nothing");
    let noted =
        report.notes.iter().any(|note| note.contains("page map of `tree` of `db`") && note.contains("nothing is lost"));
    assert!(noted, "{:?}", report.notes);
    assert_pages(&reading, &id, "db", SIZES, 1).await;
    // Every seventh page changed, and none is recognised.
    let next = save(&place, 2).await;
    let whole = (SIZES.iter().sum::<usize>() * PAGE) as u64;
    assert!(next.stored_bytes() > whole * 9 / 10, "{} of {whole} bytes", next.stored_bytes());
    let after = save(&place, 3).await;
    assert!(after.stored_bytes() < whole / 6, "they are again: {} of {whole} bytes", after.stored_bytes());
    let reading = place.open(&place.reading()).await.unwrap();
    let report = reading.check(&RunContext::new(source("check")), CheckDepth::Data, &[next.id, after.id.clone()]).await;
    let report = report.unwrap();
    assert!(report.damage.is_empty() && report.notes.is_empty(), "{report:?}");
    assert_pages(&reading, &after.id, "db", SIZES, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_comes_twice_is_refused() {
    let place = place().await;
    let repository = place.open(&Unlock::default()).await.unwrap();
    let twice = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree_in_any_order(name("tree")).await?;
            for path in ["b", "a", "b"] {
                tree.file(file(path, 0).path, PAGES).await?.finish(file(path, 0)).await?;
            }
            tree.seal(Evidence::Listing { entries: 3 }).await.map(drop)
        })
    });
    let error = back_up(&repository, &[("db", twice)]).await.unwrap_err();
    assert!(error.to_string().contains("`b` came twice"), "{error:?}");
    assert!(repository.snapshots(&SnapshotFilter::default()).await.unwrap().is_empty());
}

/// Without the writer key of before nothing can be compared: everything is stored again, and everything reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_enrolled_anew_starts_over() {
    let place = place().await;
    let first = save(&place, 1).await;
    let keys: Vec<_> =
        std::fs::read_dir(place.folder.path().join("state")).unwrap().map(|one| one.unwrap().path()).collect();
    for key in keys {
        std::fs::remove_file(key).unwrap();
    }
    place.open(&place.reading()).await.unwrap().enroll().unwrap();
    let again = save(&place, 2).await;
    assert!(again.stored_bytes() > (SIZES.iter().sum::<usize>() * PAGE / 2) as u64);
    let reading = place.open(&place.reading()).await.unwrap();
    assert_pages(&reading, &first.id, "db", SIZES, 1).await;
    assert_pages(&reading, &again.id, "db", SIZES, 2).await;
}
