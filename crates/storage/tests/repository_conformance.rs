//! Repositories keep the contract of sinks: encrypted on disk, open in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backup_core::sink::Sink;
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
        (Arc::new(support::open_in_memory().await), ())
    }

    backup_testkit::sink_conformance!(make);
}
