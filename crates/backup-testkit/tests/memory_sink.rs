//! The sink in memory keeps the contract that engines are tested against.

use std::sync::Arc;

use backup_core::sink::Sink;
use backup_testkit::MemorySink;

#[expect(clippy::unused_async, reason = "other sinks need a runtime to be made")]
async fn make() -> (Arc<dyn Sink>, ()) {
    (Arc::new(MemorySink::default()), ())
}

backup_testkit::sink_conformance!(make);
