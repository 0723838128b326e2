//! What tests share: a sink in memory, conformance suites, fault injection and private servers.
//!
//! Engines, sinks and hosts run the suites here; the names of the tests are the contract.

#![expect(clippy::missing_panics_doc, reason = "everything here panics: that is how a test fails")]

pub mod certificates;
pub mod conformance;
mod disturbed_sink;
mod faulty_store;
mod live_guard;
pub mod log_suite;
mod memory_log;
mod memory_sink;
pub mod postgres;
pub mod redis;
pub mod sink_suite;

pub use certificates::{Certificates, Identity};
pub use disturbed_sink::{Action, Disturbance, DisturbedSink};
pub use faulty_store::{Fault, FaultyStore};
pub use live_guard::LiveGuard;
pub use memory_log::MemoryLog;
pub use memory_sink::MemorySink;
pub use postgres::PrivatePostgres;
pub use redis::PrivateRedis;
pub use sink_suite::{ScriptedSource, noise};
