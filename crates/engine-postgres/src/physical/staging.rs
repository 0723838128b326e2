//! Folders that are filled under another name and get their own when everything is in them.
//!
//! Invariant: until [`Staging::finish`], nothing stands where it shall stand, and dropping it removes what was written.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};

/// What a folder is called while it is filled.
const PREFIX: &str = ".stackward-";

/// See the module.
#[derive(Debug)]
pub(crate) struct Staging {
    folders: Vec<Folder>,
    /// Folders above, which were made for the sake of those within; outermost first.
    parents: Vec<PathBuf>,
    finished: bool,
}

#[derive(Debug)]
struct Folder {
    target: PathBuf,
    staged: PathBuf,
    /// Where what stands at the target goes, until it is removed.
    replaced: PathBuf,
}

impl Staging {
    /// For these folders. None is made yet, but what is above them.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when a server runs on one of them.
    pub(crate) fn new<'a>(targets: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut staging = Self { folders: Vec::new(), parents: Vec::new(), finished: false };
        for target in targets {
            if target.join("postmaster.pid").exists() {
                let message = format!("a server runs on {}, or was killed there", target.display());
                return Err(Error::new(ErrorKind::Busy, message)
                    .hint("stop it, or choose another folder; when no server runs, remove its postmaster.pid"));
            }
            let (parent, name) = target.parent().zip(target.file_name()).ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("{} cannot be a data directory", target.display()))
            })?;
            staging.make_parents(parent)?;
            let id = uuid::Uuid::new_v4().simple().to_string();
            let under = |what: &str| parent.join(format!("{PREFIX}{what}-{}-{}", name.to_string_lossy(), &id[..8]));
            let (staged, replaced) = (under("new"), under("old"));
            staging.folders.push(Folder { target: target.to_owned(), staged, replaced });
        }
        Ok(staging)
    }

    fn make_parents(&mut self, parent: &Path) -> Result<()> {
        let missing: Vec<&Path> = parent.ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            std::fs::create_dir(folder).map_err(|source| Error::io("cannot make the folder", folder, source))?;
            self.parents.push(folder.to_owned());
        }
        Ok(())
    }

    /// Where to write what shall stand at `path`, in one of the folders.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        for folder in &self.folders {
            if let Ok(rest) = path.strip_prefix(&folder.target) {
                return if rest.as_os_str().is_empty() { folder.staged.clone() } else { folder.staged.join(rest) };
            }
        }
        path.to_owned()
    }

    /// Gives every folder its name. What stood there is moved aside first, and removed when all have theirs.
    pub(crate) fn finish(mut self) -> Result<()> {
        for folder in self.folders.iter().filter(|folder| folder.staged.exists()) {
            let failed = |source| Error::io("cannot put the folder in its place", &folder.target, source);
            if folder.target.exists() {
                std::fs::rename(&folder.target, &folder.replaced).map_err(failed)?;
            }
            std::fs::rename(&folder.staged, &folder.target).map_err(failed)?;
            if let Some(parent) = folder.target.parent() {
                std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
            }
        }
        self.finished = true;
        for folder in self.folders.iter().filter(|folder| folder.replaced.exists()) {
            let failed = |source| Error::io("cannot remove what was replaced", &folder.replaced, source);
            std::fs::remove_dir_all(&folder.replaced).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Nobody can be told; whatever stays has a name that says where it comes from.
        for folder in &self.folders {
            if folder.replaced.exists() {
                let _new = std::fs::rename(&folder.target, &folder.staged);
                let _old = std::fs::rename(&folder.replaced, &folder.target);
            }
            let _gone = std::fs::remove_dir_all(&folder.staged);
        }
        for parent in self.parents.iter().rev() {
            // Fails when something else is in it by now.
            let _gone = std::fs::remove_dir(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn all_get_their_names_or_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let (data, space) = (root.path().join("deep/er/data"), root.path().join("space"));
        let write = |staging: &Staging, text: &str| {
            for folder in [&data, &space] {
                std::fs::create_dir_all(staging.path(folder)).unwrap();
                std::fs::write(staging.path(&folder.join("file")), text).unwrap();
            }
        };
        let begin = || Staging::new([data.as_path(), &space]).unwrap();
        let staging = begin();
        write(&staging, "never");
        drop(staging);
        assert_eq!(names(root.path()), [""; 0]);
        for text in ["first", "replaced"] {
            let staging = begin();
            write(&staging, text);
            staging.finish().unwrap();
            assert_eq!(names(root.path()), ["deep", "space"]);
            assert_eq!(names(data.parent().unwrap()), ["data"]);
            assert_eq!(std::fs::read_to_string(data.join("file")).unwrap(), text);
        }
        let staging = begin();
        write(&staging, "dropped");
        drop(staging);
        assert_eq!(std::fs::read_to_string(space.join("file")).unwrap(), "replaced");
        std::fs::write(data.join("postmaster.pid"), "1").unwrap();
        assert_eq!(Staging::new([data.as_path()]).unwrap_err().kind(), ErrorKind::Busy);
    }
}
