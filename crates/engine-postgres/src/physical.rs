//! The physical mode: a base backup of the whole cluster over the replication protocol, as a tree of its files.

mod amend;
mod backup;
mod checksum;
mod configure;
mod details;
mod drill;
mod facts;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod increment;
mod incremental;
mod inventory;
mod layout;
mod ledger;
mod lines;
mod neutral;
mod owner;
mod place;
mod preflight;
mod preload;
mod privileges;
mod receiver;
mod restore;
mod server_manifest;
mod spaces;
mod staging;
mod standing;
mod stream;
mod suspects;
mod tar;
mod verify;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::host::Host;
use backup_core::manifest::SourceRecord;
use backup_core::names::SnapshotId;

use self::spaces::Brought;
use crate::config::Settings;
use crate::server::Server;
use crate::tools::ToolBox;

pub(crate) use backup::ConfigFiles;
pub(crate) use details::PhysicalDetails;
pub(crate) use owner::{Owner, make_private, write_private};
pub(crate) use preflight::is_memo;
pub(crate) use privileges::{ROLE, comments as role_comments};
pub(crate) use standing::check_folder;

/// One configured server, saved physically.
#[derive(Debug)]
pub(crate) struct Physical {
    settings: Settings,
    server: Server,
    tools: ToolBox,
    /// The log that a base backup brings is walked once.
    brought: Mutex<Option<(SnapshotId, Brought)>>,
}

impl Physical {
    pub(crate) fn new(settings: Settings, host: Arc<dyn Host>) -> Self {
        let tools = ToolBox::new(Arc::clone(&host), settings.bin.clone());
        let server = Server::of(&settings, host);
        Self { settings, server, tools, brought: Mutex::default() }
    }

    /// What the base backup of this snapshot brings of the log, when that was walked already.
    fn brought(&self, id: &SnapshotId) -> Option<Brought> {
        let known = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(of, _)| of == id).map(|(_, brought)| brought.clone())
    }

    fn remember_brought(&self, id: &SnapshotId, brought: &Brought) {
        *self.brought.lock().unwrap_or_else(PoisonError::into_inner) = Some((id.clone(), brought.clone()));
    }

    /// The data directory and the tablespaces: as the plan names them, or else as they were saved.
    pub(crate) fn places(&self, saved: Option<&SourceRecord>) -> Vec<PathBuf> {
        let details = saved.and_then(|record| PhysicalDetails::of(record).ok().flatten());
        let (data, tablespaces) = details.map(|known| (known.data_directory, known.tablespaces)).unwrap_or_default();
        let data = self.settings.data.clone().or(data.map(PathBuf::from));
        data.into_iter().chain(tablespaces.into_iter().map(|each| PathBuf::from(each.location))).collect()
    }
}
