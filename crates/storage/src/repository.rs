//! The repository: a deduplicating, encrypted, append-mostly store over any object store. `docs/format.md` specifies every byte.
//!
//! Invariant: objects are written in the order keys → packs → index → snapshot, each durable before the next;
//! whatever dies in between, no snapshot refers to a missing chunk.

mod check;
mod chunker;
mod codec;
mod config;
mod content;
mod create;
mod crypto;
mod earlier;
mod entry;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod layout;
mod load;
pub(crate) mod logs;
mod pack;
mod page_map;
mod pages;
mod pipeline;
mod read;
mod recipients;
mod snapshot;
mod sorter;
mod store;
mod stream;
mod tree;
mod write;

pub(crate) use config::default_state;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactRecord, Manifest};
use backup_core::plan::EncryptionConfig;
use backup_core::sink::{
    CheckDepth, CheckReport, EntryReader, PieceReader, Sink, SnapshotFilter, SnapshotHeader, SnapshotReader,
    SnapshotSummary, SnapshotWriter, UnreadableSnapshot,
};
use backup_core::{RunContext, SnapshotId, SourceName};
use futures::StreamExt;
use tokio::sync::Mutex;

use crate::summaries::Summaries;
pub use config::RecipientInfo;
use config::{Config, WriterKey};
use content::ContentList;
pub use create::{Created, RepositoryOptions};
use crypto::Key;
use index::SharedIndex;
use load::IndexLoader;
use read::{ChunkReader, ContentReader, ListingReader, Sessions};
use snapshot::SnapshotObject;
use store::Store;
use write::RepositoryWriter;

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    store: Store,
    config: Arc<Mutex<Config>>,
    encryption: EncryptionConfig,
    id: String,
    /// The public keys that the plan names; they, not the store, say who may read.
    recipients: Vec<String>,
    level: i32,
    state: PathBuf,
    index_key: Key,
    id_key: Key,
    writer: Option<Arc<WriterKey>>,
    index: SharedIndex,
    loader: Arc<IndexLoader>,
    sessions: Arc<Sessions>,
    chunks: Arc<ChunkReader>,
    unlocked: Arc<crate::keys::Unlocked>,
    logs: Arc<logs::LogKeys>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Repository {
    fn is_encrypted(&self) -> bool {
        self.encryption == EncryptionConfig::Age
    }

    fn writer(&self) -> Result<&WriterKey> {
        self.writer.as_deref().ok_or_else(|| {
            let path = WriterKey::path(&self.state, &self.id);
            Error::new(ErrorKind::WrongKey, format!("this machine has no writer key for {}", self.store.describe()))
                .with("expected", path.display())
                .hint("run `stackward key enroll --identity FILE` once on this machine, with a private key of the repository")
        })
    }

    async fn snapshot_object(&self, id: &SnapshotId) -> Result<SnapshotObject> {
        let path = layout::snapshot(id);
        let object = self.store.get(&path).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(ErrorKind::NotFound, format!("there is no snapshot {id}"))
                .hint("`stackward list` shows what there is"),
            _ => error,
        })?;
        SnapshotObject::decode(&self.index_key, id, &object).map_err(|error| error.with("object", path))
    }

    async fn open_manifest(&self, object: &SnapshotObject) -> Result<Manifest> {
        let own = self.writer.as_ref().is_some_and(|writer| writer.id() == object.summary.writer);
        if !own && !self.sessions.can_read() {
            return Err(read::needs_identity()
                .with("snapshot", &object.summary.id)
                .with("written by", &object.summary.host));
        }
        let keys = self.sessions.get(object.summary.session()?).await?;
        object.manifest(&keys.meta_key)
    }

    /// Manifests of this writer's latest snapshots of the same plan, newest first. What cannot be read is left out:
    /// it costs reading files again, nothing else.
    async fn earlier_manifests(&self, header: &SnapshotHeader, writer: &str, most: usize) -> Vec<Manifest> {
        let mut manifests = Vec::new();
        let mut ids = self.snapshot_ids().await.unwrap_or_default();
        ids.sort();
        ids.reverse();
        ids.truncate(4 * most);
        for second in ids.chunk_by(|a, b| a.second() == b.second()) {
            let mut of_second = Vec::new();
            for id in second {
                let Ok(object) = self.snapshot_object(id).await else { continue };
                let summary = &object.summary;
                let same = summary.plan == header.plan && summary.writer == writer && summary.host == header.host;
                if same && let Ok(manifest) = self.open_manifest(&object).await {
                    of_second.push(manifest);
                }
            }
            // Within a second, ids are in no order.
            of_second.sort_by_key(|manifest| std::cmp::Reverse(manifest.started));
            manifests.append(&mut of_second);
            if manifests.len() >= most {
                break;
            }
        }
        manifests
    }

    async fn summaries(&self) -> Result<Summaries> {
        let mut objects = futures::stream::iter(self.snapshot_ids().await?)
            .map(|id| async move {
                let object = self.snapshot_object(&id).await;
                (id, object)
            })
            .buffer_unordered(load::PARALLEL);
        let mut summaries = Summaries::default();
        while let Some((id, object)) = objects.next().await {
            summaries.add(id, object.map(|object| object.summary.summary()))?;
        }
        Ok(summaries)
    }

    async fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        let objects = self.store.list(layout::SNAPSHOTS).await?;
        // Other names are not ours: a temporary file of another tool, say.
        Ok(objects.iter().filter_map(|(path, _)| SnapshotId::new(path.filename()?).ok()).collect())
    }
}

#[async_trait]
impl Sink for Repository {
    fn describe(&self) -> String {
        self.store.describe().to_owned()
    }

    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        self.loader.refresh().await?;
        self.loader.forget_lost_packs().await?;
        Ok(Arc::new(RepositoryWriter::begin(self, &header).await?))
    }

    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        self.summaries().await?.listed(filter)
    }

    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        Ok(self.summaries().await?.unreadable())
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        let object = self.snapshot_object(id).await?;
        self.open_manifest(&object).await
    }

    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        let manifest = self.manifest(id).await?;
        self.loader.refresh().await?;
        Ok(Arc::new(RepositoryReader { manifest, chunks: Arc::clone(&self.chunks) }))
    }

    fn logs(&self) -> Option<Arc<dyn backup_core::log::LogStore>> {
        Some(logs::of(self))
    }

    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        check::check(self, cx, depth, of).await
    }
}

/// Reads one snapshot.
#[derive(Debug)]
struct RepositoryReader {
    manifest: Manifest,
    chunks: Arc<ChunkReader>,
}

#[async_trait]
impl SnapshotReader for RepositoryReader {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, _: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        Ok(Box::new(ContentReader::new(&self.chunks, ContentList::from_record(&artifact.content)?)))
    }

    async fn tree(&self, _: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        Ok(Box::new(ListingReader::new(&self.chunks, ContentList::from_record(&artifact.content)?)))
    }
}
