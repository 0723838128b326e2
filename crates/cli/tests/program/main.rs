//! The command line as its users see it, word for word: in this process over a sink in memory, and as a built binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod binary;
mod commands;
mod machine;
mod note;
#[cfg(feature = "files")]
mod real;
mod redis;
mod streams;
#[path = "../support/mod.rs"]
mod support;
