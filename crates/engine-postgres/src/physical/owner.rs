//! Whom the files of a server belong to, and the modes that it insists on.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};
use nix::unistd::User;

/// PostgreSQL refuses a data directory that others may enter.
pub(super) const PRIVATE: u32 = 0o700;
/// The system user of the server on every distribution.
const SERVER_USER: &str = "postgres";

/// The owner of a server's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// When we may give files away: the user that the plan names, else the owner of the data directory that stands there,
    /// else the system user `postgres`, when there is one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no user of the name in the plan.
    pub(crate) fn find(named: Option<&str>, data: &Path) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        if named.is_none()
            && let Ok(standing) = std::fs::metadata(data)
            && standing.uid() != 0
        {
            return Ok(Some(Self { uid: standing.uid(), gid: standing.gid() }));
        }
        let name = named.unwrap_or(SERVER_USER);
        let user = User::from_name(name)
            .map_err(|source| Error::from_io("cannot look up system users", std::io::Error::from(source)))?;
        match user {
            Some(user) => Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
            None if named.is_none() => Ok(None),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no system user `{name}`"))
                .hint("name an existing one as `run_as` in the plan")),
        }
    }

    /// Makes it the owner of `path`.
    pub(crate) fn take(self, path: &Path) -> Result<()> {
        lchown(path, Some(self.uid), Some(self.gid)).map_err(|source| Error::io("cannot set the owner", path, source))
    }
}

pub(super) fn own(path: &Path, owner: Option<Owner>) -> Result<()> {
    owner.map_or(Ok(()), |owner| owner.take(path))
}

pub(super) fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<()> {
    let failed = |source| Error::io("cannot make the folder", path, source);
    std::fs::create_dir_all(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    own(path, owner)
}

/// Makes a folder that only the server may enter.
pub(crate) fn make_private(path: &Path, owner: Option<Owner>) -> Result<()> {
    make_folder(path, PRIVATE, owner)
}

/// Writes a small file that only the server may read.
pub(crate) fn write_private(path: &Path, content: &[u8], owner: Option<Owner>) -> Result<()> {
    let failed = |source| Error::io("cannot write the file", path, source);
    std::fs::write(path, content).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    own(path, owner)
}
