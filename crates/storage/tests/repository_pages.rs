//! Database files: whatever changes from run to run is read back exactly, and costs what changed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "pages/cost.rs"]
mod cost;
#[path = "pages/damage.rs"]
mod damage;
#[path = "pages/model.rs"]
mod model;
