//! The engine against real, private Redis servers.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod backup;
mod cluster;
mod conformance;
mod drill;
mod export;
mod faults;
mod follow;
mod own_dump;
mod proof;
mod restore;
mod select;
mod support;
mod wire;

#[path = "../rdb/fill.rs"]
mod fill;
#[path = "../rdb/server.rs"]
#[expect(dead_code, reason = "the servers here are the test kit's")]
mod server;
