//! Saving: one thread walks, a few read; the sink gets the entries in the order of the walk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::engine::SourceSummary;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::Fingerprint;
use backup_core::sink::ChunkHint;
use backup_core::tree::{EntryKind, TreePath};
use backup_core::writer::{BackupWriter, FileWriter, TreeWriter};
use backup_core::{ArtifactName, Evidence, RunContext};
use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::runtime::Handle;

use crate::config::Unreadable;
use crate::filter::Rules;
use crate::owners::Owners;
use crate::read::{ContentReader, Outcome};
use crate::route::Route;
use crate::walk::{Found, LeftOut, Walker};

/// The name of the one artifact.
pub(crate) const TREE: &str = "tree";
/// The detail that lists the saved paths.
pub(crate) const ROOTS: &str = "roots";
/// The detail that says what the plan left out: what a later restore may not remove.
pub(crate) const RULES: &str = "left_out_by";
/// The detail that counts what could not be read.
pub(crate) const UNREADABLE: &str = "left_out_unreadable";
/// The group of the fingerprint.
pub(crate) const ENTRIES: &str = "entries";

/// Files that wait for a reader. Each holds a place in the sink, so there are not many.
const QUEUE: usize = 64;
/// Reading is bound by the sink; more readers than this only wait for each other.
const MAX_READERS: usize = 4;

type Job = (Found, FileWriter);

/// The counts of the fingerprint.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    files: AtomicU64,
    directories: AtomicU64,
    symlinks: AtomicU64,
    hard_links: AtomicU64,
    fifos: AtomicU64,
    devices: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Counts an entry of `size` bytes.
    pub(crate) fn add(&self, kind: &EntryKind, size: u64) {
        let counter = match kind {
            EntryKind::Directory => &self.directories,
            EntryKind::File { .. } => &self.files,
            EntryKind::Symlink { .. } => &self.symlinks,
            EntryKind::Hardlink { .. } => &self.hard_links,
            EntryKind::Fifo => &self.fifos,
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => &self.devices,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }

    fn counts(&self) -> [(&'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        [
            ("files", get(&self.files)),
            ("directories", get(&self.directories)),
            ("symlinks", get(&self.symlinks)),
            ("hard links", get(&self.hard_links)),
            ("fifos", get(&self.fifos)),
            ("devices", get(&self.devices)),
            ("bytes", get(&self.bytes)),
        ]
    }

    /// How many entries were counted.
    pub(crate) fn entries(&self) -> u64 {
        self.counts().iter().filter(|(name, _)| *name != "bytes").map(|(_, count)| count).sum()
    }

    /// Whether nothing else was counted.
    pub(crate) fn has_only_folders(&self) -> bool {
        self.entries() == self.directories.load(Ordering::Acquire)
    }

    /// How many bytes were counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        for (name, count) in self.counts() {
            fingerprint.count(ENTRIES, name, count);
        }
        fingerprint
    }
}

/// The paths to save as they really are: links resolved, each checked to exist.
///
/// # Errors
/// [`ErrorKind::NotFound`] for one that is missing, [`ErrorKind::Unsupported`] for one that is not UTF-8.
pub(crate) fn resolve_roots(cx: &RunContext, paths: &[PathBuf]) -> Result<Vec<TreePath>> {
    let mut roots: Vec<TreePath> = Vec::new();
    for path in paths {
        let real = std::fs::canonicalize(path).map_err(|source| {
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            let error = Error::io("cannot read a path that the plan names", path, source);
            if missing { error.hint("correct `paths` in the plan, or remove the source") } else { error }
        })?;
        if path.is_symlink() {
            cx.warn(format!(
                "`{}` is a symbolic link; what it leads to, `{}`, is saved",
                path.display(),
                real.display()
            ));
        }
        roots.push(stored_path(&real)?);
    }
    roots.sort();
    roots.dedup();
    let all = roots.clone();
    roots.retain(|root| !all.iter().any(|other| other != root && root.starts_with(other)));
    Ok(roots)
}

/// The path in the tree of an absolute path of the file system.
pub(crate) fn stored_path(real: &Path) -> Result<TreePath> {
    let text = real.to_str().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "a path of the plan leads to a name that is not UTF-8")
            .with("path", real.display())
            .hint("name the folder that holds it; names below it may be anything")
    })?;
    TreePath::new(text.trim_start_matches('/'))
}

/// Saves `paths` into the artifact [`TREE`].
pub(crate) async fn backup(
    cx: &RunContext,
    paths: &[PathBuf],
    rules: &Arc<Rules>,
    out: &BackupWriter,
) -> Result<SourceSummary> {
    let roots = resolve_roots(cx, paths)?;
    // All of the paths, not only the outermost: one that a filter would leave out was asked for all the same.
    let mut wanted = Vec::new();
    for path in paths {
        let real = std::fs::canonicalize(path).map_err(|source| Error::io("cannot read", path, source))?;
        wanted.push(stored_path(&real)?);
    }
    // Also cancelled when this future is dropped: the threads must not go on for nobody.
    let stop = cx.cancellation().child_token();
    let _guard = stop.clone().drop_guard();
    let inner = cx.clone().cancelled_by(stop.clone());
    let tree = out.tree(ArtifactName::new(TREE)?).await?;
    let owners = Arc::new(Owners::load());
    let reader = ContentReader {
        cx: inner.clone(),
        runtime: Handle::current(),
        owners: Arc::clone(&owners),
        settle: rules.settle,
    };
    let tally = Arc::new(Tally::default());
    let (jobs, queue) = bounded::<Job>(QUEUE);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..cx.jobs().clamp(2, MAX_READERS) {
        let (reader, queue, tally, stop) = (reader.clone(), queue.clone(), Arc::clone(&tally), stop.clone());
        readers.spawn_blocking(move || {
            let result = read_all(&reader, &queue, &tally);
            if result.is_err() {
                stop.cancel();
            }
            result
        });
    }
    drop(queue);
    let walk =
        Walk { cx: inner, route: Route::to(&wanted), rules: Arc::clone(rules), reader, tally: Arc::clone(&tally) };
    let walking = tokio::task::spawn_blocking(move || walk.run(tree, &jobs));
    let walked = walking.await.map_err(panicked)?;
    if walked.is_err() {
        stop.cancel();
    }
    let mut left = Left::default();
    let mut failure = None;
    while let Some(joined) = readers.join_next().await {
        match joined.map_err(panicked)? {
            Ok(part) => left.add(part),
            Err(error) => prefer(&mut failure, error),
        }
    }
    cx.check_cancelled()?;
    let (tree, walked) = match walked {
        Ok(done) => done,
        Err(error) => {
            prefer(&mut failure, error);
            return Err(failure.unwrap_or_else(backup_core::context::interrupted));
        }
    };
    if let Some(error) = failure {
        return Err(error);
    }
    left.add(Left { unreadable: walked.unreadable, vanished: walked.vanished });
    if left.unreadable > 0 && rules.unreadable == Unreadable::Fail {
        return Err(unreadable(left.unreadable));
    }
    if tally.has_only_folders() {
        cx.warn("nothing but folders was saved: there is no file in `paths`, or all were left out");
    }
    tree.seal(Evidence::Listing { entries: tally.entries() }).await?;
    Ok(SourceSummary {
        fingerprint: tally.fingerprint(),
        details: details(&roots, rules, walked, left),
        ..SourceSummary::default()
    })
}

/// A backup that lacks what it was asked for is none, however much else is in it. Warnings named each.
fn unreadable(count: u64) -> Error {
    let what = if count == 1 { "a file or folder".to_owned() } else { format!("{count} files or folders") };
    Error::new(ErrorKind::PermissionDenied, format!("{what} cannot be read"))
        .hint("the warnings name each: run as a user that may read them (root), or leave them out with `exclude`, or say `unreadable: skip`")
}

/// Keeps the failure that was the first cause: those that were merely interrupted by it tell nothing.
pub(crate) fn prefer(failure: &mut Option<Error>, error: Error) {
    let tells_more = |known: &Error| known.kind() == ErrorKind::Interrupted && error.kind() != ErrorKind::Interrupted;
    if failure.as_ref().is_none_or(tells_more) {
        *failure = Some(error);
    }
}

pub(crate) fn panicked(source: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a worker of the files engine failed").caused_by(source)
}

fn details(roots: &[TreePath], rules: &Rules, walked: LeftOut, left: Left) -> BTreeMap<String, serde_json::Value> {
    let roots: Vec<String> =
        roots.iter().map(|root| format!("/{}", String::from_utf8_lossy(root.as_bytes()))).collect();
    let mut details = BTreeMap::from([(ROOTS.to_owned(), roots.into()), (RULES.to_owned(), rules.record.clone())]);
    let counts = [
        ("excluded", walked.excluded),
        ("unreadable", left.unreadable),
        ("vanished", left.vanished),
        ("sockets", walked.sockets),
        ("other_file_systems", walked.mounts),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        details.insert(format!("left_out_{name}"), count.into());
    }
    details
}

/// Files that are not in the backup although nobody asked to leave them out.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    unreadable: u64,
    vanished: u64,
}

impl Left {
    fn add(&mut self, other: Self) {
        self.unreadable += other.unreadable;
        self.vanished += other.vanished;
    }

    fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Kept(_) => {}
            Outcome::Vanished => self.vanished += 1,
            Outcome::Unreadable => self.unreadable += 1,
        }
    }
}

fn read_all(reader: &ContentReader, queue: &Receiver<Job>, tally: &Tally) -> Result<Left> {
    let mut left = Left::default();
    for (found, writer) in queue {
        left.note(read_one(reader, found, writer, tally)?);
    }
    Ok(left)
}

fn read_one(reader: &ContentReader, found: Found, writer: FileWriter, tally: &Tally) -> Result<Outcome> {
    let kind = found.entry.kind.clone();
    let outcome = reader.store(found, writer)?;
    if let Outcome::Kept(size) = outcome {
        tally.add(&kind, size);
    }
    Ok(outcome)
}

/// What the walking thread has.
struct Walk {
    cx: RunContext,
    route: Arc<Route>,
    rules: Arc<Rules>,
    reader: ContentReader,
    tally: Arc<Tally>,
}

impl Walk {
    fn run(self, mut tree: TreeWriter, jobs: &Sender<Job>) -> Result<(TreeWriter, LeftOut)> {
        let owners = Arc::clone(&self.reader.owners);
        let mut walker = Walker::new(&self.cx, Path::new("/"), Arc::clone(&self.route), &self.rules, owners);
        let mut inline = Left::default();
        while let Some(found) = walker.next()? {
            let Some(writer) = self.hand_over(&mut tree, &found)? else { continue };
            if found.stat.st_nlink > 1 {
                // Read here and now: its other names can refer to it only once it is known to be stored.
                let stat = found.stat;
                let outcome = read_one(&self.reader, found, writer, &self.tally)?;
                if !matches!(outcome, Outcome::Kept(_)) {
                    walker.forget_link(&stat);
                }
                inline.note(outcome);
            } else if jobs.send((found, writer)).is_err() {
                // The readers stopped; theirs is the error that counts.
                return Err(backup_core::context::interrupted());
            }
        }
        for warning in walker.futile().warnings() {
            self.cx.warn(warning);
        }
        let mut left_out = walker.left_out();
        left_out.unreadable += inline.unreadable;
        left_out.vanished += inline.vanished;
        Ok((tree, left_out))
    }

    /// Adds the entry; for a file whose content must be read, reserves its place.
    fn hand_over(&self, tree: &mut TreeWriter, found: &Found) -> Result<Option<FileWriter>> {
        let entry = &found.entry;
        let writer = self.reader.runtime.block_on(async {
            if !matches!(entry.kind, EntryKind::File { .. }) {
                tree.entry(entry.clone()).await?;
                return Ok(None);
            }
            if tree.reuse(entry).await? {
                return Ok(None);
            }
            tree.file(entry.path.clone(), ChunkHint::Stream).await.map(Some)
        })?;
        if writer.is_none() {
            self.tally.add(&entry.kind, entry.size());
        }
        Ok(writer)
    }
}
