//! The plan: the declarative file that says what to back up and where to. Parsing is pure; nothing is run or contacted.
//!
//! Invariant: every error names line, column and field, and the nearest valid name when a name is wrong.

mod deserialize;
mod model;
mod node;
mod parse;

pub use model::{
    CompressionConfig, DirectoryConfig, EncryptionConfig, OnFailure, Plan, Promise, RepositoryConfig, RequestsConfig,
    SinkConfig, SourceConfig, Span,
};
pub use node::{Location, Node, NodeValue};
pub use parse::{nearest, parse, schema};
