//! The tests of both engines, on real files. They run as root, on Linux, and beside each other.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod changes;
mod conformance;
mod filters;
mod hostile;
mod merge;
mod property;
mod round_trip;
mod sqlite;
mod support;
mod targets;
