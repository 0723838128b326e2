//! Hosts: where a source's processes run. This module is the only one that starts processes.
//!
//! Invariant: a [`CleanExit`](crate::CleanExit) comes only from a status that the host saw, after the streams were drained.

mod local;
mod process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

pub use local::LocalHost;
pub use process::{BoxRead, BoxWrite, HostProcess, ProcessControl, STDERR_TAIL_BYTES};

use crate::error::Result;
use crate::secret::Secret;

/// What the process reads from its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdin {
    /// Nothing: `/dev/null`.
    #[default]
    Null,
    /// What the caller writes to [`HostProcess::take_stdin`].
    Piped,
}

/// What happens to the process's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stdout {
    /// The caller reads it from [`HostProcess::take_stdout`], and must drain it.
    #[default]
    Piped,
    /// It goes to `/dev/null`.
    Null,
}

/// A command to run on a host.
///
/// Secrets go in by [`HostCommand::secret_env`] only; arguments are visible to every user of the machine.
#[derive(Debug, Clone)]
pub struct HostCommand {
    /// The program: a name looked up in the host's `PATH`, or an absolute path.
    pub program: OsString,
    /// Its arguments. Never a secret.
    pub arguments: Vec<OsString>,
    /// Additional environment variables.
    pub environment: BTreeMap<OsString, OsString>,
    /// Additional environment variables whose values are secret.
    pub secrets: BTreeMap<OsString, Secret>,
    /// The folder to run in; the host's default when `None`.
    pub folder: Option<PathBuf>,
    /// The user to run as; the host's default when `None`.
    pub user: Option<String>,
    /// Standard input.
    pub stdin: Stdin,
    /// Standard output.
    pub stdout: Stdout,
}

impl HostCommand {
    /// A command without arguments.
    #[must_use]
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            secrets: BTreeMap::new(),
            folder: None,
            user: None,
            stdin: Stdin::default(),
            stdout: Stdout::default(),
        }
    }

    /// Adds an argument. Never a secret.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments. Never a secret.
    #[must_use]
    pub fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Sets an environment variable to a secret.
    #[must_use]
    pub fn secret_env(mut self, name: impl Into<OsString>, value: Secret) -> Self {
        self.secrets.insert(name.into(), value);
        self
    }

    /// Runs in `folder`.
    #[must_use]
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Runs as `user`.
    #[must_use]
    pub fn as_user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Lets the caller write to its standard input.
    #[must_use]
    pub fn piped_stdin(mut self) -> Self {
        self.stdin = Stdin::Piped;
        self
    }

    /// Throws its standard output away.
    #[must_use]
    pub fn null_stdout(mut self) -> Self {
        self.stdout = Stdout::Null;
        self
    }

    /// The program's name for messages, without its folder.
    #[must_use]
    pub fn name(&self) -> String {
        Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned()
    }
}

/// A place where processes run and files lie: this machine, a container.
///
/// An implementation MUST
/// - deliver stdout and stderr unchanged and separately, with back-pressure;
/// - report a status only after the process ended, and `None` when it was killed or the status is unknown;
/// - kill the whole process group when the [`HostProcess`] is dropped before it ended;
/// - keep secrets out of argument lists, errors and logs.
#[async_trait]
pub trait Host: Debug + Send + Sync {
    /// A short name for messages: `this machine`, `container app-db`.
    fn describe(&self) -> String;

    /// Starts a process.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is no such program, with a hint.
    async fn spawn(&self, command: HostCommand) -> Result<HostProcess>;

    /// Reads a whole small file.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than `limit` bytes.
    async fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>>;

    /// The path under which this machine sees the host's `path` (a socket folder, say), when it does.
    fn local_path(&self, path: &Path) -> Option<PathBuf>;
}
