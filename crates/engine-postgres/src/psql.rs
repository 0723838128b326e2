//! A session with the server through its own `psql`, kept open with its input piped.
//!
//! It works wherever the tools work (peer authentication, containers), and holds a transaction open. Answers are JSON up
//! to a line that no answer can contain. Invariant: the first failing statement ends the session.

use std::fmt;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{BoxRead, BoxWrite, HostProcess};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::server::Server;
use crate::text::{decode, encode, shown};
use crate::tools::Tools;

/// An answer longer than this is refused: catalogues of a million tables stay below it.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Text comes as UTF-8, but where the server does not know its encoding: there it would refuse what is none.
pub(crate) const CLIENT_ENCODING: &str = "SELECT set_config('client_encoding', CASE getdatabaseencoding() \
    WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, false)";

/// What every session starts with: names mean the catalogue's own objects, nothing times out while a dump runs, rows
/// hidden by policies are an error instead of a wrong count, and the server notices when we are gone.
const PREAMBLE: &str = "SET search_path = pg_catalog; SET standard_conforming_strings = on; \
    SET row_security = off; \
    SELECT set_config(name, CASE name WHEN 'client_connection_check_interval' THEN '1s' ELSE '0' END, false) \
    FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', \
    'idle_session_timeout', 'transaction_timeout', 'client_connection_check_interval')";

/// An open session in one database. Dropping it ends it.
pub(crate) struct Psql {
    server: Server,
    database: String,
    process: HostProcess,
    stdin: BoxWrite,
    stdout: BufReader<BoxRead>,
    sentinel: String,
}

impl Psql {
    /// Connects.
    pub(crate) async fn connect(server: &Server, tools: &Tools, database: &str) -> Result<Self> {
        let command = server
            .command(tools.program("psql"))?
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"])
            // With the SQLSTATE, whatever language the server speaks.
            .args(["--set", "VERBOSITY=verbose"])
            .arg("--dbname")
            .arg(server.conninfo(database))
            .env("PGCLIENTENCODING", "UTF8")
            .env("LC_MESSAGES", "C")
            .piped_stdin();
        let mut process = server.host.spawn(command).await?;
        let pipes = process.take_stdin().zip(process.take_stdout());
        let (stdin, stdout) = pipes.ok_or_else(|| Error::new(ErrorKind::Internal, "psql was started without pipes"))?;
        let sentinel = format!("end of answer {}", uuid::Uuid::new_v4());
        let (server, database) = (server.clone(), database.to_owned());
        let mut session = Self { server, database, process, stdin, stdout: BufReader::new(stdout), sentinel };
        session.execute(&format!("{PREAMBLE}; {CLIENT_ENCODING}")).await?;
        Ok(session)
    }

    /// The database of this session.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Runs statements and forgets what they answer.
    pub(crate) async fn execute(&mut self, statements: &str) -> Result<()> {
        self.ask(statements).await.map(|_| ())
    }

    /// Runs a `SELECT` and returns its rows, each as an object with the columns' names.
    pub(crate) async fn rows<T: DeserializeOwned>(&mut self, select: &str) -> Result<Vec<T>> {
        let answer = self.ask(&format!("SELECT coalesce(json_agg(row_to_json(t)), '[]') FROM ({select}) t")).await?;
        self.parse(&answer)
    }

    /// Runs a `SELECT` that must answer exactly one row.
    pub(crate) async fn row<T: DeserializeOwned>(&mut self, select: &str) -> Result<T> {
        let mut rows = self.rows(select).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(self.misunderstood("one row was expected")),
        }
    }

    /// The value of one SQL expression.
    pub(crate) async fn value<T: DeserializeOwned>(&mut self, expression: &str) -> Result<T> {
        let answer = self.ask(&format!("SELECT coalesce(to_json(({expression})), 'null')")).await?;
        self.parse(&answer)
    }

    /// Ends the session and waits until it is gone.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.stdin.shutdown().await.map_err(|source| Error::from_io("cannot end a session", source))?;
        drop(self.stdin);
        let code = self.process.status().await?;
        self.server.confirm("psql", code, &self.process.stderr_tail()).map(|_| ())
    }

    async fn ask(&mut self, statements: &str) -> Result<String> {
        let request = format!("{statements}\n;\n\\echo {}\n", self.sentinel);
        let sent = async {
            self.stdin.write_all(&encode(&request)).await?;
            self.stdin.flush().await
        };
        if sent.await.is_err() {
            return Err(self.failure().await);
        }
        let mut answer = Vec::new();
        loop {
            let start = answer.len();
            let mut limited = (&mut self.stdout).take((MAX_ANSWER_BYTES - start) as u64 + 1);
            let count = limited.read_until(b'\n', &mut answer).await;
            let count = count.map_err(|source| Error::from_io("cannot read the answer of `psql`", source))?;
            if count == 0 {
                return Err(self.failure().await);
            }
            if answer.len() > MAX_ANSWER_BYTES {
                return Err(self.misunderstood("the answer is too long"));
            }
            if answer[start..].trim_ascii_end() == self.sentinel.as_bytes() {
                answer.truncate(start);
                return Ok(decode(&answer));
            }
        }
    }

    /// Why the session ended.
    async fn failure(&mut self) -> Error {
        match self.process.status().await {
            Ok(_) => self.server.session_error(&self.database, &self.process.stderr_tail()),
            Err(error) => error,
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &str) -> Result<T> {
        serde_json::from_str(answer).map_err(|source| self.misunderstood("it does not parse").caused_by(source))
    }

    fn misunderstood(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!("an answer from `{}` was not understood: {why}", shown(&self.database)),
        )
    }
}

impl fmt::Debug for Psql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Psql").field("database", &self.database).finish_non_exhaustive()
    }
}
