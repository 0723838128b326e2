//! The place that was opened. Who writes asks before and after each write whether it still stands there.
//!
//! Invariant: nothing is called stored that was put into another place: an empty mount point, a copy, another repository.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind};

/// The folder of a sink on a local disk, as it was when the sink was opened.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Root {
    /// Remembers the folder that stands at `path` now.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// Whether that very folder still stands there. One `stat`.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub(crate) fn is_same(&self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (self.device, self.inode)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Root::is_same`], as an error that calls the place `describe`.
    pub(crate) fn check(&self, describe: &str) -> Result<(), Error> {
        match self.is_same() {
            Ok(true) => Ok(()),
            Ok(false) => Err(another(describe)),
            Err(source) => Err(Error::io("cannot look at the folder", &self.path, source)),
        }
    }
}

/// What an object store over a [`Root`] fails with when another folder stands there.
#[derive(Debug, thiserror::Error)]
#[error("another folder stands where {0} was opened")]
pub(crate) struct Moved(pub(crate) String);

impl Moved {
    /// Whether it is among the causes of `error`.
    pub(crate) fn is_cause_of(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut cause = Some(error);
        while let Some(current) = cause {
            if current.is::<Self>() {
                return true;
            }
            cause = current.source();
        }
        false
    }
}

/// The error of a writer that finds another place than the one it opened. `describe`: `the repository at /srv/backups`.
pub(crate) fn another(describe: &str) -> Error {
    Error::new(ErrorKind::NoRepository, format!("{describe} is not the one that was opened: is its disk unmounted?"))
        .hint("nothing was stored in what stands there now; mount the disk again and repeat the command")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_itself_until_another_one_stands_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        assert!(root.is_same().unwrap());
        std::fs::rename(&path, &aside).unwrap();
        assert!(!root.is_same().unwrap());
        std::fs::create_dir(&path).unwrap();
        assert!(!root.is_same().unwrap());
        assert_eq!(root.check("the folder").unwrap_err().kind(), ErrorKind::NoRepository);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert!(root.is_same().unwrap(), "a disk that is mounted again is the same");
    }
}
