//! Native increments (PostgreSQL 17 and newer): whether one is possible, and the upload of the earlier manifest.
//!
//! Invariant: the manifest that is uploaded is the memo of the very snapshot that unchanged pages are kept from; whatever
//! stands in the way of an increment costs time, never the backup.

use backup_core::error::{ErrorKind, Result};
use backup_core::writer::EarlierSource;
use backup_core::{ArtifactName, BackupWriter, Error, RunContext, SnapshotId};

use super::backup::MANIFEST;
use super::details::{DamagedPage, PhysicalDetails};
use super::facts::{INCREMENTS_SINCE, ServerFacts};
use crate::config::{Increments, Settings};
use crate::wire::{Answer, Connection, server_error};

/// An increment that the server was prepared for.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// Since which snapshot.
    pub(crate) of: SnapshotId,
    /// Pages that were damaged then: those that did not change still are.
    pub(crate) damaged: Vec<DamagedPage>,
}

/// Prepares an increment when one is possible. `None`: a full backup; why is told where an operator could change it.
pub(crate) async fn choose(
    cx: &RunContext,
    out: &BackupWriter,
    settings: &Settings,
    facts: &ServerFacts,
    connection: &mut Connection,
) -> Result<Option<Chosen>> {
    if settings.increments == Increments::Never || facts.version.major() < INCREMENTS_SINCE {
        return Ok(None);
    }
    let Some(earlier) = out.earlier().await? else { return Ok(None) };
    let details = match PhysicalDetails::of(earlier.record()) {
        Ok(Some(details)) => details,
        Ok(None) => return Ok(None),
        Err(error) => {
            warn(cx, &error.chain());
            return Ok(None);
        }
    };
    if let Some(why) = obstacle(facts, &details) {
        warn(cx, why);
        return Ok(None);
    }
    cx.step(format!("telling the server what {} has", earlier.snapshot()));
    match upload(&earlier, connection).await? {
        Uploaded::Accepted => Ok(Some(Chosen { of: earlier.snapshot().clone(), damaged: details.damaged_pages })),
        Uploaded::Unreadable(error) => {
            warn(cx, &format!("the earlier manifest cannot be read: {}", error.chain()));
            Ok(None)
        }
        Uploaded::Refused(error) => explain(cx, &error).map(|()| None),
    }
}

/// What can be known beforehand to make an increment impossible.
fn obstacle(facts: &ServerFacts, earlier: &PhysicalDetails) -> Option<&'static str> {
    if !facts.summarizes {
        return Some("`summarize_wal` is off (`ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();`)");
    }
    if earlier.system_identifier != facts.identity.system_identifier.to_string() {
        return Some("the earlier snapshot is of another server; is this the right one?");
    }
    if earlier.block_size != facts.shape.page_bytes {
        return Some("the earlier snapshot has pages of another size");
    }
    None
}

/// What became of an upload. The session can be used on in any case.
enum Uploaded {
    Accepted,
    /// What we have of the earlier manifest.
    Unreadable(Error),
    /// By the server.
    Refused(Error),
}

async fn upload(earlier: &EarlierSource, connection: &mut Connection) -> Result<Uploaded> {
    let mut memo = match earlier.memo(&ArtifactName::new(MANIFEST)?).await {
        Ok(memo) => memo,
        Err(error) => return Ok(Uploaded::Unreadable(error)),
    };
    connection.begin("UPLOAD_MANIFEST").await?;
    match connection.answer().await {
        Ok(Answer::CopyIn) => {}
        Ok(_) => return Err(Error::new(ErrorKind::Unsupported, "the server does not take a manifest")),
        Err(error) => return Ok(Uploaded::Refused(error)),
    }
    loop {
        match memo.next().await {
            Ok(Some(data)) => connection.send_data(&data).await?,
            Ok(None) => break,
            Err(error) => {
                // What was sent so far is no manifest; the server says so, and is ready again.
                connection.end_data().await?;
                let _refused = finish(connection).await;
                return Ok(Uploaded::Unreadable(error));
            }
        }
    }
    connection.end_data().await?;
    Ok(match finish(connection).await {
        Ok(()) => Uploaded::Accepted,
        Err(error) => Uploaded::Refused(error),
    })
}

async fn finish(connection: &mut Connection) -> Result<()> {
    loop {
        if let Answer::Ready = connection.answer().await? {
            return Ok(());
        }
    }
}

/// Warns when the server refused the increment; any other error stays one.
pub(crate) fn explain(cx: &RunContext, error: &Error) -> Result<()> {
    const WE_OR_THE_SERVER_LEFT: [ErrorKind; 3] =
        [ErrorKind::Unreachable, ErrorKind::Interrupted, ErrorKind::PermissionDenied];
    match server_error(error) {
        Some(refused) if !WE_OR_THE_SERVER_LEFT.contains(&error.kind()) => {
            warn(cx, &refused.to_string());
            Ok(())
        }
        _ => Err(Error::new(error.kind(), "the increment could not be prepared").caused_by(error.chain())),
    }
}

fn warn(cx: &RunContext, why: &str) {
    cx.warn(format!("everything is read instead of what changed: {why}"));
}
