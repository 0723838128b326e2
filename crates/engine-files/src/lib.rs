//! File trees and SQLite databases: the engines `files` and `sqlite`.
//!
//! Invariant: what cannot be saved or put back exactly is said in a warning; it is never silent.

mod attributes;
mod backup;
mod config;
mod discover;
mod drill;
mod engine;
mod filter;
mod futile;
mod owners;
mod read;
mod restore;
mod route;
mod sqlite;
mod verify;
mod walk;

use backup_core::engine::EngineDescriptor;

/// The engine `files`: folders and everything in them.
pub const FILES: EngineDescriptor = EngineDescriptor {
    name: "files",
    summary: "files, folders and everything in them",
    build: engine::build,
    schema: || schemars::schema_for!(config::FilesConfig),
    discover: discover::folders,
};

/// The engine `sqlite`: databases, copied while they are in use.
pub const SQLITE: EngineDescriptor = EngineDescriptor {
    name: "sqlite",
    summary: "SQLite databases, copied while they are in use",
    build: sqlite::build,
    schema: || schemars::schema_for!(sqlite::SqliteConfig),
    discover: discover::databases,
};
