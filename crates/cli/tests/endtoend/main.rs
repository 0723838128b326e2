//! The built binary from end to end: crashes, full disks, damage, enemies, old formats, and the reader without Stackward.
#![cfg(all(feature = "files", feature = "postgres", feature = "demo"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod base_backup;
mod crash;
mod damage;
mod faults;
#[cfg(feature = "redis")]
mod follow;
mod full_disk;
mod hostile;
mod memory;
mod moments;
mod old_formats;
mod recover;
#[path = "../support/mod.rs"]
mod support;
mod together;
mod wal;
mod whole_stack;
