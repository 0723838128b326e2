//! From a plan's `url` to an object store.
//!
//! Invariant: on a local disk every object is synced, with its folder, before its put returns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

/// Where a repository lies.
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

/// Resolves a path or a `file://` URL.
pub(crate) fn resolve(url: &str, folder: &Path, missing: Missing) -> Result<Location> {
    if let Some((scheme, rest)) = url.split_once("://") {
        return match scheme {
            "file" => local(Path::new(rest), missing),
            _ => Err(Error::new(
                ErrorKind::Plan,
                format!("repositories at `{scheme}://` are not supported by this build"),
            )
            .hint("use a path or a file:// URL")),
        };
    }
    local(&folder.join(url), missing)
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
    Ok(Location { store: Arc::new(store.with_fsync(true).with_automatic_cleanup(true)), describe })
}
