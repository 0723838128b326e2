//! What tests share: a sink in memory, conformance suites, fault injection and private servers.
//!
//! Engines, sinks and hosts run the suites here; the names of the tests are the contract.

mod memory_sink;
pub mod postgres;

pub use memory_sink::MemorySink;
pub use postgres::PrivatePostgres;
