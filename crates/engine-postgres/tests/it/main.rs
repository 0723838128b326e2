//! The engine against real, private PostgreSQL servers.

mod backup;
mod drill;
mod faults;
mod restore;
mod support;
mod verify;
