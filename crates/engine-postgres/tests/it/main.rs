//! The engine against real, private PostgreSQL servers.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod altered;
mod backup;
mod conformance;
mod drill;
mod faults;
mod follow;
mod increments;
mod locks;
mod names;
mod partial;
mod physical;
mod recovery;
mod restore;
mod saved_settings;
mod support;
mod verify;
