//! The file by which a directory knows itself. It is made with the directory, and looked for by whoever writes.
//!
//! Invariant: nothing is written into a folder without one, but for folders that hold snapshots from before there were
//! such files: an empty mount point is no directory, whatever lay on the disk that belongs there.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::MARKER;
use super::partial;
use crate::place::{self, Root};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format_version: u32,
    directory_id: String,
    created: Timestamp,
}

const FORMAT_VERSION: u32 = 1;

/// The directory that was opened.
#[derive(Clone)]
pub(super) struct Identity {
    path: PathBuf,
    root: Root,
    /// `None` in a folder from before there were markers, as long as nobody wrote into it.
    id: Option<String>,
}

impl Identity {
    /// That of the folder at `path`. Blocks.
    ///
    /// # Errors
    /// When its marker cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let root = Root::open(path).map_err(|source| Error::io("cannot open the directory", path, source))?;
        Ok(Self { path: path.to_owned(), root, id: read(path)? })
    }

    /// Tells a directory from a folder that is only there: a mount point whose disk is missing.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when it has no marker and holds no snapshots.
    pub(super) fn refuse_unless_made(&self, holds_snapshots: bool) -> Result<()> {
        if self.id.is_some() || holds_snapshots { Ok(()) } else { Err(never_made(&self.path)) }
    }

    /// Looks whether the directory that was opened still stands there. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when it does not, or when it never was one.
    pub(super) fn confirm(&self) -> Result<()> {
        self.confirm_folder()?;
        match (&self.id, read(&self.path)?) {
            (Some(own), Some(found)) if *own == found => Ok(()),
            (None, Some(_)) => Ok(()),
            (None, None) => Err(never_made(&self.path)),
            _ => Err(place::another(&super::describe(&self.path))),
        }
    }

    /// Looks whether the folder that was opened still stands there, whatever is in it. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when it does not.
    pub(super) fn confirm_folder(&self) -> Result<()> {
        self.root.check(&super::describe(&self.path))
    }

    /// Makes the marker of a folder that holds snapshots and has none. Blocks.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn adopt(&self, holds_snapshots: bool) -> Result<()> {
        if holds_snapshots && self.id.is_none() {
            self.confirm_folder()?;
            make(&self.path)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

fn never_made(path: &Path) -> Error {
    Error::new(
        ErrorKind::NoRepository,
        format!("{} was never made a directory for snapshots, and holds none", path.display()),
    )
    .hint("mount the disk if one is missing; if this is the place, run `stackward init` once")
}

/// The id in the marker of the folder at `path`; `None` when it has none. Blocks.
fn read(path: &Path) -> Result<Option<String>> {
    let path = path.join(MARKER);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("cannot read the file", &path, error)),
    };
    let marker: Marker = serde_json::from_slice(&bytes).map_err(|source| {
        Error::new(ErrorKind::Damaged, format!("{MARKER} does not say which directory this is"))
            .with("path", path.display())
            .caused_by(source)
            .hint("restore the file from a copy of the directory; if there is none, remove it and run `stackward init`")
    })?;
    Ok(Some(marker.directory_id))
}

/// Makes the marker, whole or not at all. Of two who do so at once, both find the same one afterwards. Blocks.
/// Returns `false` when there was one.
pub(super) fn make(path: &Path) -> Result<bool> {
    if read(path)?.is_some() {
        return Ok(false);
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    let marker = Marker { format_version: FORMAT_VERSION, directory_id: id.clone(), created: Timestamp::now() };
    let json = serde_json::to_vec_pretty(&marker)
        .map_err(|source| Error::new(ErrorKind::Internal, "cannot write a marker").caused_by(source))?;
    let (partial, whole) = (path.join(format!("{}{id}", super::names::PARTIAL)), path.join(MARKER));
    let made = (|| {
        let mut file = partial::make_file(&partial)?;
        file.write_all(&json)?;
        file.sync_all()?;
        partial::rename_new(&partial, &whole)
    })();
    let _gone = std::fs::remove_file(&partial);
    match made {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(Error::io("cannot make the file", &whole, error)),
    }
    partial::sync_folder(path)?;
    Ok(true)
}
