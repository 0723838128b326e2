//! The server's own dump file, which a save on its disk replaces: kept as it was, where the server does not do that by
//! itself all the time.
//!
//! A server with save points (`save 3600 1`) replaces its file by itself, and counts on what the newest save put there: one
//! more save is its everyday life, and putting an older file back would undo what it believes to be safe. Without save
//! points the file is somebody's: the last good copy, or a beginning that the server shall start from. So it gets a second
//! name before the save, and its own name back as soon as the new file is open.
//! Invariant: the second name goes away only when the first one names the old file again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::Host;

use crate::connection::Connection;
use crate::server::setting;

const DEFAULT_FILE: &str = "dump.rdb";
/// What the second name ends in.
const ASIDE: &str = "before-stackward";

/// What happens to the server's dump file when it must write one for us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OwnDump {
    /// It stays what it was, unless the server has save points and replaces it by itself.
    #[default]
    Keep,
    /// The new one may stay in its place.
    Replace,
}

/// Where the server saves, as this machine sees it.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] when it does not tell, [`ErrorKind::Unsupported`] when it is not visible from here.
pub(crate) async fn path(connection: &mut Connection, host: &dyn Host, data_dir: Option<&Path>) -> Result<PathBuf> {
    let folder = match data_dir {
        Some(folder) => folder.to_owned(),
        None => PathBuf::from(setting(connection, "dir").await?.ok_or_else(|| {
            Error::new(ErrorKind::PermissionDenied, "the server allows no replica, and does not tell where it saves")
                .hint("allow it: ACL SETUSER NAME +psync +sync +replconf; or name its working directory as `data_dir`")
        })?),
    };
    let name = setting(connection, "dbfilename").await?.unwrap_or_else(|| DEFAULT_FILE.to_owned());
    let path = folder.join(name);
    let seen = host.local_path(&path).filter(|path| path.parent().is_some_and(Path::is_dir));
    seen.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("{} of {} is not visible from here", path.display(), host.describe()),
        )
        .hint("name the folder that this machine sees as `data_dir`, or allow replication to the plan's user")
    })
}

/// The file that must be kept, when one must. Changes nothing.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when it cannot be kept from here.
pub(crate) async fn in_danger(
    connection: &mut Connection,
    host: &dyn Host,
    data_dir: Option<&Path>,
    wanted: OwnDump,
) -> Result<Option<PathBuf>> {
    let saves_by_itself = setting(connection, "save").await?.is_some_and(|points| !points.is_empty());
    if wanted == OwnDump::Replace || saves_by_itself {
        return Ok(None);
    }
    path(connection, host, data_dir).await.map(Some).map_err(would_be_lost)
}

/// A dump file that is kept. Dropping it before the save succeeded takes the second name away again.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    aside: PathBuf,
    /// Which file it was.
    before: Option<u64>,
}

impl Kept {
    /// Gives the server's file a second name, where that is called for.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when it would be replaced, and cannot be kept from here.
    pub(crate) async fn begin(
        connection: &mut Connection,
        host: &dyn Host,
        data_dir: Option<&Path>,
        wanted: OwnDump,
    ) -> Result<Option<Self>> {
        match in_danger(connection, host, data_dir, wanted).await? {
            Some(path) => Self::of(path).map(Some).map_err(would_be_lost),
            None => Ok(None),
        }
    }

    fn of(path: PathBuf) -> Result<Self> {
        let mut aside = path.clone().into_os_string();
        aside.push(".");
        aside.push(ASIDE);
        let aside = PathBuf::from(aside);
        let before = inode(&path)?;
        // When it is there already, a run of ours died: that one is the old file, and what has its name is ours.
        if before.is_some() && inode(&aside)?.is_none() {
            std::fs::hard_link(&path, &aside)
                .map_err(|source| Error::io("cannot give the server's dump file a second name", &path, source))?;
        }
        Ok(Self { path, aside, before })
    }

    /// The same, when what has the name now is what the server wrote.
    pub(crate) fn put_back_at_once(self) -> Result<()> {
        let written = inode(&self.path)?;
        self.put_back(written)
    }

    /// Gives the old file its name back; what the server wrote must be open, or of no more use. `written` is which file
    /// that is: when somebody saved again meanwhile, both are left alone.
    pub(crate) fn put_back(self, written: Option<u64>) -> Result<()> {
        let failed = |source| Error::io("cannot give the server's old dump file its name back", &self.path, source);
        let now = inode(&self.path)?;
        if now.is_some() && now != written {
            return Ok(());
        }
        if inode(&self.aside)?.is_some() {
            return std::fs::rename(&self.aside, &self.path).map_err(failed);
        }
        if now.is_some() { std::fs::remove_file(&self.path).map_err(failed) } else { Ok(()) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let unchanged = self.before.is_some() && inode(&self.path).ok().flatten() == self.before;
        if unchanged && inode(&self.aside).ok().flatten() == self.before {
            let _stays_as_a_second_name = std::fs::remove_file(&self.aside);
        }
    }
}

/// Which file has this name; `None` for what is none.
fn inode(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then(|| metadata.ino())),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("cannot look at the server's dump file", path, source)),
    }
}

fn would_be_lost(source: Error) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        "the server would write over its own dump file, which cannot be kept from here",
    )
    .hint(
        "let it send snapshots without a file (CONFIG SET repl-diskless-sync yes), name its folder as `data_dir`, \
             accept it with `dump_file: replace`, or save key by key with `modes: [export]`",
    )
    .caused_by(source)
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

    /// As a server saves: beside, then in its place.
    fn save(path: &Path, text: &str) -> Option<u64> {
        std::fs::write(path.with_extension("temp"), text).unwrap();
        std::fs::rename(path.with_extension("temp"), path).unwrap();
        inode(path).unwrap()
    }

    #[test]
    fn the_old_file_is_back_whatever_happened_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump.rdb");
        // There was none: none is left.
        let kept = Kept::of(path.clone()).unwrap();
        kept.put_back(save(&path, "new")).unwrap();
        assert_eq!(names(folder.path()), Vec::<String>::new());
        // There was one: it is back.
        save(&path, "old");
        let kept = Kept::of(path.clone()).unwrap();
        kept.put_back(save(&path, "new")).unwrap();
        assert_eq!(
            (names(folder.path()), std::fs::read_to_string(&path).unwrap()),
            (vec!["dump.rdb".into()], "old".into())
        );
        // The server deleted what it wrote (`rdb-del-sync-files`).
        let kept = Kept::of(path.clone()).unwrap();
        let written = save(&path, "new");
        std::fs::remove_file(&path).unwrap();
        kept.put_back(written).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        // The save failed.
        drop(Kept::of(path.clone()).unwrap());
        assert_eq!(names(folder.path()), ["dump.rdb"]);
        // We died in the middle: the next run gives the old one back.
        std::mem::forget(Kept::of(path.clone()).unwrap());
        save(&path, "ours");
        let kept = Kept::of(path.clone()).unwrap();
        kept.put_back(save(&path, "ours again")).unwrap();
        assert_eq!(
            (names(folder.path()), std::fs::read_to_string(&path).unwrap()),
            (vec!["dump.rdb".into()], "old".into())
        );
        // Somebody else saved: theirs stays, and the old one under its second name.
        let kept = Kept::of(path.clone()).unwrap();
        let written = save(&path, "ours");
        save(&path, "theirs");
        kept.put_back(written).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(names(folder.path()), ["dump.rdb", "dump.rdb.before-stackward"]);
    }
}
