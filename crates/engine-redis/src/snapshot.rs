//! Obtaining an RDB from a live server: over the replication protocol, by BGSAVE where that is not allowed, and key by key
//! where neither is.
//!
//! Invariant: the stream ends well only when the protocol, the file's length, or the end of every listing says that it is
//! whole.

mod bgsave;
mod export;
pub(crate) mod handed;
mod large;
mod own_dump;
mod replication;
mod seen;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::position::Position;
use bytes::Bytes;
use jiff::Timestamp;

use crate::Redis;
use crate::server::Server;

use bgsave::SavedFile;
use export::Export;
pub(crate) use export::needed as export_allowed;
use handed::Handed;
pub(crate) use own_dump::{OwnDump, in_danger};
pub(crate) use replication::{Attached, Replication};

/// The bytes of one RDB are read in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;

/// How an RDB is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Way {
    /// In the best way that the server allows.
    #[default]
    Best,
    /// Key by key, without a moment that all keys share.
    Export,
}

/// An RDB on its way from the server. Dropping it closes the connection, which ends the server's child.
#[derive(Debug)]
pub(crate) enum Snapshot {
    Replicated(Replication),
    /// Somebody else talks to the server, and hands the RDB over.
    Handed(Handed),
    Saved(SavedFile),
    Exported(Export),
}

impl Snapshot {
    /// Asks `server`, the one of the plan or another node of its cluster, for an RDB.
    ///
    /// # Errors
    /// When no way is allowed, or the server fails to make one.
    pub(crate) async fn begin(cx: &RunContext, redis: &Redis, server: &Server, way: Way) -> Result<Self> {
        if way == Way::Export {
            return Self::export(cx, server).await;
        }
        let refused = match Replication::begin(cx, redis, server).await {
            Ok(replication) => return Ok(Self::Replicated(replication)),
            Err(error) if is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        let also_refused = match SavedFile::make(cx, redis, server).await {
            Ok(file) => {
                cx.warn(format!("{}; BGSAVE was used instead", refused.message()));
                return Ok(Self::Saved(file));
            }
            Err(error) if is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        match Self::export(cx, server).await {
            Ok(export) => {
                cx.warn(format!("{}; {}", refused.message(), also_refused.message()));
                Ok(export)
            }
            Err(error) if is_refusal(&error) => Err(also_refused),
            Err(error) => Err(error),
        }
    }

    async fn export(cx: &RunContext, server: &Server) -> Result<Self> {
        let export = Export::begin(cx, server).await?;
        cx.warn("this snapshot is fuzzy: it is read key by key (SCAN), each key whole, but not all of one moment");
        Ok(Self::Exported(export))
    }

    /// The next bytes; `None` when the RDB is whole.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Replicated(replication) => replication.next().await,
            Self::Handed(handed) => handed.next().await,
            Self::Saved(file) => file.next().await,
            Self::Exported(export) => export.next().await,
        }
    }

    /// Why it is whole; asked after the end.
    pub(crate) fn evidence(&self) -> Evidence {
        match self {
            Self::Replicated(replication) => replication.evidence(),
            Self::Handed(handed) => handed.evidence(),
            Self::Saved(file) => Evidence::ExactLength(file.length()),
            Self::Exported(_) => Evidence::EndMarker("the end of SCAN in every database"),
        }
    }

    /// Where in the replication stream it was taken, when the server said so.
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Replicated(replication) => replication.position(),
            Self::Handed(handed) => Some(handed.position()),
            Self::Saved(_) | Self::Exported(_) => None,
        }
    }

    /// When the server had come to that position, at the latest.
    pub(crate) fn position_time(&self) -> Option<Timestamp> {
        match self {
            Self::Replicated(replication) => replication.position().map(|_| replication.told()),
            Self::Handed(handed) => Some(handed.told()),
            Self::Saved(_) | Self::Exported(_) => None,
        }
    }

    /// The way in which it came, for the manifest.
    pub(crate) const fn way(&self) -> &'static str {
        match self {
            Self::Replicated(_) => "replication",
            Self::Handed(_) => "follow",
            Self::Saved(_) => "bgsave",
            Self::Exported(_) => "export",
        }
    }
}

/// Whether the server does not let us, so that another way may be tried.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
}
