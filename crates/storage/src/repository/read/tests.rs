//! A fragmented file is read chunk by chunk, not piece by piece.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use backup_core::manifest::{ArtifactRecord, Manifest};
use backup_core::plan::EncryptionConfig;
use backup_core::sink::{ChunkHint, Piece, Sink};
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use object_store::memory::InMemory;

use crate::{Repository, RepositoryOptions, Unlock};

const PAGE: usize = 4096;
const PAGES: usize = 2000;

fn content(round: usize) -> Vec<u8> {
    let version = |page: usize| if page.is_multiple_of(2) { round } else { 0 };
    (0..PAGES).flat_map(|page| noise(PAGE, (1 + page + version(page) * 1_000_000) as u64).to_vec()).collect()
}

fn entry() -> TreeEntry {
    TreeEntry {
        path: TreePath::new("f").unwrap(),
        kind: EntryKind::File { size: (PAGES * PAGE) as u64 },
        mode: 0o600,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        modified: FileTime::default(),
        xattrs: Vec::new(),
        identity: FileIdentity::default(),
    }
}

fn source(round: usize) -> ScriptedSource {
    ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree("tree".parse()?).await?;
            let mut writer = tree.file(TreePath::new("f")?, ChunkHint::Pages(PAGE as u32)).await?;
            writer.write(Bytes::from(content(round))).await?;
            writer.finish(entry()).await?;
            tree.seal(backup_core::Evidence::Listing { entries: 1 }).await.map(drop)
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_chunk_of_a_fragmented_file_is_decoded_once() {
    let store: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
    let options = RepositoryOptions {
        recipients: Vec::new(),
        passphrase: None,
        encryption: EncryptionConfig::None,
        level: 1,
        state: None,
    };
    Repository::create(Arc::clone(&store), "a test", &options).await.unwrap();
    let unlock = Unlock::default();
    let open = || Repository::open(Arc::clone(&store), "a test", &options, &unlock);
    let mut last: Option<Manifest> = None;
    for round in 0..2 {
        last = Some(source(round).run_into(&open().await.unwrap()).await.unwrap());
    }
    let manifest = last.unwrap();
    let record: &ArtifactRecord = &manifest.sources[0].artifacts[0];
    let repository = open().await.unwrap();
    let reader = repository.open(&manifest.id).await.unwrap();
    let mut tree = reader.tree(&manifest.sources[0].name, record).await.unwrap();
    let mut pieces = tree.next().await.unwrap().unwrap().content.unwrap().open().await.unwrap();
    let mut read = Vec::new();
    while let Some(piece) = pieces.next().await.unwrap() {
        let Piece::Data(data) = piece else { panic!("there is no hole") };
        read.extend_from_slice(&data);
    }
    assert!(read == content(1));
    let decodes = repository.chunks.decodes.load(Ordering::Relaxed);
    // Every second page was written twice; besides, the listing and the list of extents.
    let chunks = PAGES * PAGE * 3 / 2 / (256 * 1024) + 10;
    assert!(decodes <= chunks, "{decodes} chunks decoded where there are at most {chunks}");
}
