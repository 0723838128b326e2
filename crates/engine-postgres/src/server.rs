//! One server as clients see it: how its programs are told where to connect, as whom, and what their complaints mean.
//!
//! Invariant: a password travels in the environment only, and a connection string holds no secret.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::CleanExit;
use backup_core::host::{Host, HostCommand};
use backup_core::secret::{Secret, SecretRef};

use crate::complaint::{Remedy, complaint};
use crate::config::{Endpoint, Settings};
use crate::session::{Known, options};
use crate::sql::conninfo_value;
use crate::text::{encode, shown};
use crate::tools::PgVersion;

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
    known: Known,
    spellings: Arc<BTreeMap<String, Vec<u8>>>,
}

/// The client encoding of tools that only carry names from the server and back: no conversion.
const AS_IT_IS: &str = "SQL_ASCII";

impl Server {
    /// The server of the plan.
    pub(crate) fn of(settings: &Settings, host: Arc<dyn Host>) -> Self {
        let run_as = settings.run_as.clone().or_else(|| {
            let peer = settings.endpoint.is_socket() && settings.password.is_none();
            (peer && is_root()).then(|| SERVER_USER.to_owned())
        });
        let (endpoint, password) = (settings.endpoint.clone(), settings.password.clone());
        Self { host, endpoint, password, run_as, known: Known::default(), spellings: Arc::default() }
    }

    /// The same, for programs that work on its files: a server refuses to run as root, wherever it listens.
    pub(crate) fn of_files(other: &Self) -> Self {
        let run_as = other.run_as.clone().or_else(|| is_root().then(|| SERVER_USER.to_owned()));
        Self { run_as, ..other.clone() }
    }

    /// A scratch server on a socket, whose programs run as `run_as`.
    pub(crate) fn scratch(host: Arc<dyn Host>, socket: &Path, port: u16, user: &str, run_as: Option<String>) -> Self {
        let known = Known { scratch: true, ..Known::default() };
        let endpoint = Endpoint::socket(socket, port, user);
        Self { host, endpoint, password: None, run_as, known, spellings: Arc::default() }
    }

    /// The same, for sessions that may set what a server of this version lets this role set.
    pub(crate) fn knowing(&self, version: PgVersion, superuser: bool) -> Self {
        let known = Known { version: Some(version), superuser, ..self.known };
        Self { known, ..self.clone() }
    }

    /// The same, with the bytes of names of databases that are not those of their UTF-8: who connects must send the former.
    pub(crate) fn spelling(&self, spellings: BTreeMap<String, Vec<u8>>) -> Self {
        Self { spellings: Arc::new(spellings), ..self.clone() }
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
    pub(crate) fn conninfo(&self, database: &str) -> OsString {
        let Endpoint { host, port, user, parameters, .. } = &self.endpoint;
        let mut text = format!(
            "host={} port={port} user={} application_name={APPLICATION}",
            conninfo_value(host),
            conninfo_value(user)
        );
        if !parameters.contains_key("connect_timeout") {
            text.push_str(&format!(" connect_timeout={CONNECT_SECONDS}"));
        }
        for (name, value) in parameters {
            text.push_str(&format!(" {name}={}", conninfo_value(value)));
        }
        let mut bytes = encode(&text);
        bytes.extend(b" dbname='");
        for byte in self.spelled(database) {
            if matches!(byte, b'\\' | b'\'') {
                bytes.push(b'\\');
            }
            bytes.push(byte);
        }
        bytes.push(b'\'');
        OsString::from_vec(bytes)
    }

    /// The name of a database as the server spells it.
    pub(crate) fn spelled(&self, database: &str) -> Vec<u8> {
        self.spellings.get(database).cloned().unwrap_or_else(|| encode(database))
    }

    /// A client program that will connect to this server, without its arguments.
    pub(crate) fn command(&self, program: impl Into<PathBuf>) -> Result<HostCommand> {
        self.command_with(program, None)
    }

    /// The same; names without a schema are looked for in `search_path`.
    pub(crate) fn command_with(&self, program: impl Into<PathBuf>, search_path: Option<&str>) -> Result<HostCommand> {
        let command = self
            .plain_command(program)
            .env("PGHOSTADDR", "")
            .env("PGOPTIONS", OsString::from_vec(encode(&options(self.known, search_path))))
            .env("PGCLIENTENCODING", AS_IT_IS)
            .arg("--no-password");
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
        // `psql` is verbose for the SQLSTATE; where in the server's source it happened helps nobody here.
        let lines: Vec<&str> = stderr.trim().lines().filter(|line| !line.starts_with("LOCATION: ")).collect();
        let cause = if lines.is_empty() { "psql ended without a word".to_owned() } else { lines.join("\n") };
        let error =
            Error::new(kind, format!("the server does not do what it was asked in the database `{}`", shown(database)));
        self.with_remedy(error.with("server", self.describe()).caused_by(cause), hint)
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
            Remedy::File => error.hint(
                "the server itself cannot read that file: give it back to the server's system user (`chown`, `chmod`)",
            ),
            Remedy::Idle => error.hint(format!(
                "a time-out of the server ended the session: `ALTER ROLE {user} SET …` gives the role its own \
                 `idle_session_timeout`, `idle_in_transaction_session_timeout` and `transaction_timeout`"
            )),
            Remedy::Standby => error.hint(
                "the standby had to replay what the session still needed: set `hot_standby_feedback = on`, raise \
                 `max_standby_streaming_delay`, or save the primary",
            ),
            Remedy::Lock => error.hint(
                "somebody else holds a lock on a table for longer than `lock_timeout` in the plan allows; the warnings \
                 above name who",
            ),
            Remedy::Connections => error.hint("raise `max_connections`, lower `jobs` in the plan, or end other sessions"),
            Remedy::Pooler => error.hint("connect to the server itself: a pooler does not pass a session's settings on"),
            Remedy::SystemUser => error.hint("name an existing system user as `run_as` in the plan"),
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
