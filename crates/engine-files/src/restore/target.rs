//! Where each part of the tree goes, and what stands there now. Looks, changes nothing.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::engine::{Existing, Place, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags};

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Nothing,
    /// An empty folder.
    EmptyFolder,
    /// Anything else.
    Something,
    /// A folder that a file system is mounted on: it cannot be renamed, its content can.
    MountPoint,
}

/// A part of the tree that is put in one place.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// The part: everything at and below this path.
    pub(crate) stored: TreePath,
    /// Where it goes.
    pub(crate) destination: PathBuf,
    /// What stands there.
    pub(crate) standing: Standing,
    /// Only these paths, and the folders that lead to them. Empty: everything.
    selection: Vec<TreePath>,
}

impl Unit {
    /// Whether an entry at `path` belongs to this part.
    pub(crate) fn takes(&self, path: &TreePath) -> bool {
        path.starts_with(&self.stored)
            && (self.selection.is_empty()
                || self.selection.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path)))
    }

    /// The folder that it is staged in: on the file system of its destination, and there already.
    pub(crate) fn staging_folder(&self) -> &Path {
        if self.standing == Standing::MountPoint {
            return &self.destination;
        }
        let mut ancestors = self.destination.ancestors().skip(1);
        ancestors.find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
    }

    /// Fails when this user may not write where it is staged.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let folder = self.staging_folder();
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| Error::io("cannot restore into the folder", folder, errno.into()))
    }

    /// What will happen, for people.
    pub(crate) fn steps(&self) -> Vec<String> {
        let (what, to) = (format!("/{}", self.stored), self.destination.display());
        let what = if self.stored.is_root() { "the tree".to_owned() } else { format!("`{what}`") };
        let mut steps = vec![format!("write {what} beside `{to}`, under a temporary name")];
        steps.push(match self.standing {
            Standing::Nothing => format!("rename it to `{to}`"),
            Standing::EmptyFolder => format!("put it in the place of the empty folder `{to}`"),
            Standing::Something => format!("put it in the place of `{to}`, then remove what stood there"),
            Standing::MountPoint => format!("move it into `{to}`, a mount point, then remove what stood there"),
        });
        steps
    }

    /// What the operator should know.
    pub(crate) fn warnings(&self, bytes: u64) -> Vec<String> {
        let folder = self.staging_folder();
        let Ok(space) = rustix::fs::statvfs(folder) else { return Vec::new() };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free >= bytes {
            return Vec::new();
        }
        vec![format!("the restore needs {bytes} bytes where `{}` has {free} free", folder.display())]
    }
}

/// What was selected: checked, outermost only.
pub(crate) fn selection(to: &RestoreTarget) -> Result<Vec<TreePath>> {
    let mut selection = Vec::new();
    for text in &to.select {
        let path = TreePath::new(text.trim_start_matches('/').trim_end_matches('/')).map_err(|source| {
            Error::new(ErrorKind::Usage, format!("`{text}` is not a path in a backup")).caused_by(source)
        })?;
        selection.push(path);
    }
    selection.sort();
    selection.dedup();
    let all = selection.clone();
    selection.retain(|path| !all.iter().any(|other| other != path && path.starts_with(other)));
    Ok(selection)
}

/// Decides which parts go where.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when something stands in the way and may not be replaced.
pub(crate) fn decide(roots: &[TreePath], to: &RestoreTarget) -> Result<Vec<Unit>> {
    if to.rename.is_some() {
        return Err(Error::new(ErrorKind::Usage, "files are not restored under another name")
            .hint("restore into a folder and rename there"));
    }
    let selection = selection(to)?;
    let units = match &to.place {
        Place::Original => parts(roots, &selection)?.into_iter().map(|stored| unit(stored, Path::new("/"))).collect(),
        Place::Folder(folder) => {
            let folder =
                std::path::absolute(folder).map_err(|source| Error::io("cannot resolve the folder", folder, source))?;
            let standing = standing(&folder)?;
            let free = matches!(standing, Standing::Nothing | Standing::EmptyFolder)
                || (standing == Standing::MountPoint && is_empty(&folder)?);
            if free || !folder.is_dir() {
                vec![Ok(Unit { stored: TreePath::root(), destination: folder, standing, selection })]
            } else {
                refuse(&folder, to.existing)?;
                parts(roots, &selection)?.into_iter().map(|stored| unit(stored, &folder)).collect()
            }
        }
    };
    let units: Vec<Unit> = units.into_iter().collect::<Result<_>>()?;
    for unit in &units {
        let occupied = match unit.standing {
            Standing::Nothing | Standing::EmptyFolder => false,
            Standing::Something => true,
            Standing::MountPoint => !is_empty(&unit.destination)?,
        };
        if occupied {
            refuse(&unit.destination, to.existing)?;
        }
        if unit.destination == Path::new("/") {
            return Err(Error::new(ErrorKind::Unsupported, "a running system cannot be replaced as a whole")
                .hint("restore into a folder, or select paths"));
        }
    }
    Ok(units)
}

/// The parts to restore: the selection, or else the saved paths. A selected folder above saved paths stands for them.
fn parts(roots: &[TreePath], selection: &[TreePath]) -> Result<Vec<TreePath>> {
    if selection.is_empty() {
        return Ok(roots.to_vec());
    }
    let mut parts = Vec::new();
    for wanted in selection {
        if roots.iter().any(|root| wanted.starts_with(root)) {
            parts.push(wanted.clone());
            continue;
        }
        let before = parts.len();
        parts.extend(roots.iter().filter(|root| root.starts_with(wanted)).cloned());
        if parts.len() == before {
            return Err(Error::new(ErrorKind::NotFound, format!("`/{wanted}` is not in the backup"))
                .hint("`stackward ls` shows what is"));
        }
    }
    Ok(parts)
}

fn unit(stored: TreePath, base: &Path) -> Result<Unit> {
    let destination = stored.below(base);
    let standing = standing(&destination)?;
    Ok(Unit { stored, destination, standing, selection: Vec::new() })
}

fn refuse(path: &Path, existing: Existing) -> Result<()> {
    match existing {
        Existing::Replace | Existing::Update => Ok(()),
        Existing::Refuse => Err(Error::new(ErrorKind::AlreadyExists, "the target is not empty")
            .with("path", path.display())
            .hint("restore elsewhere, or add --force to replace what stands there")),
    }
}

fn standing(path: &Path) -> Result<Standing> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Nothing),
        Err(source) => return Err(Error::io("cannot look at the target", path, source)),
    };
    if is_mount_point(path, &metadata) {
        if !metadata.is_dir() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the target is a file that is mounted; it cannot be replaced",
            )
            .with("path", path.display())
            .hint("unmount it, or restore elsewhere"));
        }
        return Ok(Standing::MountPoint);
    }
    if metadata.is_dir() && is_empty(path)? {
        return Ok(Standing::EmptyFolder);
    }
    Ok(Standing::Something)
}

fn is_mount_point(path: &Path, metadata: &std::fs::Metadata) -> bool {
    let statx = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
    if let Ok(statx) = statx
        && statx.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        return statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    }
    // Kernels before 5.8: another file system than the folder above; bind mounts of the same one are not seen.
    let parent = path.parent().and_then(|parent| std::fs::metadata(parent).ok());
    parent.is_none_or(|parent| parent.dev() != metadata.dev())
}

/// Whether a folder holds nothing; the `lost+found` of a fresh file system is nothing.
fn is_empty(folder: &Path) -> Result<bool> {
    let broken = |source| Error::io("cannot look into the target", folder, source);
    for item in std::fs::read_dir(folder).map_err(broken)? {
        if item.map_err(broken)?.file_name().as_bytes() != super::place::LOST_AND_FOUND.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}
