//! The engine against real, private Redis servers.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

mod backup;
mod conformance;
mod drill;
mod faults;
mod follow;
mod restore;
mod support;
