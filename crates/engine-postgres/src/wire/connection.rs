//! A session with the server: commands and their answers.
//!
//! Invariant: what a command answered is handed on only when the server got ready again after it; a session that was
//! dropped in the midst of a command tells the server to cancel it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::copy::Answer;
use super::fault::{ServerError, server_error};
use super::frame::{Body, Frame, Framed, unexpected};
use super::login::{self, Startup};
use super::transport::{self, Encryption};
use crate::server::Server;
use crate::tools::PgVersion;

/// A server that does not let us in, or say why not, within this time is unreachable, unless `connect_timeout` says
/// otherwise.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Cancelling is a courtesy, and takes no longer.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// Saying good-bye, too.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Rows are facts about a server, never data; more than this are a mistake.
pub(super) const MAX_ROWS: usize = 1_000_000;
/// More notices than this are counted, not kept.
pub(crate) const MAX_NOTICES: usize = 1000;
/// Nothing ends a session of ours but we: a backup is one statement, and the session that holds its log idles. The last
/// of them is known since version 14.
const PATIENCE: [&str; 2] =
    ["-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0", "-c statement_timeout=0 -c lock_timeout=0"];
/// The SQLSTATE for a setting that the server does not know.
const UNKNOWN_SETTING: &str = "42704";
/// The SQLSTATE of a server that has no room for another session.
const TOO_MANY: &str = "53300";
/// How often, and how long apart, it is asked again whether a session that it refused is gone.
const LEAVING_TRIES: u32 = 20;
const LEAVING_PAUSE: Duration = Duration::from_millis(50);
/// The SQLSTATE for not being let in, for whatever reason.
const NOT_LET_IN: &str = "28000";

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose<'a> {
    /// SQL in this database.
    Sql(&'a str),
    /// Commands of physical replication.
    Replication,
}

/// The rows of one answer: each a list of texts, `None` for NULL.
pub(crate) type Rows = Vec<Vec<Option<String>>>;
/// The same, byte for byte.
pub(crate) type RawRows = Vec<Vec<Option<Bytes>>>;

/// An open session.
pub(crate) struct Connection {
    pub(super) framed: Framed,
    server: Server,
    encryption: Encryption,
    encrypted: bool,
    /// What the server told of its settings: `server_version`, ….
    parameters: BTreeMap<String, String>,
    /// What a request to cancel carries.
    key: Option<(i32, i32)>,
    notices: Vec<ServerError>,
    /// Whether a command is under way.
    pub(super) busy: bool,
    /// Whether the server ended the session.
    over: bool,
    /// What the server refused, until it is ready again.
    refused: Option<ServerError>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], [`ErrorKind::PermissionDenied`], [`ErrorKind::Busy`] with what to do about it.
    pub(crate) async fn connect(server: &Server, purpose: Purpose<'_>) -> Result<Self> {
        let limit = match server.endpoint.parameters.get("connect_timeout").and_then(|text| text.parse().ok()) {
            Some(0) | None => CONNECT_LIMIT,
            Some(seconds) => Duration::from_secs(seconds),
        };
        match tokio::time::timeout(limit, Self::attempt(server, purpose)).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::Unreachable, format!("the server does not answer within {limit:?}"))
                .with("server", server.describe())
                .hint("is the server running, and is this where it listens?")
                .retry_later()),
        }
    }

    /// Tries each kind of encryption that `sslmode` allows; a refusal by pg_hba.conf may be about encryption alone.
    async fn attempt(server: &Server, purpose: Purpose<'_>) -> Result<Self> {
        let attempts = Encryption::attempts(server)?;
        let mut first = None;
        for encryption in attempts {
            match Self::open(server, purpose, *encryption).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    let refused = server_error(&error).is_some_and(|error| error.code == NOT_LET_IN);
                    let error = first.unwrap_or(error);
                    if !refused {
                        return Err(error);
                    }
                    first = Some(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| Error::new(ErrorKind::Internal, "no way to connect was tried")))
    }

    async fn open(server: &Server, purpose: Purpose<'_>, encryption: Encryption) -> Result<Self> {
        match Self::open_when_there_is_room(server, purpose, encryption, PATIENCE[0]).await {
            Err(error) if server_error(&error).is_some_and(|error| error.code == UNKNOWN_SETTING) => {
                Self::open_when_there_is_room(server, purpose, encryption, PATIENCE[1]).await
            }
            result => result,
        }
    }

    /// A session that was closed, or refused, counts until its process has ended: ours of a moment ago, too.
    async fn open_when_there_is_room(
        server: &Server,
        purpose: Purpose<'_>,
        encryption: Encryption,
        options: &str,
    ) -> Result<Self> {
        for _ in 0..LEAVING_TRIES {
            match Self::open_with(server, purpose, encryption, options).await {
                Err(error) if server_error(&error).is_some_and(|error| error.code == TOO_MANY) => {
                    tokio::time::sleep(LEAVING_PAUSE).await;
                }
                result => return result,
            }
        }
        Self::open_with(server, purpose, encryption, options).await
    }

    async fn open_with(server: &Server, purpose: Purpose<'_>, encryption: Encryption, options: &str) -> Result<Self> {
        let opened = transport::open(server, encryption).await?;
        let encrypted = opened.encrypted;
        let database = match purpose {
            Purpose::Sql(database) => Some(database),
            Purpose::Replication => None,
        };
        let framed = login::login(opened, server, Startup { database, options }).await?;
        let mut connection = Self {
            framed,
            server: server.clone(),
            encryption,
            encrypted,
            parameters: BTreeMap::new(),
            key: None,
            notices: Vec::new(),
            busy: false,
            over: false,
            refused: None,
        };
        connection.get_ready().await?;
        Ok(connection)
    }

    /// Reads what follows the login: parameters, the key for cancelling, and that the server is ready.
    async fn get_ready(&mut self) -> Result<()> {
        loop {
            let frame = self.next("the start of a session").await?;
            match frame.tag {
                b'K' => {
                    let mut body = Body(frame.body);
                    self.key = Some((body.i32()?, body.i32()?));
                }
                // The server knows an older version of the protocol, or not all of our parameters.
                b'v' => {}
                b'Z' => return Ok(()),
                _ => return Err(unexpected(&frame, "the start of a session")),
            }
        }
    }

    /// The server's version.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it tells none that is understood.
    pub(crate) fn version(&self) -> Result<PgVersion> {
        let text = self.parameter("server_version").unwrap_or_default();
        PgVersion::parse(text)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("the server has an unknown version: {text}")))
    }

    /// A setting that the server told when the session began: `server_version`, `in_hot_standby` (14 and newer), ….
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// The notices and warnings since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// Runs a command, SQL or one of replication, and returns the rows of each of its answers.
    ///
    /// # Errors
    /// What the server refused, with its SQLSTATE (see [`server_error`]). The session can be used on, unless the server
    /// ended it.
    pub(crate) async fn query(&mut self, command: &str) -> Result<Vec<Rows>> {
        let text = |cell: Option<Bytes>| cell.map(|cell| String::from_utf8_lossy(&cell).into_owned());
        let row = |row: Vec<Option<Bytes>>| row.into_iter().map(text).collect();
        let answers = self.query_raw(command).await?;
        Ok(answers.into_iter().map(|rows| rows.into_iter().map(row).collect()).collect())
    }

    /// As [`query`](Self::query), byte for byte.
    pub(crate) async fn query_raw(&mut self, command: &str) -> Result<Vec<RawRows>> {
        self.send(command).await?;
        let mut answers = Vec::new();
        loop {
            match self.answer().await? {
                Answer::Rows(rows) => answers.push(rows),
                Answer::Ready => return Ok(answers),
                _ => return Err(Error::new(ErrorKind::Internal, "a command that moves data was sent as a question")),
            }
        }
    }

    /// The only row of the first answer.
    ///
    /// # Errors
    /// As [`query`](Self::query); [`ErrorKind::Unsupported`] when there is not exactly one.
    pub(crate) async fn row(&mut self, command: &str) -> Result<Vec<Option<String>>> {
        let mut rows = self.query(command).await?.into_iter().next().unwrap_or_default();
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(Error::new(ErrorKind::Unsupported, "the server answered not with one row")),
        }
    }

    /// The only column of the only row.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub(crate) async fn value(&mut self, command: &str) -> Result<Option<String>> {
        Ok(self.row(command).await?.into_iter().next().flatten())
    }

    /// Sends a command. Its answer must be read up to `ReadyForQuery`, or the session be dropped.
    pub(super) async fn send(&mut self, command: &str) -> Result<()> {
        if self.busy || self.over {
            return Err(Error::new(ErrorKind::Internal, "a session is used while it is busy or over"));
        }
        let bad = |source| Error::new(ErrorKind::Internal, "a command holds a zero byte").caused_by(source);
        frontend::query(command, self.framed.outbox()).map_err(bad)?;
        self.busy = true;
        self.framed.flush().await
    }

    /// The next message that answers a command. Notices are kept, changed settings noted; an error is returned once the
    /// server is ready again, so that the session can be used. Cancel safe.
    pub(super) async fn next(&mut self, doing: &str) -> Result<Frame> {
        loop {
            let frame = match self.framed.read().await {
                Ok(frame) => frame,
                Err(error) => {
                    self.over = true;
                    // Why it ended was told before.
                    let told = self.refused.take().map(|refused| self.complain(refused, doing));
                    return Err(told.unwrap_or_else(|| error.with("server", self.server.describe())));
                }
            };
            match frame.tag {
                b'E' => {
                    let refused = ServerError::parse(&frame)?;
                    self.over |= refused.is_fatal();
                    let refused = self.refused.take().unwrap_or(refused);
                    if self.over {
                        return Err(self.complain(refused, doing));
                    }
                    self.refused = Some(refused);
                }
                b'N' => {
                    let notice = ServerError::parse(&frame)?;
                    if self.notices.len() < MAX_NOTICES {
                        self.notices.push(notice);
                    }
                }
                b'S' => {
                    let mut body = Body(frame.body);
                    self.parameters.insert(body.text()?, body.text()?);
                }
                b'A' => {}
                b'Z' => {
                    self.busy = false;
                    return match self.refused.take() {
                        Some(refused) => Err(self.complain(refused, doing)),
                        None => Ok(frame),
                    };
                }
                // What was under way when it was refused.
                _ if self.refused.is_some() => {}
                _ => return Ok(frame),
            }
        }
    }

    /// Nothing more comes, and nothing need be cancelled.
    pub(super) fn is_over(&mut self) {
        self.over = true;
    }

    fn complain(&self, refused: ServerError, doing: &str) -> Error {
        refused.into_error(doing.to_owned(), &self.server.endpoint.user).with("server", self.server.describe())
    }

    /// Says good-bye.
    pub(crate) async fn close(mut self) {
        self.busy = false;
        if !self.over {
            frontend::terminate(self.framed.outbox());
            // Whoever does not listen has no session to end.
            let _gone = tokio::time::timeout(CLOSE_LIMIT, self.framed.flush()).await;
        }
    }

    /// Asks the server to cancel what it does for this session (PostgreSQL manual, "Canceling Requests in Progress").
    fn cancel(&self) {
        let (Some((process, secret)), Ok(runtime)) = (self.key, tokio::runtime::Handle::try_current()) else { return };
        let (server, encryption) = (self.server.clone(), self.encryption);
        let _detached = runtime.spawn(async move {
            let ask = async {
                let mut opened = transport::open(&server, encryption).await?;
                let mut request = BytesMut::new();
                frontend::cancel_request(process, secret, &mut request);
                let failed = |source| Error::from_io("cannot cancel", source);
                opened.io.write_all(&request).await.map_err(failed)?;
                opened.io.shutdown().await.map_err(failed)
            };
            // The connection is closed in any case, which the server notices, if later.
            let _courtesy: Result<Result<()>, _> = tokio::time::timeout(CANCEL_LIMIT, ask).await;
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.busy && !self.over {
            self.cancel();
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server.describe()).finish_non_exhaustive()
    }
}

/// A `DataRow`.
pub(super) fn raw_row(body: Bytes) -> Result<Vec<Option<Bytes>>> {
    let mut body = Body(body);
    let columns = body.i16()?;
    let mut row = Vec::new();
    for _ in 0..columns {
        row.push(match usize::try_from(body.i32()?) {
            Ok(length) => Some(body.bytes(length)?),
            // -1 is NULL.
            Err(_) => None,
        });
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_texts_and_nulls_and_is_never_believed_to_be_longer_than_it_is() {
        let whole = Bytes::from_static(b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0");
        assert_eq!(raw_row(whole.clone()).unwrap(), [Some(Bytes::from_static(b"a")), None, Some(Bytes::new())]);
        for cut in 0..whole.len() {
            assert!(raw_row(whole.slice(..cut)).is_err(), "{cut}");
        }
        assert!(raw_row(Bytes::from_static(b"\0\x01\x7f\xff\xff\xff")).is_err());
    }
}
