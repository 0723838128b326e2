//! From a plan's `url` to an object store.
//!
//! Invariant: on a local disk every object is synced, with its folder, before its put returns, and lies in the folder that
//! was opened.

mod anchored;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use anchored::Anchored;

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

/// Resolves a path, a `file://` URL, or the URL of a cloud's object store.
pub(crate) fn resolve(url: &str, folder: &Path, missing: Missing) -> Result<Location> {
    match (local_path(url, folder), url.split_once("://")) {
        (None, Some((scheme, _))) => cloud(scheme, url),
        (path, _) => local(&path.unwrap_or_default(), missing),
    }
}

/// The folder that `url` names, if it names one on a local disk.
pub(crate) fn local_path(url: &str, folder: &Path) -> Option<PathBuf> {
    match url.split_once("://") {
        None => Some(folder.join(url)),
        Some(("file", path)) => Some(PathBuf::from(path)),
        Some(_) => None,
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

/// Schemes of object stores, and the prefix of the environment variables that hold their credentials and settings.
#[cfg(feature = "cloud")]
const CLOUDS: [(&str, &str); 6] =
    [("s3", "AWS_"), ("s3a", "AWS_"), ("gs", "GOOGLE_"), ("az", "AZURE_"), ("abfs", "AZURE_"), ("abfss", "AZURE_")];

/// Credentials and settings come from the environment variables that each cloud's own tools read (`AWS_ACCESS_KEY_ID`,
/// `AWS_ENDPOINT`, …), never from the plan.
#[cfg(feature = "cloud")]
fn cloud(scheme: &str, url: &str) -> Result<Location> {
    let fault = |why: &str| Error::new(ErrorKind::Plan, format!("the repository's url `{url}` {why}"));
    let Some((_, variables)) = CLOUDS.iter().find(|(known, _)| *known == scheme) else {
        return Err(fault("has a scheme that is not known")
            .hint("use a path, file://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"));
    };
    let parsed = url::Url::parse(url).map_err(|source| fault("is not a URL").caused_by(source))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // The URL itself is not repeated: it holds a secret.
        return Err(Error::new(ErrorKind::Plan, "the repository's url holds a user or a password")
            .hint(format!("put credentials into environment variables ({variables}…)")));
    }
    let settings = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(variables))
        .map(|(name, value)| (name.to_ascii_lowercase(), value));
    let (store, prefix) = object_store::parse_url_opts(&parsed, settings).map_err(|source| {
        Error::new(ErrorKind::Plan, format!("cannot use the object store of `{url}`"))
            .caused_by(source)
            .hint(format!("its credentials and settings come from environment variables ({variables}…)"))
    })?;
    let store = object_store::prefix::PrefixStore::new(store, prefix);
    Ok(Location { store: Arc::new(store), describe: format!("the repository at {url}") })
}

#[cfg(not(feature = "cloud"))]
fn cloud(scheme: &str, _: &str) -> Result<Location> {
    Err(Error::new(ErrorKind::Plan, format!("repositories at `{scheme}://` are not supported by this build"))
        .hint("use a path, or build with the feature `cloud`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_at_the_plan_and_a_missing_folder_is_no_repository() {
        let folder = tempfile::tempdir().unwrap();
        let error = resolve("backups", folder.path(), Missing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRepository);
        let made = resolve("backups", folder.path(), Missing::Create).unwrap();
        assert!(made.describe.ends_with("/backups"));
        let url = format!("file://{}/backups", folder.path().display());
        assert!(resolve(&url, Path::new("/nowhere"), Missing::Refuse).is_ok());
    }

    #[cfg(feature = "cloud")]
    #[test]
    fn urls_name_their_faults_and_secrets_are_not_repeated() {
        let fault = |url: &str| resolve(url, Path::new("/"), Missing::Refuse).unwrap_err();
        assert!(fault("ftp://host/x").to_string().contains("scheme"));
        let error = fault("s3://key:hunter2@bucket/x");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        let resolved = resolve("s3://bucket/some/prefix", Path::new("/"), Missing::Refuse).unwrap();
        assert_eq!(resolved.describe, "the repository at s3://bucket/some/prefix");
    }
}
