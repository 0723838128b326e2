//! What the tests share: directories, snapshots with known content, and running tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::Result;
use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::manifest::Manifest;
use backup_core::plan::{CompressionConfig, DirectoryConfig, SinkConfig};
use backup_core::sink::{ChunkHint, Piece, Sink};
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, BackupWriter, Evidence, RunContext, SnapshotId, SourceName};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use storage::Unlock;

pub(crate) const COMPRESSIONS: [CompressionConfig; 3] =
    [CompressionConfig::None, CompressionConfig::Gzip, CompressionConfig::Zstd];

pub(crate) fn config(path: &Path, compression: CompressionConfig) -> SinkConfig {
    SinkConfig::Directory(DirectoryConfig { path: path.to_owned(), compression })
}

pub(crate) async fn open(path: &Path, compression: CompressionConfig) -> Arc<dyn Sink> {
    let sink = config(path, compression);
    storage::create(&sink, Path::new("/")).await.expect("it can be made");
    storage::open(&sink, Path::new("/"), &Unlock::default()).await.expect("it opens")
}

pub(crate) fn source() -> SourceName {
    SourceName::new("test").expect("a valid name")
}

pub(crate) fn cx() -> RunContext {
    RunContext::new(source())
}

pub(crate) fn artifact(name: &str) -> ArtifactName {
    ArtifactName::new(name).expect("a valid name")
}

/// Runs a tool and returns what it wrote to both outputs; fails when it fails.
pub(crate) async fn run(program: &str, arguments: &[&str], folder: &Path) -> String {
    let script = r#"said=$("$@" 2>&1) || { printf %s "$said" >&2; exit 1; }; printf %s "$said""#;
    let command = HostCommand::new("sh").args(["-c", script, "sh", program]).args(arguments).in_folder(folder);
    let process = LocalHost.spawn(command).await.expect("it starts");
    process.output(1_000_000).await.unwrap_or_else(|error| panic!("{program} {arguments:?}: {}", error.chain()))
}

pub(crate) async fn write_stream(out: &BackupWriter, name: &str, content: Bytes) -> Result<()> {
    let mut writer = out.artifact(artifact(name), ChunkHint::Stream).await?;
    for piece in content.chunks(100_000) {
        writer.write(content.slice_ref(piece)).await?;
    }
    writer.seal(Evidence::ExactLength(content.len() as u64)).await.map(drop)
}

/// An entry as an engine gives it.
pub(crate) fn entry(path: &[u8], kind: EntryKind) -> TreeEntry {
    TreeEntry {
        path: TreePath::new(path).expect("a safe path"),
        kind,
        mode: 0o640,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        modified: FileTime { seconds: 1_700_000_000, nanos: 123_456_789 },
        xattrs: Vec::new(),
        identity: FileIdentity { inode: 7, changed: FileTime { seconds: 1, nanos: 2 } },
    }
}

/// The content of a file: data, or a hole of that length.
pub(crate) type Content = Vec<Piece>;

/// Writes a tree of these entries; contents are written from the last to the first.
pub(crate) async fn write_tree(out: &BackupWriter, name: &str, entries: Vec<(TreeEntry, Content)>) -> Result<()> {
    let mut tree = out.tree(artifact(name)).await?;
    let count = entries.len() as u64;
    let mut files = Vec::new();
    for (entry, content) in entries {
        match entry.kind {
            EntryKind::File { .. } => {
                files.push((tree.file(entry.path.clone(), ChunkHint::Stream).await?, entry, content));
            }
            _ => tree.entry(entry).await?,
        }
    }
    while let Some((mut file, entry, content)) = files.pop() {
        for piece in content {
            match piece {
                Piece::Data(data) => file.write(data).await?,
                Piece::Hole(length) => file.hole(length).await?,
            }
        }
        file.finish(entry).await?;
    }
    tree.seal(Evidence::Listing { entries: count }).await.map(drop)
}

/// A snapshot with the stream `stream` and the tree `tree` with one file.
pub(crate) async fn snapshot(sink: &dyn Sink) -> Result<Manifest> {
    let script = ScriptedSource::new(|out| {
        Box::pin(async move {
            write_stream(&out, "stream", noise(300_000, 1)).await?;
            let file = entry(b"a", EntryKind::File { size: 200_000 });
            write_tree(&out, "tree", vec![(file, vec![Piece::Data(noise(200_000, 2))])]).await
        })
    });
    script.run_into(sink).await
}

/// Reads everything that [`snapshot`] wrote.
pub(crate) async fn read_snapshot(sink: &dyn Sink, id: &SnapshotId) -> Result<()> {
    let reader = BackupReader::new(sink.open(id).await?, source())?;
    assert!(reader.read(&artifact("stream"), u64::MAX).await? == noise(300_000, 1));
    let mut tree = reader.tree(&artifact("tree")).await?;
    let mut content = Vec::new();
    while let Some(stored) = tree.next().await? {
        let mut pieces = stored.content.expect("only files").open().await?;
        while let Some(piece) = pieces.next().await? {
            let Piece::Data(data) = piece else { panic!("no holes") };
            content.extend_from_slice(&data);
        }
    }
    assert!(content == noise(200_000, 2));
    Ok(())
}

/// Every file below `folder`, as paths relative to it.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).expect("below").to_owned());
            }
        }
    }
    found.sort();
    found
}
