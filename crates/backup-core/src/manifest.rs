//! The manifest: one JSON document per snapshot that says what was saved and why we believe it.
//!
//! Invariant: only this module's types, and the plan's, are wire formats. No secret ever.

mod model;
mod read;

pub use model::{
    ArtifactKind, ArtifactRecord, Content, EntryOrder, Extent, Fingerprint, Manifest, Outcome, ServerRecord,
    SourceOutcome, SourceRecord,
};
pub use read::{FORMAT_VERSION, parse, render, schema};
