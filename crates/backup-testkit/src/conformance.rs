//! The conformance suites. A suite is a list of functions whose names are the contract, and a macro that makes tests of them.

pub mod engine;
