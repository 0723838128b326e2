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
mod wire;

use std::sync::Arc;

use std::time::Duration;

use backup_core::SourceName;
use backup_core::engine::{Engine, EngineDescriptor, EngineSetup, Follower};
use backup_core::error::Result;

use config::{PostgresConfig, Settings, WalMode};
use logical::Logical;
use server::Server;
use wal::receive::{ReceiveOptions, Receiver};

/// Log that was received and does not fill a segment is archived after this: what can be lost with the server at most.
const PIECE_AGE: Duration = Duration::from_secs(10);

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
    let follower = follower(setup, &settings);
    let logical = Arc::new(Logical::new(settings, Arc::clone(&setup.host)));
    Ok(Engine {
        source: logical.clone(),
        restorer: logical.clone(),
        verifier: logical.clone(),
        driller: logical,
        follower,
    })
}

/// What archives the log, when the plan wants it streamed.
fn follower(setup: &EngineSetup<'_>, settings: &Settings) -> Option<Arc<dyn Follower>> {
    if settings.wal != Some(WalMode::Stream) {
        return None;
    }
    let slot = settings.slot.clone().unwrap_or_else(|| default_slot(setup.name));
    let options = ReceiveOptions { slot, piece_age: PIECE_AGE };
    Some(Arc::new(Receiver::new(Server::of(settings, Arc::clone(&setup.host)), options, None)))
}

/// The slot of a source: its name, as far as names of slots allow.
fn default_slot(source: &SourceName) -> String {
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let name: String = source.as_str().chars().map(plain).collect();
    format!("stackward_{}", &name[..name.len().min(53)])
}
