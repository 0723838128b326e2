//! Writes one snapshot.
//!
//! Invariant: files, then `manifest.json`, then `SHA256SUMS`, then the rename that alone makes the snapshot visible.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{self, ArtifactKind, Content, EntryOrder, Manifest};
use backup_core::sink::{ChunkHint, SnapshotHeader, SnapshotWriter, Stored, StreamSink, TreeOrder, TreeSink};
use backup_core::{ArtifactName, SourceName};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Directory;
use super::compression::Compression;
use super::marker::Identity;
use super::names::{MANIFEST, MAX_ATTEMPTS, SUMS, Sums, artifact_file};
use super::output::{Job, Output, Written};
use super::partial::{Partial, make_file, make_folders, remove_leftovers};
use super::tree::DirectoryTree;
use crate::blocking;

/// See the module.
pub(super) struct DirectoryWriter {
    partial: Arc<Partial>,
    identity: Arc<Identity>,
    compression: Compression,
    ledger: Ledger,
}

/// The files that are on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Vec<Written>>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Vec<Written>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a file, and says what the manifest says of it.
    pub(super) fn accept(&self, written: Written, bytes: u64, compression: Compression, order: EntryOrder) -> Stored {
        let content = Content::File { path: written.path.clone(), compression: compression.name().to_owned(), order };
        let stored = Stored { bytes, stored_bytes: written.bytes, content, page_map: None };
        self.lock().push(written);
        stored
    }

    /// The digests of the files that a manifest names.
    fn sums(&self, manifest: &Manifest) -> Result<Sums> {
        let written = self.lock();
        let mut sums = Sums::default();
        for artifact in manifest.sources.iter().flat_map(|source| &source.artifacts) {
            let found = match &artifact.content {
                Content::File { path, .. } => written.iter().find(|written| written.path == *path),
                _ => None,
            };
            let Some(found) = found else {
                let message = format!("the artifact `{}` was not written into this snapshot", artifact.name);
                return Err(Error::new(ErrorKind::Internal, message));
            };
            sums.0.insert(found.path.to_string(), found.sha256.clone());
        }
        Ok(sums)
    }
}

impl DirectoryWriter {
    pub(super) async fn begin(directory: &Directory, header: &SnapshotHeader) -> Result<Self> {
        let (opened, id) = (directory.clone(), header.id.clone());
        let partial = blocking(move || {
            opened.identity.adopt(!opened.ids()?.is_empty())?;
            opened.identity.confirm()?;
            remove_leftovers(&opened.path)?;
            Partial::begin(&opened.path, &id)
        });
        let partial = Arc::new(partial.await?);
        let (identity, compression) = (Arc::clone(&directory.identity), directory.compression);
        Ok(Self { partial, identity, compression, ledger: Ledger::default() })
    }

    async fn output(&self, source: &SourceName, name: &ArtifactName, kind: ArtifactKind) -> Result<Output> {
        let (source, name, compression) = (source.clone(), name.clone(), self.compression);
        let (partial, identity) = (Arc::clone(&self.partial), Arc::clone(&self.identity));
        let place = move || {
            // Before folders are made: they must not be made in what stands there instead.
            identity.confirm()?;
            let mut taken = None;
            for attempt in 0..MAX_ATTEMPTS {
                let path = artifact_file(&source, &name, kind, compression, attempt)?;
                let full = partial.path().join(path.as_str());
                match create(&full) {
                    Ok(file) => return Ok((file, full, path)),
                    Err(source) if is_in_the_way(&source) => taken = Some((full, source)),
                    Err(source) => return Err(Error::io("cannot make the file", full, source)),
                }
            }
            let (full, source) = taken.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::AlreadyExists.into()));
            Err(Error::io("cannot make the file", full, source))
        };
        let (file, full, path) = blocking(place).await?;
        Output::start(file, full, path, compression)
    }
}

fn create(path: &std::path::Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        make_folders(folder)?;
    }
    make_file(path)
}

/// Whether another name may do better.
fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(error.kind(), Io::AlreadyExists | Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename)
}

#[async_trait]
impl SnapshotWriter for DirectoryWriter {
    async fn stream(&self, source: &SourceName, name: &ArtifactName, _: ChunkHint) -> Result<Box<dyn StreamSink>> {
        let output = self.output(source, name, ArtifactKind::Stream).await?;
        Ok(Box::new(DirectoryStream { output, compression: self.compression, ledger: self.ledger.clone(), bytes: 0 }))
    }

    async fn tree(&self, source: &SourceName, name: &ArtifactName, order: TreeOrder) -> Result<Box<dyn TreeSink>> {
        let output = self.output(source, name, ArtifactKind::Tree).await?;
        let order = match order {
            TreeOrder::ByPath => EntryOrder::ByPath,
            TreeOrder::Any { .. } => EntryOrder::Any,
        };
        Ok(Box::new(DirectoryTree::new(output, self.compression, order, self.ledger.clone(), self.partial.path())))
    }

    async fn commit(&self, manifest: Manifest) -> Result<Manifest> {
        let mut sums = self.ledger.sums(&manifest)?;
        let (partial, identity) = (Arc::clone(&self.partial), Arc::clone(&self.identity));
        blocking(move || {
            identity.confirm()?;
            partial.keep_only(&sums.0)?;
            let bytes = manifest::render(&manifest)?;
            partial.write(MANIFEST, &bytes)?;
            sums.0.insert(MANIFEST.to_owned(), hex::encode(Sha256::digest(&bytes)));
            partial.write(SUMS, sums.render().as_bytes())?;
            partial.commit(&manifest.id)?;
            identity.confirm()?;
            Ok(manifest)
        })
        .await
    }
}

impl fmt::Debug for DirectoryWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryWriter").field("partial", &self.partial).finish_non_exhaustive()
    }
}

/// A stream artifact in a directory.
struct DirectoryStream {
    output: Output,
    compression: Compression,
    ledger: Ledger,
    bytes: u64,
}

#[async_trait]
impl StreamSink for DirectoryStream {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.bytes += data.len() as u64;
        self.output.send(Job::Data(data)).await
    }

    async fn finish(self: Box<Self>) -> Result<Stored> {
        let written = self.output.finish().await?;
        Ok(self.ledger.accept(written, self.bytes, self.compression, EntryOrder::ByPath))
    }
}
