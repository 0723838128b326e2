//! What changes costs what it has, and little more: incompressible pages, so that stored bytes tell.

use std::sync::Arc;

use backup_core::manifest::Manifest;
use backup_core::sink::ChunkHint;
use backup_core::{BackupWriter, Evidence};
use backup_testkit::{Fault, FaultyStore, ScriptedSource, noise};
use bytes::Bytes;
use object_store::ObjectStore;
use storage::{Repository, Unlock};

use super::support::{PAGE, PAGES, Place, back_up, file, name, read_tree};

async fn write(out: &BackupWriter, content: &Bytes) -> backup_core::Result<()> {
    let mut tree = out.tree_in_any_order(name("tree")).await?;
    let entry = file("base/1/16384", content.len());
    let mut writer = tree.file(entry.path.clone(), PAGES).await?;
    for piece in content.chunks(1 << 20) {
        writer.write(content.slice_ref(piece)).await?;
    }
    writer.finish(entry).await?;
    tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
}

async fn save(repository: &Repository, content: &[u8]) -> Manifest {
    let content = Bytes::copy_from_slice(content);
    let script = ScriptedSource::new(move |out| {
        let content = content.clone();
        Box::pin(async move { write(&out, &content).await })
    });
    back_up(repository, &[("db", script)]).await.unwrap()
}

/// A database file of so many pages.
fn pages(count: usize) -> Vec<u8> {
    noise(count * PAGE, 1).to_vec()
}

async fn place() -> (Place, Repository) {
    let place = Place::new();
    place.create().await;
    // Without a private key: the machine that backs up cannot read what it compares with.
    let repository = place.open(&Unlock::default()).await.unwrap();
    (place, repository)
}

/// Changes one page in so many, somewhere in each stretch of that length, and returns how many.
fn scatter(content: &mut [u8], one_in: usize, version: u64) -> usize {
    let mut changed = 0;
    for (number, stretch) in content.chunks_exact_mut(one_in * PAGE).enumerate() {
        let page = (number * 7919 + version as usize * 31) % one_in;
        let seed = 1 + 1_000_003 * version + number as u64;
        stretch[page * PAGE..(page + 1) * PAGE].copy_from_slice(&noise(PAGE, seed));
        changed += 1;
    }
    changed
}

/// `facts/postgres.md`, section 4: 10,000 uniform transactions change 7.16 % of the pages, and chunks of 64 KiB store
/// more than half of the file for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_pages_cost_what_changed() {
    const FILE_PAGES: usize = 4096;
    let (place, repository) = place().await;
    let mut content = pages(FILE_PAGES);
    let first = save(&repository, &content).await;
    assert!(first.stored_bytes() >= (FILE_PAGES * PAGE) as u64);
    let mut saved = vec![(first.id, content.clone())];
    for round in 1..4 {
        let changed = scatter(&mut content, 14, round);
        let manifest = save(&repository, &content).await;
        let (stored, data) = (manifest.stored_bytes(), (changed * PAGE) as u64);
        assert!(stored >= data, "{stored} bytes stored, {data} changed");
        // Besides: 16 bytes for the hash of each page, and up to 100 for the extents around a changed one.
        let most = data + (FILE_PAGES * 16 + changed * 100 + 20_000) as u64;
        assert!(stored <= most, "{stored} bytes stored in round {round}, {data} changed, at most {most}");
        assert!(most < data + data / 16, "the price of recognising pages is small: {most} for {data}");
        saved.push((manifest.id, content.clone()));
    }
    let reading = place.open(&place.reading()).await.unwrap();
    for (id, content) in saved {
        assert!(read_tree(&reading, &id, "db").await.unwrap()[0].1 == content, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_not_change_costs_nothing() {
    let (_place, repository) = place().await;
    let content = pages(600);
    save(&repository, &content).await;
    assert_eq!(save(&repository, &content).await.stored_bytes(), 0);
    let kept = ScriptedSource::new(|out| {
        Box::pin(async move {
            let mut tree = out.tree(name("tree")).await?;
            let entry = file("base/1/16384", 600 * PAGE);
            let mut writer = tree.file(entry.path.clone(), PAGES).await?;
            writer.keep(entry.size()).await?;
            writer.finish(entry).await?;
            tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
        })
    });
    assert_eq!(back_up(&repository, &[("db", kept)]).await.unwrap().stored_bytes(), 0);
    // The map went along with what was kept.
    assert_eq!(save(&repository, &content).await.stored_bytes(), 0);
}

/// A stream of pages, as an SQLite database is, is compared in the same way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_pages_costs_what_changed() {
    let (place, repository) = place().await;
    let stream = |content: &[u8]| {
        let content = Bytes::copy_from_slice(content);
        ScriptedSource::new(move |out| {
            let content = content.clone();
            Box::pin(async move {
                let mut writer = out.artifact(name("dump"), ChunkHint::Pages(4096)).await?;
                let length = content.len() as u64;
                writer.write(content).await?;
                writer.seal(Evidence::ExactLength(length)).await.map(drop)
            })
        })
    };
    let mut content = pages(1000);
    back_up(&repository, &[("db", stream(&content))]).await.unwrap();
    let changed = scatter(&mut content, 20, 1);
    let manifest = back_up(&repository, &[("db", stream(&content))]).await.unwrap();
    let most = changed * PAGE + 2000 * 16 + changed * 100 + 20_000;
    assert!(manifest.stored_bytes() <= most as u64, "{} bytes, at most {most}", manifest.stored_bytes());
    assert_eq!(back_up(&repository, &[("db", stream(&content))]).await.unwrap().stored_bytes(), 0);
    let reading = place.open(&place.reading()).await.unwrap();
    let read = super::support::read_stream(&reading, &manifest.id, "db").await.unwrap();
    assert!(read == content);
}

/// A file that fell apart is stored anew, a part of it each run, and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragmented_file_is_put_together_again_bit_by_bit() {
    // More than one run may store anew of a small tree.
    const FILE_PAGES: usize = 3072;
    const ALLOWED: u64 = 16 * 1024 * 1024;
    let (place, repository) = place().await;
    let mut content = pages(FILE_PAGES);
    save(&repository, &content).await;
    let changed = scatter(&mut content, 2, 1);
    let halves = save(&repository, &content).await.stored_bytes();
    assert!(halves < (changed * PAGE + FILE_PAGES * 16 + changed * 100 + 20_000) as u64, "{halves}");
    let overhead = (FILE_PAGES * 16 + 200_000) as u64;
    let first = save(&repository, &content).await.stored_bytes();
    assert!((ALLOWED - 2 * 1024 * 1024..ALLOWED + overhead).contains(&first), "{first} bytes put together at first");
    let second = save(&repository, &content).await;
    let rest = (FILE_PAGES * PAGE) as u64 - ALLOWED;
    assert!((1..rest + overhead).contains(&second.stored_bytes()), "{} bytes then", second.stored_bytes());
    assert_eq!(save(&repository, &content).await.stored_bytes(), 0, "it is in one piece");
    let reading = place.open(&place.reading()).await.unwrap();
    assert!(read_tree(&reading, &second.id, "db").await.unwrap()[0].1 == content);
}

/// However many pieces a file has, what they lie in is fetched about once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_twenty_thousand_pieces_is_read_without_fetching_anything_twice() {
    const FILE_PAGES: usize = 32_000;
    let (place, repository) = place().await;
    // Compressible, or the test would be about the noise: each page is mostly one byte.
    let content = |round: u64| {
        let mut content = vec![0; FILE_PAGES * 4096];
        for (number, page) in content.chunks_exact_mut(4096).enumerate() {
            let version = (1..=round).rfind(|round| (number as u64 + round).is_multiple_of(5)).unwrap_or(0);
            page.fill(1 + (number % 250) as u8);
            page[..16].copy_from_slice(&noise(16, number as u64 * 10 + version + 1));
        }
        content
    };
    let mut last = None;
    for round in 0..4 {
        let script = ScriptedSource::new(move |out| {
            Box::pin(async move {
                let mut tree = out.tree(name("tree")).await?;
                let mut writer = tree.file(file("f", 0).path, ChunkHint::Pages(4096)).await?;
                for piece in content(round).chunks(1 << 20) {
                    writer.write(Bytes::copy_from_slice(piece)).await?;
                }
                writer.finish(file("f", FILE_PAGES * 4096)).await?;
                tree.seal(Evidence::Listing { entries: 1 }).await.map(drop)
            })
        });
        last = Some(back_up(&repository, &[("db", script)]).await.unwrap().id);
    }
    let id = last.unwrap();
    let counting = Arc::new(FaultyStore::new(place.store(), Fault::DeadFrom(u64::MAX)));
    let store: Arc<dyn ObjectStore> = Arc::clone(&counting) as _;
    let reading = Repository::open(store, "a test", &place.options, &place.reading()).await.unwrap();
    let before = counting.operations();
    assert!(read_tree(&reading, &id, "db").await.unwrap()[0].1 == content(3));
    let fetched = counting.operations() - before;
    let packs = super::stored_bytes(&place.data().join("packs"));
    // Blocks of a mebibyte of each pack, the keys of four runs, the snapshot, the index.
    assert!(fetched < 30 + 2 * packs / (1 << 20), "{fetched} operations for {packs} bytes in packs");
}
