//! What tests share: a sink in memory, conformance suites, fault injection and private servers.
//!
//! Engines, sinks and hosts run the suites here; the names of the tests are the contract.

pub mod conformance;
mod disturbed_sink;
mod memory_sink;

pub use disturbed_sink::{Action, Disturbance, DisturbedSink};
pub use memory_sink::MemorySink;
