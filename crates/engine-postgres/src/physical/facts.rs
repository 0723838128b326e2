//! What the server tells of itself in a replication session: who it is, and how its files are made.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};

use super::receiver::Shape;
use crate::tools::PgVersion;
use crate::wal::SegmentSize;
use crate::wire::{Connection, SystemIdentity};

/// The oldest version with a backup manifest.
const OLDEST: u32 = 13;
/// Native increments.
pub(crate) const INCREMENTS_SINCE: u32 = 17;
/// What a server that replays the log must have at least as much of (PostgreSQL manual, "Hot Standby").
const REPLAY_SETTINGS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct ServerFacts {
    pub(crate) version: PgVersion,
    /// As the server writes it: `15.18 (Debian 15.18-0+deb12u1)`.
    pub(crate) version_text: String,
    pub(crate) identity: SystemIdentity,
    pub(crate) shape: Shape,
    pub(crate) settings: BTreeMap<String, u64>,
    /// Whether the server keeps summaries of its log, which increments need.
    pub(crate) summarizes: bool,
}

impl ServerFacts {
    /// Asks in a replication session.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for servers before 13.
    pub(crate) async fn ask(connection: &mut Connection) -> Result<Self> {
        let version = connection.version()?;
        if version.major() < OLDEST {
            let message = format!("the server has version {version}; physical backups work from {OLDEST} on");
            return Err(Error::new(ErrorKind::Unsupported, message).hint("write `modes: [logical]` in the plan"));
        }
        let identity = connection.identify_system().await?;
        let page_bytes = number(connection, "block_size").await?;
        let segment = number(connection, "segment_size").await?;
        let narrow = |number: u64| u32::try_from(number).map_err(|_| misunderstood("block_size"));
        let page = narrow(page_bytes)?;
        if !page.is_power_of_two() || !(1024..=65_536).contains(&page) {
            return Err(misunderstood("block_size"));
        }
        let shape = Shape {
            page_bytes: page,
            segment_blocks: narrow(segment / page_bytes)?,
            wal_segment: SegmentSize::new(number(connection, "wal_segment_size").await?)?,
            checksums: connection.show("data_checksums").await? == "on",
            system_identifier: identity.system_identifier,
        };
        let mut settings = BTreeMap::new();
        for name in REPLAY_SETTINGS {
            settings.insert(name.to_owned(), number(connection, name).await?);
        }
        let summarizes = version.major() >= INCREMENTS_SINCE && connection.show("summarize_wal").await? == "on";
        let version_text = connection.parameter("server_version").unwrap_or_default().to_owned();
        Ok(Self { version, version_text, identity, shape, settings, summarizes })
    }
}

async fn number(connection: &mut Connection, setting: &str) -> Result<u64> {
    quantity(&connection.show(setting).await?).ok_or_else(|| misunderstood(setting))
}

/// `8192`, or `16MB` as the server shows sizes.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn misunderstood(setting: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server's `{setting}` is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_server_shows_them() {
        for (text, number) in [
            ("8192", Some(8192)),
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("64kB", Some(65_536)),
            ("", None),
            ("x", None),
            ("1 MB", None),
        ] {
            assert_eq!(quantity(text), number, "{text}");
        }
    }
}
