//! What a restore would meet: the stored tree and what stands at its target, walked side by side. Changes nothing.
//!
//! Invariant: only what the plan's rules and the snapshot's own would both have saved can be removed; whatever a filter
//! leaves out, is mounted or belongs to others is never among it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use backup_core::engine::{Changes, Unknown};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{EntryKind, FileTime, TreeEntry, TreePath};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::Asked;
use super::build::open_folder;
use super::location::{is_mounted, kind_of, names_in};
use super::merge::{At, is_database};
use super::spool::Spool;
use super::target::{self, Unit};
use crate::filter::{CACHE_TAG, Rules, What};
use crate::owners::Owners;
use crate::sqlite::COMPANIONS;
use crate::walk::{Found, Walker};

/// How far the times of files may lag behind the clock.
const TICK: std::time::Duration = std::time::Duration::from_millis(10);

/// What was found.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The plain bytes of what was selected.
    pub(crate) bytes: u64,
    pub(crate) changes: Changes,
    /// The stored paths of what the snapshot does not have and may be removed, in order.
    pub(crate) doomed: Option<Spool>,
    /// The mounts that the tree has entries below of.
    used: BTreeSet<TreePath>,
}

impl Survey {
    /// Forgets the mounts that nothing is restored into.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] for one that something is restored into, and that cannot be written.
    pub(crate) fn drop_unused(&self, units: &mut Vec<Unit>) -> Result<()> {
        units.retain(|unit| !unit.nested || self.used.contains(&unit.stored));
        match units.iter().find(|unit| unit.nested && unit.is_read_only()) {
            Some(unit) => Err(Error::new(ErrorKind::PermissionDenied, "the snapshot has files for a read-only mount")
                .with("path", unit.destination.display())
                .hint("mount it writable, or unmount it: then they go to the folder below")),
            None => Ok(()),
        }
    }
}

/// Everything that keeps something from being removed, whatever asks for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard<'a> {
    pub(crate) plan: &'a Rules,
    pub(crate) recorded: Option<&'a Rules>,
}

impl Guard<'_> {
    /// Whether `name` in `parent`, and everything in it, may be removed.
    pub(crate) fn lets_go(
        &self,
        unit: &Unit,
        parent: BorrowedFd<'_>,
        name: &std::ffi::OsStr,
        path: &TreePath,
    ) -> Result<bool, Errno> {
        let Some(kind) = kind_of(parent, name)? else { return Ok(true) };
        let what = if kind == FileType::Directory { What::Directory } else { What::Other };
        if kind == FileType::Socket || unit.protects(path) || is_mounted(parent, name)? || self.leaves_out(path, what) {
            return Ok(false);
        }
        if what == What::Other {
            return Ok(true);
        }
        let folder = open_folder(parent, name)?;
        for name in names_in(folder.as_fd())? {
            let inner = path.join(&name).map_err(|_| Errno::NAMETOOLONG)?;
            if !self.lets_go(unit, folder.as_fd(), &name, &inner)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn leaves_out(&self, path: &TreePath, what: What) -> bool {
        std::iter::once(self.plan).chain(self.recorded).any(|rules| leaves_out(rules, path, what))
    }
}

/// Whether `rules` leave `path` out, or it says itself that its folder is left out in parts.
fn leaves_out(rules: &Rules, path: &TreePath, what: What) -> bool {
    let name = path.components().last().unwrap_or_default();
    let marks = rules.ignore_files().iter().any(|known| known == name) || (rules.exclude_caches && name == CACHE_TAG);
    let folders = || {
        let mut above = TreePath::root();
        path.components().any(|name| {
            let joined = above.join(std::os::unix::ffi::OsStrExt::from_bytes(name));
            joined.is_ok_and(|next| {
                above = next;
                rules.includes(&above, What::Directory)
            })
        })
    };
    marks || rules.excludes(path, what) || (what == What::Other && !rules.includes(path, what) && !folders())
}

/// See the module.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] where something would be lost that is not in the snapshot: a folder in a file's place.
pub(crate) fn survey(asked: &Asked) -> Result<Survey> {
    let recorded = asked.recorded_rules()?;
    let doomed = (asked.target.unknown == Unknown::Delete).then(|| Spool::new(asked.cx.scratch())).transpose()?;
    // The kernel stamps files with the time of its last tick.
    let started = asked.from.manifest().started;
    let started = started.checked_sub(TICK).unwrap_or(started);
    let nanos = u32::try_from(started.subsec_nanosecond()).unwrap_or_default();
    let mut surveyor = Surveyor {
        asked,
        recorded: recorded.as_ref(),
        quiet: asked.quiet(),
        owners: Arc::new(Owners::load()),
        since: FileTime { seconds: started.as_second(), nanos },
        companions: BTreeSet::new(),
        conflicts: (0, None),
        survey: Survey { bytes: 0, changes: Changes::default(), doomed, used: BTreeSet::new() },
    };
    surveyor.run()?;
    match surveyor.conflicts {
        (_, None) => Ok(surveyor.survey),
        (count, Some(first)) if count > 1 => Err(first.with("and", format!("{} more like it", count - 1))),
        (_, Some(first)) => Err(first),
    }
}

struct Surveyor<'a> {
    asked: &'a Asked,
    recorded: Option<&'a Rules>,
    quiet: &'a backup_core::RunContext,
    owners: Arc<Owners>,
    /// When the snapshot began.
    since: FileTime,
    /// The companions of databases that are replaced: they go with the old ones.
    companions: BTreeSet<TreePath>,
    /// How many, and the first.
    conflicts: (u64, Option<Error>),
    survey: Survey,
}

impl<'a> Surveyor<'a> {
    fn run(&mut self) -> Result<()> {
        let units = &self.asked.units;
        let selection = target::selection(&self.asked.target)?;
        let mut selected: BTreeMap<&TreePath, bool> = selection.iter().map(|path| (path, false)).collect();
        let mut tree = self.asked.tree()?;
        let mut live: Option<(usize, Live<'a>)> = None;
        while let Some(stored) = self.asked.runtime.block_on(tree.next())? {
            self.asked.cx.check_cancelled()?;
            let entry = stored.entry;
            for (path, seen) in &mut selected {
                if entry.path.starts_with(path) {
                    *seen = true;
                    self.survey.bytes += entry.size();
                }
            }
            if let Some(unit) = units.iter().find(|unit| unit.takes(&entry.path))
                && unit.nested
                && unit.stored != entry.path
            {
                self.survey.used.insert(unit.stored.clone());
            }
            let outer = units.iter().position(|unit| !unit.nested && unit.is_merged() && unit.takes(&entry.path));
            let Some(outer) = outer else { continue };
            if live.as_ref().is_none_or(|(unit, _)| *unit != outer) {
                self.finish(live.take(), units)?;
                live = self.begin(&units[outer], &entry)?.map(|live| (outer, live));
            } else if let Some((_, live)) = &mut live {
                self.step(&units[outer], live, &entry)?;
            }
        }
        self.finish(live, units)?;
        match selected.iter().find(|(_, seen)| !**seen) {
            Some((path, _)) => {
                let message = format!("`/{path}` is not in the backup of `{}`", self.asked.from.source());
                Err(Error::new(ErrorKind::NotFound, message).hint("`stackward ls` shows what is"))
            }
            None => Ok(()),
        }
    }

    /// Begins with the part itself.
    fn begin(&mut self, unit: &Unit, entry: &TreeEntry) -> Result<Option<Live<'a>>> {
        let broken = |errno: Errno| Error::io("cannot look at the target", &unit.destination, errno.into());
        let reach = unit.reach()?;
        let (parent, name) = (reach.folder.as_fd(), reach.name.as_os_str());
        let Some(kind) = (if reach.missing.is_empty() { kind_of(parent, name).map_err(broken)? } else { None }) else {
            return Ok(None);
        };
        self.meet(unit, entry, kind, parent, name)?;
        if kind != FileType::Directory {
            let stat = rustix::fs::statat(parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(broken)?;
            if entry.kind != EntryKind::Directory && changed(entry, &stat) {
                self.overwritten(unit, &entry.path, &stat);
            }
            if is_database(At { folder: parent, name }) {
                self.alone(unit, entry, parent).map_err(broken)?;
            }
            return Ok(None);
        }
        let open = || open_folder(parent, name).map_err(broken);
        let walk = |rules: &'a Rules| {
            let owners = Arc::clone(&self.owners);
            Walker::inside(self.quiet, open()?, &unit.destination, &unit.stored, rules, owners)
        };
        let (plan, recorded) = (walk(&self.asked.rules)?, self.recorded.map(walk).transpose()?);
        Live::begin(plan, recorded).map(Some)
    }

    /// A database that is a part by itself: nothing walks over its companions.
    fn alone(&mut self, unit: &Unit, entry: &TreeEntry, parent: BorrowedFd<'_>) -> Result<(), Errno> {
        for ending in COMPANIONS {
            let mut place = unit.destination.clone().into_os_string();
            place.push(ending);
            let place = std::path::PathBuf::from(place);
            let stored = [entry.path.as_bytes(), ending.as_bytes()].concat();
            let brought = self.asked.units.iter().any(|other| other.stored.as_bytes() == stored);
            let stands = kind_of(parent, place.file_name().unwrap_or_default())?;
            if !brought && stands.is_some_and(|kind| kind != FileType::Directory) {
                self.survey.changes.removed.add(|| place.display().to_string());
            }
        }
        Ok(())
    }

    /// Goes on to an entry of the snapshot.
    fn step(&mut self, unit: &Unit, live: &mut Live<'a>, entry: &TreeEntry) -> Result<()> {
        while let Some(found) = live.next_before(Some(&entry.path))? {
            self.unknown(unit, &found)?;
        }
        let Some(Seen { found, .. }) = live.next_at(&entry.path)? else { return Ok(()) };
        let Some(parent) = &found.parent else { return Ok(()) };
        let kind = FileType::from_raw_mode(found.stat.st_mode);
        self.meet(unit, entry, kind, parent.as_fd(), found.name())?;
        let both_files = entry.kind != EntryKind::Directory && kind != FileType::Directory;
        if kind == FileType::RegularFile && is_database(At { folder: parent.as_fd(), name: found.name() }) {
            for ending in COMPANIONS {
                self.companions.insert(TreePath::new([entry.path.as_bytes(), ending.as_bytes()].concat())?);
            }
        }
        if both_files && changed(entry, &found.stat) {
            self.overwritten(unit, &entry.path, &found.stat);
        }
        Ok(())
    }

    fn finish(&mut self, live: Option<(usize, Live<'a>)>, units: &[Unit]) -> Result<()> {
        let Some((unit, mut live)) = live else { return Ok(()) };
        while let Some(found) = live.next_before(None)? {
            self.unknown(&units[unit], &found)?;
        }
        Ok(())
    }

    /// An entry of the snapshot meets what stands there: a folder and something else exclude one another.
    fn meet(
        &mut self,
        unit: &Unit,
        entry: &TreeEntry,
        kind: FileType,
        parent: BorrowedFd<'_>,
        name: &std::ffi::OsStr,
    ) -> Result<()> {
        let (wanted, stands) = (entry.kind == EntryKind::Directory, kind == FileType::Directory);
        if wanted == stands {
            return Ok(());
        }
        let path = unit.place_of(&entry.path);
        let broken = |errno: Errno| Error::io("cannot look at the target", &path, errno.into());
        if stands && !is_mounted(parent, name).map_err(broken)? {
            let folder = open_folder(parent, name).map_err(broken)?;
            if names_in(folder.as_fd()).map_err(broken)?.is_empty() {
                return Ok(());
            }
        }
        let guard = Guard { plan: &self.asked.rules, recorded: self.recorded };
        let deleting = self.asked.target.unknown == Unknown::Delete;
        if deleting && guard.lets_go(unit, parent, name, &entry.path).map_err(broken)? {
            if !stands {
                self.survey.changes.removed.add(|| path.display().to_string());
            }
            return Ok(());
        }
        self.conflicts.0 += 1;
        self.conflicts.1.get_or_insert_with(|| conflict(&path, kind, self.asked.target.unknown));
        Ok(())
    }

    fn overwritten(&mut self, unit: &Unit, path: &TreePath, stat: &Stat) {
        let shown = || unit.place_of(path).display().to_string();
        self.survey.changes.overwritten.add(shown);
        if self.is_newer(stat) {
            self.survey.changes.newer.add(shown);
        }
    }

    /// Something that the snapshot does not have.
    fn unknown(&mut self, unit: &Unit, seen: &Seen) -> Result<()> {
        let path = &seen.found.entry.path;
        if unit.neighbours.iter().any(|inside| path.starts_with(&inside.path)) {
            return Ok(());
        }
        let shown = || unit.place_of(path).display().to_string();
        let changes = &mut self.survey.changes;
        if self.companions.contains(path) {
            changes.removed.add(shown);
            return Ok(());
        }
        let Some(doomed) = self.survey.doomed.as_mut().filter(|_| seen.by_all_rules && !unit.protects(path)) else {
            changes.kept.add(shown);
            return Ok(());
        };
        doomed.push(path.as_bytes())?;
        changes.removed.add(shown);
        if seen.found.entry.kind != EntryKind::Directory && self.is_newer(&seen.found.stat) {
            self.survey.changes.newer.add(shown);
        }
        Ok(())
    }

    fn is_newer(&self, stat: &Stat) -> bool {
        let time = |seconds: i64, nanos: u64| FileTime { seconds, nanos: u32::try_from(nanos).unwrap_or_default() };
        let nanos = |nanos: i64| u64::try_from(nanos).unwrap_or_default();
        time(stat.st_mtime, nanos(stat.st_mtime_nsec as i64)) > self.since
            || time(stat.st_ctime, nanos(stat.st_ctime_nsec as i64)) > self.since
    }
}

/// The error for what would be lost, because the snapshot has something of another sort in its place.
pub(crate) fn conflict(path: &std::path::Path, stands: FileType, unknown: Unknown) -> Error {
    let message = match stands {
        FileType::Directory => "a folder that is not empty stands where the snapshot has something else",
        FileType::Symlink => "a link stands where the snapshot has a folder",
        _ => "a file stands where the snapshot has a folder",
    };
    let hint = match unknown {
        Unknown::Keep => "it is not in the snapshot and would be lost: move it away, or add `--delete`",
        Unknown::Delete => {
            "it is, or holds, what `--delete` spares (a mount, another source, what the plan leaves out): move it away"
        }
    };
    Error::new(ErrorKind::AlreadyExists, message).with("path", path.display()).hint(hint)
}

/// Whether what stands there differs from the entry, as far as can be seen without reading it.
fn changed(entry: &TreeEntry, stat: &Stat) -> bool {
    let other_size = match entry.kind {
        EntryKind::File { size } => {
            FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || crate::attributes::size(stat) != size
        }
        _ => false,
    };
    other_size || crate::attributes::modified(stat) != entry.modified
}

/// Something that stands there.
struct Seen {
    found: Found,
    /// Whether both the plan's rules and the snapshot's would have saved it.
    by_all_rules: bool,
}

/// What stands there, in the order of the tree.
struct Live<'a> {
    plan: Walker<'a>,
    next: Option<Found>,
    recorded: Option<(Walker<'a>, Option<TreePath>)>,
}

impl<'a> Live<'a> {
    fn begin(mut plan: Walker<'a>, recorded: Option<Walker<'a>>) -> Result<Self> {
        let next = plan.next()?;
        let recorded = match recorded {
            Some(mut walker) => {
                let first = walker.next()?.map(|found| found.entry.path);
                Some((walker, first))
            }
            None => None,
        };
        Ok(Self { plan, next, recorded })
    }

    /// The next, when it comes before `path`.
    fn next_before(&mut self, path: Option<&TreePath>) -> Result<Option<Seen>> {
        if self.next.as_ref().is_some_and(|next| path.is_none_or(|path| next.entry.path < *path)) {
            return self.take();
        }
        Ok(None)
    }

    /// The next, when it is at `path`.
    fn next_at(&mut self, path: &TreePath) -> Result<Option<Seen>> {
        if self.next.as_ref().is_some_and(|next| next.entry.path == *path) {
            return self.take();
        }
        Ok(None)
    }

    fn take(&mut self) -> Result<Option<Seen>> {
        let Some(found) = self.next.take() else { return Ok(None) };
        self.next = self.plan.next()?;
        let by_all_rules = match &mut self.recorded {
            Some((walker, next)) => {
                while next.as_ref().is_some_and(|next| *next < found.entry.path) {
                    *next = walker.next()?.map(|found| found.entry.path);
                }
                next.as_ref() == Some(&found.entry.path)
            }
            None => true,
        };
        Ok(Some(Seen { found, by_all_rules }))
    }
}
