//! Obtaining an RDB from a live server: over the replication protocol, or by BGSAVE where that is not allowed.
//!
//! Invariant: the stream ends well only when the protocol or the file's length says that it is whole.

mod bgsave;
pub(crate) mod handed;
mod replication;

use std::path::Path;

use backup_core::RunContext;
use backup_core::error::{ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::host::Host;
use backup_core::position::Position;
use bytes::Bytes;
use jiff::Timestamp;

use crate::server::Server;

use bgsave::SavedFile;
use handed::Handed;
pub(crate) use replication::{Attached, Replication};

/// The bytes of one RDB are read in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;

/// An RDB on its way from the server. Dropping it closes the connection, which ends the server's child.
#[derive(Debug)]
pub(crate) enum Snapshot {
    Replicated(Replication),
    /// Somebody else talks to the server, and hands the RDB over.
    Handed(Handed),
    Saved(SavedFile),
}

impl Snapshot {
    /// Asks the server for an RDB, in the best way that it allows. `data_dir` is where it saves, when it does not tell.
    ///
    /// # Errors
    /// When no way is allowed, or the server fails to make one.
    pub(crate) async fn begin(
        cx: &RunContext,
        server: &Server,
        host: &dyn Host,
        data_dir: Option<&Path>,
    ) -> Result<Self> {
        let refused = match Replication::begin(cx, server).await {
            Ok(replication) => return Ok(Self::Replicated(replication)),
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => error,
            Err(error) => return Err(error),
        };
        cx.warn(format!("{}; falling back to BGSAVE, which replaces the server's own dump file", refused.message()));
        SavedFile::make(cx, server, host, data_dir).await.map(Self::Saved)
    }

    /// The next bytes; `None` when the RDB is whole.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Replicated(replication) => replication.next().await,
            Self::Handed(handed) => handed.next().await,
            Self::Saved(file) => file.next().await,
        }
    }

    /// Why it is whole; asked after the end.
    pub(crate) fn evidence(&self) -> Evidence {
        match self {
            Self::Replicated(replication) => replication.evidence(),
            Self::Handed(handed) => handed.evidence(),
            Self::Saved(file) => Evidence::ExactLength(file.length()),
        }
    }

    /// Where in the replication stream it was taken, when the server said so.
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Replicated(replication) => replication.position(),
            Self::Handed(handed) => Some(handed.position()),
            Self::Saved(_) => None,
        }
    }

    /// When the server had come to that position, at the latest.
    pub(crate) fn position_time(&self) -> Option<Timestamp> {
        match self {
            Self::Replicated(replication) => replication.position().map(|_| replication.told()),
            Self::Handed(handed) => Some(handed.told()),
            Self::Saved(_) => None,
        }
    }

    /// The way in which it came, for the manifest.
    pub(crate) const fn way(&self) -> &'static str {
        match self {
            Self::Replicated(_) => "replication",
            Self::Handed(_) => "follow",
            Self::Saved(_) => "bgsave",
        }
    }
}
