//! Everything that the stack holds, written down: every file's bytes and attributes, every row of every table.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use backup_core::host::{Host, HostCommand, LocalHost};
use backup_core::{Error, ErrorKind, Result};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::made::Made;
use crate::output;

/// So many bytes are hashed at a time.
const BUFFER: usize = 256 * 1024;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// What is known of each thing, by a name for people.
    facts: BTreeMap<String, String>,
    files: u64,
    bytes: u64,
    rows: u64,
}

impl State {
    /// Writes down everything.
    pub(super) async fn of(made: &Made) -> Result<Self> {
        let mut state = Self::default();
        state.folder(&made.uploads(), Path::new("uploads"))?;
        state.sqlite(&made.app())?;
        if let Some(server) = made.server() {
            for (name, rows) in server.tables().await? {
                state.table(&name, rows).await?;
            }
        }
        Ok(state)
    }

    /// In a few words.
    pub(super) fn describe(&self) -> String {
        format!(
            "{} files, folders and links with {}, {}",
            output::count(self.files),
            output::bytes(self.bytes),
            output::counted(self.rows, "row")
        )
    }

    /// Files that were compared, folders and links among them.
    pub(super) fn files(&self) -> u64 {
        self.files
    }

    /// Rows that were compared.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// What is not the same in `after`.
    pub(super) fn differences(&self, after: &Self) -> Vec<String> {
        let lost = self.facts.iter().filter_map(|(name, fact)| match after.facts.get(name) {
            None => Some(format!("{name} is missing")),
            Some(other) if other != fact => Some(format!("{name} was {fact}, is {other}")),
            Some(_) => None,
        });
        let new = after.facts.keys().filter(|name| !self.facts.contains_key(*name));
        lost.chain(new.map(|name| format!("{name} is new"))).collect()
    }

    fn folder(&mut self, folder: &Path, name: &Path) -> Result<()> {
        let failed = |source| Error::io("cannot read what is to be compared", folder, source);
        self.entry(folder, name)?;
        for item in std::fs::read_dir(folder).map_err(failed)? {
            let item = item.map_err(failed)?;
            let (path, name) = (item.path(), name.join(item.file_name()));
            if item.file_type().map_err(failed)?.is_dir() {
                self.folder(&path, &name)?;
            } else {
                self.entry(&path, &name)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path) -> Result<()> {
        let failed = |source| Error::io("cannot read what is to be compared", path, source);
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        let content = if meta.is_symlink() {
            {
                let target = std::fs::read_link(path).map_err(failed)?;
                format!("-> {}", target.as_os_str().as_bytes().escape_ascii())
            }
        } else if meta.is_file() {
            self.bytes += meta.len();
            format!("{} bytes {}", meta.len(), hash_file(path).map_err(failed)?)
        } else {
            "folder".to_owned()
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let fact = format!(
            "{content}, mode {:o}, owner {}:{}, {links} links, time {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        self.files += 1;
        self.facts.insert(name.as_os_str().as_bytes().escape_ascii().to_string(), fact);
        Ok(())
    }

    fn sqlite(&mut self, path: &Path) -> Result<()> {
        let failed =
            |source| Error::new(ErrorKind::Io, format!("{} cannot be compared", path.display())).caused_by(source);
        let (facts, rows) = read_sqlite(path).map_err(failed)?;
        self.facts.extend(facts);
        self.rows += rows;
        Ok(())
    }

    async fn table(&mut self, name: &str, rows: HostCommand) -> Result<()> {
        let mut process = LocalHost.spawn(rows).await?;
        let mut stdout = process
            .take_stdout()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "psql was started without its output"))?;
        let (mut digest, mut count) = (Sha256::new(), 0u64);
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = stdout
                .read(&mut buffer)
                .await
                .map_err(|source| Error::from_io(format!("cannot read {name}"), source))?;
            let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { break };
            digest.update(data);
            count += data.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        }
        process.finish().await?;
        self.rows += count;
        self.facts.insert(name.to_owned(), format!("{count} rows {}", hex(&digest.finalize())));
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..read]);
    }
}

/// The schema and every row of every table, and how many rows there are.
fn read_sqlite(path: &Path) -> rusqlite::Result<(BTreeMap<String, String>, u64)> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut facts = BTreeMap::new();
    let mut tables = Vec::new();
    let mut schema = connection.prepare("SELECT type, name, coalesce(sql, '') FROM sqlite_schema ORDER BY 1, 2")?;
    let mut found = schema.query(())?;
    while let Some(row) = found.next()? {
        let (kind, name, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        facts.insert(format!("app.db: {kind} {name}"), sql);
        if kind == "table" {
            tables.push(name);
        }
    }
    let mut total = 0;
    for table in tables {
        let (count, digest) = hash_table(&connection, &table)?;
        total += count;
        facts.insert(format!("app.db: rows of {table}"), format!("{count} rows {digest}"));
    }
    Ok((facts, total))
}

fn hash_table(connection: &Connection, table: &str) -> rusqlite::Result<(u64, String)> {
    let quoted = table.replace('"', "\"\"");
    let mut statement = connection.prepare(&format!("SELECT * FROM \"{quoted}\" ORDER BY rowid"))?;
    let columns = statement.column_count();
    let mut rows = statement.query(())?;
    let (mut digest, mut count) = (Sha256::new(), 0);
    while let Some(row) = rows.next()? {
        count += 1;
        for column in 0..columns {
            let (kind, bytes) = match row.get_ref(column)? {
                ValueRef::Null => (0, Vec::new()),
                ValueRef::Integer(number) => (1, number.to_le_bytes().to_vec()),
                ValueRef::Real(number) => (2, number.to_bits().to_le_bytes().to_vec()),
                ValueRef::Text(text) => (3, text.to_vec()),
                ValueRef::Blob(blob) => (4, blob.to_vec()),
            };
            digest.update([kind]);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(&bytes);
        }
    }
    Ok((count, hex(&digest.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_or_attribute_is_a_difference() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let look = || {
            let mut state = State::default();
            state.folder(folder.path(), Path::new("x")).unwrap();
            state
        };
        std::fs::write(&path, b"one").unwrap();
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let before = look();
        assert!(before.differences(&look()).is_empty());
        std::fs::write(&path, b"two").unwrap();
        std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(before.differences(&look()).len(), 1, "a byte");
        let before = look();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(before.differences(&look()).len(), 1, "a mode");
        std::fs::remove_file(&path).unwrap();
        assert!(before.differences(&look()).contains(&"x/a is missing".to_owned()));
    }

    #[test]
    fn one_changed_row_is_a_difference() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (2, NULL)").unwrap();
        let (before, rows) = read_sqlite(&path).unwrap();
        assert_eq!(rows, 2);
        connection.execute("UPDATE t SET b = '' WHERE a = 2", ()).unwrap();
        assert_ne!(read_sqlite(&path).unwrap().0, before);
    }
}
