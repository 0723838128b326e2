//! One server as clients see it: how its programs are told where to connect, as whom, and what their complaints mean.
//!
//! Invariant: a password travels in the environment only, and a connection string holds no secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::CleanExit;
use backup_core::host::{Host, HostCommand};
use backup_core::secret::{Secret, SecretRef};

use crate::config::{Endpoint, Settings};
use crate::sql::conninfo_value;

/// The system user of the server on every distribution, whom peer authentication lets in as `postgres`.
const SERVER_USER: &str = "postgres";
/// What sessions are called in `pg_stat_activity`.
pub(crate) const APPLICATION: &str = "stackward";
/// A server that does not answer within so many seconds is unreachable.
const CONNECT_SECONDS: &str = "20";

/// A server and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) endpoint: Endpoint,
    password: Option<SecretRef>,
    run_as: Option<String>,
}

impl Server {
    /// The server of the plan.
    pub(crate) fn of(settings: &Settings, host: Arc<dyn Host>) -> Self {
        let run_as = settings.run_as.clone().or_else(|| {
            let peer = settings.endpoint.is_socket() && settings.password.is_none();
            (peer && is_root()).then(|| SERVER_USER.to_owned())
        });
        Self { host, endpoint: settings.endpoint.clone(), password: settings.password.clone(), run_as }
    }

    /// The same, for programs that work on its files: a server refuses to run as root, wherever it listens.
    pub(crate) fn of_files(other: &Self) -> Self {
        let run_as = other.run_as.clone().or_else(|| is_root().then(|| SERVER_USER.to_owned()));
        Self { run_as, ..other.clone() }
    }

    /// A scratch server on a socket, whose programs run as `run_as`.
    pub(crate) fn scratch(host: Arc<dyn Host>, socket: &Path, port: u16, user: &str, run_as: Option<String>) -> Self {
        Self { host, endpoint: Endpoint::socket(socket, port, user), password: None, run_as }
    }

    /// The system user that programs run as; `None`: the present one.
    pub(crate) fn run_as(&self) -> Option<&str> {
        self.run_as.as_deref()
    }

    /// The password of the plan, fetched from its place.
    pub(crate) fn password(&self) -> Result<Option<Secret>> {
        self.password.as_ref().map(SecretRef::resolve).transpose()
    }

    /// Whether the role that connects proves itself by a password.
    pub(crate) fn uses_password(&self) -> bool {
        self.password.is_some()
    }

    /// The connection string for `database`. Everything is explicit, so that the environment (`PGHOST`, a service
    /// file) cannot lead elsewhere.
    pub(crate) fn conninfo(&self, database: &str) -> String {
        let Endpoint { host, port, user, parameters, .. } = &self.endpoint;
        let mut text = format!(
            "host={} port={port} user={} dbname={} application_name={APPLICATION}",
            conninfo_value(host),
            conninfo_value(user),
            conninfo_value(database)
        );
        if !parameters.contains_key("connect_timeout") {
            text.push_str(&format!(" connect_timeout={CONNECT_SECONDS}"));
        }
        for (name, value) in parameters {
            text.push_str(&format!(" {name}={}", conninfo_value(value)));
        }
        text
    }

    /// A client program that will connect to this server, without its arguments.
    pub(crate) fn command(&self, program: impl Into<PathBuf>) -> Result<HostCommand> {
        let command = self.plain_command(program).env("PGHOSTADDR", "").env("PGOPTIONS", "").arg("--no-password");
        Ok(match &self.password {
            Some(reference) => command.secret_env("PGPASSWORD", reference.resolve()?),
            None => command,
        })
    }

    /// A program that runs as the same system user and connects to nothing.
    pub(crate) fn plain_command(&self, program: impl Into<PathBuf>) -> HostCommand {
        // The present folder may be closed to the other user; the programs would complain.
        let command = HostCommand::new(program.into()).in_folder("/");
        match &self.run_as {
            Some(user) => command.as_user(user.clone()),
            None => command,
        }
    }

    /// A short description: `/run/postgresql`, `db.example:5432`.
    pub(crate) fn describe(&self) -> String {
        let Endpoint { host, port, .. } = &self.endpoint;
        if self.endpoint.is_socket() && *port == 5432 { host.clone() } else { format!("{host}:{port}") }
    }

    /// Judges how a client program ended: as [`CleanExit::confirm`], with the kind and the remedy that fit its complaint.
    pub(crate) fn confirm(&self, program: &str, code: Option<i32>, stderr: &str) -> Result<CleanExit> {
        CleanExit::confirm(program.to_owned(), code, stderr).map_err(|error| match complaint(stderr) {
            Some((kind, hint)) => {
                let error = Error::new(kind, error.message().to_owned()).caused_by(stderr.trim().to_owned());
                self.with_remedy(error, hint)
            }
            None => error,
        })
    }

    /// The error of a session whose `psql` ended: `stderr` says why.
    pub(crate) fn session_error(&self, database: &str, stderr: &str) -> Error {
        let (kind, hint) = complaint(stderr).unwrap_or((ErrorKind::Tool, Remedy::None));
        let cause = if stderr.trim().is_empty() { "psql ended without a word" } else { stderr.trim() };
        let error = Error::new(kind, format!("the server does not do what it was asked in the database `{database}`"));
        self.with_remedy(error.with("server", self.describe()).caused_by(cause.to_owned()), hint)
    }

    fn with_remedy(&self, error: Error, remedy: Remedy) -> Error {
        let user = &self.endpoint.user;
        match remedy {
            Remedy::None => error,
            Remedy::Peer => error.hint(format!(
                "peer authentication wants the system user `{user}`: run stackward as root (it then runs the tools as \
                 `{SERVER_USER}`, or as `run_as` says), or give the role a `password`"
            )),
            Remedy::Password => error.hint(format!(
                "check the `password` of the role `{user}` in the plan, and what pg_hba.conf asks for"
            )),
            Remedy::Hba => error.hint(format!("let the role `{user}` in, in the server's pg_hba.conf")),
            Remedy::Role => error.hint("create the role, or name another `user` in the plan"),
            Remedy::Start => error.hint("is the server running, and is this where it listens?"),
            Remedy::Grant => error.hint(format!(
                "the role `{user}` lacks a privilege: a backup needs `GRANT pg_read_all_data TO {user};`, a restore of a \
                 whole cluster a superuser (the README of engine-postgres lists the privileges)"
            )),
            Remedy::SystemUser => error.hint("name an existing system user as `run_as` in the plan"),
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    None,
    Peer,
    Password,
    Hba,
    Role,
    Start,
    Grant,
    SystemUser,
}

/// What a complaint of a client program means. Texts of `libpq` and of servers that speak English; others pass unexplained.
fn complaint(stderr: &str) -> Option<(ErrorKind, Remedy)> {
    const KNOWN: [(&str, ErrorKind, Remedy); 18] = [
        ("Peer authentication failed", ErrorKind::PermissionDenied, Remedy::Peer),
        ("password authentication failed", ErrorKind::PermissionDenied, Remedy::Password),
        ("no password supplied", ErrorKind::PermissionDenied, Remedy::Password),
        ("no pg_hba.conf entry", ErrorKind::PermissionDenied, Remedy::Hba),
        ("pg_hba.conf rejects connection", ErrorKind::PermissionDenied, Remedy::Hba),
        ("permission denied", ErrorKind::PermissionDenied, Remedy::Grant),
        ("query would be affected by row-level security", ErrorKind::PermissionDenied, Remedy::Grant),
        ("setpriv:", ErrorKind::PermissionDenied, Remedy::SystemUser),
        ("terminating connection", ErrorKind::Unreachable, Remedy::Start),
        ("server closed the connection", ErrorKind::Unreachable, Remedy::Start),
        ("the database system is", ErrorKind::Unreachable, Remedy::Start),
        ("failed: No such file or directory", ErrorKind::Unreachable, Remedy::Start),
        ("failed: Connection refused", ErrorKind::Unreachable, Remedy::Start),
        ("could not connect to server", ErrorKind::Unreachable, Remedy::Start),
        ("could not translate host name", ErrorKind::Unreachable, Remedy::Start),
        ("timeout expired", ErrorKind::Unreachable, Remedy::Start),
        ("No space left on device", ErrorKind::NoSpace, Remedy::None),
        ("could not extend file", ErrorKind::NoSpace, Remedy::None),
    ];
    if stderr.contains("role \"") && stderr.contains("FATAL") && stderr.contains("does not exist") {
        return Some((ErrorKind::PermissionDenied, Remedy::Role));
    }
    KNOWN.iter().find(|(text, ..)| stderr.contains(text)).map(|(_, kind, remedy)| (*kind, *remedy))
}
