//! The physical mode: a base backup of the whole cluster over the replication protocol, as a tree of its files.

mod backup;
mod checksum;
mod details;
mod facts;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod increment;
mod incremental;
mod ledger;
mod place;
mod preflight;
mod privileges;
mod receiver;
mod restore;
mod server_manifest;
mod staging;
mod stream;
mod tar;
mod verify;

use std::sync::Arc;

use backup_core::host::Host;

use crate::config::Settings;
use crate::server::Server;

pub(crate) use backup::ConfigFiles;
pub(crate) use details::PhysicalDetails;
pub(crate) use place::Layout;
pub(crate) use preflight::is_memo;
pub(crate) use privileges::{ROLE, comments as role_comments};
pub(crate) use staging::Staging;

/// One configured server, saved physically.
#[derive(Debug)]
pub(crate) struct Physical {
    settings: Settings,
    server: Server,
}

impl Physical {
    pub(crate) fn new(settings: Settings, host: Arc<dyn Host>) -> Self {
        let server = Server::of(&settings, host);
        Self { settings, server }
    }
}
