//! The boundary to the object store: the few operations that the repository needs, with errors that an operator understands.
//!
//! Invariants: objects are created, never changed, except those that adding or removing a recipient re-wraps; nothing is
//! written unless the repository that was opened still stands there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};

use super::layout;
use super::opened::Opened;
use crate::place::{self, Moved};

/// So often a name that is said to be taken, and under which nothing is found, is tried.
const CREATE_ATTEMPTS: u32 = 5;

/// An object store and how it is called in messages.
#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<dyn ObjectStore>,
    describe: String,
    opened: Option<Arc<Opened>>,
}

/// An object and the version of it that was read, for [`Store::update`].
#[derive(Debug, Clone)]
pub(super) struct Versioned {
    pub(super) content: Bytes,
    version: UpdateVersion,
}

impl Store {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, describe: impl Into<String>) -> Self {
        Self { inner, describe: describe.into(), opened: None }
    }

    /// The store of an open repository: it is written to as long as that one stands there.
    pub(super) fn of(mut self, opened: Opened) -> Self {
        self.opened = Some(Arc::new(opened));
        self
    }

    /// Looks whether the repository that was opened still stands there, and what its `config` says now.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when it does not.
    pub(super) async fn confirm(&self) -> Result<()> {
        let Some(opened) = &self.opened else { return Ok(()) };
        match self.get(&layout::config()).await {
            Ok(config) => opened.confirm(config, &self.describe).await,
            Err(error) if error.kind() == ErrorKind::NotFound => Err(place::another(&self.describe)),
            Err(error) => Err(error),
        }
    }

    /// Whether `config`, as it was looked at last, names one of these recipients.
    pub(super) async fn names(&self, recipients: &[String]) -> bool {
        match &self.opened {
            Some(opened) => opened.names(recipients).await,
            None => false,
        }
    }

    pub(super) fn describe(&self) -> &str {
        &self.describe
    }

    /// Creates an object; fails with [`ErrorKind::AlreadyExists`] when there is one of this name with another content.
    pub(super) async fn create(&self, path: &Path, content: Bytes) -> Result<()> {
        self.create_parts(path, [content]).await
    }

    /// As [`Store::create`], of the parts one after another.
    ///
    /// A store may say that a name is taken when it is not: because another request for it was under way (S3's 409), or
    /// because it was our own, whose answer was lost. And a connection may break before the answer comes, after the object was
    /// stored or before. So what lies there is read and compared; where nothing does, the object is put again.
    pub(super) async fn create_parts(&self, path: &Path, parts: impl IntoIterator<Item = Bytes>) -> Result<()> {
        let payload: PutPayload = parts.into_iter().collect();
        self.confirm().await?;
        let mut last = None;
        for _ in 0..CREATE_ATTEMPTS {
            let put = self.try_put(path, payload.clone(), PutMode::Create).await;
            let Err((failed, doubt)) = put else { return Ok(()) };
            if doubt == Doubt::None {
                return Err(failed);
            }
            match self.get(path).await {
                Ok(found) if is_content(&payload, &found) => return Ok(()),
                Ok(_) if doubt == Doubt::Unanswered => {
                    let message = format!("the object `{path}` lies in {} with another content", self.describe);
                    return Err(Error::new(ErrorKind::AlreadyExists, message).caused_by(failed));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => last = Some((failed, doubt)),
                Err(error) if doubt == Doubt::Taken => return Err(error),
                // A store that still does not answer: what happened first says more.
                Ok(_) | Err(_) => return Err(failed),
            }
        }
        if let Some((failed, Doubt::Unanswered)) = last {
            return Err(failed);
        }
        let message = format!(
            "the object `{path}` cannot be made in {}: the store calls it taken, and does not have it",
            self.describe
        );
        Err(Error::new(ErrorKind::Unreachable, message).retry_later())
    }

    /// Creates an object whose name is the hash of its content. What lies there already is the same, or it is damaged: then
    /// it is replaced by what was meant to lie there.
    pub(super) async fn create_hashed(&self, path: &Path, content: Bytes) -> Result<()> {
        match self.create(path, content.clone()).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.replace(path, content).await,
            result => result,
        }
    }

    /// Asks the store once to create an object, to see what it does when there is one.
    pub(super) async fn try_create(&self, path: &Path, content: Bytes) -> Result<()> {
        self.put(path, content.into(), PutMode::Create).await.map(drop)
    }

    /// Writes an object whether it exists or not; again where the connection broke, since that changes nothing.
    pub(super) async fn replace(&self, path: &Path, content: Bytes) -> Result<()> {
        self.confirm().await?;
        let mut attempt = 1;
        loop {
            match self.try_put(path, content.clone().into(), PutMode::Overwrite).await {
                Err((_, Doubt::Unanswered)) if attempt < CREATE_ATTEMPTS => attempt += 1,
                result => return result.map(drop).map_err(|(error, _)| error),
            }
        }
    }

    /// Reads an object that will be updated.
    pub(super) async fn get_versioned(&self, path: &Path) -> Result<Versioned> {
        let read = async {
            let found = self.inner.get(path).await?;
            let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            Ok(Versioned { content: found.bytes().await?, version })
        };
        read.await.map_err(|error| self.error("read", path, error))
    }

    /// Replaces the version of an object that was read; [`Updated::Changed`] when somebody else did so meanwhile.
    pub(super) async fn update(&self, path: &Path, from: &Versioned, content: Bytes) -> Result<Updated> {
        self.confirm().await?;
        let options = PutOptions { mode: PutMode::Update(from.version.clone()), ..PutOptions::default() };
        match self.inner.put_opts(path, content.clone().into(), options).await {
            Ok(_) => Ok(Updated::Done),
            // The second best on a store that knows no such condition: two changes at the same moment are not told apart.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                if self.get(path).await? != from.content {
                    return Ok(Updated::Changed);
                }
                self.put(path, content.into(), PutMode::Overwrite).await.map(|_| Updated::Done)
            }
            Err(error) => {
                let doubt = Doubt::about(&error);
                let failed = self.error("write", path, error);
                if doubt == Doubt::None {
                    return Err(failed);
                }
                // Our own update, whose answer was lost, is no change by others.
                match self.get(path).await {
                    Ok(found) if found == content => Ok(Updated::Done),
                    // Nothing was written: whoever asked reads again, and tries again.
                    Ok(_) => Ok(Updated::Changed),
                    Err(_) if doubt == Doubt::Unanswered => Err(failed),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn put(&self, path: &Path, payload: PutPayload, mode: PutMode) -> Result<PutResult> {
        self.try_put(path, payload, mode).await.map_err(|(error, _)| error)
    }

    /// A put, and when it failed, whether the object may lie there nevertheless.
    async fn try_put(
        &self,
        path: &Path,
        payload: PutPayload,
        mode: PutMode,
    ) -> std::result::Result<PutResult, (Error, Doubt)> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.inner.put_opts(path, payload, options).await;
        put.map_err(|error| {
            let doubt = Doubt::about(&error);
            (self.error("write", path, error), doubt)
        })
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
        self.confirm().await?;
        self.inner.delete(path).await.map_err(|error| self.error("delete", path, error))
    }

    fn error(&self, verb: &str, path: &Path, error: object_store::Error) -> Error {
        use object_store::Error as E;
        if Moved::is_cause_of(&error) {
            return place::another(&self.describe);
        }
        if is_missing_bucket(&error) {
            return Error::new(ErrorKind::NoRepository, format!("the bucket of {} does not exist", self.describe))
                .caused_by(error)
                .hint("make it with the store's own tools, or correct the `url` in the plan");
        }
        if is_without_credentials(&error) {
            return Error::new(ErrorKind::PermissionDenied, format!("there are no credentials for {}", self.describe))
                .caused_by(error)
                .hint("set the store's own environment variables, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say");
        }
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

/// Whether an object may lie in the store although its put failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// The store, or this machine, said no.
    None,
    /// The store says that its name is taken.
    Taken,
    /// The connection broke, or the answer took too long.
    Unanswered,
}

impl Doubt {
    fn about(error: &object_store::Error) -> Self {
        use std::io::ErrorKind as Io;
        if matches!(error, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) {
            return Self::Taken;
        }
        let broken = [Io::ConnectionReset, Io::ConnectionAborted, Io::BrokenPipe, Io::UnexpectedEof, Io::TimedOut];
        if io_cause(error).is_some_and(|io| broken.contains(&io.kind())) || is_unanswered(error) {
            Self::Unanswered
        } else {
            Self::None
        }
    }
}

/// Whether a request was sent and no answer came.
#[cfg(feature = "cloud")]
fn is_unanswered(error: &(dyn std::error::Error + 'static)) -> bool {
    use object_store::client::{HttpError, HttpErrorKind as Http};
    let kinds = [Http::Request, Http::Timeout, Http::Interrupted];
    let mut cause = Some(error);
    while let Some(current) = cause {
        if current.downcast_ref::<HttpError>().is_some_and(|http| kinds.contains(&http.kind())) {
            return true;
        }
        cause = current.source();
    }
    false
}

#[cfg(not(feature = "cloud"))]
fn is_unanswered(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

/// What the clouds' stores say when the bucket itself is not there.
fn is_missing_bucket(error: &object_store::Error) -> bool {
    let said = error.to_string();
    ["NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"].iter().any(|words| said.contains(words))
}

/// Without credentials, the services are asked that give them to a cloud's own machines.
fn is_without_credentials(error: &object_store::Error) -> bool {
    let said = error.to_string();
    ["169.254.169.254", "metadata.google.internal"].iter().any(|place| said.contains(place))
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Updated {
    /// It was made.
    Done,
    /// Somebody else changed the object after it was read: nothing was written.
    Changed,
}

/// Whether `found` is the bytes of `payload`.
fn is_content(payload: &PutPayload, found: &Bytes) -> bool {
    let mut rest = &found[..];
    payload.content_length() == found.len()
        && payload.iter().all(|part| {
            let (start, behind) = rest.split_at(part.len());
            rest = behind;
            start == part
        })
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
