//! The contracts of Stackward: what a backup is made of, who may say that it is complete, and how it is described.
//!
//! Read [`engine`] for what an engine implements, [`sink`] for what a store implements, and [`run`] for the one
//! place that commits. This crate talks to no service: it knows processes ([`host`]), plans, manifests, and how to make a
//! connection private ([`tls`]).

#[cfg(not(target_pointer_width = "64"))]
compile_error!("Stackward counts bytes in usize and needs a 64-bit machine");

pub mod context;
pub mod engine;
pub mod error;
pub mod event;
pub mod evidence;
pub mod host;
pub mod log;
pub mod manifest;
pub mod names;
pub mod plan;
pub mod position;
pub mod reader;
pub mod run;
pub mod secret;
pub mod sink;
pub mod snapshots;
pub mod tls;
pub mod tree;
pub mod window;
pub mod writer;

pub use context::RunContext;
pub use error::{Error, ErrorKind, Result, Retry};
pub use event::{Event, Observer};
pub use evidence::{CleanExit, Evidence};
pub use log::SegmentLog;
pub use names::{ArtifactName, PlanName, SegmentName, SnapshotId, SourceName, Timeline};
pub use reader::BackupReader;
pub use writer::BackupWriter;
