//! The snapshots of one source: how a follower takes one, and what a recovery can begin with.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::context::RunContext;
use crate::engine::{Candidate, Snapshots, Source};
use crate::error::Result;
use crate::manifest::Manifest;
use crate::names::{PlanName, SourceName};
use crate::plan::OnFailure;
use crate::run::{RunOptions, Task, run};
use crate::sink::{Sink, SnapshotFilter};

/// The snapshots of a source in a sink.
#[derive(Clone)]
pub struct SourceSnapshots {
    sink: Arc<dyn Sink>,
    options: RunOptions,
    source: SourceName,
    engine: String,
}

impl SourceSnapshots {
    /// Those of `source`, which `engine` serves. Snapshots are taken with `options`, under its plan.
    pub fn new(sink: Arc<dyn Sink>, options: RunOptions, source: SourceName, engine: impl Into<String>) -> Self {
        Self { sink, options, source, engine: engine.into() }
    }
}

#[async_trait]
impl Snapshots for SourceSnapshots {
    async fn take(&self, cx: &RunContext, source: Arc<dyn Source>) -> Result<Manifest> {
        let (name, engine) = (self.source.clone(), self.engine.clone());
        let options = RunOptions { cancel: cx.cancellation().clone(), ..self.options.clone() };
        let task = Task { name, engine, source, on_failure: OnFailure::Abort };
        run(vec![task], self.sink.as_ref(), &options).await
    }

    async fn candidates(&self) -> Result<Vec<Candidate>> {
        candidates(self.sink.as_ref(), &self.options.plan, &self.source).await
    }
}

/// The snapshots of `plan` in which `source` is complete, oldest first. One that cannot be read is left out.
///
/// # Errors
/// When the snapshots cannot be listed.
pub async fn candidates(sink: &dyn Sink, plan: &PlanName, source: &SourceName) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for summary in sink.snapshots(&SnapshotFilter { plan: Some(plan.clone()) }).await? {
        if !summary.sources.contains(source) {
            continue;
        }
        let Ok(manifest) = sink.manifest(&summary.id).await else { continue };
        if let Some(record) = manifest.source(source) {
            candidates.push(Candidate { id: manifest.id.clone(), record: record.clone() });
        }
    }
    Ok(candidates)
}

impl fmt::Debug for SourceSnapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceSnapshots")
            .field("sink", &self.sink)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
