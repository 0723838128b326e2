//! The PostgreSQL engine: drives the server's own tools, and believes them only with evidence.
//!
//! [`POSTGRES`] is all that a front end needs. The logical mode goes through host processes (`psql`, `pg_dump`, …), so that
//! peer authentication and containers work alike; the physical mode speaks the server's protocol itself (`wire`).

mod cluster;
mod complaint;
mod config;
mod config_files;
mod discover;
mod feed;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handover;
mod isolation;
mod logical;
mod physical;
mod psql;
mod recovery;
mod scratch;
mod server;
mod session;
mod sql;
mod text;
mod tools;
pub mod wal;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use backup_core::SourceName;
use backup_core::engine::{Engine, EngineDescriptor, EngineSetup, Follower, Source};
use backup_core::error::Result;

use cluster::Cluster;
use config::{Mode, PostgresConfig, Settings, WalMode};
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

/// The SQL that makes a role for physical backups, which can do nothing else: statements, and what each is for.
pub const BACKUP_ROLE: [(&str, &str); 3] = physical::ROLE;

fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let settings = Settings::parse(setup.config, setup.folder)?;
    let receiver = receiver(setup, &settings);
    let is_physical = settings.modes.contains(&Mode::Physical);
    let cluster = Arc::new(Cluster::new(settings, &setup.host));
    let base = is_physical.then(|| -> Arc<dyn Source> { cluster.clone() });
    Ok(Engine {
        source: cluster.clone(),
        restorer: cluster.clone(),
        verifier: cluster.clone(),
        driller: cluster,
        follower: receiver
            .map(|(server, options)| -> Arc<dyn Follower> { Arc::new(Receiver::new(server, options, base)) }),
    })
}

/// What the log is received with, when the plan wants it streamed.
fn receiver(setup: &EngineSetup<'_>, settings: &Settings) -> Option<(Server, ReceiveOptions)> {
    if settings.wal != Some(WalMode::Stream) {
        return None;
    }
    let slot = settings.slot.clone().unwrap_or_else(|| default_slot(setup.name));
    Some((Server::of(settings, Arc::clone(&setup.host)), ReceiveOptions { slot, piece_age: PIECE_AGE }))
}

/// The slot of a source: its name, as far as names of slots allow.
fn default_slot(source: &SourceName) -> String {
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let name: String = source.as_str().chars().map(plain).collect();
    format!("stackward_{}", &name[..name.len().min(53)])
}
