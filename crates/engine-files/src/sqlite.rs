//! The `sqlite` engine: consistent copies of live databases, through SQLite's own backup interface.
//!
//! Invariant: a live database file is opened through SQLite only. POSIX locks belong to the process: opening and
//! closing the file in any other way would drop the locks of every connection that this process has to it
//! (sqlite.org/howtocorrupt.html, section 2.2).

mod apart;
mod backup;
mod config;
mod connection;
mod engine;
mod health;
mod record;
mod restore;
mod verify;

pub(crate) use config::SqliteConfig;
pub(crate) use engine::build;
pub(crate) use restore::COMPANIONS;
