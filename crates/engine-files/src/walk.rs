//! The walk over a tree: depth first, names in the order of their bytes, which is the order of [`TreePath`]s.
//!
//! Invariant: symbolic links are never followed; below its base the walk goes from folder to folder by descriptor.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::RunContext;
use backup_core::context::OwnPlace;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::attributes::{self, Holder, Xattrs};
use crate::filter::{CACHE_TAG, IgnoreChain, Rules, What, is_cache};
use crate::futile::Futile;
use crate::owners::Owners;
use crate::route::Route;

/// Files with several names are remembered to recognise the others; beyond this many, further ones are saved as if
/// they were separate files.
const MAX_LINKS: usize = 1_000_000;

/// Paths longer than this cannot be handed to the kernel in one piece (`PATH_MAX`).
const MAX_KERNEL_PATH: usize = 4095;

/// Something the walk came upon.
#[derive(Debug)]
pub(crate) struct Found {
    /// What will be stored. A regular file has the length that it had a moment ago.
    pub(crate) entry: TreeEntry,
    /// What the file system said.
    pub(crate) stat: Stat,
    /// The folder it lies in; `None` for the base.
    pub(crate) parent: Option<Arc<OwnedFd>>,
}

impl Found {
    /// Its name in its folder.
    pub(crate) fn name(&self) -> &OsStr {
        self.entry.path.as_path().file_name().unwrap_or_default()
    }
}

/// What the walk left out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LeftOut {
    /// By a filter.
    pub(crate) excluded: u64,
    /// Because it could not be read.
    pub(crate) unreadable: u64,
    /// Because it was gone when we came to it.
    pub(crate) vanished: u64,
    /// Sockets: they belong to a running process and cannot be saved.
    pub(crate) sockets: u64,
    /// Folders that another file system is mounted on.
    pub(crate) mounts: u64,
}

/// Whether a folder is saved or only on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    OnTheWay,
    Saved,
}

/// A folder whose names are being visited.
#[derive(Debug)]
struct Level {
    folder: Arc<OwnedFd>,
    path: TreePath,
    names: Names,
    scope: Scope,
    route: Option<Arc<Route>>,
    device: u64,
    /// Everything in here was asked for by `include`.
    included: bool,
    ignore: Option<Arc<IgnoreChain>>,
}

/// The sorted names of a folder, in one allocation: folders with millions of files exist.
#[derive(Debug, Default)]
struct Names {
    bytes: Vec<u8>,
    spans: Vec<(usize, u16)>,
    next: usize,
}

impl Names {
    fn push(&mut self, name: &[u8]) {
        self.spans.push((self.bytes.len(), u16::try_from(name.len()).unwrap_or(u16::MAX)));
        self.bytes.extend_from_slice(name);
    }

    fn get(&self, (start, length): (usize, u16)) -> &[u8] {
        &self.bytes[start..start + usize::from(length)]
    }

    fn sort(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let name = |(start, length): &(usize, u16)| &bytes[*start..*start + usize::from(*length)];
        self.spans.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        self.bytes = bytes;
    }

    fn contains(&self, wanted: &[u8]) -> bool {
        self.spans.binary_search_by(|span| self.get(*span).cmp(wanted)).is_ok()
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let span = *self.spans.get(self.next)?;
        self.next += 1;
        Some(self.get(span).to_vec())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Walker<'a> {
    cx: &'a RunContext,
    rules: &'a Rules,
    owners: Arc<Owners>,
    base: PathBuf,
    /// The base is this path of the tree, not its root.
    at: Option<TreePath>,
    start: Option<Arc<Route>>,
    stack: Vec<Level>,
    links: HashMap<(u64, u64), TreePath>,
    links_full: bool,
    without_xattrs: HashSet<u64>,
    path_buffer: Vec<u8>,
    left_out: LeftOut,
    futile: Futile,
    opens_closed: bool,
    own: Vec<Own>,
}

/// A folder that belongs to the backup itself.
#[derive(Debug)]
struct Own {
    id: (u64, u64),
    place: OwnPlace,
}

impl Own {
    /// Those that are there now.
    fn of(cx: &RunContext) -> Vec<Self> {
        use std::os::unix::fs::MetadataExt;
        let own = |place: &OwnPlace| {
            let found = std::fs::metadata(&place.path).ok()?;
            Some(Self { id: (found.dev(), found.ino()), place: place.clone() })
        };
        cx.own_places().iter().filter_map(own).collect()
    }
}

impl<'a> Walker<'a> {
    /// A walk over what `route` leads to, below `base`.
    pub(crate) fn new(
        cx: &'a RunContext,
        base: &Path,
        route: Arc<Route>,
        rules: &'a Rules,
        owners: Arc<Owners>,
    ) -> Self {
        Self {
            cx,
            rules,
            owners,
            base: base.to_owned(),
            at: None,
            start: Some(route),
            stack: Vec::new(),
            links: HashMap::new(),
            links_full: false,
            without_xattrs: HashSet::new(),
            path_buffer: Vec::new(),
            left_out: LeftOut::default(),
            futile: Futile::new(&rules.unmatched),
            opens_closed: false,
            own: Own::of(cx),
        }
    }

    /// A walk over everything in the folder `folder`, which is `path` in the tree and at `base` for people. The folder
    /// itself is not found.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub(crate) fn inside(
        cx: &'a RunContext,
        folder: OwnedFd,
        base: &Path,
        path: &TreePath,
        rules: &'a Rules,
        owners: Arc<Owners>,
    ) -> Result<Self> {
        let mut walker = Self::new(cx, base, Arc::new(Route::default()), rules, owners);
        walker.start = None;
        walker.at = Some(path.clone());
        let failed = |errno: Errno| Error::io("cannot list the folder", base, errno.into());
        let device = rustix::fs::fstat(&folder).map_err(failed)?.st_dev;
        let mut above = TreePath::root();
        let mut included = rules.includes(&above, What::Directory);
        for name in path.components() {
            above = above.join(OsStr::from_bytes(name))?;
            included = included || rules.includes(&above, What::Directory);
        }
        let level = Level {
            folder: Arc::new(folder),
            path: path.clone(),
            names: Names::default(),
            scope: Scope::Saved,
            route: None,
            device,
            included,
            ignore: None,
        };
        walker.list(level).map_err(failed)?;
        Ok(walker)
    }

    /// Folders of a copy of our own may have modes that keep their owner out. They are found with those modes, then opened.
    pub(crate) fn opening_closed_folders(mut self) -> Self {
        self.opens_closed = true;
        self
    }

    /// What was left out so far.
    pub(crate) fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// The next entry, in order; `None` after the last.
    ///
    /// # Errors
    /// When a path that was asked for is missing or cannot be read, when the system is out of descriptors, and
    /// when cancelled. Trouble with a single file below is a warning.
    pub(crate) fn next(&mut self) -> Result<Option<Found>> {
        if let Some(route) = self.start.take()
            && let Some(found) = self.enter_base(route)?
        {
            return Ok(Some(found));
        }
        loop {
            self.cx.check_cancelled()?;
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            let Some(name) = level.names.take() else {
                self.stack.pop();
                continue;
            };
            if let Some(found) = self.visit(&name)? {
                return Ok(Some(found));
            }
        }
    }

    /// Forgets a file with several names that could not be saved under its first one; the next name takes its place.
    pub(crate) fn forget_link(&mut self, stat: &Stat) {
        self.links.remove(&(stat.st_dev, stat.st_ino));
    }

    fn enter_base(&mut self, route: Arc<Route>) -> Result<Option<Found>> {
        let base = self.base.clone();
        let broken = |errno: Errno| Error::io("cannot open the folder", &base, errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.base, flags, Mode::empty()).map_err(broken)?;
        let stat = rustix::fs::fstat(&folder).map_err(broken)?;
        let is_root = route.is_root;
        let scope = if is_root { Scope::Saved } else { Scope::OnTheWay };
        let found = if is_root {
            let xattrs = self.xattrs(&stat, Holder::Open(folder.as_fd())).map_err(broken)?;
            let entry = attributes::entry(TreePath::root(), EntryKind::Directory, &stat, xattrs, &self.owners);
            Some(Found { entry, stat, parent: None })
        } else {
            None
        };
        let included = self.rules.includes(&TreePath::root(), What::Directory);
        let level = Level {
            folder: Arc::new(folder),
            path: TreePath::root(),
            names: Names::default(),
            scope,
            route: Some(route),
            device: stat.st_dev,
            included,
            ignore: None,
        };
        self.list(level).map_err(|errno| Error::io("cannot list the folder", &self.base, errno.into()))?;
        Ok(found)
    }

    /// Looks at one name of the innermost folder.
    fn visit(&mut self, name: &[u8]) -> Result<Option<Found>> {
        let Some(level) = self.stack.last() else { return Ok(None) };
        let route = level.route.as_ref().and_then(|route| route.below.get(name)).cloned();
        let is_root = route.as_ref().is_some_and(|route| route.is_root);
        let (scope, parent) = (level.scope, Arc::clone(&level.folder));
        let path = level.path.join(OsStr::from_bytes(name))?;
        let stat = match rustix::fs::statat(&parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) if route.is_some() => return Err(self.asked_for(&path, errno)),
            Err(errno) => return self.trouble(&path, errno),
        };
        let kind = attributes::kind(&stat);
        let what = if kind == FileType::Directory { What::Directory } else { What::Other };
        let excluded = scope == Scope::Saved && !is_root && self.is_excluded(&path, what);
        if excluded && route.is_none() {
            self.left_out.excluded += 1;
            if what == What::Directory {
                self.note_out_of_reach(&path);
            }
            return Ok(None);
        }
        if is_root || (scope == Scope::Saved && !excluded) {
            self.futile.saw(&path, what);
        }
        if kind == FileType::Directory {
            if let Some(own) = self.own.iter().find(|own| own.id == (stat.st_dev, stat.st_ino)) {
                self.leave_out(own, &path, route.is_some())?;
                self.left_out.excluded += 1;
                return Ok(None);
            }
            let inside = is_root || (scope == Scope::Saved && !excluded);
            let scope = if inside { Scope::Saved } else { Scope::OnTheWay };
            return self.visit_folder(path, parent, stat, scope, route);
        }
        self.visit_other(path, parent, stat, kind)
    }

    /// Notes the patterns that cannot take back what lies in the folder `path`, which is left out.
    fn note_out_of_reach(&mut self, path: &TreePath) {
        let ignore = self.stack.last().and_then(|level| level.ignore.as_ref());
        let by_files = ignore.iter().flat_map(|chain| chain.out_of_reach(path));
        for pattern in self.rules.out_of_reach(path).chain(by_files) {
            self.futile.out_of_reach(pattern, path);
        }
    }

    /// The patterns that had no effect so far.
    pub(crate) fn futile(&self) -> &Futile {
        &self.futile
    }

    /// Says that a folder of our own is not saved.
    fn leave_out(&self, own: &Own, path: &TreePath, is_asked_for: bool) -> Result<()> {
        let OwnPlace { what, .. } = &own.place;
        if is_asked_for {
            let message = format!("`/{path}` is {what}: it would be saved into itself, and grow each time");
            return Err(Error::new(ErrorKind::Plan, message).hint(
                "take the path out of `paths` in the plan; docs/threat-model.md says how to mirror a repository",
            ));
        }
        self.cx.warn(format!("`/{path}` is {what}, and is not saved into itself"));
        Ok(())
    }

    fn is_excluded(&self, path: &TreePath, what: What) -> bool {
        let Some(level) = self.stack.last() else { return false };
        let asked_for = what == What::Directory || level.included || self.rules.includes(path, what);
        !asked_for
            || self.rules.excludes(path, what)
            || level.ignore.as_ref().is_some_and(|chain| chain.ignores(path, what))
    }

    fn visit_folder(
        &mut self,
        path: TreePath,
        parent: Arc<OwnedFd>,
        stat: Stat,
        scope: Scope,
        route: Option<Arc<Route>>,
    ) -> Result<Option<Found>> {
        let Some(level) = self.stack.last() else { return Ok(None) };
        let is_root = route.as_ref().is_some_and(|route| route.is_root);
        // A path that was asked for starts on whatever file system it is on.
        let device = if is_root { stat.st_dev } else { level.device };
        let crosses = scope == Scope::Saved && self.rules.one_file_system && stat.st_dev != device;
        let scope = if crosses { Scope::OnTheWay } else { scope };
        let included = level.included || self.rules.includes(&path, What::Directory);
        let ignore = if is_root { None } else { level.ignore.clone() };
        let name = path.as_path().file_name().unwrap_or_default().to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut opened = rustix::fs::openat(&parent, &name, flags, Mode::empty());
        if self.opens_closed && matches!(opened, Err(Errno::ACCESS)) {
            opened = rustix::fs::chmodat(&parent, &name, Mode::RWXU, AtFlags::empty())
                .and_then(|()| rustix::fs::openat(&parent, &name, flags, Mode::empty()));
        }
        let is_passed = scope == Scope::OnTheWay && route.is_some() && matches!(opened, Err(Errno::ACCESS));
        if is_passed {
            // Of a folder on the way nothing is listed: the right to pass through it (mode 711) is enough.
            opened = rustix::fs::openat(&parent, &name, flags | OFlags::PATH, Mode::empty());
        }
        let folder = match opened {
            Ok(folder) => folder,
            Err(errno) if route.is_some() => return Err(self.asked_for(&path, errno)),
            Err(errno) if is_refusal(errno) => {
                self.unreadable(&path, errno);
                let xattrs = self.xattrs_of(&path, &parent, &stat).unwrap_or_default();
                let entry = attributes::entry(path, EntryKind::Directory, &stat, xattrs, &self.owners);
                return Ok(Some(Found { entry, stat, parent: Some(parent) }));
            }
            Err(errno) => return self.trouble(&path, errno),
        };
        let held = if is_passed {
            self.xattrs_of(&path, &parent, &stat)
        } else {
            self.xattrs(&stat, Holder::Open(folder.as_fd()))
        };
        let xattrs = match held {
            Ok(xattrs) => xattrs,
            Err(errno) => return self.trouble(&path, errno),
        };
        let entry = attributes::entry(path.clone(), EntryKind::Directory, &stat, xattrs, &self.owners);
        if crosses && route.is_none() {
            self.left_out.mounts += 1;
            return Ok(Some(Found { entry, stat, parent: Some(parent) }));
        }
        let level = Level {
            folder: Arc::new(folder),
            path: path.clone(),
            names: Names::default(),
            scope,
            route,
            device,
            included,
            ignore,
        };
        if let Err(errno) = self.list(level) {
            if is_root || !is_refusal(errno) {
                return Err(self.asked_for(&path, errno));
            }
            self.unreadable(&path, errno);
        }
        Ok(Some(Found { entry, stat, parent: Some(parent) }))
    }

    fn visit_other(
        &mut self,
        path: TreePath,
        parent: Arc<OwnedFd>,
        stat: Stat,
        kind: FileType,
    ) -> Result<Option<Found>> {
        let id = (stat.st_dev, stat.st_ino);
        let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match kind {
            FileType::Socket => {
                self.left_out.sockets += 1;
                return Ok(None);
            }
            _ if stat.st_nlink > 1 && self.links.contains_key(&id) => {
                EntryKind::Hardlink { target: self.links.get(&id).cloned().unwrap_or_default() }
            }
            FileType::Symlink => {
                let name = path.as_path().file_name().unwrap_or_default();
                match rustix::fs::readlinkat(&parent, name, Vec::new()) {
                    Ok(target) => EntryKind::Symlink { target: target.into_bytes() },
                    Err(errno) => return self.trouble(&path, errno),
                }
            }
            FileType::RegularFile => EntryKind::File { size: attributes::size(&stat) },
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::CharDevice { major: device().0, minor: device().1 },
            FileType::BlockDevice => EntryKind::BlockDevice { major: device().0, minor: device().1 },
            _ => {
                self.cx.warn(format!("`/{path}` is of a kind that cannot be saved"));
                self.left_out.unreadable += 1;
                return Ok(None);
            }
        };
        let xattrs = match self.xattrs_of(&path, &parent, &stat) {
            Ok(xattrs) => xattrs,
            Err(errno) => return self.trouble(&path, errno),
        };
        if stat.st_nlink > 1 && !matches!(kind, EntryKind::Hardlink { .. }) {
            self.remember_link(id, &path);
        }
        let mut entry = attributes::entry(path, kind, &stat, xattrs, &self.owners);
        attributes::identify(&mut entry, &stat, self.rules.settle);
        Ok(Some(Found { entry, stat, parent: Some(parent) }))
    }

    fn remember_link(&mut self, id: (u64, u64), path: &TreePath) {
        if self.links.len() < MAX_LINKS {
            self.links.insert(id, path.clone());
        } else if !std::mem::replace(&mut self.links_full, true) {
            self.cx.warn(format!(
                "more than {MAX_LINKS} files have several names; further ones are saved as separate files"
            ));
        }
    }

    /// Reads the names of a folder and makes it the innermost one.
    fn list(&mut self, mut level: Level) -> Result<(), Errno> {
        if level.scope == Scope::OnTheWay {
            for name in level.route.iter().flat_map(|route| route.below.keys()) {
                level.names.push(name);
            }
            self.stack.push(level);
            return Ok(());
        }
        for item in Dir::read_from(&level.folder)? {
            let item = item?;
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." {
                level.names.push(name);
            }
        }
        level.names.sort();
        if self.rules.exclude_caches && level.names.contains(CACHE_TAG) && is_cache(&level.folder) {
            self.left_out.excluded += level.names.spans.len() as u64 - 1;
            level.names = Names::default();
            level.names.push(CACHE_TAG);
        }
        self.read_ignore_files(&mut level);
        self.stack.push(level);
        Ok(())
    }

    fn read_ignore_files(&self, level: &mut Level) {
        let names =
            self.rules.ignore_files().iter().filter(|name| level.names.contains(name)).cloned().collect::<Vec<_>>();
        for name in names {
            match IgnoreChain::read(&level.folder, &name, &level.path, level.ignore.clone()) {
                Ok(chain) => level.ignore = Some(Arc::new(chain)),
                Err(error) => self.cx.warn(format!("ignoring an ignore file: {}", error.chain())),
            }
        }
    }

    fn xattrs_of(&mut self, path: &TreePath, parent: &OwnedFd, stat: &Stat) -> Result<Xattrs, Errno> {
        let mut buffer = std::mem::take(&mut self.path_buffer);
        buffer.clear();
        buffer.extend_from_slice(self.base.as_os_str().as_bytes());
        if !buffer.ends_with(b"/") {
            buffer.push(b'/');
        }
        buffer.extend_from_slice(path.as_bytes());
        if buffer.len() > MAX_KERNEL_PATH || self.at.is_some() {
            use std::os::fd::AsRawFd;
            let name = path.as_path().file_name().unwrap_or_default();
            buffer = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            buffer.extend_from_slice(name.as_bytes());
        }
        let xattrs = self.xattrs(stat, Holder::Path(&buffer));
        self.path_buffer = buffer;
        xattrs
    }

    fn xattrs(&mut self, stat: &Stat, of: Holder<'_>) -> Result<Xattrs, Errno> {
        if self.without_xattrs.contains(&stat.st_dev) {
            return Ok(Xattrs::new());
        }
        match attributes::xattrs(of) {
            Ok(Some(xattrs)) => Ok(xattrs),
            Ok(None) => {
                self.without_xattrs.insert(stat.st_dev);
                Ok(Xattrs::new())
            }
            // A symbolic link to nowhere is not at fault, nor is a file whose attributes this user may not see.
            Err(Errno::ACCESS | Errno::PERM | Errno::LOOP) => Ok(Xattrs::new()),
            Err(errno) => Err(errno),
        }
    }

    fn asked_for(&self, path: &TreePath, errno: Errno) -> Error {
        let error = Error::io("cannot read a path that the plan names", path.below(&self.base), errno.into());
        if errno == Errno::NOENT { error.hint("correct `paths` in the plan, or remove the source") } else { error }
    }

    /// Decides what trouble with one file means: nothing but a warning, unless the whole system is in trouble.
    fn trouble(&mut self, path: &TreePath, errno: Errno) -> Result<Option<Found>> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
                self.left_out.vanished += 1;
                self.cx.warn(format!("`/{path}` vanished while it was saved"));
            }
            errno if is_refusal(errno) => self.unreadable(path, errno),
            Errno::MFILE | Errno::NFILE => {
                return Err(Error::io("too many open files", path.below(&self.base), errno.into())
                    .hint("raise the limit (`ulimit -n`): each level of folders holds one open"));
            }
            errno => return Err(Error::io("cannot read", path.below(&self.base), errno.into())),
        }
        Ok(None)
    }

    fn unreadable(&mut self, path: &TreePath, errno: Errno) {
        self.left_out.unreadable += 1;
        self.cx.warn(format!("`/{path}` cannot be read and is not in the backup: {errno}"));
    }
}

/// Errors that concern one file, not the system.
pub(crate) fn is_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ACCESS | Errno::PERM | Errno::IO | Errno::NODEV | Errno::NXIO | Errno::UCLEAN | Errno::NOTCONN
    )
}
