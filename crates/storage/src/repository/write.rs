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
use super::earlier::{EarlierContent, EarlierMaps, EarlierTree};
use super::layout;
use super::pack::{Class, PackInfo};
use super::page_map::{PageKey, page_bytes};
use super::pages::{Allowance, PageSetup};
use super::pipeline::{Pipeline, PipelineSetup};
use super::snapshot::{self, SnapshotKeys};
use super::stream::RepositoryStream;
use super::tree::RepositoryTree;
use super::{Repository, RepositoryReader};

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
    /// Begins a run. `unlisted` are packs that no index object lists; the run's own will.
    pub(super) async fn begin(
        repository: &Repository,
        header: &SnapshotHeader,
        unlisted: Vec<PackInfo>,
    ) -> Result<Self> {
        let writer = repository.writer()?;
        let session = SessionId(random()?);
        let keys = if repository.is_encrypted() {
            let keys = SessionKeys::generate(&writer.secret, session)?;
            let plain = keys
                .to_bytes(&writer.keys.index_key)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a session has no content key"))?;
            repository.wrap_new(&layout::session_keys(session), &plain).await?;
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
            unlisted,
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

    /// What the files of an artifact share that continues from `record`, and the page map of that one.
    async fn pages(&self, record: Option<&ArtifactRecord>) -> Result<(PageSetup, Option<EarlierMaps>)> {
        let opened = match record {
            Some(record) => EarlierMaps::open(&self.repository.chunks, record).await,
            None => None,
        };
        let (key, maps) = match opened {
            Some((key, maps)) => (key, Some(maps)),
            None => (PageKey::random()?, None),
        };
        let setup = PageSetup {
            pipeline: Arc::clone(&self.pipeline),
            tally: Arc::default(),
            key: Arc::new(key),
            allowance: Arc::new(Allowance::of(record.map_or(0, |record| record.bytes))),
        };
        Ok((setup, maps))
    }
}

#[async_trait]
impl SnapshotWriter for RepositoryWriter {
    async fn stream(&self, source: &SourceName, name: &ArtifactName, hint: ChunkHint) -> Result<Box<dyn StreamSink>> {
        let ChunkHint::Pages(hinted) = hint else {
            return Ok(Box::new(RepositoryStream::new(Arc::clone(&self.pipeline), Class::Content)));
        };
        let record = self.earlier_artifact(source, name, ArtifactKind::Stream);
        let (setup, maps) = self.pages(record).await?;
        let earlier = match (record, maps) {
            (Some(record), Some(maps)) => {
                EarlierContent::of_stream(&self.repository.chunks, self.pipeline.referred(), record, maps).await
            }
            _ => None,
        };
        Ok(Box::new(RepositoryStream::of_pages(setup, page_bytes(hinted), earlier.as_ref())))
    }

    async fn memo(&self, _: &SourceName, _: &ArtifactName) -> Result<Box<dyn StreamSink>> {
        Ok(Box::new(RepositoryStream::new(Arc::clone(&self.pipeline), Class::Meta)))
    }

    async fn tree(&self, source: &SourceName, name: &ArtifactName, order: TreeOrder) -> Result<Box<dyn TreeSink>> {
        let record = self.earlier_artifact(source, name, ArtifactKind::Tree);
        let (setup, maps) = self.pages(record).await?;
        let chunks = &self.repository.chunks;
        let listing = record.and_then(|record| ContentList::from_record(&record.content).ok());
        let earlier = listing.map(|listing| match order {
            TreeOrder::ByPath => EarlierTree::along(chunks, self.pipeline.referred(), listing, maps),
            TreeOrder::Any { .. } => EarlierTree::indexed(chunks, self.pipeline.referred(), listing, maps),
        });
        Ok(Box::new(RepositoryTree::new(setup, &order, earlier)))
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
