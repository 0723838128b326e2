//! The PostgreSQL engine: drives the server's own tools, and believes them only with evidence.
//!
//! [`POSTGRES`] is all that a front end needs. The logical mode goes through host processes (`psql`, `pg_dump`, …), so that
//! peer authentication and containers work alike; the physical mode speaks the server's protocol itself (`wire`).

mod cluster;
mod config;
mod config_files;
mod discover;
mod feed;
mod handover;
mod logical;
mod physical;
mod psql;
mod scratch;
mod server;
mod sql;
mod tools;
pub mod wal;
mod wire;

use std::sync::Arc;

use backup_core::engine::{Engine, EngineDescriptor, EngineSetup};
use backup_core::error::Result;

use cluster::Cluster;
use config::{PostgresConfig, Settings};

/// Registers this engine: sources under the key `postgres`.
pub const POSTGRES: EngineDescriptor = EngineDescriptor {
    name: "postgres",
    summary: "a PostgreSQL server: databases, roles, configuration files",
    build,
    schema: || schemars::schema_for!(PostgresConfig),
    discover: discover::discover,
};

/// The SQL that makes a role for physical backups, which can do nothing else: statements, and what each is for.
pub const BACKUP_ROLE: [(&str, &str); 3] = physical::ROLE;

fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let settings = Settings::parse(setup.config, setup.folder)?;
    let cluster = Arc::new(Cluster::new(settings, &setup.host));
    Ok(Engine {
        source: cluster.clone(),
        restorer: cluster.clone(),
        verifier: cluster.clone(),
        driller: cluster,
        follower: None,
    })
}
