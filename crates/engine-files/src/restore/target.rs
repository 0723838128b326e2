//! Where each part of the tree goes, and what stands there now. Looks, changes nothing.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::engine::{Claim, Existing, Place, RestoreTarget, Unknown};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use rustix::fs::{Access, AtFlags, FileType, StatVfsMountFlags};
use rustix::io::Errno;

use super::build::open_folder;
use super::location::{Location, Reach, is_mounted, kind_of, mounts_below, names_in, real};

/// What a fresh ext file system holds.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// What stands at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Nothing,
    /// An empty folder.
    EmptyFolder,
    /// Anything else: the part is merged into it.
    Something,
    /// A folder that a file system is mounted on: it is merged into, from a staging folder inside.
    MountPoint,
}

/// A saved path.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    pub(crate) stored: TreePath,
    /// The path of the plan that it lies in: no link from there on is followed.
    pub(crate) named: TreePath,
}

/// A part of the tree that is put in one place.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// The part: everything at and below this path.
    pub(crate) stored: TreePath,
    /// Where it goes.
    pub(crate) location: Location,
    /// Its real path, for people.
    pub(crate) destination: PathBuf,
    /// What stands there.
    pub(crate) standing: Standing,
    /// A file system that is mounted inside another part.
    pub(crate) nested: bool,
    /// Only these paths, and the folders that lead to them. Empty: everything.
    selection: Vec<TreePath>,
    /// Inside, and somebody else's: nothing of it is removed.
    pub(crate) neighbours: Vec<Inside>,
    /// What is mounted inside.
    pub(crate) mounts: Vec<TreePath>,
}

/// A neighbour's place inside a part.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) path: TreePath,
    owner: String,
    claim: Claim,
}

impl Unit {
    /// Whether an entry at `path` belongs to this part.
    pub(crate) fn takes(&self, path: &TreePath) -> bool {
        path.starts_with(&self.stored)
            && (self.selection.is_empty()
                || self.selection.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path)))
            && !self.leaves_alone(path)
    }

    /// Whether `path` is a neighbour's, who does not want it written.
    pub(crate) fn leaves_alone(&self, path: &TreePath) -> bool {
        self.neighbours.iter().any(|inside| inside.claim == Claim::LeaveAlone && path.starts_with(&inside.path))
    }

    /// Whether nothing at `path` may be removed: it is mounted, or somebody else's.
    pub(crate) fn protects(&self, path: &TreePath) -> bool {
        self.neighbours.iter().any(|inside| path.starts_with(&inside.path))
            || self.mounts.iter().any(|mount| path.starts_with(mount))
    }

    /// Whether what stands there may stay in parts: it is not simply exchanged.
    pub(crate) fn is_merged(&self) -> bool {
        matches!(self.standing, Standing::Something | Standing::MountPoint)
    }

    /// Opens the folders that lead to the destination.
    pub(crate) fn reach(&self) -> Result<Reach> {
        self.location.reach()
    }

    /// The folder that it is staged in: on the file system of its destination, and there already.
    pub(crate) fn staging_folder(&self) -> Result<(std::os::fd::OwnedFd, PathBuf)> {
        let reach = self.reach()?;
        if self.standing == Standing::MountPoint {
            let inside = super::location::enter(reach.folder.as_fd(), &reach.name)
                .map_err(|errno| Error::io("cannot open the mount point", &self.destination, errno.into()))?;
            return Ok((inside, self.destination.clone()));
        }
        let levels = reach.missing.len() + 1;
        let path = self.destination.ancestors().nth(levels).unwrap_or(Path::new("/")).to_owned();
        Ok((reach.folder, path))
    }

    /// Fails when this user may not write where it is staged.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let (folder, path) = self.staging_folder()?;
        rustix::fs::accessat(&folder, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| Error::io("cannot restore into the folder", path, errno.into()))
    }

    /// What will happen, for people.
    pub(crate) fn steps(&self, unknown: Unknown) -> Vec<String> {
        let (what, to) = (format!("/{}", self.stored), self.destination.display());
        let what = if self.stored.is_root() { "the tree".to_owned() } else { format!("`{what}`") };
        let mut steps = vec![match self.standing {
            Standing::MountPoint => format!("write {what} inside `{to}`, a mount point, under a temporary name"),
            _ => format!("write {what} beside `{to}`, under a temporary name"),
        }];
        let rest = match unknown {
            Unknown::Keep => "what is not in the snapshot stays",
            Unknown::Delete => "then remove what is not in the snapshot",
        };
        steps.push(match self.standing {
            Standing::Nothing => format!("rename it to `{to}`"),
            Standing::EmptyFolder => format!("put it in the place of the empty folder `{to}`"),
            Standing::Something | Standing::MountPoint => format!("put it into `{to}`, entry by entry; {rest}"),
        });
        steps.extend(self.steps_of_neighbours());
        steps
    }

    /// One line for each neighbour: its places may be many (a database and its companions).
    fn steps_of_neighbours(&self) -> Vec<String> {
        let mut steps = Vec::new();
        let mut told: Vec<&str> = Vec::new();
        for inside in &self.neighbours {
            if told.contains(&inside.owner.as_str()) {
                continue;
            }
            told.push(&inside.owner);
            let others = self.neighbours.iter().filter(|other| other.owner == inside.owner).count() - 1;
            let more = if others == 0 { String::new() } else { format!(" and {others} more") };
            let path = self.place_of(&inside.path);
            let path = path.display();
            steps.push(match inside.claim {
                Claim::LeaveAlone => format!("leave `{path}`{more} alone, which belongs to {}", inside.owner),
                Claim::Write => format!(
                    "put back `{path}`{more} as it was saved here, and remove nothing of it: it belongs to {}, of which the \
                     snapshot has no other copy",
                    inside.owner
                ),
            });
        }
        steps
    }

    /// The real path of a stored path of this part.
    pub(crate) fn place_of(&self, path: &TreePath) -> PathBuf {
        below(path, &self.stored).map_or_else(|| self.destination.clone(), |rest| rest.below(&self.destination))
    }

    /// What the operator should know.
    pub(crate) fn warnings(&self, bytes: u64) -> Result<Vec<String>> {
        let (folder, path) = self.staging_folder()?;
        let Ok(space) = rustix::fs::fstatvfs(&folder) else { return Ok(Vec::new()) };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free >= bytes {
            return Ok(Vec::new());
        }
        Ok(vec![format!("the restore needs {bytes} bytes where `{}` has {free} free", path.display())])
    }

    /// Whether the file system that is mounted there cannot be written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.staging_folder()
            .and_then(|(folder, path)| {
                rustix::fs::fstatvfs(&folder).map_err(|errno| Error::io("cannot look at", path, errno.into()))
            })
            .is_ok_and(|space| space.f_flag.contains(StatVfsMountFlags::RDONLY))
    }
}

/// `path` relative to `folder`, when it lies strictly below.
pub(crate) fn below(path: &TreePath, folder: &TreePath) -> Option<TreePath> {
    if path == folder || !path.starts_with(folder) {
        return None;
    }
    let skipped = if folder.is_root() { 0 } else { folder.as_bytes().len() + 1 };
    TreePath::new(path.as_bytes().get(skipped..)?.to_vec()).ok()
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

/// Decides which parts go where. What is mounted inside a part comes before it: the first that takes an entry has it.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when something stands in the way and may not be replaced.
pub(crate) fn decide(roots: &[Root], to: &RestoreTarget) -> Result<Vec<Unit>> {
    if to.rename.is_some() {
        return Err(Error::new(ErrorKind::Usage, "files are not restored under another name")
            .hint("restore into a folder and rename there"));
    }
    to.refuse_comparison("files")?;
    if to.unknown == Unknown::Delete && !to.select.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "`--delete` is about whole sources, not about a selection")
            .hint("leave `--select` out, or remove by hand what is too much"));
    }
    let selection = selection(to)?;
    let mut units = Vec::new();
    match &to.place {
        Place::Original => {
            for (root, stored) in parts(roots, &selection)? {
                units.push(unit(stored.clone(), original(&root.named, &stored)?, Vec::new(), to)?);
            }
        }
        Place::Folder(folder) => {
            let folder = folder_location(folder)?;
            let whole = unit(TreePath::root(), folder.clone(), selection.clone(), to)?;
            if matches!(whole.standing, Standing::Nothing | Standing::EmptyFolder) {
                units.push(whole);
            } else {
                check_free(&whole, to)?;
                check_is_folder(&whole)?;
                for (_, stored) in parts(roots, &selection)? {
                    units.push(unit(stored.clone(), folder.join(&stored), Vec::new(), to)?);
                }
            }
        }
    }
    for unit in &units {
        check_free(unit, to)?;
    }
    with_mounts(units, to)
}

/// Where a saved path was: links above the path that the plan names are followed, that path and what is below are not.
fn original(named: &TreePath, stored: &TreePath) -> Result<Location> {
    let above = named.as_path().parent().map_or_else(|| PathBuf::from("/"), |parent| Path::new("/").join(parent));
    let skipped = named.components().count().saturating_sub(1);
    let rest: Vec<&[u8]> = stored.components().skip(skipped).collect();
    Ok(Location::new(&above, &TreePath::new(rest.join(&b'/'))?))
}

/// A folder that the operator named. Whoever prepared the folder above must not lead us elsewhere by a link.
fn folder_location(folder: &Path) -> Result<Location> {
    let folder =
        std::path::absolute(folder).map_err(|source| Error::io("cannot resolve the folder", folder, source))?;
    let above = folder.parent().unwrap_or(Path::new("/"));
    let name = folder.file_name().map(|name| TreePath::new(name.as_bytes().to_vec())).transpose()?;
    Ok(Location::new(above, &name.unwrap_or_default()))
}

/// The parts to restore, each with the saved path that it lies in: the selection, or else the saved paths. A selected
/// folder above saved paths stands for them.
fn parts<'a>(roots: &'a [Root], selection: &[TreePath]) -> Result<Vec<(&'a Root, TreePath)>> {
    let whole = |root: &'a Root| (root, root.stored.clone());
    if selection.is_empty() {
        return Ok(roots.iter().map(whole).collect());
    }
    let mut parts = Vec::new();
    for wanted in selection {
        if let Some(root) = roots.iter().find(|root| wanted.starts_with(&root.stored)) {
            parts.push((root, wanted.clone()));
            continue;
        }
        let before = parts.len();
        parts.extend(roots.iter().filter(|root| root.stored.starts_with(wanted)).map(whole));
        if parts.len() == before {
            return Err(Error::new(ErrorKind::NotFound, format!("`/{wanted}` is not in the backup"))
                .hint("`stackward ls` shows what is"));
        }
    }
    Ok(parts)
}

fn unit(stored: TreePath, location: Location, selection: Vec<TreePath>, to: &RestoreTarget) -> Result<Unit> {
    let destination = location.path();
    let standing = standing(&location.reach()?, &destination)?;
    let mut neighbours = Vec::new();
    for neighbour in &to.neighbours {
        // A neighbour's path may be a link: it and what it leads to are the neighbour's.
        let above = neighbour.path.parent().map_or_else(PathBuf::new, real);
        let itself = neighbour.path.file_name().map(|name| above.join(name)).unwrap_or_default();
        for place in [itself, real(&neighbour.path)] {
            if let Some(path) = inside(&stored, &destination, &place)?
                && neighbours.iter().all(|known: &Inside| known.path != path)
            {
                neighbours.push(Inside { path, owner: neighbour.owner.clone(), claim: neighbour.claim });
            }
        }
    }
    Ok(Unit { stored, location, destination, standing, nested: false, selection, neighbours, mounts: Vec::new() })
}

/// The stored path of what is at `path` now, when that lies strictly inside the part.
fn inside(stored: &TreePath, destination: &Path, path: &Path) -> Result<Option<TreePath>> {
    let Ok(rest) = path.strip_prefix(destination) else { return Ok(None) };
    if rest.as_os_str().is_empty() {
        return Ok(None);
    }
    rest.components().try_fold(stored.clone(), |path, name| path.join(name.as_os_str())).map(Some)
}

/// Adds a part for each file system that is mounted inside a part that is merged.
fn with_mounts(units: Vec<Unit>, to: &RestoreTarget) -> Result<Vec<Unit>> {
    let mut all = Vec::new();
    for mut outer in units {
        if !outer.is_merged() {
            all.push(outer);
            continue;
        }
        let mut nested = Vec::new();
        for mount in mounts_below(&outer.destination)? {
            let Some(stored) = inside(&outer.stored, &outer.destination, &mount)? else { continue };
            outer.mounts.push(stored.clone());
            let Some(rest) = below(&stored, &outer.stored) else { continue };
            let location = outer.location.join(&rest);
            // What lies under another mount, or is a file, is not a place to restore into; putting it there would fail.
            let found = location.reach().is_ok_and(|reach| {
                reach.missing.is_empty()
                    && kind_of(reach.folder.as_fd(), &reach.name).ok().flatten() == Some(FileType::Directory)
            });
            if !found || !outer.takes(&stored) {
                continue;
            }
            let one = unit(stored, location, outer.selection.clone(), to)?;
            if one.standing == Standing::MountPoint {
                nested.push(Unit { nested: true, ..one });
            }
        }
        for one in &mut nested {
            one.mounts = outer.mounts.iter().filter(|mount| below(mount, &one.stored).is_some()).cloned().collect();
        }
        // The innermost first.
        all.extend(nested.into_iter().rev());
        all.push(outer);
    }
    Ok(all)
}

/// Fails when the target is occupied and what stands there may not be replaced.
fn check_free(unit: &Unit, to: &RestoreTarget) -> Result<()> {
    if to.existing != Existing::Refuse || !unit.is_merged() {
        return Ok(());
    }
    let occupied = |path: &Path| {
        Error::new(ErrorKind::AlreadyExists, "the target is not empty").with("path", path.display()).hint(
            "restore elsewhere, or add --force: it replaces what the snapshot has, and keeps what it does not have",
        )
    };
    let reach = unit.reach()?;
    match open_folder(reach.folder.as_fd(), &reach.name) {
        Ok(folder) if holds_only_folders(folder.as_fd(), &unit.stored, unit)? => Ok(()),
        Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => Err(occupied(&unit.destination)),
        Err(errno) => Err(Error::io("cannot look into the target", &unit.destination, errno.into())),
    }
}

/// Whether a folder holds nothing but folders, and what neighbours put there: then nothing can be lost.
fn holds_only_folders(folder: BorrowedFd<'_>, path: &TreePath, unit: &Unit) -> Result<bool> {
    let broken = |errno: Errno| Error::io("cannot look into the target", unit.place_of(path), errno.into());
    for name in names_in(folder).map_err(broken)? {
        let inner = path.join(&name)?;
        if unit.neighbours.iter().any(|neighbour| inner.starts_with(&neighbour.path)) {
            continue;
        }
        if kind_of(folder, &name).map_err(broken)? != Some(FileType::Directory) {
            return Ok(false);
        }
        if name.as_bytes() == LOST_AND_FOUND.as_bytes() {
            continue;
        }
        let opened = open_folder(folder, &name).map_err(broken)?;
        if !holds_only_folders(opened.as_fd(), &inner, unit)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn standing(reach: &Reach, path: &Path) -> Result<Standing> {
    if !reach.missing.is_empty() {
        return Ok(Standing::Nothing);
    }
    let broken = |errno: Errno| Error::io("cannot look at the target", path, errno.into());
    let (folder, name) = (reach.folder.as_fd(), OsStr::new(&reach.name));
    let Some(kind) = kind_of(folder, name).map_err(broken)? else { return Ok(Standing::Nothing) };
    if is_mounted(folder, name).map_err(broken)? {
        if kind != FileType::Directory {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the target is a file that is mounted; it cannot be replaced",
            )
            .with("path", path.display())
            .hint("unmount it, or restore elsewhere"));
        }
        return Ok(Standing::MountPoint);
    }
    if kind == FileType::Directory {
        let opened = open_folder(folder, name).map_err(broken)?;
        if names_in(opened.as_fd()).map_err(broken)?.is_empty() {
            return Ok(Standing::EmptyFolder);
        }
    }
    Ok(Standing::Something)
}

fn check_is_folder(unit: &Unit) -> Result<()> {
    let reach = unit.reach()?;
    let kind = kind_of(reach.folder.as_fd(), &reach.name);
    let kind = kind.map_err(|errno| Error::io("cannot look at the target", &unit.destination, errno.into()))?;
    if kind == Some(FileType::Directory) { Ok(()) } else { Err(super::location::in_the_way(&unit.destination)) }
}
