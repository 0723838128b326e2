//! An object store that fails on purpose: at operation *k*, from *k* on, or that ignores conditional puts.
//!
//! Deterministic: operations are counted in the order in which they arrive.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; operations are only counted.
    None,
    /// The operation of this number fails before it does anything, and so do all after it: the process died.
    DeadFrom(u64),
    /// The operation of this number fails before it does anything; later ones work.
    FailOnce(u64),
    /// Writes from this number on find the disk full.
    FullFrom(u64),
    /// A conditional put overwrites, as some stores do.
    IgnoreConditions,
    /// Each conditional put is refused once as if something were there, as S3 does with 409 while another request is
    /// under way; nothing is stored.
    ConflictFirst,
    /// Each conditional put is stored, and then refused as if something had been there: the answer to it was lost, and the
    /// client asked again.
    AnswerLost,
    /// The first put of each name is interrupted before anything is stored: the connection was reset.
    ResetBefore,
    /// The first put of each name is stored, and the connection is reset before the answer comes.
    ResetAfter,
    /// The first put of each name is stored by half, which no store should do, and the connection is reset.
    ResetHalfway,
    /// Nothing may be written.
    ReadOnly,
    /// Nothing may be deleted, as with keys that may only append.
    KeepsAll,
    /// The bucket does not exist.
    NoBucket,
}

/// See the module.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    operations: AtomicU64,
    refused: Mutex<HashSet<Path>>,
}

impl FaultyStore {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, fault: Fault) -> Self {
        Self { inner, fault, operations: AtomicU64::new(0), refused: Mutex::default() }
    }

    /// How many operations were asked for so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    fn refuse_once(&self, location: &Path) -> bool {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(location.clone())
    }

    fn step(&self, writes: bool) -> Result<()> {
        if self.fault == Fault::NoBucket {
            let source = "Server returned non-2xx status code: 404 Not Found: <Code>NoSuchBucket</Code>".into();
            return Err(Error::NotFound { path: String::new(), source });
        }
        if self.fault == Fault::ReadOnly && writes {
            return Err(refused());
        }
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        let error = match self.fault {
            Fault::DeadFrom(from) if number >= from => std::io::Error::other("the process died"),
            Fault::FailOnce(at) if number == at => std::io::Error::other("the disk hiccuped"),
            Fault::FullFrom(from) if writes && number >= from => std::io::Error::from_raw_os_error(28),
            _ => return Ok(()),
        };
        Err(Error::Generic { store: "FaultyStore", source: Box::new(error) })
    }
}

fn refused() -> Error {
    Error::PermissionDenied { path: String::new(), source: "403 Forbidden".into() }
}

fn reset() -> Error {
    Error::Generic { store: "FaultyStore", source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) }
}

/// The first half of what was to be stored.
fn half(payload: &PutPayload) -> PutPayload {
    let whole: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
    Bytes::copy_from_slice(&whole[..whole.len() / 2]).into()
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        self.step(true)?;
        if self.fault == Fault::IgnoreConditions {
            options.mode = PutMode::Overwrite;
        }
        let taken = || Error::AlreadyExists { path: location.to_string(), source: "409 Conflict".into() };
        match (self.fault, &options.mode) {
            (Fault::ConflictFirst, PutMode::Create) if self.refuse_once(location) => Err(taken()),
            (Fault::AnswerLost, PutMode::Create) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(taken())
            }
            (Fault::ResetBefore, _) if self.refuse_once(location) => Err(reset()),
            (Fault::ResetAfter, _) if self.refuse_once(location) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(reset())
            }
            (Fault::ResetHalfway, _) if self.refuse_once(location) => {
                self.inner.put_opts(location, half(&payload), options).await?;
                Err(reset())
            }
            _ => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.step(true)?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.step(false)?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.step(false)?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let allowed = if self.fault == Fault::KeepsAll { Err(refused()) } else { Ok(()) };
        match self.step(true).and(allowed) {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => Box::pin(futures::stream::once(async { Err(error) })),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.step(false) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => Box::pin(futures::stream::once(async { Err(error) })),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.step(false)?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.step(true)?;
        self.inner.copy_opts(from, to, options).await
    }
}
