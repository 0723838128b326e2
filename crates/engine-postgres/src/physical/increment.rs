//! Native increments (PostgreSQL 17 and newer): whether one is possible, and the upload of the earlier manifest.
//!
//! Invariant: the manifest that is uploaded is the memo of the very snapshot that unchanged pages are kept from; whatever
//! stands in the way of an increment costs time, never the backup.

use backup_core::error::{ErrorKind, Result};
use backup_core::{ArtifactName, BackupWriter, Error, RunContext, SnapshotId};

use super::backup::MANIFEST;
use super::details::PhysicalDetails;
use super::facts::{INCREMENTS_SINCE, ServerFacts};
use crate::config::{Increments, Settings};
use crate::wire::{Answer, Connection, server_error};

/// An increment that the server was prepared for.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// Since which snapshot.
    pub(crate) of: SnapshotId,
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
        Err(error) => return no_increment(cx, &error.chain()),
    };
    if !facts.summarizes {
        return no_increment(
            cx,
            "`summarize_wal` is off (`ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();`)",
        );
    }
    if details.system_identifier != facts.identity.system_identifier.to_string() {
        return no_increment(cx, "the earlier snapshot is of another server; is this the right one?");
    }
    if details.block_size != facts.shape.page_bytes {
        return no_increment(cx, "the earlier snapshot has pages of another size");
    }
    let mut memo = match earlier.memo(&ArtifactName::new(MANIFEST)?).await {
        Ok(memo) => memo,
        Err(error) => return no_increment(cx, &format!("the earlier manifest cannot be read: {}", error.chain())),
    };
    cx.step(format!("telling the server what {} has", earlier.snapshot()));
    connection.begin("UPLOAD_MANIFEST").await?;
    match connection.answer().await {
        Ok(Answer::CopyIn) => {}
        Ok(_) => return Err(Error::new(ErrorKind::Unsupported, "the server does not take a manifest")),
        Err(error) => return explain(cx, &error).map(|()| None),
    }
    loop {
        match memo.next().await {
            Ok(Some(data)) => connection.send_data(&data).await?,
            Ok(None) => break,
            Err(error) => {
                // What was sent so far is no manifest; the server says so, and is ready again.
                connection.end_data().await?;
                let _refused = finish(connection).await;
                return no_increment(cx, &format!("the earlier manifest cannot be read: {}", error.chain()));
            }
        }
    }
    connection.end_data().await?;
    match finish(connection).await {
        Ok(()) => Ok(Some(Chosen { of: earlier.snapshot().clone() })),
        Err(error) => explain(cx, &error).map(|()| None),
    }
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
    let Some(refused) = server_error(error) else {
        return Err(Error::new(error.kind(), "the increment could not be prepared").caused_by(error.chain()));
    };
    if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Interrupted | ErrorKind::PermissionDenied) {
        return Err(Error::new(error.kind(), "the increment could not be prepared").caused_by(refused.to_string()));
    }
    warn(cx, &refused.to_string());
    Ok(())
}

fn no_increment(cx: &RunContext, why: &str) -> Result<Option<Chosen>> {
    warn(cx, why);
    Ok(None)
}

fn warn(cx: &RunContext, why: &str) {
    cx.warn(format!("everything is read instead of what changed: {why}"));
}
