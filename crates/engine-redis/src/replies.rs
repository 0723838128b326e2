//! What a server answers (RESP2): whole replies, or a long text piece by piece.
//!
//! Invariant: a reply that is held whole has a limit; what is longer is handed on as it comes.

use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tls::explain;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, ReadHalf};

use crate::connection::Wire;

/// A reply that takes longer will not come: the server hangs, or the network swallowed it.
const REPLY_LIMIT: Duration = Duration::from_mins(2);
/// The longest reply that is held: the ACL rules of many thousand users fit.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Deeper replies are not from a server that we know.
const MAX_DEPTH: usize = 16;
/// The longest line of the protocol: a simple string, an error, a length.
const MAX_LINE_BYTES: u64 = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// The receiving half of a connection.
pub(crate) struct Replies(BufReader<ReadHalf<Box<dyn Wire>>>);

impl Replies {
    pub(crate) fn of(wire: ReadHalf<Box<dyn Wire>>) -> Self {
        Self(BufReader::with_capacity(BUFFER_BYTES, wire))
    }

    /// The next reply.
    pub(crate) async fn next(&mut self) -> Result<Reply> {
        let mut budget = MAX_REPLY_BYTES;
        match tokio::time::timeout(REPLY_LIMIT, self.reply(&mut budget, 0)).await {
            Ok(reply) => reply,
            Err(_) => Err(silent(REPLY_LIMIT)),
        }
    }

    /// The next line, without its end; waits for at most `limit`.
    pub(crate) async fn line(&mut self, limit: Duration) -> Result<String> {
        match tokio::time::timeout(limit, self.read_line()).await {
            Ok(line) => line,
            Err(_) => Err(silent(limit)),
        }
    }

    /// Reads what is there, at least one byte unless the server closed the connection; waits for at most `limit`.
    pub(crate) async fn read(&mut self, into: &mut bytes::BytesMut, limit: Duration) -> Result<usize> {
        match tokio::time::timeout(limit, self.0.read_buf(into)).await {
            Ok(read) => read.map_err(broken),
            Err(_) => Err(silent(limit)),
        }
    }

    /// The head of the next reply: an array's is its length, a text's is its length, and what they hold comes next.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        let line = self.line(REPLY_LIMIT).await?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| nonsense("an empty line"))?;
        let length = || rest.parse::<i64>().map_err(|_| nonsense("a number that is none"));
        Ok(match kind {
            "-" => Head::Error(rest.to_owned()),
            "$" => u64::try_from(length()?).map_or(Head::Nil, Head::Bulk),
            "*" => u64::try_from(length()?).map_or(Head::Nil, Head::Array),
            ":" => Head::Integer(length()?),
            "+" => Head::Text,
            _ => return Err(nonsense("an unknown kind of reply")),
        })
    }

    /// Some of the bytes of a text whose head was read: at most `left`, at least one.
    pub(crate) async fn some(&mut self, left: u64) -> Result<Bytes> {
        let size = left.min(BUFFER_BYTES as u64);
        let mut bytes = BytesMut::with_capacity(size as usize);
        let mut piece = (&mut self.0).take(size);
        match tokio::time::timeout(REPLY_LIMIT, piece.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => Err(closed()),
            Ok(read) => read.map(|_| bytes.freeze()).map_err(broken),
            Err(_) => Err(silent(REPLY_LIMIT)),
        }
    }

    /// The end of a text whose bytes were read.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let mut end = [0; 2];
        self.0.read_exact(&mut end).await.map_err(broken)?;
        if &end == b"\r\n" { Ok(()) } else { Err(nonsense("a text without its end")) }
    }

    async fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut self.0).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await.map_err(broken)?;
        if line.pop() != Some(b'\n') {
            return Err(if line.is_empty() { closed() } else { nonsense("a line without an end") });
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| nonsense("a line that is not text"))
    }

    async fn reply(&mut self, budget: &mut usize, depth: usize) -> Result<Reply> {
        let line = self.read_line().await?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| nonsense("an empty line"))?;
        let number = || rest.parse::<i64>().map_err(|_| nonsense("a number that is none"));
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Ok(length) => Reply::Bulk(self.bulk(spend(budget, length)?).await?),
                Err(_) => Reply::Nil,
            },
            "*" if depth < MAX_DEPTH => match usize::try_from(number()?) {
                Ok(length) => {
                    spend(budget, length)?;
                    let mut items = Vec::new();
                    for _ in 0..length {
                        items.push(Box::pin(self.reply(budget, depth + 1)).await?);
                    }
                    Reply::Array(items)
                }
                Err(_) => Reply::Nil,
            },
            _ => return Err(nonsense("an unknown kind of reply")),
        })
    }

    async fn bulk(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).await.map_err(broken)?;
        if !bytes.ends_with(b"\r\n") {
            return Err(nonsense("a text without its end"));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

fn spend(budget: &mut usize, amount: usize) -> Result<usize> {
    *budget = budget.checked_sub(amount).ok_or_else(|| nonsense("a reply that is too long"))?;
    Ok(amount)
}

/// The head of a reply whose content is read by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    /// An error, whole.
    Error(String),
    /// A number, whole.
    Integer(i64),
    /// A short text, whole.
    Text,
    /// A text of so many bytes follows.
    Bulk(u64),
    /// So many replies follow.
    Array(u64),
    /// Nothing.
    Nil,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Text(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// As text; numbers are printed, an array has no text.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Integer(number) => Some(number.to_string()),
            Self::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Self::Error(_) | Self::Nil | Self::Array(_) => None,
        }
    }

    /// The items of an array; none of anything else.
    pub(crate) fn items(&self) -> &[Self] {
        if let Self::Array(items) = self { items } else { &[] }
    }
}

pub(crate) fn broken(source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => closed().caused_by(source),
        _ => explain("the connection to the server broke", source),
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Incomplete, "the server closed the connection")
        .hint("look into the server's log for why; a port that speaks TLS needs `rediss://`, or `tls` in the plan")
        .retry_later()
}

fn silent(limit: Duration) -> Error {
    Error::new(ErrorKind::Unreachable, format!("the server said nothing for {} seconds", limit.as_secs()))
        .hint("look whether the server hangs, and whether a firewall drops its connections")
        .retry_later()
}

pub(crate) fn nonsense(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server answered with {what}"))
        .hint("look whether `url` or `socket` in the plan names a Redis or Valkey server")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The answers of a server that says `script`.
    async fn scripted(script: &[u8]) -> Replies {
        let (ours, mut theirs) = tokio::io::duplex(1024 * 1024);
        theirs.write_all(script).await.unwrap();
        theirs.shutdown().await.unwrap();
        let (reader, _) = tokio::io::split(Box::new(ours) as Box<dyn Wire>);
        Replies::of(reader)
    }

    #[tokio::test]
    async fn every_kind_of_reply_is_read() {
        let mut replies =
            scripted(b"+OK\r\n:-3\r\n$3\r\na\nb\r\n$-1\r\n*2\r\n$1\r\nx\r\n*0\r\n-ERR no\r\n*-1\r\n").await;
        let expected = [
            Reply::Text("OK".into()),
            Reply::Integer(-3),
            Reply::Bulk(b"a\nb".to_vec()),
            Reply::Nil,
            Reply::Array(vec![Reply::Bulk(b"x".to_vec()), Reply::Array(vec![])]),
            Reply::Error("ERR no".into()),
            Reply::Nil,
        ];
        for reply in expected {
            assert_eq!(replies.next().await.unwrap(), reply);
        }
        assert_eq!(replies.next().await.unwrap_err().kind(), ErrorKind::Incomplete);
    }

    #[tokio::test]
    async fn what_is_no_server_is_said_to_be_none() {
        let deep = b"*1\r\n".repeat(MAX_DEPTH + 1);
        for script in [b"HTTP/1.1 400\r\n".as_slice(), b"$99999999999\r\n", b"$1\r\nabc\r\n", b"\r\n", &deep, b":x\r\n"]
        {
            let error = scripted(script).await.next().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{script:?}: {error:?}");
        }
    }
}
