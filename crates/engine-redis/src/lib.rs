//! The Redis and Valkey engine: a snapshot over the replication protocol, checked on its way, and put back so that the
//! server really loads it.
//!
//! [`REDIS`] is all that a front end needs. It is the smallest whole engine: read `backup.rs`, then `snapshot.rs`,
//! `verify.rs`, `drill.rs` and `restore.rs` to learn how one is written.

mod aof;
mod backup;
mod cluster;
mod companions;
mod config;
mod connection;
mod counts;
mod details;
mod discover;
mod drill;
mod dumps;
mod follow;
mod inspect;
pub mod rdb;
mod recover;
mod replies;
mod restore;
mod scratch;
mod server;
mod snapshot;
mod verify;
mod versions;

use std::sync::Arc;

use backup_core::engine::{Engine, EngineDescriptor, EngineSetup, Follower};
use backup_core::error::Result;
use backup_core::host::Host;

use config::{RedisConfig, Settings};
use follow::RedisFollower;
use server::Server;

/// Registers this engine: sources under the key `redis`.
pub const REDIS: EngineDescriptor = EngineDescriptor {
    name: "redis",
    summary: "a Redis or Valkey server: databases, functions, access rules, configuration",
    build,
    schema: || schemars::schema_for!(RedisConfig),
    discover: discover::discover,
};

fn build(setup: &EngineSetup<'_>) -> Result<Engine> {
    let settings = Settings::parse(setup.config, setup.folder)?;
    let server = Server::of(&settings);
    let redis = Arc::new(Redis { settings, server, host: Arc::clone(&setup.host) });
    let follower = redis.settings.follow.map(|limits| {
        let redis = Arc::clone(&redis);
        Arc::new(RedisFollower { redis, limits }) as Arc<dyn Follower>
    });
    Ok(Engine { source: redis.clone(), restorer: redis.clone(), verifier: redis.clone(), driller: redis, follower })
}

/// One configured server.
#[derive(Debug)]
struct Redis {
    settings: Settings,
    server: Server,
    host: Arc<dyn Host>,
}
