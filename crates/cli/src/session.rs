//! One run of the program: what every command is given.

use std::sync::Arc;

use backup_core::context::{RunContext, interrupted};
use backup_core::{Result, SourceName};
use tokio_util::sync::CancellationToken;

use crate::World;
use crate::args::GlobalArgs;
use crate::output::Output;

/// See the module.
pub(crate) struct Session<'a> {
    pub(crate) world: &'a World,
    pub(crate) output: Arc<Output>,
    pub(crate) options: &'a GlobalArgs,
    pub(crate) cancel: CancellationToken,
}

impl Session<'_> {
    /// Runs work that has nothing to clean up until it ends or the user interrupts.
    pub(crate) async fn unless_interrupted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(interrupted()),
            result = work => result,
        }
    }

    /// The context for work on `source` that this session shows and stops.
    pub(crate) fn context(&self, source: &SourceName) -> RunContext {
        RunContext::new(source.clone()).observed_by(self.output.observer()).cancelled_by(self.cancel.clone())
    }
}
