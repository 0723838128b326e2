//! The `files` engine's part of a plan. Pure: nothing here looks at the file system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::plan::Span;
use schemars::JsonSchema;
use serde::Deserialize;

/// Files, folders and everything in them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "files")]
pub(crate) struct FilesConfig {
    /// What to save: files or folders, absolute or relative to the plan's folder. One that is missing is an error.
    #[schemars(length(min = 1))]
    pub(crate) paths: Vec<String>,
    /// What to leave out, in the syntax of `.gitignore`: a pattern without a leading `/` matches at any depth, one
    /// with it matches the whole path; a trailing `/` matches folders only; `!` takes a pattern back.
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
    /// When given, only files that match one of these (or lie in a folder that does) are saved. Same syntax.
    #[serde(default)]
    pub(crate) include: Vec<String>,
    /// The names of files that list, in the syntax of `.gitignore`, what to leave out of the folder they lie in.
    #[serde(default = "default_ignore_files")]
    pub(crate) ignore_files: Vec<String>,
    /// Leave out the content of folders that hold a valid `CACHEDIR.TAG`.
    #[serde(default = "yes")]
    pub(crate) exclude_caches: bool,
    /// Do not enter other file systems that are mounted below the paths.
    #[serde(default)]
    pub(crate) one_file_system: bool,
    /// What happens when a file or a folder cannot be read for want of rights.
    #[serde(default)]
    pub(crate) unreadable: Unreadable,
    /// A file that changed less than this before it was saved is read again by the next backup, even if it looks
    /// unchanged: a program that writes to it through memory (mmap) may leave no trace for half a minute.
    #[serde(default = "default_settle")]
    pub(crate) settle: Span,
}

/// What happens when a file or a folder cannot be read for want of rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unreadable {
    /// The source fails: a backup that lacks what it was asked for is none.
    #[default]
    Fail,
    /// It is left out; warnings name it, and the manifest counts it.
    Skip,
}

fn default_ignore_files() -> Vec<String> {
    vec![".stackignore".to_owned()]
}

pub(crate) const fn default_settle() -> Span {
    Span(Duration::from_mins(1))
}

const fn yes() -> bool {
    true
}

impl FilesConfig {
    /// The paths as absolute ones; relative ones start from `folder`.
    ///
    /// # Errors
    /// [`ErrorKind::Plan`] when there is none, or one is empty.
    pub(crate) fn absolute_paths(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        if self.paths.is_empty() {
            return Err(Error::new(ErrorKind::Plan, "`paths` is empty").hint("name at least one file or folder"));
        }
        self.paths.iter().map(|path| absolute(folder, path)).collect()
    }
}

/// `path` as an absolute path; a relative one starts from `folder`.
///
/// # Errors
/// [`ErrorKind::Plan`] when it is empty.
pub(crate) fn absolute(folder: &Path, path: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Err(Error::new(ErrorKind::Plan, "a path is empty").hint("write an absolute path"));
    }
    std::path::absolute(folder.join(path)).map_err(|source| Error::io("cannot resolve the path", path, source))
}
