//! A guard over the living: proves that a drill, or a restore beside a live server, touched no file, process or socket of it.
//!
//! ```ignore
//! let guard = LiveGuard::all();          // every PrivatePostgres of this thread that runs; they stand still from here on
//! restore(...).await;                    // or `LiveGuard::all().and(&folder)`: that folder, or file, may not change either
//! guard.check();                         // or drop it: they run on, and the test fails when anything changed
//! ```
//!
//! A server writes by itself, so it is made to stand still meanwhile (SIGSTOP): whatever changes was changed by somebody else.
//! What asks a server while a guard stands waits for ever; so guard what restores, and nothing that asks.
//!
//! Invariant: no timing. Everything is compared: kind, mode, owner, inode, length, times of modification and change, content,
//! and what links lead to; that the processes are there still, that nobody told them to end; and that nobody connected.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A process that does not stand still after this long never will.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(1);
/// SIGHUP, SIGINT, SIGQUIT, SIGKILL and SIGTERM, as bits of `/proc/<pid>/status`.
const TOLD_TO_END: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 14;
/// The state of a socket in `/proc/net/unix` that somebody connected to and nobody accepted.
const KNOCKED: &str = "02";

thread_local! {
    static SERVERS: RefCell<Vec<Live>> = const { RefCell::new(Vec::new()) };
}

/// Where a server's files are.
#[derive(Debug, Clone)]
struct Live {
    /// Of everything that was made for it: sockets, logs, tablespaces.
    folder: PathBuf,
    data: PathBuf,
}

/// Lets the guards of this thread know of a server.
pub(crate) fn register(folder: &Path, data: &Path) {
    SERVERS.with_borrow_mut(|servers| servers.push(Live { folder: folder.to_owned(), data: data.to_owned() }));
}

/// See the module.
#[must_use = "what nobody holds is checked at once"]
#[derive(Debug)]
pub struct LiveGuard {
    postmasters: Vec<Pid>,
    frozen: Vec<Pid>,
    roots: BTreeSet<PathBuf>,
    before: BTreeMap<PathBuf, Found>,
    knocks: BTreeSet<String>,
}

/// What stands at a path, in words that can be compared.
type Found = String;

impl LiveGuard {
    /// Over every [`PrivatePostgres`](crate::PrivatePostgres) that this thread made and that runs.
    pub fn all() -> Self {
        let mut guard = Self {
            postmasters: Vec::new(),
            frozen: Vec::new(),
            roots: BTreeSet::new(),
            before: BTreeMap::new(),
            knocks: BTreeSet::new(),
        };
        for live in SERVERS.with_borrow(Clone::clone) {
            let Some(pid) = postmaster(&live.data) else { continue };
            if guard.postmasters.contains(&pid) {
                continue;
            }
            guard.postmasters.push(pid);
            guard.freeze(pid);
            guard.roots.extend([live.folder, live.data]);
        }
        guard.before = survey(&guard.roots);
        guard.knocks = knocks(&guard.before);
        guard
    }

    /// And over this folder or file.
    pub fn and(mut self, path: &Path) -> Self {
        self.roots.insert(path.to_owned());
        self.before = survey(&self.roots);
        self
    }

    /// Lets the servers run on.
    ///
    /// # Panics
    /// When anything of them changed.
    pub fn check(self) {
        drop(self);
    }

    /// Stops the postmaster first: from then on there are no new processes.
    fn freeze(&mut self, postmaster: Pid) {
        let started = Instant::now();
        self.stop(postmaster);
        loop {
            let awake: Vec<Pid> = family(postmaster).into_iter().filter(|pid| !stands_still(*pid)).collect();
            if awake.is_empty() {
                return;
            }
            assert!(started.elapsed() < LIMIT, "{awake:?} of a server do not stand still");
            for pid in awake {
                if !self.frozen.contains(&pid) {
                    self.stop(pid);
                }
            }
            std::thread::sleep(POLL);
        }
    }

    fn stop(&mut self, pid: Pid) {
        self.frozen.push(pid);
        // It may have ended by itself.
        let _gone = kill_process(pid, Signal::STOP);
    }

    fn thaw(&self) {
        for pid in self.frozen.iter().rev() {
            let _gone = kill_process(*pid, Signal::CONT);
        }
    }

    fn changes(&self) -> Vec<String> {
        let after = survey(&self.roots);
        let mut changes = Vec::new();
        for path in self.before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let (before, after) = (self.before.get(path), after.get(path));
            if before != after {
                let told = |found: Option<&Found>| found.cloned().unwrap_or_else(|| "nothing".to_owned());
                changes.push(format!("{}: {} became {}", path.display(), told(before), told(after)));
            }
        }
        for pid in &self.postmasters {
            if !stands_still(*pid) {
                changes.push(format!("the server {pid:?} was woken or killed"));
            } else if pending(*pid) & TOLD_TO_END != 0 {
                changes.push(format!("the server {pid:?} was told to end"));
            }
        }
        changes.extend(knocks(&after).difference(&self.knocks).map(|knock| format!("somebody connected to {knock}")));
        changes
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        let changes = if std::thread::panicking() { Vec::new() } else { self.changes() };
        self.thaw();
        assert!(changes.is_empty(), "a live server was touched:\n{}", changes.join("\n"));
    }
}

/// The server that runs on `data`.
fn postmaster(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    let stands = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    (stands == data.canonicalize().ok()?).then_some(pid)
}

/// The state and the parent of a process.
fn state(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have anything in it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether it is stopped, or has ended.
fn stands_still(pid: Pid) -> bool {
    state(pid.as_raw_nonzero().get()).is_none_or(|(state, _)| matches!(state, 'T' | 'Z'))
}

/// A process and all below it.
fn family(of: Pid) -> Vec<Pid> {
    let names =
        std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let parents: Vec<(i32, i32)> = names
        .filter_map(|name| name.parse().ok())
        .filter_map(|pid| state(pid).map(|(_, parent)| (pid, parent)))
        .collect();
    let mut family = vec![of.as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family.into_iter().filter_map(Pid::from_raw).collect()
}

/// The signals that wait for a process.
fn pending(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let masks = text.lines().filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).fold(0, |all, mask| all | mask)
}

/// Connections to the sockets among these paths that nobody accepted: whoever stands still accepts none.
fn knocks(paths: &BTreeMap<PathBuf, Found>) -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let waiting = lines.filter(|fields| fields.get(5) == Some(&KNOCKED));
    let at = waiting.filter_map(|fields| Some((*fields.first()?, *fields.get(7)?)));
    let ours = at.filter(|(_, path)| paths.contains_key(Path::new(path)));
    ours.map(|(number, path)| format!("{path} ({number})")).collect()
}

/// Everything below these, and below what their links lead to.
fn survey(roots: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut left: Vec<PathBuf> = roots.iter().cloned().collect();
    while let Some(path) = left.pop() {
        if found.contains_key(&path) {
            continue;
        }
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            let entries = std::fs::read_dir(&path).expect("the entries of a live server's folder");
            left.extend(entries.map(|entry| entry.expect("an entry of it").path()));
            String::new()
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).expect("a link of a live server");
            left.extend(path.parent().map(|parent| parent.join(&target)));
            format!("-> {}", target.display())
        } else if kind.is_file() {
            blake3::hash(&std::fs::read(&path).expect("a file of a live server")).to_hex()[..16].to_owned()
        } else {
            String::new()
        };
        let told = format!(
            "mode {:o} of {}:{} inode {} length {} modified {}.{:09} changed {}.{:09} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.ino(),
            if kind.is_file() { metadata.len() } else { 0 },
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        found.insert(path, told);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::PrivatePostgres;

    /// What a guard says of what somebody did.
    fn told(deed: impl FnOnce()) -> String {
        let guard = LiveGuard::all();
        deed();
        match catch_unwind(AssertUnwindSafe(|| guard.check())) {
            Ok(()) => String::new(),
            Err(said) => said.downcast_ref::<String>().cloned().unwrap_or_default(),
        }
    }

    #[test]
    fn whatever_is_done_to_a_live_server_is_told() {
        let server = PrivatePostgres::start();
        let space = server.make_folder("space");
        server.sql("postgres", &format!("create tablespace s location '{}'", space.display()));
        server.pgbench("postgres", &["-i", "-q", "-s", "1"]);
        let busy = server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
        while server.sql("postgres", "select count(*) > 10 from pgbench_history") != "t" {}
        assert_eq!(told(|| {}), "", "it stands still in the midst of work");
        let version = server.data_folder().join("PG_VERSION");
        let same = std::fs::read(&version).unwrap();
        let deeds: [(&str, Box<dyn Fn()>); 6] = [
            ("PG_VERSION", Box::new(|| std::fs::write(&version, &same).unwrap())),
            ("space/new", Box::new(|| std::fs::write(space.join("new"), "x").unwrap())),
            ("space/new", Box::new(|| std::fs::remove_file(space.join("new")).unwrap())),
            (
                "postgresql.conf",
                Box::new(|| {
                    let path = server.data_folder().join("postgresql.conf");
                    std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
                }),
            ),
            (
                "somebody connected",
                Box::new(|| drop(UnixStream::connect(server.socket_folder().join(".s.PGSQL.5432")).unwrap())),
            ),
            (
                "was told to end",
                Box::new(|| kill_process(postmaster(&server.data_folder()).unwrap(), Signal::HUP).unwrap()),
            ),
        ];
        for (word, deed) in deeds {
            let said = told(deed);
            assert!(said.contains(word), "{word}: {said}");
        }
        drop(busy);
        assert_eq!(server.sql("postgres", "select 1"), "1", "it runs on");
        server.stop_immediately();
        assert_eq!(told(|| std::fs::write(space.join("free"), "x").unwrap()), "", "it does not live");
    }
}
