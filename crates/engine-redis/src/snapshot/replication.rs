//! An RDB over the replication protocol: we introduce ourselves as a replica, and leave once we have the snapshot.
//!
//! The protocol is that of `replication.c` in redis/redis: after `PSYNC ? -1` (or `SYNC`) the server sends newlines while
//! it prepares, then `$EOF:` and a mark of 40 bytes that also ends the RDB, or `$` and the length.
//! Invariant: without its mark, or before its length is reached, an end is an error.

use std::time::Duration;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::position::Position;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use super::PIECE_BYTES;
use super::own_dump::Kept;
use crate::Redis;
use crate::connection::{Connection, refusal};
use crate::server::{Info, Server, setting};

const MARK_BYTES: usize = 40;
/// The server sends a newline every second while it prepares, and data after that.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// What is announced when the server does not tell its version: the newest whose RDB we read.
const ANNOUNCED_VERSION: &str = "9.1.0";

/// How the RDB is framed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Framing {
    /// It ends with this mark. The server sends it without writing a file.
    Mark([u8; MARK_BYTES]),
    /// It has so many bytes. The server sends its dump file, which it has just written.
    Length(u64),
}

/// What a server does for a replica that wants to go on where it was.
#[derive(Debug)]
pub(crate) enum Attached {
    /// It goes on there: what is read from the connection is the stream, whose replication id is `id`.
    Continued {
        /// The id, which is another one after a failover or a restart.
        id: String,
        /// The connection.
        connection: Connection,
    },
    /// It cannot, and sends everything; the stream follows.
    Everything(Box<Replication>),
}

/// An RDB that a server sends to us as to a replica.
#[derive(Debug)]
pub(crate) struct Replication {
    connection: Connection,
    framing: Framing,
    position: Option<Position>,
    /// When the server had told the position.
    told: Timestamp,
    /// What was read and not handed on: at the end of a piece it may be the mark.
    held: BytesMut,
    passed: u64,
}

impl Replication {
    /// Connects and asks; returns when the RDB begins.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] or [`ErrorKind::Unsupported`] when the server does not allow it.
    pub(crate) async fn begin(cx: &RunContext, redis: &Redis, server: &Server) -> Result<Self> {
        let mut connection = server.connect(cx).await?;
        let version = match Info::ask(&mut connection, Some("server")).await {
            Ok(info) => info.product().map(|product| product.version),
            Err(_) => None,
        };
        introduce(&mut connection, version.as_deref().unwrap_or(ANNOUNCED_VERSION)).await?;
        let kept = keep_dump_file(cx, redis, server).await?;
        cx.step("waiting for the server's snapshot");
        let (position, told, framing) = ask_for_everything(&mut connection).await?;
        tell_of_disk(cx, &framing, kept)?;
        Ok(Self { connection, framing, position, told, held: BytesMut::new(), passed: 0 })
    }

    /// Connects to stay, and tells what the server says of itself. `after` is the replication id and the offset up to which
    /// everything is known.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] or [`ErrorKind::Unsupported`] when the server does not allow it.
    pub(crate) async fn attach(cx: &RunContext, redis: &Redis, after: Option<(&str, u64)>) -> Result<(Attached, Info)> {
        let mut connection = redis.server.connect(cx).await?;
        let info = Info::ask(&mut connection, None).await.unwrap_or_default();
        if redis.is_whole_cluster(&info) {
            return Err(Error::new(ErrorKind::Unsupported, "a cluster is not followed as a whole")
                .hint("name each master as a source of its own, with `cluster: node` and `follow: true`"));
        }
        let version = info.product().map(|product| product.version);
        // `psync2`: the answer to PSYNC names the replication id, which may have changed.
        connection.call(&["REPLCONF", "capa", "eof", "capa", "psync2"]).await?;
        connection.ask(&["REPLCONF", "version", version.as_deref().unwrap_or(ANNOUNCED_VERSION)]).await?;
        let kept = keep_dump_file(cx, redis, &redis.server).await?;
        let (id, next) = after.map_or(("?", "-1".to_owned()), |(id, offset)| (id, (offset + 1).to_string()));
        connection.writer.send(&["PSYNC", id, &next]).await?;
        let line = preamble(&mut connection, "PSYNC").await?;
        if let Some(rest) = line.strip_prefix("+CONTINUE") {
            let told = rest.trim();
            let id = if told.is_empty() { id } else { told };
            return Ok((Attached::Continued { id: id.to_owned(), connection }, info));
        }
        let (position, told) = (Some(full_resync(&line)?), Timestamp::now());
        let framing = framing(&preamble(&mut connection, "PSYNC").await?)?;
        tell_of_disk(cx, &framing, kept)?;
        let held = BytesMut::new();
        Ok((Attached::Everything(Box::new(Self { connection, framing, position, told, held, passed: 0 })), info))
    }

    /// When the server had come to the position, at the latest.
    pub(crate) fn told(&self) -> Timestamp {
        self.told
    }

    /// After the end: the connection, and what was read of the stream that follows the RDB.
    pub(crate) fn into_stream(mut self) -> (Connection, Bytes) {
        let rest = match self.framing {
            Framing::Mark(_) => Bytes::new(),
            Framing::Length(_) => self.held.split().freeze(),
        };
        (self.connection, rest)
    }

    /// The next bytes, in pieces of one size but for the last; `None` at the proven end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.is_whole() && self.certain() < PIECE_BYTES {
            self.held.reserve(PIECE_BYTES);
            if self.connection.reader.read(&mut self.held, SILENCE_LIMIT).await? == 0 {
                return Err(cut_short(self.passed + self.certain() as u64));
            }
        }
        let piece = self.held.split_to(self.certain().min(PIECE_BYTES)).freeze();
        self.passed += piece.len() as u64;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Whether the end was seen.
    fn is_whole(&self) -> bool {
        match &self.framing {
            // A replica looks at the last bytes of what it read, too: nothing follows until it has answered.
            Framing::Mark(mark) => self.held.ends_with(mark),
            Framing::Length(length) => self.passed + self.held.len() as u64 >= *length,
        }
    }

    /// How many of the held bytes belong to the RDB, whatever comes.
    fn certain(&self) -> usize {
        match &self.framing {
            Framing::Mark(_) => self.held.len().saturating_sub(MARK_BYTES),
            Framing::Length(length) => self.held.len().min((length - self.passed) as usize),
        }
    }

    /// Why the RDB is whole.
    pub(crate) fn evidence(&self) -> Evidence {
        match self.framing {
            Framing::Mark(_) => Evidence::EndMarker("the mark that the server announced"),
            Framing::Length(length) => Evidence::ExactLength(length),
        }
    }

    /// The replication id and offset that the RDB stands at; `None` when the server knows only SYNC.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position.clone()
    }
}

/// Keeps the server's dump file where the server is about to write over it. It tells that only who may ask.
async fn keep_dump_file(cx: &RunContext, redis: &Redis, server: &Server) -> Result<Option<Kept>> {
    // A connection that has introduced itself as a replica is for nothing else.
    let mut connection = server.connect(cx).await?;
    if setting(&mut connection, "repl-diskless-sync").await?.as_deref() != Some("no") {
        return Ok(None);
    }
    let (host, data_dir) = (&*redis.host, redis.settings.data_dir.as_deref());
    Kept::begin(&mut connection, host, data_dir, redis.settings.dump_file).await
}

/// Says what kind of replica we are. Without `capa eof` the server would always write its dump file.
async fn introduce(connection: &mut Connection, version: &str) -> Result<()> {
    connection.call(&["REPLCONF", "capa", "eof"]).await?;
    // Servers that do not know these say so, and go on: `rdb-only` is of Redis 7, `version` of Valkey 9.
    connection.ask(&["REPLCONF", "rdb-only", "1"]).await?;
    connection.ask(&["REPLCONF", "version", version]).await?;
    Ok(())
}

/// A server that wrote its dump file is told of, and has its old one back.
fn tell_of_disk(cx: &RunContext, framing: &Framing, kept: Option<Kept>) -> Result<()> {
    if !matches!(framing, Framing::Length(_)) {
        return Ok(());
    }
    cx.warn(
        "the server has `repl-diskless-sync no`, so it wrote this snapshot to its disk first; \
         `CONFIG SET repl-diskless-sync yes` spares that",
    );
    // It has opened what it sends.
    kept.map_or(Ok(()), Kept::put_back_at_once)
}

async fn ask_for_everything(connection: &mut Connection) -> Result<(Option<Position>, Timestamp, Framing)> {
    connection.writer.send(&["PSYNC", "?", "-1"]).await?;
    match preamble(connection, "PSYNC").await {
        // A server knows PSYNC by its name alone: a renamed one is SYNC to it, and has no position.
        Ok(line) if line.starts_with('$') => Ok((None, Timestamp::now(), framing(&line)?)),
        Ok(line) => {
            let (position, told) = (full_resync(&line)?, Timestamp::now());
            Ok((Some(position), told, framing(&preamble(connection, "PSYNC").await?)?))
        }
        // Older, renamed or forbidden: SYNC needs no more than PSYNC, and may still be there.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            connection.writer.send(&["SYNC"]).await?;
            Ok((None, Timestamp::now(), framing(&preamble(connection, "SYNC").await?)?))
        }
        Err(error) => Err(error),
    }
}

/// The next line that says something; the server sends empty ones so that we know that it lives.
async fn preamble(connection: &mut Connection, command: &str) -> Result<String> {
    loop {
        let line = connection.reader.line(SILENCE_LIMIT).await?;
        match line.strip_prefix('-') {
            Some(refused) => return Err(refusal(command, refused)),
            None if line.is_empty() => {}
            None => return Ok(line),
        }
    }
}

fn full_resync(line: &str) -> Result<Position> {
    let position = || {
        let (id, offset) = line.strip_prefix("+FULLRESYNC ")?.split_once(' ')?;
        Some(Position::Replication { id: id.to_owned(), offset: offset.trim().parse().ok()? })
    };
    position().ok_or_else(|| unexpected(line))
}

fn framing(line: &str) -> Result<Framing> {
    let framing = || {
        let rest = line.strip_prefix('$')?;
        match rest.strip_prefix("EOF:") {
            Some(mark) => Some(Framing::Mark(mark.as_bytes().try_into().ok()?)),
            None => Some(Framing::Length(rest.parse().ok()?)),
        }
    };
    framing().ok_or_else(|| unexpected(line))
}

fn unexpected(line: &str) -> Error {
    let shown: String = line.chars().take(MARK_BYTES).collect();
    // Not `Unsupported`: there is nothing to fall back to when the server talks like this.
    Error::new(ErrorKind::Tool, format!("the server answered a replica with `{shown}`"))
}

fn cut_short(passed: u64) -> Error {
    Error::new(ErrorKind::Incomplete, format!("the server closed the connection after {passed} bytes of its snapshot"))
        .hint(
            "look into the server's log: its child may have failed, or it gave up because nothing was read for \
             `repl-timeout` seconds (60 by default); then raise that, or look why the repository is slow",
        )
        .retry_later()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_protocol_are_understood_or_refused() {
        let id = "a".repeat(40);
        assert_eq!(
            full_resync(&format!("+FULLRESYNC {id} 1234")).unwrap(),
            Position::Replication { id: id.clone(), offset: 1234 }
        );
        assert_eq!(framing("$17").unwrap(), Framing::Length(17));
        assert_eq!(framing(&format!("$EOF:{id}")).unwrap(), Framing::Mark([b'a'; MARK_BYTES]));
        for line in ["+CONTINUE", "$", "$-1", "$EOF:short", "+OK", "$ 1", ":1"] {
            assert!(framing(line).is_err(), "{line}");
            assert!(full_resync(line).is_err(), "{line}");
        }
    }
}
