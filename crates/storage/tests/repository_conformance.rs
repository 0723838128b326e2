//! Repositories keep the contract of sinks: encrypted on disk, open in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use backup_core::plan::EncryptionConfig;
use backup_core::sink::Sink;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use storage::{Repository, RepositoryOptions, Unlock, keys};

mod encrypted_on_disk {
    use super::*;

    async fn make() -> (Arc<dyn Sink>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("repository");
        std::fs::create_dir(&data).unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(data).unwrap());
        let pair = keys::generate();
        let options = RepositoryOptions {
            recipients: vec![pair.recipient],
            passphrase: None,
            encryption: EncryptionConfig::Age,
            level: 1,
            state: Some(folder.path().join("state")),
        };
        Repository::create(Arc::clone(&store), "a test", &options).await.unwrap();
        let unlock = Unlock { identities: vec![pair.identity], passphrase: None };
        (Arc::new(Repository::open(store, "a test", &options, &unlock).await.unwrap()), folder)
    }

    backup_testkit::sink_conformance!(make);
}

mod open_in_memory {
    use super::*;

    async fn make() -> (Arc<dyn Sink>, ()) {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let options = RepositoryOptions {
            recipients: Vec::new(),
            passphrase: None,
            encryption: EncryptionConfig::None,
            level: 1,
            state: None,
        };
        Repository::create(Arc::clone(&store), "a test", &options).await.unwrap();
        (Arc::new(Repository::open(store, "a test", &options, &Unlock::default()).await.unwrap()), ())
    }

    backup_testkit::sink_conformance!(make);
}
