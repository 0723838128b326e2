//! Databases that SQLite cannot read where they are: left with a hot journal, or in WAL mode where nothing may be written.
//! They are copied with their companions, and the copy is opened, which rolls it back or forward.
//!
//! Invariant: the files that were copied did not change meanwhile, and no other process had the database open in WAL mode.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode};

use super::backup::beside;
use super::connection::explain;

/// What belongs to a database besides its file, and must be there for a crash to be undone.
const COMPANIONS: [&str; 3] = ["", "-wal", "-journal"];

/// Whether `error` says that the database at `real` must be opened elsewhere: it needs a writer (`SQLITE_READONLY`), or an
/// index of its log in a folder where none can be made (`SQLITE_CANTOPEN`). With an index a process may be using it.
pub(crate) fn is_needed(error: &rusqlite::Error, real: &Path) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => true,
        Some(ErrorCode::CannotOpen) => !beside(real, "-shm").exists() && std::fs::File::open(real).is_ok(),
        _ => false,
    }
}

/// A file as it was: device, inode, length, and the time of its last change.
type Seen = (u64, u64, u64, i64, i64);

fn look(real: &Path) -> Result<Vec<Option<Seen>>> {
    let seen = |ending: &&str| {
        let path = beside(real, ending);
        match std::fs::metadata(&path) {
            Ok(file) => Ok(Some((file.dev(), file.ino(), file.len(), file.ctime(), file.ctime_nsec()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot look at the database", path, error)),
        }
    };
    COMPANIONS.iter().chain(&["-shm"]).map(seen).collect()
}

/// Copies the database at `real` to `target`, in a folder of our own, and opens the copy.
///
/// # Errors
/// [`ErrorKind::Busy`] when it changed meanwhile; also when it cannot be copied, and as [`explain`].
pub(crate) fn open(real: &Path, target: &Path) -> Result<Connection> {
    let before = look(real)?;
    for ending in COMPANIONS.iter().zip(&before).filter(|(_, seen)| seen.is_some()).map(|(ending, _)| ending) {
        let (from, to) = (beside(real, ending), beside(target, ending));
        std::fs::copy(&from, &to).map_err(|source| Error::io("cannot copy", from, source))?;
    }
    if look(real)? != before {
        return Err(Error::new(ErrorKind::Busy, format!("`{}` changed while it was copied", real.display()))
            .hint("its application has just begun to use it: back it up again")
            .retry_later());
    }
    Connection::open(target).map_err(|source| explain(source, real))
}
