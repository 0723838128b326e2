//! Where built things are kept between runs: outside the checkout in CI, whose checkouts are thrown away.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::process::{Result, Run, root};

/// Where the cache goes that every user can read, when ours is closed to others; our number follows.
const OPEN_FOLDER: &str = "/var/tmp/stackward-cache";
const WRITABLE_BY_OTHERS: u32 = 0o022;
const PASSABLE_BY_OTHERS: u32 = 0o001;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
    target: PathBuf,
}

impl Cache {
    /// `$STACKWARD_CACHE`, `$XDG_CACHE_HOME/stackward`, `~/.cache/stackward`, or the checkout's `target/`:
    /// the first that can be written. Cargo's target folder moves there only in CI, or when the first is set.
    pub(crate) fn find() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = variable("STACKWARD_CACHE");
        let in_ci = std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
        let own = named.is_some() || in_ci;
        let candidates = [
            named,
            variable("XDG_CACHE_HOME").map(|folder| folder.join("stackward")),
            variable("HOME").map(|folder| folder.join(".cache/stackward")),
        ];
        let outside = candidates.into_iter().flatten().find(|folder| is_writable(folder));
        let in_place = root().join("target");
        let target = match (variable("CARGO_TARGET_DIR"), &outside) {
            (Some(chosen), _) => root().join(chosen),
            (None, Some(folder)) if own => folder.join("target"),
            (None, _) => in_place.clone(),
        };
        let folder = outside.unwrap_or_else(|| in_place.join("cache"));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder, target })
    }

    /// Cargo's target folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A folder of its own for `what`, made when missing.
    pub(crate) fn folder(&self, what: &str) -> Result<PathBuf> {
        let folder = self.folder.join(what);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(folder)
    }

    /// As [`folder`](Self::folder), but every user can run what is in it: elsewhere when ours is in a home that others may
    /// not enter.
    pub(crate) fn open_folder(&self, what: &str) -> Result<PathBuf> {
        let own = self.folder(what)?;
        if own.ancestors().all(is_passable) {
            return Ok(own);
        }
        let id = Run::new("id").args(["-u"]).output()?;
        let open = PathBuf::from(format!("{OPEN_FOLDER}-{}", id.trim()));
        let failed = |error| format!("{}: {error}", open.display());
        std::fs::create_dir_all(&open).map_err(failed)?;
        // Everybody may make folders there: what is run from this one must be ours.
        let metadata = std::fs::symlink_metadata(&open).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid().to_string() != id.trim() || metadata.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(format!("{} is not a folder of yours that only you can write to: remove it", open.display()));
        }
        let folder = open.join(what);
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(folder)
    }

    /// Cargo, with the target folder that all chores share.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Run {
        Run::cargo().env("CARGO_TARGET_DIR", &self.target).args(arguments)
    }
}

fn is_passable(folder: &Path) -> bool {
    std::fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & PASSABLE_BY_OTHERS != 0)
}

/// Whether something can be written there: asked by writing.
fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, b""));
    written.and_then(|()| std::fs::remove_file(&probe)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_made_is_not_writable() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_writable(&folder.path().join("a/b")));
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(!is_writable(&file.join("below")));
    }
}
