//! The SQLite database of the demo, in WAL mode, with a thread that never stops writing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use backup_core::{Error, ErrorKind, Result};
use rusqlite::Connection;

const FIRST_ROWS: u64 = 40_000;
const ROWS_PER_COMMIT: u64 = 20;
/// The writer pauses after each commit: a busy database, not a benchmark.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// A database under load.
pub(super) struct Database {
    stop: Arc<AtomicBool>,
    rows: Arc<AtomicU64>,
    writer: Option<JoinHandle<rusqlite::Result<()>>>,
}

fn failed(source: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Io, "the demo's SQLite database does not work").caused_by(source)
}

impl Database {
    /// Makes it, fills it, and starts the writer.
    pub(super) fn make(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path).map_err(failed)?;
        prepare(&mut connection).map_err(failed)?;
        let (stop, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(FIRST_ROWS)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rows));
        let writer = std::thread::spawn(move || write(&mut connection, &stopped, &counted));
        Ok(Self { stop, rows, writer: Some(writer) })
    }

    /// How many rows there are by now.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Stops the writer, and folds the write-ahead log into the database.
    pub(super) fn rest(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.map_err(failed),
            Some(Err(_)) => Err(Error::new(ErrorKind::Internal, "the demo's writer panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.execute_batch(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
         CREATE TABLE events (id INTEGER PRIMARY KEY, user INTEGER NOT NULL REFERENCES users, body TEXT, mark BLOB);
         CREATE INDEX events_by_user ON events (user);
         CREATE VIEW busy AS SELECT user, count(*) AS events FROM events GROUP BY user;",
    )?;
    let transaction = connection.transaction()?;
    for user in 0..100 {
        transaction.execute("INSERT INTO users (id, name) VALUES (?1, ?2)", (user, format!("user {user}")))?;
    }
    insert(&transaction, 0, FIRST_ROWS)?;
    transaction.commit()
}

fn insert(connection: &Connection, from: u64, count: u64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT INTO events (user, body, mark) VALUES (?1, ?2, ?3)")?;
    for number in from..from + count {
        let mark = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        let user = i64::try_from(number % 100).unwrap_or_default();
        statement.execute((user, format!("event {number} of the demo, with some text to it"), mark))?;
    }
    Ok(())
}

fn write(connection: &mut Connection, stop: &AtomicBool, rows: &AtomicU64) -> rusqlite::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let transaction = connection.transaction()?;
        insert(&transaction, rows.load(Ordering::Relaxed), ROWS_PER_COMMIT)?;
        transaction.commit()?;
        rows.fetch_add(ROWS_PER_COMMIT, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_stops_and_every_counted_row_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let database = Database::make(&path).unwrap();
        let counted = Arc::clone(&database.rows);
        database.rest().unwrap();
        let connection = Connection::open(&path).unwrap();
        let rows: i64 = connection.query_row("SELECT count(*) FROM events", (), |row| row.get(0)).unwrap();
        let rows = u64::try_from(rows).unwrap();
        assert_eq!(rows, counted.load(Ordering::Relaxed));
        assert!(rows >= FIRST_ROWS);
    }
}
