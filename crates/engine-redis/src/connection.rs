//! One connection to a server: commands out, replies in (RESP2), over TCP, TLS or a unix socket.
//!
//! Invariant: what a command was given is never quoted in an error, because a password may be among it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tls::{TlsConfig, TlsConnector, explain};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};

use crate::config::{Address, CommandNames};
use crate::replies::broken;
pub(crate) use crate::replies::{Replies, Reply};

/// A server that is not reached by then is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Anything that bytes can be exchanged with.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
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
        Ok(Self { reader: Replies::of(reader), writer: Commands { wire: writer, names: Arc::clone(&names.0) } })
    }

    /// Runs one command; an error that the server answers with is a [`Reply::Error`].
    pub(crate) async fn ask<W: AsRef<[u8]>>(&mut self, command: &[W]) -> Result<Reply> {
        self.writer.send(command).await?;
        self.reader.next().await
    }

    /// Runs one command; an error that the server answers with is an [`Error`].
    pub(crate) async fn call<W: AsRef<[u8]>>(&mut self, command: &[W]) -> Result<Reply> {
        match self.ask(command).await? {
            Reply::Error(text) => Err(refusal(&String::from_utf8_lossy(command[0].as_ref()), &text)),
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
        let mut message = Vec::new();
        self.encode(&mut message, command);
        self.write(&message).await
    }

    /// Appends one command to `message`, in the protocol's form, under the name that the plan says it was renamed to.
    pub(crate) fn encode<W: AsRef<[u8]>>(&self, message: &mut Vec<u8>, command: &[W]) {
        message.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for (position, word) in command.iter().map(AsRef::as_ref).enumerate() {
            let name = std::str::from_utf8(word).map(str::to_ascii_uppercase).unwrap_or_default();
            let renamed = if position == 0 { self.names.get(&name) } else { None };
            let word = renamed.map_or(word, String::as_bytes);
            message.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            message.extend_from_slice(word);
            message.extend_from_slice(b"\r\n");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
