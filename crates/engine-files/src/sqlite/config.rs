//! The `sqlite` engine's part of a plan. Pure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::Span;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::absolute;

/// SQLite databases, copied while they are in use.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "sqlite")]
pub(crate) struct SqliteConfig {
    /// The database file, absolute or relative to the plan's folder.
    #[serde(default)]
    path: Option<String>,
    /// Several database files.
    #[serde(default)]
    paths: Vec<String>,
    /// How long to wait for a database that another process has locked.
    #[serde(default = "default_timeout")]
    busy_timeout: Span,
}

const fn default_timeout() -> Span {
    Span(Duration::from_secs(10))
}

impl SqliteConfig {
    pub(crate) fn busy_timeout(&self) -> Duration {
        self.busy_timeout.0
    }

    /// The databases, in the plan's order.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when none is named, or one twice.
    pub(crate) fn absolute_paths(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in self.path.iter().chain(&self.paths) {
            let path = absolute(folder, path)?;
            if paths.contains(&path) {
                return Err(Error::new(ErrorKind::Plan, format!("`{}` is named twice", path.display())));
            }
            paths.push(path);
        }
        if paths.is_empty() {
            return Err(Error::new(ErrorKind::Plan, "neither `path` nor `paths` names a database")
                .hint("write `path: /where/it/is.sqlite`"));
        }
        Ok(paths)
    }
}
