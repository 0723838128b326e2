//! What the receiver asks the server besides the log: histories of timelines, and its slot.

use std::io::Cursor;

use backup_core::SegmentLog;
use backup_core::error::{Error, ErrorKind, Result};

use super::is_undefined;
use crate::server::Server;
use crate::sql::literal;
use crate::wal::chain::Chain;
use crate::wal::history::History;
use crate::wal::names::WalFile;
use crate::wal::push::history_meta;
use crate::wire::{Connection, Purpose, Slot};

/// Since this version a replication session can ask about a slot.
const READS_SLOTS: u32 = 15;

/// Archives the histories of the server's timeline and of its ancestors that the archive lacks.
pub(super) async fn archive_histories(
    connection: &mut Connection,
    log: &SegmentLog,
    chain: Option<&Chain>,
    timeline: u32,
) -> Result<()> {
    for each in 2..=timeline {
        if chain.is_some_and(|chain| chain.has_history(each)) {
            continue;
        }
        match archive_history(connection, log, each).await {
            // Only its own history must be there: ancestors' may be long gone, and it names them all.
            Err(error) if each < timeline && error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Archives the history of one timeline.
pub(super) async fn archive_history(connection: &mut Connection, log: &SegmentLog, timeline: u32) -> Result<()> {
    let found = connection.timeline_history(timeline).await?;
    let meta = history_meta(&parse(timeline, &found.content)?);
    let id = WalFile::History(timeline).id()?;
    log.put(&id, meta, Box::new(Cursor::new(found.content))).await.map(|_| ())
}

/// The ancestors of a timeline as the server has them.
pub(super) async fn history(connection: &mut Connection, timeline: u32) -> Result<History> {
    if timeline == 1 {
        return Ok(History::default());
    }
    let found = connection.timeline_history(timeline).await?;
    parse(timeline, &found.content)
}

fn parse(timeline: u32, content: &[u8]) -> Result<History> {
    let text = std::str::from_utf8(content).map_err(|source| {
        Error::new(ErrorKind::Damaged, "the server's timeline history is not text").caused_by(source)
    })?;
    History::parse(timeline, text)
}

/// What the server knows of the slot.
pub(super) async fn slot(connection: &mut Connection, server: &Server, name: &str) -> Result<Option<Slot>> {
    if connection.version()?.major() >= READS_SLOTS {
        return match connection.read_slot(name).await {
            Err(error) if is_undefined(&error) => Ok(None),
            found => found,
        };
    }
    let database = server.endpoint.database.clone().unwrap_or_else(|| "postgres".to_owned());
    let mut session = Connection::connect(server, Purpose::Sql(&database)).await?;
    let sql = format!("select restart_lsn from pg_replication_slots where slot_name = {}", literal(name));
    let found = session.query(&sql).await?.into_iter().next().unwrap_or_default().into_iter().next();
    session.close().await;
    let Some(row) = found else { return Ok(None) };
    let restart = row.first().cloned().flatten().and_then(|text| text.parse().ok());
    Ok(Some(Slot { restart, timeline: None }))
}
