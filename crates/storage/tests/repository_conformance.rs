//! Repositories keep the contract of sinks: encrypted on disk, open in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backup_core::plan::EncryptionConfig;
use backup_core::sink::Sink;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use storage::{Repository, RepositoryOptions, Unlock};
use support::Place;

mod encrypted_on_disk {
    use super::*;

    async fn make() -> (Arc<dyn Sink>, Place) {
        let place = Place::new();
        place.create().await;
        let repository = place.open(&place.reading()).await.unwrap();
        (Arc::new(repository), place)
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
