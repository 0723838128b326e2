//! From a plan's `url` to an object store.
//!
//! Invariant: on a local disk every object is synced, with its folder, before its put returns, and lies in the folder that
//! was opened.

mod address;
mod anchored;
#[cfg(feature = "cloud")]
mod cloud;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::RequestsConfig;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use address::Address;
use anchored::Anchored;
#[cfg(feature = "cloud")]
use cloud::cloud;

/// Where a repository lies.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) describe: String,
}

/// What to do about a local folder that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it.
    Create,
    /// There is no repository, then.
    Refuse,
}

/// How messages call a repository's `url`.
const URL: &str = "the repository's url";

/// Resolves a path, a `file://` URL, or the URL of a cloud's object store.
pub(crate) fn resolve(url: &str, folder: &Path, missing: Missing, requests: &RequestsConfig) -> Result<Location> {
    match address::read(URL, url, folder)? {
        Address::Folder(path) => local(&path, missing),
        Address::Remote { scheme } => cloud(scheme, url, requests),
    }
}

/// Whether [`resolve`] would understand `url`: it looks at no disk and asks no store.
pub(crate) fn check(url: &str, folder: &Path, requests: &RequestsConfig) -> Result<()> {
    match address::read(URL, url, folder)? {
        Address::Folder(_) => Ok(()),
        Address::Remote { scheme } => cloud(scheme, url, requests).map(drop),
    }
}

/// The folder that `url` names, if it names one on a local disk.
pub(crate) fn local_path(url: &str, folder: &Path) -> Option<PathBuf> {
    match address::read(URL, url, folder) {
        Ok(Address::Folder(path)) => Some(path),
        Ok(Address::Remote { .. }) | Err(_) => None,
    }
}

/// The folder of a plain directory.
pub(crate) fn folder_of(path: &Path, folder: &Path) -> Result<PathBuf> {
    const PATH: &str = "the directory's path";
    let Some(text) = path.to_str() else {
        return Ok(folder.join(path));
    };
    match address::read(PATH, text, folder)? {
        Address::Folder(path) => Ok(path),
        Address::Remote { .. } => Err(Error::new(
            ErrorKind::Plan,
            format!("{PATH} `{}` is not a folder of this machine", address::shown(text)),
        )
        .hint("a plain directory lies on a local disk; object stores hold a `repository`")),
    }
}

fn local(path: &Path, missing: Missing) -> Result<Location> {
    let describe = format!("the repository at {}", path.display());
    if missing == Missing::Create {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| Error::io("cannot make the folder of the repository", path, source))?;
    }
    let root: PathBuf = match std::fs::canonicalize(path) {
        Ok(root) => root,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::NoRepository, format!("there is no folder {}", path.display()))
                .hint("run `stackward init` to make the repository; is a disk not mounted?"));
        }
        Err(source) => return Err(Error::io("cannot open the folder of the repository", path, source)),
    };
    let store = LocalFileSystem::new_with_prefix(&root)
        .map_err(|source| Error::new(ErrorKind::Io, format!("cannot open {}", root.display())).caused_by(source))?;
    let anchored = Anchored::new(store.with_fsync(true).with_automatic_cleanup(true), root.clone())
        .map_err(|source| Error::io("cannot open the folder of the repository", &root, source))?;
    Ok(Location { store: Arc::new(anchored), describe })
}

#[cfg(not(feature = "cloud"))]
fn cloud(scheme: &str, _: &str, _: &RequestsConfig) -> Result<Location> {
    Err(Error::new(ErrorKind::Plan, format!("repositories at `{scheme}://` are not supported by this build"))
        .hint("use a path, or build with the feature `cloud`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_at_the_plan_and_a_missing_folder_is_no_repository() {
        let folder = tempfile::tempdir().unwrap();
        let error = resolve("./backups", folder.path(), Missing::Refuse, &RequestsConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRepository);
        let made = resolve("./backups", folder.path(), Missing::Create, &RequestsConfig::default()).unwrap();
        assert!(made.describe.ends_with("/backups"));
        let url = format!("file://{}/backups", folder.path().display());
        assert!(resolve(&url, Path::new("/nowhere"), Missing::Refuse, &RequestsConfig::default()).is_ok());
    }
}
