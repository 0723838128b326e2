//! Plain directories keep the contract of sinks, however their files are compressed.

use std::path::PathBuf;
use std::sync::Arc;

use backup_core::plan::{CompressionConfig, DirectoryConfig, SinkConfig};
use backup_core::sink::Sink;
use storage::Unlock;

async fn make(compression: CompressionConfig) -> (Arc<dyn Sink>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let sink = SinkConfig::Directory(DirectoryConfig { path: PathBuf::from("./a/directory"), compression });
    assert!(storage::create(&sink, folder.path()).await.expect("a directory").created);
    assert!(!storage::create(&sink, folder.path()).await.expect("a directory").created);
    (storage::open(&sink, folder.path(), &Unlock::default()).await.expect("a directory"), folder)
}

macro_rules! conformance {
    ($name:ident, $compression:expr) => {
        mod $name {
            use super::*;

            async fn make() -> (Arc<dyn Sink>, tempfile::TempDir) {
                super::make($compression).await
            }

            backup_testkit::sink_conformance!(make);
        }
    };
}

conformance!(plain, CompressionConfig::None);
conformance!(gzip, CompressionConfig::Gzip);
conformance!(zstd, CompressionConfig::Zstd);
