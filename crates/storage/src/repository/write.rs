//! Writes one snapshot.
//!
//! Invariant: session keys, then packs, then index objects, then the snapshot object, which alone makes it visible.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, ArtifactRecord, Manifest, SourceRecord};
use backup_core::sink::{ChunkHint, SnapshotHeader, SnapshotReader, SnapshotWriter, StreamSink, TreeOrder, TreeSink};
use backup_core::{ArtifactName, SourceName};

use super::content::ContentList;
use super::crypto::{SessionId, SessionKeys, random};
use super::earlier::{EarlierContent, EarlierTree};
use super::layout;
use super::pack::Class;
use super::page_map::{PageKey, page_bytes};
use super::pages::{Allowance, PageSetup};
use super::pipeline::{Pipeline, PipelineSetup};
use super::snapshot::{self, SnapshotKeys};
use super::stream::RepositoryStream;
use super::tree::RepositoryTree;
use super::{Repository, RepositoryReader};
use crate::keys;

/// See the module.
pub(super) struct RepositoryWriter {
    repository: Repository,
    session: SessionId,
    keys: SessionKeys,
    writer: String,
    pipeline: Arc<Pipeline>,
    page_key: Arc<PageKey>,
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
            page_key: Arc::new(PageKey::derived(&writer.secret)),
            earlier,
            ended: AtomicBool::new(false),
        })
    }

    /// The snapshot that a source is compared with: see [`SnapshotWriter::earlier`].
    fn base(&self, source: &SourceName) -> Option<&Manifest> {
        let complete = |manifest: &&Manifest| manifest.source(source).is_some_and(SourceRecord::is_complete);
        self.earlier.iter().find(complete)
    }

    /// What it has under this name.
    fn earlier_artifact(
        &self,
        source: &SourceName,
        name: &ArtifactName,
        kind: ArtifactKind,
    ) -> Option<&ArtifactRecord> {
        self.base(source)?.source(source)?.artifact(name).filter(|record| record.kind == kind)
    }

    fn earlier_tree(&self, record: &ArtifactRecord, order: &TreeOrder) -> Option<EarlierTree> {
        let listing = ContentList::from_record(&record.content).ok()?;
        let maps = record.page_map.as_ref().and_then(|maps| ContentList::from_record(maps).ok());
        let chunks = &self.repository.chunks;
        Some(match order {
            TreeOrder::ByPath => EarlierTree::along(chunks, listing, maps),
            TreeOrder::Any { .. } => EarlierTree::indexed(chunks, listing, maps),
        })
    }

    fn page_setup(&self, earlier: Option<&ArtifactRecord>) -> PageSetup {
        PageSetup {
            pipeline: Arc::clone(&self.pipeline),
            tally: Arc::default(),
            key: Arc::clone(&self.page_key),
            allowance: Arc::new(Allowance::of(earlier.map_or(0, |record| record.bytes))),
        }
    }
}

#[async_trait]
impl SnapshotWriter for RepositoryWriter {
    async fn stream(&self, source: &SourceName, name: &ArtifactName, hint: ChunkHint) -> Result<Box<dyn StreamSink>> {
        let ChunkHint::Pages(hinted) = hint else {
            return Ok(Box::new(RepositoryStream::new(Arc::clone(&self.pipeline), Class::Content)));
        };
        let record = self.earlier_artifact(source, name, ArtifactKind::Stream);
        let earlier = match record {
            Some(record) => EarlierContent::of_stream(&self.repository.chunks, record).await,
            None => None,
        };
        let setup = self.page_setup(record);
        Ok(Box::new(RepositoryStream::of_pages(setup, page_bytes(hinted), earlier.as_ref())))
    }

    async fn memo(&self, _: &SourceName, _: &ArtifactName) -> Result<Box<dyn StreamSink>> {
        Ok(Box::new(RepositoryStream::new(Arc::clone(&self.pipeline), Class::Meta)))
    }

    async fn tree(&self, source: &SourceName, name: &ArtifactName, order: TreeOrder) -> Result<Box<dyn TreeSink>> {
        let record = self.earlier_artifact(source, name, ArtifactKind::Tree);
        let earlier = record.and_then(|record| self.earlier_tree(record, &order));
        Ok(Box::new(RepositoryTree::new(self.page_setup(record), &order, earlier)))
    }

    async fn earlier(&self, source: &SourceName) -> Result<Option<Arc<dyn SnapshotReader>>> {
        let chunks = &self.repository.chunks;
        Ok(self
            .base(source)
            .map(|manifest| Arc::new(RepositoryReader { manifest: manifest.clone(), chunks: Arc::clone(chunks) }) as _))
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
