//! What a sink keeps on this machine: what a restore of files around it must leave alone.

use std::path::{Path, PathBuf};

use backup_core::plan::SinkConfig;

/// The folders, each with what it is. `folder` is where relative paths of the plan start.
#[must_use]
pub fn local_places(sink: &SinkConfig, folder: &Path) -> Vec<(PathBuf, &'static str)> {
    match sink {
        SinkConfig::Repository(config) => {
            let state = config.state.as_ref().map(|state| folder.join(state));
            let state = state.unwrap_or_else(crate::repository::default_state);
            let repository = crate::location::local_path(&config.url, folder);
            let repository = repository.map(|path| (path, "the repository"));
            repository.into_iter().chain([(state, "this machine's writer key")]).collect()
        }
        SinkConfig::Directory(config) => {
            let path = crate::location::folder_of(&config.path, folder);
            path.into_iter().map(|path| (path, "the folder of snapshots")).collect()
        }
    }
}
