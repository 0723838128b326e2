//! Redis and Valkey: snapshots over the replication protocol, append-only files, portable export.

pub mod rdb;
