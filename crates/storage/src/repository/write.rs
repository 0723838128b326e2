//! Writes one snapshot.
//!
//! Invariant: session keys, then packs, then index objects, then the snapshot object, which alone makes it visible.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, Manifest};
use backup_core::sink::{ChunkHint, SnapshotHeader, SnapshotWriter, StreamSink, TreeSink};
use backup_core::{ArtifactName, SourceName};

use super::Repository;
use super::chunker::Cut;
use super::content::ContentList;
use super::crypto::{SessionId, SessionKeys, random};
use super::layout;
use super::pipeline::{Pipeline, PipelineSetup};
use super::read::ListingReader;
use super::snapshot::{self, SnapshotKeys};
use super::stream::RepositoryStream;
use super::tree::RepositoryTree;
use crate::keys;

/// See the module.
pub(super) struct RepositoryWriter {
    repository: Repository,
    session: SessionId,
    keys: SessionKeys,
    writer: String,
    pipeline: Arc<Pipeline>,
    earlier: Vec<Manifest>,
    ended: AtomicBool,
}

/// So many earlier snapshots are looked at for each source's latest trees.
const EARLIER_SNAPSHOTS: usize = 10;

impl RepositoryWriter {
    pub(super) async fn begin(repository: &Repository, header: &SnapshotHeader) -> Result<Self> {
        let writer = repository.writer()?;
        let session = SessionId(random()?);
        let keys = if repository.is_encrypted() {
            let keys = SessionKeys::generate(&writer.secret, session)?;
            let plain = keys
                .to_bytes(&writer.keys.index_key)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a session has no content key"))?;
            let wrapped = keys::wrap(&repository.recipients_to_write().await?, &plain)?;
            repository.store.create(&layout::session_keys(session), wrapped.into()).await?;
            keys
        } else {
            super::read::open_keys()
        };
        let pipeline = Pipeline::start(PipelineSetup {
            store: repository.store.clone(),
            index: Arc::clone(&repository.index),
            index_key: writer.keys.index_key.clone(),
            id_key: writer.keys.id_key.clone(),
            session,
            keys: keys.clone(),
            level: repository.level,
        })?;
        let earlier = repository.earlier_manifests(header, &writer.id(), EARLIER_SNAPSHOTS).await;
        Ok(Self {
            repository: repository.clone(),
            session,
            keys,
            writer: writer.id(),
            pipeline: Arc::new(pipeline),
            earlier,
            ended: AtomicBool::new(false),
        })
    }

    /// The listing of the latest earlier tree of this name.
    fn earlier_listing(&self, source: &SourceName, name: &ArtifactName) -> Option<ListingReader> {
        let record = self.earlier.iter().find_map(|manifest| manifest.source(source)?.artifact(name))?;
        let content = ContentList::from_record(&record.content).ok()?;
        (record.kind == ArtifactKind::Tree).then(|| ListingReader::new(&self.repository.chunks, content))
    }
}

#[async_trait]
impl SnapshotWriter for RepositoryWriter {
    async fn stream(&self, _: &SourceName, _: &ArtifactName, hint: ChunkHint) -> Result<Box<dyn StreamSink>> {
        Ok(Box::new(RepositoryStream::new(Arc::clone(&self.pipeline), Cut::of_stream(hint))))
    }

    async fn tree(&self, source: &SourceName, name: &ArtifactName) -> Result<Box<dyn TreeSink>> {
        let earlier = self.earlier_listing(source, name);
        Ok(Box::new(RepositoryTree::new(Arc::clone(&self.pipeline), earlier)))
    }

    async fn commit(&self, manifest: Manifest) -> Result<Manifest> {
        if self.ended.swap(true, Ordering::AcqRel) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the snapshot {} was committed before", manifest.id),
            ));
        }
        self.pipeline.flush().await?;
        let index_key = &self.repository.writer()?.keys.index_key;
        let keys = SnapshotKeys { index_key, meta_key: &self.keys.meta, session: self.session, writer: &self.writer };
        let object = snapshot::encode(&keys, &manifest)?;
        self.repository.store.create(&layout::snapshot(&manifest.id), object).await?;
        Ok(manifest)
    }
}

impl fmt::Debug for RepositoryWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepositoryWriter").field("session", &self.session).finish_non_exhaustive()
    }
}
