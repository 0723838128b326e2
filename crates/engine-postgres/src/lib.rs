//! The PostgreSQL engine: drives the server's own tools, and believes them only with evidence.
//!
//! [`POSTGRES`] is all that a front end needs. Everything, the SQL included, goes through host processes (`psql`,
//! `pg_dump`, …), so that peer authentication and containers work alike.

mod config;
mod discover;
mod feed;
mod handover;
mod logical;
mod psql;
mod scratch;
mod server;
mod sql;
mod tools;
pub mod wal;

use std::sync::Arc;

use backup_core::engine::{Engine, EngineDescriptor, EngineSetup};
use backup_core::error::Result;

use config::{PostgresConfig, Settings};
use logical::Logical;

/// Registers this engine: sources under the key `postgres`.
pub const POSTGRES: EngineDescriptor = EngineDescriptor {
    name: "postgres",
    summary: "a PostgreSQL server: databases, roles, configuration files",
    build,
    schema: || schemars::schema_for!(PostgresConfig),
    discover: discover::discover,
};

fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let settings = Settings::parse(setup.config, setup.folder)?;
    let logical = Arc::new(Logical::new(settings, Arc::clone(&setup.host)));
    Ok(Engine {
        source: logical.clone(),
        restorer: logical.clone(),
        verifier: logical.clone(),
        driller: logical,
        follower: None,
    })
}
