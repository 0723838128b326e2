//! One connection to a server: commands out, replies in (RESP2), over TCP, TLS or a unix socket.
//!
//! Invariant: what a command was given is never quoted in an error, because a password may be among it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tls::{TlsConfig, TlsConnector, explain};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};

use crate::config::{Address, CommandNames};

/// A server that is not reached by then is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A reply that takes longer will not come: the server hangs, or the network swallowed it.
const REPLY_LIMIT: Duration = Duration::from_mins(2);
/// The longest reply: the ACL rules of many thousand users fit.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Deeper replies are not from a server that we know.
const MAX_DEPTH: usize = 16;
/// The longest line of the protocol: a simple string, an error, a length.
const MAX_LINE_BYTES: u64 = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// Anything that bytes can be exchanged with.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection. Dropping it closes it; a call that was cancelled half-way leaves it unusable.
pub(crate) struct Connection {
    pub(crate) reader: Replies,
    pub(crate) writer: Commands,
}

impl Connection {
    /// Connects to `address`, by TLS when that is asked for, and says nothing yet.
    pub(crate) async fn open(address: &Address, tls: Option<&TlsConfig>, names: &CommandNames) -> Result<Self> {
        let wire = dial(address, tls).await?;
        let (reader, writer) = tokio::io::split(wire);
        let reader = Replies(BufReader::with_capacity(BUFFER_BYTES, reader));
        Ok(Self { reader, writer: Commands { wire: writer, names: Arc::clone(&names.0) } })
    }

    /// Runs one command; an error that the server answers with is a [`Reply::Error`].
    pub(crate) async fn ask(&mut self, command: &[&str]) -> Result<Reply> {
        self.writer.send(command).await?;
        self.reader.next().await
    }

    /// Runs one command; an error that the server answers with is an [`Error`].
    pub(crate) async fn call(&mut self, command: &[&str]) -> Result<Reply> {
        match self.ask(command).await? {
            Reply::Error(text) => Err(refusal(command[0], &text)),
            reply => Ok(reply),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

async fn dial(address: &Address, tls: Option<&TlsConfig>) -> Result<Box<dyn Wire>> {
    let (host, port) = match address {
        Address::Socket(path) => {
            return Ok(Box::new(reached(address, tokio::net::UnixStream::connect(path)).await?));
        }
        Address::Tcp { host, port } => (host.as_str(), *port),
    };
    // Its files first: a mistake there is said whether or not the server is up.
    let connector = tls.map(|tls| TlsConnector::new(tls, host)).transpose()?;
    let stream = reached(address, tokio::net::TcpStream::connect((host, port))).await?;
    stream.set_nodelay(true).map_err(broken)?;
    match connector {
        None => Ok(Box::new(stream)),
        Some(connector) => {
            let stream = connector.connect(stream).await.map_err(|error| error.with("server", address))?;
            Ok(Box::new(stream))
        }
    }
}

async fn reached<T>(address: &Address, connecting: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
        Ok(stream) => stream.map_err(|source| unreachable_server(address).caused_by(source)),
        Err(_) => Err(unreachable_server(address)),
    }
}

fn unreachable_server(address: &Address) -> Error {
    Error::new(ErrorKind::Unreachable, format!("no server answers on {address}"))
        .hint("look whether the server runs and listens there; `url` or `socket` in the plan says where to look")
        .retry_later()
}

/// The sending half.
pub(crate) struct Commands {
    wire: WriteHalf<Box<dyn Wire>>,
    names: Arc<BTreeMap<String, String>>,
}

impl Commands {
    /// Sends one command, under the name that the plan says it was renamed to.
    pub(crate) async fn send<W: AsRef<[u8]>>(&mut self, command: &[W]) -> Result<()> {
        let mut message = format!("*{}\r\n", command.len()).into_bytes();
        for (position, word) in command.iter().map(AsRef::as_ref).enumerate() {
            let name = std::str::from_utf8(word).map(str::to_ascii_uppercase).unwrap_or_default();
            let renamed = if position == 0 { self.names.get(&name) } else { None };
            let word = renamed.map_or(word, String::as_bytes);
            message.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            message.extend_from_slice(word);
            message.extend_from_slice(b"\r\n");
        }
        self.write(&message).await
    }

    /// Sends bytes that are commands already.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = async {
            self.wire.write_all(bytes).await?;
            // TLS gathers small writes.
            self.wire.flush().await
        };
        written.await.map_err(|source| explain("cannot write to the server", source))
    }
}

/// The receiving half.
pub(crate) struct Replies(BufReader<ReadHalf<Box<dyn Wire>>>);

impl Replies {
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

/// What to do about a server that cannot fork.
pub(crate) const NO_CHILD: &str =
    "the server needs memory to fork: `sysctl vm.overcommit_memory=1`, or free some; its log has the reason";

/// What an error of the server means. `text` is its message, `command` the name of what was asked.
pub(crate) fn refusal(command: &str, text: &str) -> Error {
    let code = text.split(' ').next().unwrap_or_default();
    let unknown = text.starts_with("ERR unknown command");
    // Whatever a command was given may be a secret, or data: the server quotes it in this one message.
    let shown = if unknown { "ERR unknown command" } else { text };
    let of = |kind: ErrorKind| Error::new(kind, format!("the server refuses {command}: {shown}"));
    match code {
        "NOAUTH" => of(ErrorKind::PermissionDenied).hint("name the place of its password in the plan: `password: { file: … }`"),
        "WRONGPASS" => of(ErrorKind::PermissionDenied).hint("look at `user` and `password` in the plan"),
        "NOPERM" => of(ErrorKind::PermissionDenied)
            .hint("allow it: ACL SETUSER NAME +psync +sync +replconf +ping +info +config|get +acl|list …; the engine's README has the whole rule"),
        "DENIED" => Error::new(ErrorKind::PermissionDenied, "the server is in protected mode and refuses connections from here")
            .hint("set a password on the server, or connect over its unix socket"),
        "LOADING" | "BUSY" | "MASTERDOWN" | "NOMASTERLINK" => of(ErrorKind::Busy).retry_later(),
        "MISCONF" => of(ErrorKind::Tool).hint("the server's last save failed: look into its log for why, most likely a full disk"),
        "OOM" => of(ErrorKind::NoSpace).hint("raise `maxmemory` of the server"),
        "READONLY" => of(ErrorKind::Unsupported).hint("this is a replica; name its master in the plan"),
        _ if text.contains("BGSAVE failed") => of(ErrorKind::Tool).hint(NO_CHILD).retry_later(),
        _ if unknown => of(ErrorKind::Unsupported)
            .hint("when the server's configuration renames it, say so in the plan: `commands: { NAME: its-new-name }`"),
        _ => of(ErrorKind::Tool),
    }
}

fn broken(source: std::io::Error) -> Error {
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

fn nonsense(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server answered with {what}"))
        .hint("look whether `url` or `socket` in the plan names a Redis or Valkey server")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection to a server that says `script` whatever it is told.
    async fn scripted(script: &[u8]) -> Connection {
        let (ours, mut theirs) = tokio::io::duplex(1024 * 1024);
        theirs.write_all(script).await.unwrap();
        theirs.shutdown().await.unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await });
        let (reader, writer) = tokio::io::split(Box::new(ours) as Box<dyn Wire>);
        Connection { reader: Replies(BufReader::new(reader)), writer: Commands { wire: writer, names: Arc::default() } }
    }

    #[tokio::test]
    async fn every_kind_of_reply_is_read() {
        let mut connection =
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
            assert_eq!(connection.ask(&["X"]).await.unwrap(), reply);
        }
        assert_eq!(connection.ask(&["X"]).await.unwrap_err().kind(), ErrorKind::Incomplete);
    }

    #[tokio::test]
    async fn what_is_no_server_is_said_to_be_none() {
        let deep = b"*1\r\n".repeat(MAX_DEPTH + 1);
        for script in [b"HTTP/1.1 400\r\n".as_slice(), b"$99999999999\r\n", b"$1\r\nabc\r\n", b"\r\n", &deep, b":x\r\n"]
        {
            let error = scripted(script).await.ask(&["X"]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{script:?}: {error:?}");
        }
    }

    #[test]
    fn refusals_have_a_kind_and_never_quote_arguments() {
        let cases = [
            ("NOAUTH Authentication required.", ErrorKind::PermissionDenied),
            ("WRONGPASS invalid username-password pair or user is disabled.", ErrorKind::PermissionDenied),
            ("NOPERM this user has no permissions to run the 'psync' command", ErrorKind::PermissionDenied),
            ("ERR unknown command 'AUTHX', with args beginning with: 'hunter2' ", ErrorKind::Unsupported),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Busy),
            ("MISCONF Redis is configured to save RDB snapshots, but", ErrorKind::Tool),
            ("ERR BGSAVE failed, replication can't continue", ErrorKind::Tool),
            ("ERR", ErrorKind::Tool),
        ];
        for (text, kind) in cases {
            let error = refusal("AUTH", text);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
