//! The logical mode: what the server's own `pg_dump` and `pg_dumpall` say, database by database.

mod archive;
mod backup;
mod blueprint;
mod catalog;
mod details;
mod drill;
mod dump;
mod export;
mod fingerprint;
mod globals;
mod load;
mod properties;
mod restore;
mod roles;
mod spool;
mod subscriptions;
mod verify;
mod views;
mod waiting;

use std::sync::Arc;

use backup_core::host::Host;

use crate::config::Settings;
use crate::server::Server;
use crate::tools::ToolBox;

pub(crate) use catalog::{names, spellings};
pub(crate) use drill::{amcheck, beginning};
pub(crate) use fingerprint::{Unlogged, count as count_rows, list as list_tables, merge};

/// One configured server, saved and put back logically.
#[derive(Debug)]
pub(crate) struct Logical {
    settings: Settings,
    server: Server,
    tools: ToolBox,
}

impl Logical {
    pub(crate) fn new(settings: Settings, host: Arc<dyn Host>) -> Self {
        let server = Server::of(&settings, Arc::clone(&host));
        let tools = ToolBox::new(host, settings.bin.clone());
        Self { settings, server, tools }
    }
}

/// The configuration files that were saved with the dumps.
///
/// # Errors
/// [`Damaged`](backup_core::ErrorKind::Damaged) when the manifest does not parse.
pub(crate) fn config_files(
    record: &backup_core::manifest::SourceRecord,
) -> backup_core::Result<Vec<crate::config_files::ConfigFile>> {
    Ok(details::Details::of(record)?.cluster.config_files)
}

/// What [`crate::fuzzing`] feeds.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub(crate) use super::archive::fuzzing as archive;
    pub(crate) use super::globals::fuzzing as globals;
}
