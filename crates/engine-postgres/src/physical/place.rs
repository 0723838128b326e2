//! A base backup's tree becomes a data directory again, with its tablespaces where they shall be now.
//!
//! Invariant: nothing links to where a tablespace was (its files may still be live there): every link and the server's own
//! `tablespace_map` are written anew, and the manifest agrees with what lies on disk, so `pg_verifybackup` can check it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, Piece};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, RunContext};
use nix::unistd::User;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::backup::{MANIFEST, TREE};
use super::details::PhysicalDetails;
use super::receiver::crc32c;
use super::server_manifest::{Line, ManifestReader, ManifestWriter};

/// Where the tablespaces are, as the server finds it when it recovers.
const MAP: &str = "tablespace_map";
/// The folder of the links to tablespaces.
const LINKS: &str = "pg_tblspc";
/// PostgreSQL refuses a data directory that others may enter.
const PRIVATE: u32 = 0o700;
/// The system user of the server on every distribution.
const SERVER_USER: &str = "postgres";
/// Data waits for the disk in pieces of this size.
const WRITE_BYTES: usize = 2 * 1024 * 1024;
/// `tablespace_map` and the like.
const MAX_SMALL: u64 = 16 * 1024 * 1024;

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The folder of each tablespace, by its number. Absolute: links lead there.
    pub(crate) tablespaces: BTreeMap<u32, PathBuf>,
}

impl Layout {
    /// Everything below one folder: `data`, and `tablespaces/<oid>`.
    pub(crate) fn below(folder: &Path, details: &PhysicalDetails) -> Self {
        let place = |oid: u32| folder.join("tablespaces").join(oid.to_string());
        let tablespaces = details.tablespaces.iter().map(|space| (space.oid, place(space.oid))).collect();
        Self { data: folder.join("data"), tablespaces }
    }

    /// Where an entry of the tree goes.
    fn place(&self, path: &TreePath) -> PathBuf {
        match tablespace(path) {
            Some((oid, rest)) if self.tablespaces.contains_key(&oid) => {
                let rest = Path::new(std::ffi::OsStr::from_bytes(rest));
                let root = &self.tablespaces[&oid];
                if rest.as_os_str().is_empty() { root.clone() } else { root.join(rest) }
            }
            _ => path.below(&self.data),
        }
    }

    /// What the server shall find in `tablespace_map`: a number and a path a line, ends of lines in paths escaped.
    fn map(&self) -> Vec<u8> {
        let mut map = Vec::new();
        for (oid, path) in &self.tablespaces {
            map.extend(format!("{oid} ").into_bytes());
            for byte in path.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    map.push(b'\\');
                }
                map.push(*byte);
            }
            map.push(b'\n');
        }
        map
    }
}

/// The tablespace's number and the path in it, for what lies in one.
fn tablespace(path: &TreePath) -> Option<(u32, &[u8])> {
    let rest = path.as_bytes().strip_prefix(LINKS.as_bytes())?.strip_prefix(b"/")?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let oid = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((oid, rest[end..].strip_prefix(b"/").unwrap_or_default()))
}

/// What was placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Writes the whole tree. The folders must be empty, or not be there.
///
/// # Errors
/// [`ErrorKind::Damaged`] when what is stored is not what was saved; those of the disk. What was written stays then.
pub(crate) async fn place(cx: &RunContext, from: &BackupReader, layout: &Layout) -> Result<Placed> {
    let owner = Owner::find()?;
    for folder in std::iter::once(&layout.data).chain(layout.tablespaces.values()) {
        make_folder(folder, PRIVATE, owner)?;
    }
    let mut tree = from.tree(&ArtifactName::new(TREE)?).await?;
    let slots = Arc::new(Semaphore::new(cx.jobs()));
    let mut writing = JoinSet::new();
    let mut placed = Placed::default();
    while let Some(stored) = cx.unless_cancelled(tree.next()).await? {
        while let Some(done) = writing.try_join_next() {
            finished(done)?;
        }
        let entry = stored.entry;
        let path = layout.place(&entry.path);
        match (&entry.kind, stored.content) {
            (EntryKind::Directory, _) => match tablespace(&entry.path) {
                // Its folder is made already; links come at the end.
                Some((oid, b"")) if layout.tablespaces.contains_key(&oid) => {}
                _ => make_folder(&path, entry.mode, owner)?,
            },
            (EntryKind::File { .. }, Some(content)) => {
                placed.files += 1;
                placed.bytes += entry.size();
                let slot = Arc::clone(&slots).acquire_owned().await;
                let cx = cx.clone();
                writing.spawn(async move {
                    let _slot = slot;
                    write(&cx, &path, &entry, content, owner).await
                });
            }
            (EntryKind::Symlink { target }, _) => {
                // Nothing that the server sends is a link, but for tablespaces.
                let target = String::from_utf8_lossy(target).into_owned();
                return Err(Error::new(ErrorKind::Damaged, format!("`{}` is a link to {target}", entry.path)));
            }
            _ => return Err(Error::new(ErrorKind::Damaged, format!("`{}` is no file of a server", entry.path))),
        }
    }
    while let Some(done) = writing.join_next().await {
        finished(done)?;
    }
    layout.tablespaces.keys().try_for_each(|oid| link(layout, *oid, owner))?;
    if !layout.tablespaces.is_empty() {
        write_map(layout, owner)?;
    }
    sync(&layout.data)?;
    layout.tablespaces.values().try_for_each(|folder| sync(folder))?;
    Ok(placed)
}

fn finished(done: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|source| Error::new(ErrorKind::Internal, "a file was lost").caused_by(source))?
}

async fn write(
    cx: &RunContext,
    path: &Path,
    entry: &TreeEntry,
    content: Box<dyn FileContent>,
    owner: Option<Owner>,
) -> Result<()> {
    let failed = |source| Error::io("cannot write the file", path, source);
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        // A plain directory's archive may have a folder after what is in it.
        make_folder(parent, PRIVATE, owner)?;
    }
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    file.set_max_buf_size(WRITE_BYTES);
    let mut pieces = content.open().await?;
    let mut bytes = 0;
    while let Some(piece) = cx.unless_cancelled(pieces.next()).await? {
        match piece {
            Piece::Data(data) => {
                bytes += data.len() as u64;
                file.write_all(&data).await.map_err(failed)?;
                cx.progress(data.len() as u64, 0);
            }
            Piece::Hole(length) => {
                bytes += length;
                file.seek(std::io::SeekFrom::Start(bytes)).await.map_err(failed)?;
                cx.progress(length, 0);
            }
        }
    }
    if bytes != entry.size() {
        let message = format!("`{}` has {} bytes in its tree, {bytes} were read", entry.path, entry.size());
        return Err(Error::new(ErrorKind::Damaged, message));
    }
    file.flush().await.map_err(failed)?;
    file.set_len(bytes).await.map_err(failed)?;
    file.set_permissions(std::fs::Permissions::from_mode(entry.mode)).await.map_err(failed)?;
    drop(file);
    own(path, owner)?;
    cx.progress(0, 1);
    Ok(())
}

/// Whom the server's files must belong to.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The system user `postgres`, when we may give files away and there is one.
    fn find() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let user = User::from_name(SERVER_USER)
            .map_err(|source| Error::from_io("cannot look up system users", std::io::Error::from(source)))?;
        Ok(user.map(|user| Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
    }
}

fn own(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(Owner { uid, gid }) = owner else { return Ok(()) };
    lchown(path, Some(uid), Some(gid)).map_err(|source| Error::io("cannot set the owner", path, source))
}

fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<()> {
    let failed = |source| Error::io("cannot make the folder", path, source);
    std::fs::create_dir_all(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    own(path, owner)
}

fn link(layout: &Layout, oid: u32, owner: Option<Owner>) -> Result<()> {
    let links = layout.data.join(LINKS);
    make_folder(&links, PRIVATE, owner)?;
    let path = links.join(oid.to_string());
    symlink(&layout.tablespaces[&oid], &path)
        .map_err(|source| Error::io("cannot link the tablespace", &path, source))?;
    own(&path, owner)
}

/// Writes `tablespace_map` for the new places, and its new length and checksum into the manifest.
fn write_map(layout: &Layout, owner: Option<Owner>) -> Result<()> {
    let map = layout.map();
    let mut digest = crc32c();
    digest.update(&map);
    let crc = digest.finalize() as u32;
    replace(&layout.data.join(MAP), &map, owner)?;
    let path = layout.data.join(MANIFEST);
    let failed = |source| Error::io("cannot rewrite the manifest", &path, source);
    let written = layout.data.join(format!("{MANIFEST}.new"));
    let mut from = std::io::BufReader::new(std::fs::File::open(&path).map_err(failed)?);
    let mut to = std::io::BufWriter::new(std::fs::File::create(&written).map_err(failed)?);
    let (mut reader, mut writer) = (ManifestReader::default(), ManifestWriter::default());
    loop {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(&mut from, 1 << 16), &mut data).map_err(failed)?;
        if data.is_empty() {
            break;
        }
        for line in reader.push(&data)? {
            let bytes = match line {
                Line::File(file) if file.path()? == MAP.as_bytes() => {
                    writer.file(file.line(MAP.as_bytes(), map.len() as u64, Some(crc))?)
                }
                Line::File(file) => writer.file(file.line(&file.path()?, file.size, file.crc()?)?),
                Line::Range(range) => writer.range(range),
                Line::Other(line) => writer.other(&line),
                Line::Checksum => std::mem::take(&mut writer).finish(),
            };
            std::io::Write::write_all(&mut to, &bytes).map_err(failed)?;
        }
    }
    reader.finish()?;
    to.into_inner().map_err(|error| failed(error.into_error()))?;
    std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&written, &path).map_err(failed)?;
    own(&path, owner)
}

fn replace(path: &Path, content: &[u8], owner: Option<Owner>) -> Result<()> {
    std::fs::write(path, content).map_err(|source| Error::io("cannot write the file", path, source))?;
    own(path, owner)
}

/// Brings everything to disk: a restore that a power failure could undo is none.
fn sync(folder: &Path) -> Result<()> {
    let failed = |source| Error::io("cannot bring the files to disk", folder, source);
    let handle = std::fs::File::open(folder).map_err(failed)?;
    rustix::fs::syncfs(&handle).map_err(|source| failed(source.into()))
}

/// The configuration files, below `folder/config`, as they were laid out.
pub(crate) async fn place_config(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    folder: &Path,
) -> Result<u64> {
    for file in &details.config_files {
        let content = cx.unless_cancelled(from.read(&file.artifact, MAX_SMALL)).await?;
        let path = folder.join(file.artifact.as_str());
        if let Some(parent) = path.parent() {
            make_folder(parent, PRIVATE, None)?;
        }
        let failed = |source| Error::io("cannot write the file", &path, source);
        std::fs::write(&path, content).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(details.config_files.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_go_to_their_new_places_and_nowhere_else() {
        let layout = Layout { data: "/new/data".into(), tablespaces: BTreeMap::from([(16384, "/new/a\nb\\c".into())]) };
        for (path, place) in [
            ("pg_tblspc/16384/PG_15/5/1", "/new/a\nb\\c/PG_15/5/1"),
            ("pg_tblspc/16384", "/new/a\nb\\c"),
            ("pg_tblspc/1/x", "/new/data/pg_tblspc/1/x"),
            ("pg_tblspc", "/new/data/pg_tblspc"),
            ("base/5/1", "/new/data/base/5/1"),
        ] {
            assert_eq!(layout.place(&TreePath::new(path).unwrap()), Path::new(place), "{path}");
        }
        assert_eq!(layout.map(), b"16384 /new/a\\\nb\\\\c\n");
    }
}
