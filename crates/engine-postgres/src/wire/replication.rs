//! The commands of physical replication, typed (PostgreSQL manual, "Streaming Replication Protocol").

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use bytes::Bytes;

use super::connection::{Connection, RawRows};
use crate::sql::ident;

/// What `IDENTIFY_SYSTEM` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SystemIdentity {
    /// The same for a primary, its standbys and its backups; another for every `initdb`.
    pub(crate) system_identifier: u64,
    pub(crate) timeline: u32,
    /// Up to where the log is flushed.
    pub(crate) flushed: Lsn,
}

/// How long a replication slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// Until the session ends.
    Temporary,
    /// Until it is dropped.
    Permanent,
}

/// What is known of a physical slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The oldest log that it keeps; `None` when it keeps none (yet, or any more).
    pub(crate) restart: Option<Lsn>,
    /// The timeline of `restart`.
    pub(crate) timeline: Option<u32>,
}

/// The name of a timeline's history file, and its content, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimelineHistory {
    pub(crate) file: String,
    pub(crate) content: Bytes,
}

impl Connection {
    /// `IDENTIFY_SYSTEM`.
    pub(crate) async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let mut row = row.into_iter();
        let mut next = || row.next().flatten();
        Ok(SystemIdentity {
            system_identifier: number(next(), "the system identifier")?,
            timeline: number(next(), "the timeline")?,
            flushed: lsn(next().as_deref(), "the position of the log")?,
        })
    }

    /// A setting of the server. Works in replication sessions, too.
    pub(crate) async fn show(&mut self, setting: &str) -> Result<String> {
        let command = format!("SHOW {}", ident(setting));
        self.value(&command).await?.ok_or_else(|| misunderstood(setting))
    }

    /// Makes a physical slot that keeps the log from now on, also what nobody has asked for yet.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when every slot is in use; a slot of this name has the SQLSTATE 42710.
    pub(crate) async fn create_slot(&mut self, name: &str, kind: SlotKind) -> Result<()> {
        let temporary = if kind == SlotKind::Temporary { "TEMPORARY " } else { "" };
        // The form without parentheses is understood by every version.
        let command = format!("CREATE_REPLICATION_SLOT {} {temporary}PHYSICAL RESERVE_WAL", slot_name(name)?);
        self.query(&command).await.map(|_| ()).map_err(|error| slot_hint(error, name))
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// The SQLSTATE 55006 ([`ErrorKind::Busy`]) when somebody reads it.
    pub(crate) async fn drop_slot(&mut self, name: &str) -> Result<()> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", slot_name(name)?)).await.map(|_| ())
    }

    /// What the server knows of a slot; `None` when there is none. For servers before 15, which have no such command, ask
    /// `pg_replication_slots` in a session for SQL.
    pub(crate) async fn read_slot(&mut self, name: &str) -> Result<Option<Slot>> {
        let row = self.row(&format!("READ_REPLICATION_SLOT {}", slot_name(name)?)).await?;
        let [Some(kind), restart, timeline] = row.as_slice() else { return Ok(None) };
        if kind != "physical" {
            return Err(Error::new(ErrorKind::Unsupported, format!("the slot `{name}` is not a physical one"))
                .hint("name another slot in the plan"));
        }
        let restart = restart.as_deref().map(|text| lsn(Some(text), "the slot's position")).transpose()?;
        let timeline = timeline.clone().map(|text| number(Some(text), "the slot's timeline")).transpose()?;
        Ok(Some(Slot { restart, timeline }))
    }

    /// The history of a timeline, which has none when it is the first.
    ///
    /// # Errors
    /// The SQLSTATE 58P01 ([`ErrorKind::NotFound`]) when the server does not have it.
    pub(crate) async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory> {
        let answers = self.query_raw(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let first = answers.into_iter().next().and_then(|rows: RawRows| rows.into_iter().next()).unwrap_or_default();
        match <[Option<Bytes>; 2]>::try_from(first) {
            Ok([Some(file), Some(content)]) => {
                Ok(TimelineHistory { file: String::from_utf8_lossy(&file).into_owned(), content })
            }
            _ => Err(misunderstood("the timeline's history")),
        }
    }
}

/// Names of slots are plain, so they need no quoting (PostgreSQL manual, "Replication Slots").
pub(crate) fn slot_name(name: &str) -> Result<&str> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain && (1..=63).contains(&name.len()) {
        return Ok(name);
    }
    Err(Error::new(ErrorKind::Plan, format!("`{}` cannot be the name of a replication slot", name.escape_debug()))
        .hint("1 to 63 of a-z, 0-9 and `_`"))
}

fn slot_hint(error: Error, name: &str) -> Error {
    match super::server_error(&error).map(|server| server.code.as_str()) {
        Some("55000") => {
            error.hint("set `wal_level = replica` and `max_replication_slots = 10`, and restart the server")
        }
        Some("42710") => error.hint(format!("the slot `{name}` exists; drop it, or name another in the plan")),
        _ => error,
    }
}

fn misunderstood(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server did not tell {what} in a form that is understood"))
}

/// A number in an answer.
pub(crate) fn number<T: std::str::FromStr>(text: Option<String>, what: &str) -> Result<T> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| misunderstood(what))
}

/// A position in an answer.
pub(crate) fn lsn(text: Option<&str>, what: &str) -> Result<Lsn> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| misunderstood(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_plain_names() {
        assert!(slot_name("stackward_main_db_1").is_ok());
        for bad in ["", "a b", "A", "a\"", "a;DROP", &"x".repeat(64)] {
            assert!(slot_name(bad).is_err(), "{bad}");
        }
    }
}
