//! What the repository's tests share: a repository on a disk or in memory, and a small stack to back up.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::Arc;

use backup_core::error::Result;
use backup_core::manifest::Manifest;
use backup_core::plan::EncryptionConfig;
use backup_core::run::{RunOptions, run};
use backup_core::secret::Secret;
use backup_core::sink::{ChunkHint, Piece, Sink};
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, Evidence, PlanName, SnapshotId, SourceName};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use storage::{Repository, RepositoryOptions, Unlock, keys};

/// A repository's place, its keys and this machine's state folder.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub options: RepositoryOptions,
    pub identity: Secret,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("repository")).unwrap();
        let pair = keys::generate();
        let options = RepositoryOptions {
            recipients: vec![pair.recipient],
            passphrase: None,
            encryption: EncryptionConfig::Age,
            level: 1,
            state: Some(folder.path().join("state")),
        };
        Self { folder, options, identity: pair.identity }
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("repository")
    }

    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(LocalFileSystem::new_with_prefix(self.data()).unwrap())
    }

    pub async fn create(&self) {
        Repository::create(self.store(), "a test", &self.options).await.unwrap();
    }

    pub fn reading(&self) -> Unlock {
        Unlock { identities: vec![self.identity.clone()], passphrase: None }
    }

    pub async fn open(&self, unlock: &Unlock) -> Result<Repository> {
        Repository::open(self.store(), "a test", &self.options, unlock).await
    }
}

/// A repository in memory that is not encrypted.
pub async fn open_in_memory() -> Repository {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let options = RepositoryOptions {
        recipients: Vec::new(),
        passphrase: None,
        encryption: EncryptionConfig::None,
        level: 1,
        state: None,
    };
    Repository::create(Arc::clone(&store), "a test", &options).await.unwrap();
    Repository::open(store, "a test", &options, &Unlock::default()).await.unwrap()
}

pub fn name(text: &str) -> ArtifactName {
    ArtifactName::new(text).unwrap()
}

pub fn source(text: &str) -> SourceName {
    SourceName::new(text).unwrap()
}

pub fn file(path: &str, size: usize) -> TreeEntry {
    TreeEntry {
        path: TreePath::new(path).unwrap(),
        kind: EntryKind::File { size: size as u64 },
        mode: 0o644,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        modified: FileTime { seconds: size as i64, nanos: 1 },
        xattrs: Vec::new(),
        identity: FileIdentity { inode: 1 + size as u64, changed: FileTime::default() },
    }
}

/// A stream of `length` bytes that depend on `seed`.
pub fn stream_source(length: usize, seed: u64) -> ScriptedSource {
    ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut writer = out.artifact(name("dump"), ChunkHint::Stream).await?;
            for piece in noise(length, seed).chunks(1 << 20) {
                writer.write(Bytes::copy_from_slice(piece)).await?;
            }
            writer.seal(Evidence::ExactLength(length as u64)).await.map(drop)
        })
    })
}

/// A tree of files with these sizes; each file's content depends on its size.
pub fn tree_source(sizes: &'static [usize]) -> ScriptedSource {
    ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree(name("tree")).await?;
            for (number, size) in sizes.iter().enumerate() {
                let entry = file(&format!("f{number:04}"), *size);
                if tree.reuse(&entry).await? {
                    continue;
                }
                let mut writer = tree.file(entry.path.clone(), ChunkHint::Stream).await?;
                writer.write(noise(*size, *size as u64)).await?;
                writer.finish(entry).await?;
            }
            tree.seal(Evidence::Listing { entries: sizes.len() as u64 }).await.map(drop)
        })
    })
}

pub const PAGE: usize = 8192;
pub const PAGES: ChunkHint = ChunkHint::Pages(PAGE as u32);

/// The content of a database file of `pages` pages, of which every seventh is another one in each version.
pub fn pages_content(pages: usize, version: u64) -> Vec<u8> {
    let version_of = |page: usize| if page % 7 == 3 { version } else { 0 };
    (0..pages).flat_map(|page| noise(PAGE, 1 + page as u64 + 1_000_000 * version_of(page)).to_vec()).collect()
}

/// A tree of database files with so many pages each, not in the order of their names.
pub fn pages_source(sizes: &'static [usize], version: u64) -> ScriptedSource {
    ScriptedSource::new(move |out| {
        Box::pin(async move {
            let mut tree = out.tree_in_any_order(name("tree")).await?;
            for (number, pages) in sizes.iter().enumerate().rev() {
                let content = pages_content(*pages, version);
                let entry = file(&format!("f{number:04}"), content.len());
                let mut writer = tree.file(entry.path.clone(), PAGES).await?;
                for piece in content.chunks(100_000) {
                    writer.write(Bytes::copy_from_slice(piece)).await?;
                }
                writer.finish(entry).await?;
            }
            tree.seal(Evidence::Listing { entries: sizes.len() as u64 }).await.map(drop)
        })
    })
}

pub async fn assert_pages(sink: &dyn Sink, id: &SnapshotId, from: &str, sizes: &[usize], version: u64) {
    let files = read_tree(sink, id, from).await.unwrap();
    assert_eq!(files.len(), sizes.len());
    for ((path, content), pages) in files.iter().zip(sizes) {
        assert!(*content == pages_content(*pages, version), "{path} of {pages} pages, version {version}");
    }
}

pub async fn back_up(sink: &dyn Sink, sources: &[(&str, ScriptedSource)]) -> Result<Manifest> {
    let tasks = sources.iter().map(|(name, source)| source.task(name)).collect();
    run(tasks, sink, &RunOptions::new(PlanName::new("test").unwrap(), "host")).await
}

pub async fn read_stream(sink: &dyn Sink, id: &SnapshotId, from: &str) -> Result<Vec<u8>> {
    BackupReader::new(sink.open(id).await?, source(from))?.read(&name("dump"), u64::MAX).await
}

/// Reads a whole tree and returns each file's path and content.
pub async fn read_tree(sink: &dyn Sink, id: &SnapshotId, from: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut tree = BackupReader::new(sink.open(id).await?, source(from))?.tree(&name("tree")).await?;
    let mut files = Vec::new();
    while let Some(stored) = tree.next().await? {
        let mut content = Vec::new();
        let mut pieces = stored.content.unwrap().open().await?;
        while let Some(piece) = pieces.next().await? {
            match piece {
                Piece::Data(data) => content.extend_from_slice(&data),
                Piece::Hole(length) => content.resize(content.len() + length as usize, 0),
            }
        }
        files.push((stored.entry.path.to_string(), content));
    }
    Ok(files)
}

pub async fn assert_tree(sink: &dyn Sink, id: &SnapshotId, from: &str, sizes: &[usize]) {
    let files = read_tree(sink, id, from).await.unwrap();
    assert_eq!(files.len(), sizes.len());
    for ((path, content), size) in files.iter().zip(sizes) {
        assert!(*content == noise(*size, *size as u64), "{path}");
    }
}

pub fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
