//! The full snapshot that a chain of segments begins with: taken from the very connection that the stream follows on.
//!
//! Invariant: its position is where the first segment begins, so nothing lies between the two.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{BackupWriter, RunContext};

use crate::Redis;
use crate::snapshot::Snapshot;
use crate::snapshot::handed::Handed;

/// A source that saves what a follower hands over; once.
#[derive(Debug)]
pub(crate) struct Base {
    redis: Arc<Redis>,
    handed: Mutex<Option<Handed>>,
    because: String,
}

impl Base {
    pub(crate) fn new(redis: Arc<Redis>, handed: Handed, because: String) -> Self {
        Self { redis, handed: Mutex::new(Some(handed)), because }
    }
}

#[async_trait]
impl Source for Base {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        self.redis.preflight(cx).await
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        let handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let handed = handed.ok_or_else(|| Error::new(ErrorKind::Internal, "a followed snapshot was saved twice"))?;
        let save = self.redis.save(cx, out, Some(Snapshot::Handed(handed)));
        let mut summary = cx.unless_cancelled(save).await?;
        summary.details.insert("followed_because".to_owned(), self.because.clone().into());
        Ok(summary)
    }
}
