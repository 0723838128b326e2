//! Connections, the work that is done with them on threads that may block, and what SQLite's errors mean.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::RunContext;
use backup_core::context::interrupted;
use backup_core::error::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags};

use crate::backup::panicked;

/// Lets a query that is running be stopped from outside.
#[derive(Clone, Default)]
pub(crate) struct Interrupts(Arc<Mutex<Vec<InterruptHandle>>>);

impl Interrupts {
    /// Lets `connection` be stopped.
    pub(crate) fn watch(&self, connection: &Connection) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection.get_interrupt_handle());
    }

    fn stop(&self) {
        for handle in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            handle.interrupt();
        }
    }
}

/// Stops what still runs when the future that waited for it is dropped.
struct StopOnDrop(Interrupts);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs `work` on a thread that may block. Its context is cancelled, and its queries interrupted, when `cx` is cancelled
/// or the future is dropped.
///
/// # Errors
/// Those of `work`; [`ErrorKind::Interrupted`] when cancelled, once `work` has ended.
pub(crate) async fn blocking<T: Send + 'static>(
    cx: &RunContext,
    work: impl FnOnce(&RunContext, &Interrupts) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = cx.cancellation().child_token();
    let _guard = stop.clone().drop_guard();
    let interrupts = Interrupts::default();
    let _stop_on_drop = StopOnDrop(interrupts.clone());
    let inner = cx.clone().cancelled_by(stop);
    let handed = interrupts.clone();
    let mut task = tokio::task::spawn_blocking(move || work(&inner, &handed));
    let joined = tokio::select! {
        joined = &mut task => joined,
        () = cx.cancellation().cancelled() => {
            interrupts.stop();
            task.await
        }
    };
    let result = joined.map_err(panicked)?;
    cx.check_cancelled()?;
    result
}

/// Opens a database that may be in use, for reading.
///
/// # Errors
/// As [`explain`].
pub(crate) fn open_live(path: &Path, busy_timeout: Duration) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|source| explain(source, path))?;
    connection.busy_timeout(busy_timeout).map_err(|source| explain(source, path))?;
    Ok(connection)
}

/// Opens a copy that nobody else uses, for reading, without leaving files beside it.
///
/// # Errors
/// As [`explain`].
pub(crate) fn open_copy(path: &Path, interrupts: &Interrupts) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(immutable(path), flags).map_err(|source| explain(source, path))?;
    interrupts.watch(&connection);
    Ok(connection)
}

/// A URI that promises SQLite that nobody changes the file (sqlite.org/uri.html).
fn immutable(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri + "?immutable=1"
}

/// What an error of SQLite means to an operator.
pub(crate) fn explain(source: rusqlite::Error, path: &Path) -> Error {
    let shown = path.display();
    let code = source.sqlite_error_code();
    let error = match code {
        Some(ErrorCode::NotADatabase) => {
            Error::new(ErrorKind::Unsupported, format!("`{shown}` is not an SQLite database, or it is encrypted")).hint(
                "check the path; save encrypted databases with the engine `files` while their application is stopped",
            )
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::new(ErrorKind::Busy, format!("another process keeps `{shown}` locked"))
                .hint("raise `busy_timeout`, or find who holds a transaction open")
                .retry_later()
        }
        Some(ErrorCode::DatabaseCorrupt) => Error::new(ErrorKind::Damaged, format!("`{shown}` is damaged"))
            .hint("restore it from an earlier snapshot; `PRAGMA integrity_check` tells more"),
        Some(ErrorCode::DiskFull) => Error::new(ErrorKind::NoSpace, format!("no space is left for `{shown}`"))
            .hint("free some space in the folder for temporary files; it needs as much as the database"),
        Some(ErrorCode::OperationInterrupted) => return interrupted(),
        Some(ErrorCode::PermissionDenied) => {
            Error::new(ErrorKind::PermissionDenied, format!("`{shown}` may not be read"))
                .hint("run as root, or as the owner of the database")
        }
        Some(ErrorCode::CannotOpen) => Error::new(ErrorKind::PermissionDenied, format!("`{shown}` cannot be opened"))
            .hint(
                "run as root or as the owner of the database; its folder must be writable for a database in WAL mode",
            ),
        Some(ErrorCode::ReadOnly) => Error::new(
            ErrorKind::Unsupported,
            format!("`{shown}` was not closed cleanly, and only its owner may repair it"),
        )
        .hint("open it once with its application, or with `sqlite3`, then back it up again"),
        _ => Error::new(ErrorKind::Io, format!("cannot read `{shown}`")),
    };
    error.caused_by(source)
}
