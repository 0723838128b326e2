//! The boundary to the object store: the few operations that the repository needs, with errors that an operator understands.
//!
//! Invariant: objects are created, never changed, except those that adding or removing a recipient re-wraps.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

/// An object store and how it is called in messages.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<dyn ObjectStore>,
    describe: String,
}

impl Store {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, describe: impl Into<String>) -> Self {
        Self { inner, describe: describe.into() }
    }

    pub(super) fn describe(&self) -> &str {
        &self.describe
    }

    /// Creates an object; fails with [`ErrorKind::AlreadyExists`] when there is one of this name.
    pub(super) async fn create(&self, path: &Path, content: Bytes) -> Result<()> {
        self.create_parts(path, [content]).await
    }

    /// As [`Store::create`], of the parts one after another.
    pub(super) async fn create_parts(&self, path: &Path, parts: impl IntoIterator<Item = Bytes>) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.inner.put_opts(path, parts.into_iter().collect(), options).await;
        put.map(|_| ()).map_err(|error| self.error("write", path, error))
    }

    /// Creates an object whose name is the hash of its content: if it is there already, it is the same.
    pub(super) async fn create_hashed(&self, path: &Path, content: Bytes) -> Result<()> {
        match self.create(path, content).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Writes an object whether it exists or not.
    pub(super) async fn replace(&self, path: &Path, content: Bytes) -> Result<()> {
        let put = self.inner.put(path, PutPayload::from_bytes(content)).await;
        put.map(|_| ()).map_err(|error| self.error("write", path, error))
    }

    pub(super) async fn get(&self, path: &Path) -> Result<Bytes> {
        let read = async { self.inner.get(path).await?.bytes().await };
        read.await.map_err(|error| self.error("read", path, error))
    }

    pub(super) async fn get_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes> {
        let expected = range.end - range.start;
        let bytes = self.inner.get_range(path, range).await.map_err(|error| self.error("read", path, error))?;
        if bytes.len() as u64 == expected {
            return Ok(bytes);
        }
        Err(Error::new(ErrorKind::Damaged, format!("the object {path} is shorter than its index says")))
    }

    /// The first `count` bytes of an object, or all of a shorter one, and its whole size.
    pub(super) async fn get_first(&self, path: &Path, count: u64) -> Result<(Bytes, u64)> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..count)), ..GetOptions::default() };
        let read = async {
            let found = self.inner.get_opts(path, options).await?;
            let size = found.meta.size;
            Ok((found.bytes().await?, size))
        };
        read.await.map_err(|error| self.error("read", path, error))
    }

    /// Whether there is an object of this name.
    pub(super) async fn exists(&self, path: &Path) -> Result<bool> {
        match self.size(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn size(&self, path: &Path) -> Result<u64> {
        self.inner.head(path).await.map(|meta| meta.size).map_err(|error| self.error("look at", path, error))
    }

    /// Every object below `prefix` with its size. A listing that fails is an error, never an empty list.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<(Path, u64)>> {
        let path = Path::from(prefix);
        let listing = self.inner.list(Some(&path)).map_ok(|meta| (meta.location, meta.size)).try_collect::<Vec<_>>();
        let mut objects = listing.await.map_err(|error| self.error("list", &path, error))?;
        objects.sort();
        Ok(objects)
    }

    /// The folders right below `prefix`, sorted.
    pub(super) async fn folders(&self, prefix: &str) -> Result<Vec<Path>> {
        let path = Path::from(prefix);
        let listing = self.inner.list_with_delimiter(Some(&path)).await;
        let mut folders = listing.map_err(|error| self.error("list", &path, error))?.common_prefixes;
        folders.sort();
        Ok(folders)
    }

    /// Whether anything at all lies below the root.
    pub(super) async fn is_empty(&self) -> Result<bool> {
        let first = self.inner.list(None).try_next().await;
        first.map(|object| object.is_none()).map_err(|error| self.error("list", &Path::default(), error))
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<()> {
        self.inner.delete(path).await.map_err(|error| self.error("delete", path, error))
    }

    fn error(&self, verb: &str, path: &Path, error: object_store::Error) -> Error {
        use object_store::Error as E;
        let kind = match &error {
            E::NotFound { .. } => ErrorKind::NotFound,
            E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::AlreadyExists,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::PermissionDenied,
            _ => io_cause(&error).map_or(ErrorKind::Unreachable, |io| Error::from_io("", clone_io(io)).kind()),
        };
        let message = format!("cannot {verb} the object `{path}` in {}", self.describe);
        let wrapped = match io_cause(&error) {
            // The operating system's own words are enough; the layers between repeat the path.
            Some(io) => Error::from_io(message, clone_io(io)),
            None => Error::new(kind, message).caused_by(error),
        };
        if kind == ErrorKind::Unreachable { wrapped.retry_later() } else { wrapped }
    }
}

fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause: Option<&'a (dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = current.source();
    }
    None
}

fn clone_io(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.describe)
    }
}
