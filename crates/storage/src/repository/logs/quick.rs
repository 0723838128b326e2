//! The short way for `archive_command`: one segment into a repository on a local disk, on the calling thread, without an
//! async runtime. It writes the same objects as [`super`], byte for byte of their form.
//!
//! Invariant: the segment and its folder are synced before a push returns; a push that dies leaves at most a temporary
//! file, of a name that listings leave out.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{SegmentId, SegmentMeta, SegmentRecord, Stored, conflict};
use backup_core::plan::{EncryptionConfig, RepositoryConfig};
use backup_core::{SegmentName, SourceName, Timeline};

use super::segment::{Found, Header, PREFIX_BYTES, Sealed, Sealer, header_length};
use super::{key, notes};
use crate::place::{self, Root};
use crate::repository::config::{Config, WriterKey, default_state};
use crate::repository::layout;

/// See the module.
pub struct QuickLog {
    root: PathBuf,
    place: Root,
    sealer: Sealer,
}

impl QuickLog {
    /// Opens the repository of `config`; `folder` is where relative paths start. `None` when the short way does not lead
    /// there: it is not on a local disk, or this machine has not pushed with these recipients before. Then
    /// [`open`](crate::open) does.
    ///
    /// # Errors
    /// Those of opening a repository.
    pub fn open(config: &RepositoryConfig, folder: &Path) -> Result<Option<Self>> {
        let Some(root) = crate::location::local_path(&config.url, folder) else { return Ok(None) };
        let place = match Root::open(&root) {
            Ok(place) => place,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("cannot open the folder of the repository", &root, error)),
        };
        let found = match std::fs::read(root.join(layout::CONFIG)) {
            Ok(bytes) => Config::parse(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("cannot read the repository's `config`", &root, error)),
        };
        if found.encryption != config.encryption || !found.conditional_put {
            // The long way says what is wrong.
            return Ok(None);
        }
        let state = config.state.as_ref().map_or_else(default_state, |state| folder.join(state));
        let level = i32::from(config.compression_level);
        let encrypted = found.encryption == EncryptionConfig::Age;
        let writer = if encrypted { WriterKey::load(&state, &found.repository_id)? } else { Some(WriterKey::open()) };
        let Some(writer) = writer else { return Ok(None) };
        found.check_mac(&writer.keys.index_key)?;
        let recipient = if encrypted {
            let recipients = found.recipients_to_write(&config.recipients)?;
            let Some(recipient) = key::load(&state, &found.repository_id, &recipients)? else { return Ok(None) };
            if !is_whole(&root, &layout::log_key(recipient.id())) {
                return Ok(None);
            }
            Some(recipient)
        } else {
            None
        };
        let (index_key, id_key) = (writer.keys.index_key.clone(), writer.keys.id_key.clone());
        Ok(Some(Self { root, place, sealer: Sealer { index_key, id_key, recipient, level } }))
    }

    /// As [`LogStore::put`](backup_core::log::LogStore::put).
    ///
    /// # Errors
    /// As there.
    pub fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: &mut dyn Read,
    ) -> Result<Stored> {
        let sealed = self.sealer.seal(source, id, meta, content)?;
        let path = self.root.join(layout::segment(source, id).as_ref());
        self.confirm()?;
        let stored = self.put_sealed(source, id, &sealed, &path);
        // What was written into another place is not stored.
        self.confirm()?;
        stored
    }

    fn put_sealed(&self, source: &SourceName, id: &SegmentId, sealed: &Sealed, path: &Path) -> Result<Stored> {
        match store(path, &self.root, &[&sealed.head, &sealed.body]) {
            Ok(()) => Ok(Stored::New { stored_bytes: sealed.stored_bytes() }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => self.settle(source, id, sealed, path),
            Err(error) => Err(Error::io("cannot store the segment", path, error)),
        }
    }

    /// What an existing segment of the same name means for `sealed`.
    fn settle(&self, source: &SourceName, id: &SegmentId, sealed: &Sealed, path: &Path) -> Result<Stored> {
        let look = || -> Result<(Vec<u8>, Found)> {
            let object = std::fs::read(path).map_err(|error| Error::io("cannot read the segment", path, error))?;
            let found = Found::look(&self.sealer.index_key, source, id, sealed, &object);
            Ok((object, found.map_err(|error| error.with("file", path.display()))?))
        };
        let object = match look()? {
            (_, Found::Same) => return Ok(Stored::Same),
            (_, Found::Other) => return Err(conflict(source, id)),
            (object, Found::Damaged(_)) => object,
        };
        let aside = self.root.join(layout::damaged_segment(source, id, &object).as_ref());
        let failed = |error| Error::io("cannot set a damaged segment aside", path, error);
        make_folder(aside.parent().unwrap_or(&self.root), &self.root).map_err(failed)?;
        std::fs::rename(path, &aside).map_err(failed)?;
        if std::fs::read(&aside).map_err(failed)? != object {
            // Another one has repaired it in this very moment: that one is put back.
            std::fs::rename(&aside, path).map_err(failed)?;
        }
        match store(path, &self.root, &[&sealed.head, &sealed.body]) {
            Ok(()) => Ok(Stored::Repaired { stored_bytes: sealed.stored_bytes() }),
            // Another one was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => match look()?.1 {
                Found::Same => Ok(Stored::Same),
                Found::Other => Err(conflict(source, id)),
                Found::Damaged(error) => Err(error.with("file", path.display())),
            },
            Err(error) => Err(Error::io("cannot store the segment", path, error)),
        }
    }

    /// As [`LogStore::holds`](backup_core::log::LogStore::holds).
    ///
    /// # Errors
    /// As there.
    pub fn holds(&self, source: &SourceName, id: &SegmentId, content: &mut dyn Read) -> Result<bool> {
        let path = self.root.join(layout::segment(source, id).as_ref());
        let header = self.existing(source, id, &path).map_err(|error| error.with("file", path.display()))?;
        header.0.is_of(&self.sealer.id_key, content)
    }

    /// One of the notes beside the log of a source; `None` when it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]; when the file system does not tell.
    pub fn note(&self, source: &SourceName, name: &SegmentName) -> Result<Option<String>> {
        let path = self.root.join(layout::note(source, name).as_ref());
        match std::fs::read(&path) {
            Ok(sealed) => notes::open(&self.sealer.index_key, source, name, &sealed)
                .map(Some)
                .map_err(|error| error.with("file", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("cannot read the note", &path, error)),
        }
    }

    /// As [`LogStore::add_note`](backup_core::log::LogStore::add_note).
    ///
    /// # Errors
    /// As there.
    pub fn add_note(&self, source: &SourceName, name: &SegmentName, text: &str) -> Result<()> {
        let path = self.root.join(layout::note(source, name).as_ref());
        let sealed = notes::seal(&self.sealer.index_key, source, name, text)?;
        self.confirm()?;
        let stored = store(&path, &self.root, &[&sealed]);
        stored.map_err(|error| Error::io("cannot write the note", &path, error))
    }

    /// What is known of a segment; `None` when it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]; also when the file system does not tell.
    pub fn record(&self, source: &SourceName, id: &SegmentId) -> Result<Option<SegmentRecord>> {
        let path = self.root.join(layout::segment(source, id).as_ref());
        match path.try_exists() {
            Ok(false) => self.confirm().map(|()| None),
            Ok(true) => {
                let found = self.existing(source, id, &path).map_err(|error| error.with("file", path.display()))?;
                Ok(Some(found.0.record(found.1)))
            }
            Err(error) => Err(Error::io("cannot look for the segment", &path, error)),
        }
    }

    /// The timelines of a source, sorted by name.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn timelines(&self, source: &SourceName) -> Result<Vec<Timeline>> {
        names(&self.root.join(layout::source_log(source)), |name| Timeline::new(name).ok())
    }

    /// The names of the segments of a timeline, sorted.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn segments(&self, source: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentName>> {
        names(&self.root.join(layout::timeline(source, timeline)), |name| SegmentName::new(name).ok())
    }

    /// Looks whether the repository that was opened still stands there.
    fn confirm(&self) -> Result<()> {
        let describe = format!("the repository at {}", self.root.display());
        self.place.check(&describe)?;
        if self.root.join(layout::CONFIG).exists() { Ok(()) } else { Err(place::another(&describe)) }
    }

    fn existing(&self, source: &SourceName, id: &SegmentId, path: &Path) -> Result<(Header, usize)> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Damaged, "the segment is cut short"),
            _ => Error::io("cannot read the segment", path, error),
        };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mut prefix = [0; PREFIX_BYTES];
        file.read_exact(&mut prefix).map_err(failed)?;
        let mut sealed = vec![0; header_length(&prefix)?];
        file.read_exact(&mut sealed).map_err(failed)?;
        Ok((Header::open(&self.sealer.index_key, source, id, &sealed)?, sealed.len()))
    }
}

/// Whether the key object at `key` is there, and is what the name of its second copy says.
fn is_whole(root: &Path, key: &object_store::path::Path) -> bool {
    let read = std::fs::read(root.join(key.as_ref()));
    read.is_ok_and(|bytes| root.join(layout::key_copy(key, &layout::object_hash(&bytes)).as_ref()).exists())
}

/// The names in a folder that `parse` takes, sorted. Temporary files are none: `#` is in no name.
fn names<T: Ord>(folder: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let failed = |error| Error::io("cannot list the log", folder, error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry.map_err(failed)?.file_name().to_str().and_then(&parse));
    }
    found.sort();
    Ok(found)
}

/// Creates the object at `path`, durable, or fails because there is one.
fn store(path: &Path, root: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    make_folder(folder, root)?;
    // The object store's own form of a temporary name, which its listings leave out.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!("#{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    let written = (|| {
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        std::fs::hard_link(&partial, path)
    })();
    let _gone = std::fs::remove_file(&partial);
    written?;
    sync_folder(folder)
}

fn make_folder(folder: &Path, root: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut made = folder.ancestors().skip(1).take_while(|above| above.starts_with(root));
    made.try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

impl std::fmt::Debug for QuickLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuickLog").field("root", &self.root).finish_non_exhaustive()
    }
}
