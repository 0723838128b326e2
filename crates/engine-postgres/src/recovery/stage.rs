//! What a recovery needs of the archive, into the data directory: the server replays it from there, so it can be started
//! later, elsewhere, by hand, and no key that opens the archive is ever on its disk.

use std::path::Path;
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{RunContext, SegmentLog};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::conf::STAGE;
use super::spaces::Blanks;
use super::way::Way;
use crate::physical::{Owner, make_private};
use crate::wal::{WalFile, fetch};

/// Writes the segments, edited, and the histories of `way` below the data directory.
///
/// # Errors
/// Those of the archive, with the name of the file; those of the disk.
pub(crate) async fn stage(
    cx: &RunContext,
    log: &SegmentLog,
    way: &Way,
    (data, owner, blanks): (&Path, Option<Owner>, &Blanks),
) -> Result<u64> {
    let folder = data.join(STAGE);
    make_private(&folder, owner)?;
    let slots = Arc::new(Semaphore::new(cx.jobs()));
    let mut writing = JoinSet::new();
    let histories = way.histories.iter().map(|timeline| WalFile::History(*timeline));
    for file in histories.chain(way.segments.iter().map(|segment| WalFile::Segment(*segment))) {
        cx.check_cancelled()?;
        while let Some(done) = writing.try_join_next() {
            finished(done)?;
        }
        let slot = Arc::clone(&slots).acquire_owned().await;
        let (log, path) = (log.clone(), folder.join(file.to_string()));
        let bytes = if let WalFile::Segment(_) = file { way.segment_bytes } else { 0 };
        let (cx, blanks) = (cx.clone(), blanks.clone());
        writing.spawn(async move {
            let _slot = slot;
            cx.unless_cancelled(fetch(&log, file, &path)).await.map_err(|error| error.with("file", file))?;
            if let WalFile::Segment(segment) = file {
                blanks.apply(segment, &path)?;
            }
            if let Some(owner) = owner {
                owner.take(&path)?;
            }
            cx.progress(bytes, 0);
            Ok(())
        });
    }
    while let Some(done) = writing.join_next().await {
        finished(done)?;
    }
    Ok(way.segments.len() as u64 * way.segment_bytes)
}

fn finished(done: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|source| Error::new(ErrorKind::Internal, "a segment was lost").caused_by(source))?
}
