//! What the tests of this crate share: engines from YAML, runs into memory, and trees described as text.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of tests is no library")]

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use backup_core::engine::{Engine, EngineDescriptor, EngineSetup, Existing, Place, RestoreReport, RestoreTarget};
use backup_core::error::Result;
use backup_core::host::LocalHost;
use backup_core::manifest::Manifest;
use backup_core::plan::{Node, OnFailure};
use backup_core::run::{RunOptions, Task, run};
use backup_core::sink::Sink;
use backup_core::{BackupReader, PlanName, RunContext, SourceName};

pub fn name() -> SourceName {
    SourceName::new("data").unwrap()
}

pub fn engine(descriptor: &EngineDescriptor, yaml: &str) -> Result<Engine> {
    let config = Node::from_yaml(yaml)?;
    let (name, host) = (name(), Arc::new(LocalHost));
    (descriptor.build)(&EngineSetup { name: &name, config: &config, folder: Path::new("/"), host })
}

pub fn files(yaml: &str) -> Engine {
    engine(&engine_files::FILES, yaml).unwrap()
}

pub async fn back_up(engine: &Engine, sink: &dyn Sink) -> Result<Manifest> {
    let options = RunOptions::new(PlanName::new("test").unwrap(), "here");
    let task = Task {
        name: name(),
        engine: "test".into(),
        source: Arc::clone(&engine.source),
        on_failure: OnFailure::Continue,
    };
    run(vec![task], sink, &options).await
}

pub async fn reader(sink: &dyn Sink, manifest: &Manifest) -> BackupReader {
    BackupReader::new(sink.open(&manifest.id).await.unwrap(), name()).unwrap()
}

pub fn into_folder(folder: &Path) -> RestoreTarget {
    RestoreTarget { place: Place::Folder(folder.to_owned()), ..RestoreTarget::default() }
}

pub fn replacing(target: RestoreTarget) -> RestoreTarget {
    RestoreTarget { existing: Existing::Replace, ..target }
}

pub async fn restore(engine: &Engine, from: &BackupReader, to: &RestoreTarget) -> Result<RestoreReport> {
    let cx = RunContext::new(name());
    let plan = engine.restorer.plan_restore(&cx, from, to).await?;
    engine.restorer.restore(&cx, from, plan).await
}

/// Everything that a restore must bring back, one line per entry: names, kinds, attributes, content, link groups.
pub fn describe(root: &Path) -> String {
    let mut text = String::new();
    let mut inodes = Vec::new();
    entry(root, Path::new("."), &mut inodes, &mut text);
    text
}

fn entry(path: &Path, shown: &Path, inodes: &mut Vec<u64>, text: &mut String) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    write!(text, "{} ", shown.as_os_str().as_bytes().escape_ascii()).unwrap();
    let mode = if kind.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 };
    let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
    write!(text, "{mode:o} {}:{} {seconds}.{nanos} ", metadata.uid(), metadata.gid()).unwrap();
    if !kind.is_dir() && metadata.nlink() > 1 {
        let known = inodes.iter().position(|inode| *inode == metadata.ino());
        let group = known.unwrap_or_else(|| {
            inodes.push(metadata.ino());
            inodes.len() - 1
        });
        write!(text, "group {group} of {} ", metadata.nlink()).unwrap();
    }
    let mut names = vec![0u8; 4096];
    let count = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> = names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0u8; 4096];
        let count = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]).unwrap();
        write!(text, "[{}={}] ", name.escape_ascii(), value[..count].escape_ascii()).unwrap();
    }
    if kind.is_symlink() {
        writeln!(text, "-> {:?}", std::fs::read_link(path).unwrap()).unwrap();
    } else if kind.is_file() {
        let content = std::fs::read(path).unwrap();
        let sum: u64 =
            content.iter().fold(content.len() as u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        writeln!(text, "file {} {sum:x}", content.len()).unwrap();
    } else if kind.is_dir() {
        writeln!(text, "dir").unwrap();
        let mut items: Vec<_> = std::fs::read_dir(path).unwrap().map(|item| item.unwrap().file_name()).collect();
        items.sort();
        for item in items {
            entry(&path.join(&item), &shown.join(&item), inodes, text);
        }
    } else if kind.is_fifo() {
        writeln!(text, "fifo").unwrap();
    } else {
        writeln!(text, "device {:x}", metadata.rdev()).unwrap();
    }
}
