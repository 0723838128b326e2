//! The replication slot that makes the server keep what is not archived yet.
//!
//! Invariant: when a session begins, the slot keeps log: one that lost what it should keep is made anew. A slot that another
//! host reads is left alone.

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;

use super::timelines;
use crate::server::Server;
use crate::sql::literal;
use crate::wire::{Connection, Purpose, SlotKind};

/// A slot of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) server: &'a Server,
    pub(super) name: &'a str,
}

impl Slot<'_> {
    /// The position from which it keeps the log. Makes it when it is not there, and anew when it keeps nothing.
    pub(super) async fn hold(
        &self,
        connection: &mut Connection,
        cx: &RunContext,
        archived: bool,
    ) -> Result<Option<Lsn>> {
        let name = self.name;
        match timelines::slot(connection, self.server, name).await? {
            Some(slot) if slot.restart.is_some() => return Ok(slot.restart),
            Some(_) => {
                if archived {
                    cx.warn(format!(
                        "the replication slot `{name}` has lost the log that it should keep; it is made anew"
                    ));
                }
                connection.drop_slot(name).await?;
            }
            None if archived => {
                cx.warn(format!("the replication slot `{name}` was dropped on the server; it is made anew"));
            }
            None => {}
        }
        self.make(connection).await
    }

    /// As [`hold`](Self::hold), when the server does not have the log just before `after`: a slot that promises that is lost,
    /// too.
    pub(super) async fn hold_after(
        &self,
        connection: &mut Connection,
        cx: &RunContext,
        after: Lsn,
    ) -> Result<Option<Lsn>> {
        let restart = self.hold(connection, cx, true).await?;
        if restart.is_some_and(|restart| restart >= after) {
            return Ok(restart);
        }
        connection.drop_slot(self.name).await?;
        self.make(connection).await
    }

    /// Makes it; from then on, the server keeps its log.
    async fn make(&self, connection: &mut Connection) -> Result<Option<Lsn>> {
        connection.create_slot(self.name, SlotKind::Permanent).await?;
        Ok(timelines::slot(connection, self.server, self.name).await?.and_then(|slot| slot.restart))
    }

    /// What `busy` means: a session of ours that the server has not missed yet passes; a reader on another host does not,
    /// when it was there first.
    pub(super) async fn refused(&self, cx: &RunContext, busy: Error, followed: bool) -> Error {
        if followed {
            return busy;
        }
        match self.reader().await {
            Ok(Some(reader)) => Error::new(
                ErrorKind::Busy,
                format!("the log of `{}` is followed already: {reader} reads the slot `{}`", cx.source(), self.name),
            )
            .hint("stop that one first, or give this plan a `slot` of its own"),
            // Whoever reads it is on this machine, which one lock keeps from following twice: it is gone.
            Ok(None) | Err(_) => busy,
        }
    }

    /// The reader of the slot, unless it comes from where we come from.
    async fn reader(&self) -> Result<Option<String>> {
        let database = self.server.endpoint.database.clone().unwrap_or_else(|| "postgres".to_owned());
        let mut session = Connection::connect(self.server, Purpose::Sql(&database)).await?;
        let sql = format!(
            "select host(a.client_addr), a.pid from pg_replication_slots s join pg_stat_activity a on a.pid = s.active_pid
              where s.slot_name = {} and a.client_addr is distinct from inet_client_addr()",
            literal(self.name)
        );
        let found = session.query(&sql).await?.into_iter().next().unwrap_or_default().into_iter().next();
        session.close().await;
        Ok(found.map(|row| {
            let mut row = row.into_iter();
            let mut next = || row.next().flatten();
            let host =
                next().map_or_else(|| "the server's own host".to_owned(), |address| format!("the host {address}"));
            format!("{host} (the server's process {})", next().unwrap_or_default())
        }))
    }
}
