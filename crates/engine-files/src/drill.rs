//! Proves a saved tree: restores it into scratch, walks what came out, and compares it entry by entry with what is
//! stored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use backup_core::engine::{DrillReport, Existing, Place, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, Piece};
use backup_core::tree::{EntryKind, FileIdentity, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, RunContext};
use rustix::fs::{AtFlags, Mode, SeekFrom};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::backup::{TREE, panicked};
use crate::filter::Rules;
use crate::owners::Owners;
use crate::restore;
use crate::route::Route;
use crate::verify::is_damage;
use crate::walk::{Found, Walker};

/// More wrong answers than this say no more.
const MAX_FINDINGS: usize = 100;
/// Files are compared in pieces of this size.
const COMPARE_BYTES: usize = 256 * 1024;

/// See the module.
pub(crate) async fn drill(cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
    let scratch = cx.scratch().to_owned();
    let failed = |source| Error::io("cannot make a folder for the drill", &scratch, source);
    let folder = tempfile::Builder::new().prefix(".stackward-drill-").tempdir_in(&scratch).map_err(failed)?.keep();
    let folder = Removed(folder);
    let result = run(cx, from, &folder.0).await;
    let folder = tokio::task::spawn_blocking(move || restore::remove_tree(&folder.0)).await.map_err(panicked)?;
    let report = result?;
    folder.map_err(|error| error.during("remove what the drill restored"))?;
    Ok(report)
}

/// Removed when dropped: a drill that is cancelled leaves nothing behind.
struct Removed(std::path::PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _gone_already = restore::remove_tree(&self.0);
    }
}

async fn run(cx: &RunContext, from: &BackupReader, folder: &Path) -> Result<DrillReport> {
    let mut report = DrillReport::default();
    let target = folder.join("tree");
    let place =
        RestoreTarget { place: Place::Folder(target.clone()), existing: Existing::Refuse, ..RestoreTarget::default() };
    let (started, rules) = (Instant::now(), Arc::new(Rules::default()));
    let restored =
        async { restore::restore(cx, from, &[], &rules, restore::plan(cx, from, &[], &rules, &place).await?).await }
            .await;
    let restored = match restored {
        Ok(restored) => restored,
        Err(error) if is_damage(&error) => {
            report.findings.push(format!("the restore failed: {}", error.chain()));
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.restore_time = started.elapsed();
    report.bytes = restored.bytes;
    let started = Instant::now();
    let compare =
        Compare { cx: cx.clone(), from: from.clone(), runtime: Handle::current(), owners: Arc::new(Owners::load()) };
    let (items, findings) = tokio::task::spawn_blocking(move || compare.run(&target)).await.map_err(panicked)??;
    report.check_time = started.elapsed();
    report.items = items;
    report.findings = findings;
    report.checked.push(format!("{items} entries compared with what is stored: kind, content, attributes"));
    Ok(report)
}

struct Compare {
    cx: RunContext,
    from: BackupReader,
    runtime: Handle,
    owners: Arc<Owners>,
}

impl Compare {
    /// Walks the stored tree and the restored one side by side.
    fn run(&self, restored: &Path) -> Result<(u64, Vec<String>)> {
        let route = Route::to(&[TreePath::root()]);
        let rules = Rules::default();
        let mut walker =
            Walker::new(&self.cx, restored, route, &rules, Arc::clone(&self.owners)).opening_closed_folders();
        let mut tree = self.runtime.block_on(async { self.from.tree(&ArtifactName::new(TREE)?).await })?;
        let (mut items, mut findings) = (0, Vec::new());
        let mut found = walker.next()?;
        let mut stored = self.runtime.block_on(tree.next())?;
        // The folder that was restored into is in the stored tree only when `/` itself was saved.
        if stored.as_ref().is_none_or(|stored| !stored.entry.path.is_root()) {
            found = walker.next()?;
        }
        while findings.len() < MAX_FINDINGS {
            self.cx.check_cancelled()?;
            match (stored.take(), found.take()) {
                (None, None) => break,
                (Some(want), Some(have)) if want.entry.path == have.entry.path => {
                    items += 1;
                    findings.extend(self.compare(&want.entry, want.content, &have)?);
                    found = walker.next()?;
                    stored = self.runtime.block_on(tree.next())?;
                }
                (want, Some(have)) if want.as_ref().is_none_or(|want| have.entry.path < want.entry.path) => {
                    findings.push(format!("`/{}` was restored and is not stored", have.entry.path));
                    found = walker.next()?;
                    stored = want;
                }
                (Some(want), have) => {
                    items += 1;
                    if !may_be_missing(&want.entry) {
                        findings.push(format!("`/{}` is stored and was not restored", want.entry.path));
                    }
                    stored = self.runtime.block_on(tree.next())?;
                    found = have;
                }
                (None, Some(have)) => found = Some(have),
            }
        }
        Ok((items, findings))
    }

    fn compare(&self, want: &TreeEntry, content: Option<Box<dyn FileContent>>, have: &Found) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        let mut differs = |what: &str| findings.push(format!("`/{}` was restored with another {what}", want.path));
        let (a, b) = (self.comparable(want), self.comparable(&have.entry));
        if a.kind != b.kind {
            differs("kind or length");
            return Ok(findings);
        }
        if a.mode != b.mode && !matches!(a.kind, EntryKind::Symlink { .. }) {
            differs("mode");
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            differs("owner");
        }
        if a.modified != b.modified {
            differs("modification time");
        }
        if a.xattrs != b.xattrs {
            differs("set of extended attributes");
        }
        if let Some(content) = content
            && let Some(problem) = self.content(content, have)?
        {
            findings.push(format!("`/{}` {problem}", want.path));
        }
        Ok(findings)
    }

    /// What a restore by this user can be expected to bring back.
    fn comparable(&self, entry: &TreeEntry) -> TreeEntry {
        let mut entry = TreeEntry { identity: FileIdentity::default(), ..entry.clone() };
        if rustix::process::geteuid().is_root() {
            entry.uid = self.owners.uid(entry.user.as_deref(), entry.uid);
            entry.gid = self.owners.gid(entry.group.as_deref(), entry.gid);
        } else {
            (entry.uid, entry.gid) = (0, 0);
            entry.mode &= 0o1777;
            entry.xattrs.retain(|(name, _)| name.starts_with(b"user."));
        }
        entry
    }

    fn content(&self, content: Box<dyn FileContent>, have: &Found) -> Result<Option<String>> {
        let Some(parent) = &have.parent else { return Ok(None) };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let open = || rustix::fs::openat(parent, have.name(), flags, Mode::empty());
        // The copy is ours; its mode was compared, and may keep its owner, who is not root, from reading it.
        let opened = match open() {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(parent, have.name(), Mode::RUSR, AtFlags::empty()).and_then(|()| open())
            }
            opened => opened,
        };
        let failed = |source| Error::io("cannot read what the drill restored", have.entry.path.as_path(), source);
        let file = File::from(opened.map_err(|errno| failed(errno.into()))?);
        let mut pieces = self.runtime.block_on(content.open())?;
        let mut position = 0u64;
        let mut buffer = vec![0u8; COMPARE_BYTES];
        while let Some(piece) = self.runtime.block_on(pieces.next())? {
            self.cx.check_cancelled()?;
            let same = match piece {
                Piece::Data(data) => {
                    position += data.len() as u64;
                    holds(&file, &data, position - data.len() as u64, &mut buffer)
                }
                Piece::Hole(length) => {
                    position = position.saturating_add(length);
                    self.holds_zeroes(&file, position - length..position, &mut buffer)
                }
            };
            match same {
                Ok(true) => {}
                Ok(false) => return Ok(Some("was restored with other content".to_owned())),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(Some("was restored too short".to_owned()));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let whole = position == have.entry.size();
        if !whole {
            return Err(Error::new(ErrorKind::Damaged, format!("`/{}` is stored incompletely", have.entry.path)));
        }
        self.cx.progress(position, 1);
        Ok(None)
    }

    /// Whether a range reads as zero bytes. A hole does without being read: sparse files are larger than time allows.
    fn holds_zeroes(&self, file: &File, range: Range<u64>, buffer: &mut [u8]) -> std::io::Result<bool> {
        if range.end > file.metadata()?.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let zeroes = vec![0u8; COMPARE_BYTES];
        let mut position = range.start;
        while position < range.end && self.cx.check_cancelled().is_ok() {
            position = match rustix::fs::seek(file, SeekFrom::Data(position)) {
                Ok(data) => data,
                Err(Errno::NXIO) => range.end,
                // A file system that knows no holes: all of it is data.
                Err(_) => position,
            };
            let left = range.end.saturating_sub(position);
            let count = usize::try_from(left).map_or(COMPARE_BYTES, |left| left.min(COMPARE_BYTES));
            if !holds(file, &zeroes[..count], position, buffer)? {
                return Ok(false);
            }
            position += count as u64;
        }
        Ok(true)
    }
}

/// Only root can make devices.
fn may_be_missing(entry: &TreeEntry) -> bool {
    let device = matches!(entry.kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. });
    device && !rustix::process::geteuid().is_root()
}

/// Whether `file` holds `wanted` at `position`.
fn holds(file: &File, wanted: &[u8], mut position: u64, buffer: &mut [u8]) -> std::io::Result<bool> {
    for part in wanted.chunks(buffer.len()) {
        let have = &mut buffer[..part.len()];
        file.read_exact_at(have, position)?;
        if have != part {
            return Ok(false);
        }
        position += part.len() as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use backup_core::engine::EngineSetup;
    use backup_core::plan::{Node, OnFailure};
    use backup_core::run::{RunOptions, Task, run};
    use backup_core::sink::Sink;
    use backup_core::{PlanName, SourceName};
    use backup_testkit::MemorySink;

    use super::*;

    /// Saves a small tree, restores it, lets `tamper` at it, and returns what the comparison says.
    async fn compared(tamper: impl Fn(&Path)) -> Vec<String> {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("file"), "content").unwrap();
        std::fs::write(data.join("other"), "x").unwrap();
        File::create(data.join("sparse")).unwrap().set_len(1 << 20).unwrap();
        let name = SourceName::new("data").unwrap();
        let config = Node::from_yaml(&format!("paths: [{}]", data.display())).unwrap();
        let host = Arc::new(backup_core::host::LocalHost);
        let setup = EngineSetup { name: &name, config: &config, folder: Path::new("/"), host };
        let source = crate::engine::build(&setup).unwrap().source;
        let task = Task { name: name.clone(), engine: "files".to_owned(), source, on_failure: OnFailure::Continue };
        let sink = MemorySink::default();
        let options = RunOptions::new(PlanName::new("test").unwrap(), "here");
        let manifest = run(vec![task], &sink, &options).await.unwrap();
        let cx = RunContext::new(name.clone());
        let from = BackupReader::new(sink.open(&manifest.id).await.unwrap(), name).unwrap();
        let target = home.path().join("restored");
        let to = RestoreTarget { place: Place::Folder(target.clone()), ..RestoreTarget::default() };
        let rules = Arc::new(Rules::default());
        let plan = restore::plan(&cx, &from, &[], &rules, &to).await.unwrap();
        restore::restore(&cx, &from, &[], &rules, plan).await.unwrap();
        tamper(&target.join(data.strip_prefix("/").unwrap()));
        let compare = Compare { cx, from, runtime: Handle::current(), owners: Arc::new(Owners::load()) };
        tokio::task::spawn_blocking(move || compare.run(&target)).await.unwrap().unwrap().1
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_comparison_finds_every_sort_of_difference() {
        type Tamper = fn(&Path);
        let keep_time = |path: &Path, content: &[u8]| {
            let modified = std::fs::metadata(path).unwrap().modified().unwrap();
            std::fs::write(path, content).unwrap();
            File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
        };
        assert_eq!(compared(|_| {}).await, Vec::<String>::new());
        let flipped = compared(|data| keep_time(&data.join("file"), b"cOntent")).await;
        assert!(flipped.len() == 1 && flipped[0].contains("other content"), "{flipped:?}");
        let filled =
            compared(|data| keep_time(&data.join("sparse"), &[vec![0; (1 << 20) - 1], b"1".to_vec()].concat())).await;
        assert!(filled.len() == 1 && filled[0].contains("other content"), "{filled:?}");
        let cases: [(Tamper, &str); 6] = [
            (|data| std::fs::remove_file(data.join("file")).unwrap(), "file` is stored and was not restored"),
            (|data| std::fs::write(data.join("aaa"), "").unwrap(), "aaa` was restored and is not stored"),
            (|data| std::fs::write(data.join("zzz"), "").unwrap(), "zzz` was restored and is not stored"),
            (|data| std::fs::write(data.join("file"), "longer than before").unwrap(), "another kind or length"),
            (
                |data| std::fs::set_permissions(data.join("file"), PermissionsExt::from_mode(0o600)).unwrap(),
                "another mode",
            ),
            (|data| std::os::unix::fs::chown(data.join("file"), Some(77), None).unwrap(), "another owner"),
        ];
        for (tamper, expected) in cases {
            let findings = compared(tamper).await;
            assert!(findings.iter().any(|finding| finding.contains(expected)), "{expected}: {findings:?}");
        }
    }
}
