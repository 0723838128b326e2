//! Running programs: the one place of the chores that starts processes.
#![expect(clippy::disallowed_methods, reason = "chores run cargo and apt; nothing here is evidence of a backup")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a chore failed, for people.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A program to run in the repository's root, in the foreground unless captured.
pub(crate) struct Run(Command);

impl Run {
    /// `program` without arguments.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root());
        Self(command)
    }

    /// The cargo that runs this chore.
    pub(crate) fn cargo() -> Self {
        // `cargo run` tells its child a fixed toolchain's cargo and variables of its own package; take the first only.
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// Runs it with this process's streams.
    pub(crate) fn run(mut self) -> Result {
        let status = self.0.status().map_err(|error| self.cannot_start(&error))?;
        if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", self.name())) }
    }

    /// Runs it silently and returns its standard output; its standard error is quoted when it fails.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.0.stdin(Stdio::null()).output().map_err(|error| self.cannot_start(&error))?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(|error| format!("{}: {error}", self.name()));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} ended with {}\n{}", self.name(), output.status, said.trim_end()))
    }

    /// Whether it can be started and ends with status zero; silent.
    pub(crate) fn succeeds(mut self) -> bool {
        self.0.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.status().is_ok_and(|status| status.success())
    }

    /// Runs it with standard output and error in `file`.
    pub(crate) fn into_file(mut self, file: &Path) -> Result {
        let log = std::fs::File::create(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let copy = log.try_clone().map_err(|error| format!("{}: {error}", file.display()))?;
        self.0.stdin(Stdio::null()).stdout(log).stderr(copy);
        let status = self.0.status().map_err(|error| self.cannot_start(&error))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {status}; see {}", self.name(), file.display()))
        }
    }

    fn name(&self) -> String {
        let program = Path::new(self.0.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let first = self.0.get_args().next().map(|argument| format!(" {}", argument.to_string_lossy()));
        format!("`{program}{}`", first.unwrap_or_default())
    }

    fn cannot_start(&self, error: &std::io::Error) -> String {
        format!("{} cannot be started: {error}", self.name())
    }
}

/// Whether a program of this name is in `PATH`, or where distributions keep programs for administrators.
pub(crate) fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).any(|folder| folder.join(program).is_file())
}
