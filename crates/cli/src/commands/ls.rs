//! `stackward ls`: the artifacts of a snapshot, and the entries of a tree. Streams: a tree is never held in memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use backup_core::manifest::{ArtifactKind, Manifest};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, Error, ErrorKind, Result, SourceName};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::show;
use crate::args::LsArgs;
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::stack::{Access, Stack, choose};

pub(crate) async fn run(session: &Session<'_>, args: &LsArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let sink = stack.open(session, Access::Read).await?;
    let id = choose(sink.as_ref(), &stack.plan.name, &args.snapshot).await?;
    let (Some(source), Some(artifact)) = (&args.source, &args.artifact) else {
        let manifest = sink.manifest(&id).await?;
        return list_artifacts(session, &manifest, args.source.as_ref());
    };
    let reader = BackupReader::new(sink.open(&id).await?, source.clone())?;
    let folder = tree_path(args.path.as_deref())?;
    let count = list_entries(session, &reader, artifact, &folder, args.recursive).await?;
    if count == 0 && !folder.is_root() && !session.output.is_closed() {
        return Err(not_found(&reader, artifact, &folder));
    }
    session.output.result("ls", Exit::Done, &json!({ "snapshot": id, "entries": count }));
    Ok(Exit::Done)
}

/// A path as typed, inside a tree: a `/` before or after it is forgiven.
pub(super) fn tree_path(text: Option<&OsStr>) -> Result<TreePath> {
    let bytes = text.map(OsStr::as_bytes).unwrap_or_default();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    let start = bytes.iter().position(|byte| *byte != b'/').unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(start, |last| last + 1);
    let inner = &bytes[start..end];
    if inner == b"." {
        return Ok(TreePath::root());
    }
    TreePath::new(inner).map_err(|error| Error::new(ErrorKind::Usage, error.message().to_owned()))
}

pub(super) fn not_found(reader: &BackupReader, artifact: &ArtifactName, path: &TreePath) -> Error {
    let source = reader.source();
    Error::new(ErrorKind::NotFound, format!("`{artifact}` of `{source}` has no `{path}`"))
        .hint(format!("`stackward ls {} {source} {artifact}` lists what it has", reader.manifest().id))
}

fn list_artifacts(session: &Session<'_>, manifest: &Manifest, only: Option<&SourceName>) -> Result<Exit> {
    if let Some(name) = only
        && manifest.source(name).is_none()
    {
        let have: Vec<&str> = manifest.sources.iter().map(|source| source.name.as_str()).collect();
        return Err(Error::new(ErrorKind::NotFound, format!("the snapshot {} has no source `{name}`", manifest.id))
            .hint(format!("it has: {}", have.join(", "))));
    }
    let mut listed = Vec::new();
    for source in manifest.sources.iter().filter(|source| only.is_none_or(|name| *name == source.name)) {
        session.output.line(session.output.paint().strong(source.name.as_str()));
        for line in show::artifacts(&source.artifacts).lines().iter().skip(1) {
            session.output.line(line);
        }
        for artifact in &source.artifacts {
            listed.push(json!({
                "source": source.name, "artifact": artifact.name, "kind": artifact.kind, "bytes": artifact.bytes,
                "stored_bytes": artifact.stored_bytes, "entries": artifact.entries, "sha256": artifact.sha256,
            }));
        }
    }
    session.output.result("ls", Exit::Done, &json!({ "snapshot": manifest.id, "artifacts": listed }));
    Ok(Exit::Done)
}

async fn list_entries(
    session: &Session<'_>,
    reader: &BackupReader,
    artifact: &ArtifactName,
    folder: &TreePath,
    recursive: bool,
) -> Result<u64> {
    let record = reader.record().artifact(artifact);
    if record.is_some_and(|record| record.kind == ArtifactKind::Stream) {
        return Err(Error::new(ErrorKind::Usage, format!("`{artifact}` is one stream of bytes, not a tree"))
            .hint(format!("`stackward cat {} {} {artifact}` prints it", reader.manifest().id, reader.source())));
    }
    let mut tree = reader.tree(artifact).await?;
    let (depth, mut count) = (folder.components().count(), 0);
    while let Some(stored) = tree.next().await? {
        let entry = stored.entry;
        let below = entry.path.components().count().saturating_sub(depth);
        let is_folder = below == 0 && matches!(entry.kind, EntryKind::Directory);
        let wanted = entry.path.starts_with(folder) && !is_folder && (recursive || below <= 1);
        if is_folder && entry.path == *folder && !folder.is_root() {
            // The folder itself is there, even when it is empty.
            count += 1;
        }
        if !wanted {
            continue;
        }
        count += 1;
        session.output.line(line(&entry));
        session.output.event(&entry_json(&entry));
        if session.output.is_closed() {
            break;
        }
    }
    Ok(count)
}

/// As `ls -l` prints it, except that names are shown as they can be typed.
fn line(entry: &TreeEntry) -> String {
    let owner = entry.user.clone().unwrap_or_else(|| entry.uid.to_string());
    let group = entry.group.clone().unwrap_or_else(|| entry.gid.to_string());
    let moment = Timestamp::new(entry.modified.seconds, 0).map(output::moment).unwrap_or_default();
    let size = output::bytes(entry.size());
    let target = match &entry.kind {
        EntryKind::Symlink { target } => format!(" -> {}", printable(target)),
        EntryKind::Hardlink { target } => format!(" = {}", printable(target.as_bytes())),
        _ => String::new(),
    };
    let name = printable(entry.path.as_bytes());
    format!("{}{}  {owner}:{group}  {size:>10}  {moment}  {name}{target}", letter(&entry.kind), modes(entry.mode))
}

/// Control characters and bytes that are not UTF-8 are escaped: a name must not write to the terminal.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn letter(kind: &EntryKind) -> char {
    match kind {
        EntryKind::Directory => 'd',
        EntryKind::File { .. } | EntryKind::Hardlink { .. } => '-',
        EntryKind::Symlink { .. } => 'l',
        EntryKind::Fifo => 'p',
        EntryKind::CharDevice { .. } => 'c',
        EntryKind::BlockDevice { .. } => 'b',
    }
}

fn modes(mode: u32) -> String {
    let bit = |mask: u32, letter: char| if mode & mask != 0 { letter } else { '-' };
    let run = |mask: u32, special: u32, both: char, alone: char| match (mode & mask != 0, mode & special != 0) {
        (true, true) => both,
        (false, true) => alone,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        run(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        run(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        run(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

fn entry_json(entry: &TreeEntry) -> Value {
    let kind = match &entry.kind {
        EntryKind::Directory => "directory",
        EntryKind::File { .. } => "file",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Hardlink { .. } => "hardlink",
        EntryKind::Fifo => "fifo",
        EntryKind::CharDevice { .. } => "char_device",
        EntryKind::BlockDevice { .. } => "block_device",
    };
    let target = match &entry.kind {
        EntryKind::Symlink { target } => Some(printable(target)),
        EntryKind::Hardlink { target } => Some(printable(target.as_bytes())),
        _ => None,
    };
    json!({
        "event": "entry", "path": printable(entry.path.as_bytes()), "kind": kind, "bytes": entry.size(),
        "mode": format!("{:04o}", entry.mode), "uid": entry.uid, "gid": entry.gid,
        "modified": Timestamp::new(entry.modified.seconds, i32::try_from(entry.modified.nanos).unwrap_or(0)).ok(),
        "target": target,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_prints_them() {
        for (mode, text) in [(0o755, "rwxr-xr-x"), (0o4711, "rws--x--x"), (0o1777, "rwxrwxrwt"), (0o2644, "rw-r-Sr--")]
        {
            assert_eq!(modes(mode), text);
        }
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(printable(b"caf\xc3\xa9 \xff\x1b[2J\n"), "café \\xff\\u{1b}[2J\\n");
    }

    #[test]
    fn paths_as_they_are_typed() {
        let path = |text: &str| tree_path(Some(OsStr::new(text))).unwrap().to_string();
        assert_eq!(["/", ".", "", "./a/b/", "/a", "a"].map(path), [".", ".", ".", "a/b", "a", "a"]);
        assert_eq!(tree_path(Some(OsStr::new("a/../b"))).unwrap_err().kind(), ErrorKind::Usage);
    }
}
