//! Database files: whatever changes from run to run is read back exactly, and costs what changed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "pages/cost.rs"]
mod cost;
#[path = "pages/damage.rs"]
mod damage;
#[path = "pages/model.rs"]
mod model;

use std::path::{Path, PathBuf};

/// The packs of a repository.
fn packs(data: &Path) -> Vec<PathBuf> {
    files(&data.join("packs"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn stored_bytes(folder: &Path) -> u64 {
    files(folder).iter().map(|file| file.metadata().unwrap().len()).sum()
}
