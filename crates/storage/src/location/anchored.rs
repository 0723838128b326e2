//! An object store in a folder on a local disk that notices when another folder stands in its place, and that can update
//! an object on the condition that nobody else did.
//!
//! Invariants: a put does not return as done unless the folder was the one that was opened before and after it; what is
//! not found, and what is listed, was looked for there.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UpdateVersion,
};
use rustix::fs::FlockOperation;

use crate::place::{Moved, Root};

/// See the module.
#[derive(Debug)]
pub(super) struct Anchored {
    inner: LocalFileSystem,
    folder: PathBuf,
    root: Root,
}

const NAME: &str = "Anchored";

impl Anchored {
    /// Over `inner`, which keeps its objects in `folder`.
    pub(super) fn new(inner: LocalFileSystem, folder: PathBuf) -> std::io::Result<Self> {
        let root = Root::open(&folder)?;
        Ok(Self { inner, folder, root })
    }

    fn check(&self) -> Result<()> {
        check(&self.root, &self.folder)
    }

    /// An object that is not found may be so because its folder is not the one that was opened.
    fn found<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ Error::NotFound { .. }) => self.check().and(Err(error)),
            other => other,
        }
    }

    /// Replaces an object if it is of `version`. Others who do so wait; that holds for all processes of this machine, and
    /// for other machines where their file system passes locks on.
    async fn update(&self, location: &Path, payload: PutPayload, version: UpdateVersion) -> Result<PutResult> {
        let folder = self.folder.clone();
        let locked = tokio::task::spawn_blocking(move || {
            let folder = std::fs::File::open(folder)?;
            // Where locks do not work at all, two changes at the same moment are not told apart.
            let _unlocked = rustix::fs::flock(&folder, FlockOperation::LockExclusive);
            std::io::Result::Ok(folder)
        });
        let _locked = locked.await?.map_err(generic)?;
        let found = self.found(self.inner.head(location).await)?;
        if found.e_tag != version.e_tag {
            let source = "it was changed by somebody else".into();
            return Err(Error::Precondition { path: location.to_string(), source });
        }
        self.inner.put(location, payload).await
    }
}

fn check(root: &Root, folder: &std::path::Path) -> Result<()> {
    match root.is_same() {
        Ok(true) => Ok(()),
        Ok(false) => Err(generic(Moved(folder.display().to_string()))),
        Err(source) => Err(generic(source)),
    }
}

fn generic(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: NAME, source: Box::new(source) }
}

impl fmt::Display for Anchored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Anchored {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check()?;
        let put = match options.mode {
            PutMode::Update(version) => self.update(location, payload, version).await,
            _ => self.inner.put_opts(location, payload, options).await,
        };
        self.check().and(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check()?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let got = self.inner.get_opts(location, options).await;
        self.found(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let got = self.inner.get_ranges(location, ranges).await;
        self.found(got)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.check() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (root, folder) = (self.root.clone(), self.folder.clone());
        // A folder that is gone lists as one that is empty.
        let after = stream::once(async move { check(&root, &folder).err() });
        self.inner.list(prefix).chain(after.filter_map(|moved| async move { moved.map(Err) })).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let listed = self.inner.list_with_delimiter(prefix).await;
        self.check().and(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check()?;
        let copied = self.inner.copy_opts(from, to, options).await;
        self.check().and(copied)
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    async fn update(store: &Anchored, from: &PutResult, text: &'static str) -> Result<PutResult> {
        let version = UpdateVersion { e_tag: from.e_tag.clone(), version: None };
        let options = PutOptions { mode: PutMode::Update(version), ..PutOptions::default() };
        store.put_opts(&Path::from("a"), text.into(), options).await
    }

    #[tokio::test]
    async fn of_two_updates_of_one_version_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let store = Anchored::new(inner, folder.path().to_owned()).unwrap();
        let first = store.put(&Path::from("a"), "one".into()).await.unwrap();
        let (a, b) = tokio::join!(update(&store, &first, "two"), update(&store, &first, "three"));
        let lost = if a.is_ok() { b } else { a };
        assert!(matches!(lost, Err(Error::Precondition { .. })), "{lost:?}");
    }

    #[tokio::test]
    async fn an_empty_folder_in_its_place_is_no_empty_store() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::create_dir(&path).unwrap();
        let store = Anchored::new(LocalFileSystem::new_with_prefix(&path).unwrap(), path.clone()).unwrap();
        store.put(&Path::from("x/y"), "one".into()).await.unwrap();
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        let name = Path::from("x/y");
        let failures = [
            store.put(&name, "two".into()).await.map(drop).unwrap_err(),
            store.get(&name).await.map(drop).unwrap_err(),
            store.list(None).try_collect::<Vec<_>>().await.map(drop).unwrap_err(),
            store.list_with_delimiter(None).await.map(drop).unwrap_err(),
            store.delete(&name).await.unwrap_err(),
        ];
        assert!(failures.iter().all(|error| Moved::is_cause_of(error)), "{failures:?}");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "nothing was made in what stands there");
    }
}
