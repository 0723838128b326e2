//! Memory stays flat: a large file of pages, and many files in any order, twice. A process of its own: it looks at its
//! own peak.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use backup_core::{BackupWriter, Evidence};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use storage::Unlock;
use support::{PAGE, PAGES, Place, back_up, file, name};

const LARGE_PAGES: usize = 40 * 1024;
const FILES: usize = 40_000;
/// Chunks that wait (16 MiB), packs that are filled and written (80 MiB), blocks and chunks that are read (64 MiB):
/// constants of the repository. The file has 320 MiB, and the listing of the others alone 10 MiB.
const ALLOWED_KIB: u64 = 208 * 1024;

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn write(out: &BackupWriter, base: Bytes, version: u64) -> backup_core::Result<()> {
    let mut tree = out.tree_in_any_order(name("tree")).await?;
    for number in 0..FILES {
        // A permutation: the order has nothing to do with that of the names.
        let entry = file(&format!("base/{:06}", number * 7919 % FILES), 40);
        let mut writer = tree.file(entry.path.clone(), PAGES).await?;
        writer.write(base.slice(number..number + 40)).await?;
        writer.finish(entry).await?;
    }
    let entry = file("large", LARGE_PAGES * PAGE);
    let mut writer = tree.file(entry.path.clone(), PAGES).await?;
    for number in 0..LARGE_PAGES {
        let mut page = base.slice(number..number + PAGE);
        if number % 14 == 0 {
            page = noise(PAGE, version * 1_000_003 + number as u64);
        }
        writer.write(page).await?;
    }
    writer.finish(entry).await?;
    tree.seal(Evidence::Listing { entries: FILES as u64 + 1 }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_pages_or_files() {
    let place = Place::new();
    place.create().await;
    let base = noise(LARGE_PAGES + PAGE, 1);
    for version in 1..3 {
        let repository = place.open(&Unlock::default()).await.unwrap();
        let base = base.clone();
        let script = ScriptedSource::new(move |out| {
            let base = base.clone();
            Box::pin(async move { write(&out, base, version).await })
        });
        let manifest = back_up(&repository, &[("db", script)]).await.unwrap();
        assert_eq!(manifest.bytes(), (FILES * 40 + LARGE_PAGES * PAGE) as u64);
    }
    assert!(peak_kib() < ALLOWED_KIB, "the peak is {} KiB", peak_kib());
}
