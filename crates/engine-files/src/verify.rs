//! Reads a saved tree to its end and compares it with what its manifest counted.

use std::sync::Arc;

use backup_core::engine::{Finding, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::FileContent;
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::task::JoinSet;

use crate::backup::{TREE, Tally, panicked};

/// More findings than this say no more.
const MAX_FINDINGS: usize = 100;

/// Whether an error says that what is stored is not what was written, rather than that it could not be read now.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::NotFound | ErrorKind::AlreadyExists)
}

/// A finding about an artifact.
pub(crate) fn finding(from: &BackupReader, artifact: &ArtifactName, problem: String) -> Finding {
    Finding { snapshot: from.manifest().id.clone(), source: from.source().clone(), artifact: artifact.clone(), problem }
}

/// See the module.
pub(crate) async fn verify(cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
    let name = ArtifactName::new(TREE)?;
    let mut report = VerifyReport::default();
    let tally = Arc::new(Tally::default());
    let mut check = Check { cx, running: JoinSet::new(), problems: Vec::new() };
    let listed = check.listing(from, &name, &tally).await;
    let read = check.rest().await;
    match listed {
        Err(error) if is_damage(&error) => check.problems.push(error.chain()),
        result => result?,
    }
    read?;
    for line in from.record().fingerprint.differences(&tally.fingerprint()) {
        check.problems.push(line.replace("restored", "in the tree").replace("after the restore", "in the tree"));
    }
    report.checked.push(format!("{} entries listed, {} bytes of files read", tally.entries(), tally.bytes()));
    report.findings =
        check.problems.into_iter().take(MAX_FINDINGS).map(|problem| finding(from, &name, problem)).collect();
    Ok(report)
}

struct Check<'a> {
    cx: &'a RunContext,
    running: JoinSet<Result<Option<String>>>,
    problems: Vec<String>,
}

impl Check<'_> {
    async fn listing(&mut self, from: &BackupReader, name: &ArtifactName, tally: &Tally) -> Result<()> {
        let mut tree = from.tree(name).await?;
        let mut order = Order::default();
        while let Some(stored) = self.cx.unless_cancelled(tree.next()).await? {
            let entry = stored.entry;
            tally.add(&entry.kind, entry.size());
            if let Some(problem) = order.problem(&entry) {
                self.note(problem);
            }
            match (stored.content, &entry.kind) {
                (Some(content), EntryKind::File { .. }) => self.read(entry, content).await?,
                (None, EntryKind::File { .. }) => self.note(format!("`/{}` has no content", entry.path)),
                _ => self.cx.progress(0, 1),
            }
        }
        Ok(())
    }

    /// Reads a file beside the others; waits when there are enough of them.
    async fn read(&mut self, entry: TreeEntry, content: Box<dyn FileContent>) -> Result<()> {
        while self.running.len() >= self.cx.jobs() {
            self.reap().await?;
        }
        let cx = self.cx.clone();
        self.running.spawn(async move {
            match cx.unless_cancelled(read(&cx, &entry, content)).await {
                Ok(()) => Ok(None),
                Err(error) if is_damage(&error) => Ok(Some(format!("`/{}`: {}", entry.path, error.chain()))),
                Err(error) => Err(error),
            }
        });
        Ok(())
    }

    async fn reap(&mut self) -> Result<()> {
        let Some(joined) = self.running.join_next().await else { return Ok(()) };
        if let Some(problem) = joined.map_err(panicked)?? {
            self.note(problem);
        }
        Ok(())
    }

    async fn rest(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.reap().await?;
        }
        Ok(())
    }

    fn note(&mut self, problem: String) {
        if self.problems.len() < MAX_FINDINGS {
            self.problems.push(problem);
        }
    }
}

/// Checks what a restore would refuse: an order that is not a walk's, an entry outside of every folder.
#[derive(Default)]
struct Order {
    last: Option<TreePath>,
    folders: Vec<TreePath>,
}

impl Order {
    fn problem(&mut self, entry: &TreeEntry) -> Option<String> {
        let path = &entry.path;
        if self.last.as_ref().is_some_and(|last| last >= path) {
            return Some(format!("`/{path}` is out of order"));
        }
        self.last = Some(path.clone());
        while self.folders.last().is_some_and(|folder| !path.starts_with(folder)) {
            self.folders.pop();
        }
        let depth = path.components().count();
        let above = self.folders.last().map_or(0, |folder| folder.components().count());
        if depth > above + 1 {
            return Some(format!("`/{path}` does not lie in a folder of the same tree"));
        }
        if entry.kind == EntryKind::Directory && !path.is_root() {
            self.folders.push(path.clone());
        }
        None
    }
}

async fn read(cx: &RunContext, entry: &TreeEntry, content: Box<dyn FileContent>) -> Result<()> {
    let mut pieces = content.open().await?;
    let mut length = 0u64;
    while let Some(piece) = pieces.next().await? {
        cx.check_cancelled()?;
        length = length.saturating_add(piece.length());
    }
    if length != entry.size() {
        let message = format!("it has {} bytes in the listing, {length} in its content", entry.size());
        return Err(Error::new(ErrorKind::Damaged, message));
    }
    cx.progress(length, 1);
    Ok(())
}
