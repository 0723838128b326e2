//! Sockets: a unix socket, also as another system user; TCP with keepalive; TLS on top when asked for.
//!
//! Invariant: after `SSLRequest` exactly one byte is read before the handshake, so that nothing that somebody injected
//! in clear text is taken for the server's word (CVE-2021-23222).

use std::path::Path;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use nix::unistd::User;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustix::process::{Gid, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::channel_binding;
use super::frame::Transport;
use super::tls::{self, SslMode};
use crate::server::Server;

/// The kernel looks after an idle connection for so long, then every [`PROBE_EVERY`], [`PROBES`] times.
const IDLE: Duration = Duration::from_mins(1);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;
/// Sent bytes that nobody acknowledges for so many milliseconds end the connection.
const UNACKNOWLEDGED_MS: u32 = 120_000;

/// Whether a connection may, or must, be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Plain,
    /// When the server offers it.
    Offered,
    Required,
}

/// An open connection that nothing was said on.
pub(crate) struct Opened {
    pub(crate) io: Box<dyn Transport>,
    pub(crate) encrypted: bool,
    /// What binds a login to this TLS connection (`tls-server-end-point`), when it can be bound.
    pub(crate) binding: Option<Vec<u8>>,
}

/// Opens a connection to `server`.
///
/// # Errors
/// [`ErrorKind::Unreachable`] when nobody listens; [`ErrorKind::PermissionDenied`] when the socket may not be used, or
/// the server's certificate is not the one that is wanted.
pub(crate) async fn open(server: &Server, encryption: Encryption) -> Result<Opened> {
    let endpoint = &server.endpoint;
    if endpoint.is_socket() {
        let folder = Path::new(&endpoint.host);
        let local = server.host.local_path(folder).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("the socket {} of {} cannot be reached from here", folder.display(), server.host.describe()),
            )
            .hint("connect over the network (`url`), or mount the socket's folder")
        })?;
        let path = local.join(format!(".s.PGSQL.{}", endpoint.port));
        let io = Box::new(unix(&path, server.run_as()).await?);
        return Ok(Opened { io, encrypted: false, binding: None });
    }
    let mut stream = tcp(&endpoint.host, endpoint.port).await?;
    if encryption == Encryption::Plain || !offers_tls(&mut stream, server).await? {
        if encryption == Encryption::Required {
            return Err(Error::new(ErrorKind::Unsupported, format!("{} does not speak TLS", server.describe()))
                .hint("set `ssl = on` on the server, or write `sslmode=prefer` in the plan's `url`"));
        }
        return Ok(Opened { io: Box::new(stream), encrypted: false, binding: None });
    }
    let (io, certificate) = tls::handshake(stream, server).await?;
    let binding = certificate.and_then(|certificate| channel_binding::end_point(&certificate));
    Ok(Opened { io, encrypted: true, binding })
}

impl Encryption {
    /// In which ways to try, in order (`libpq`, "sslmode").
    pub(crate) fn attempts(server: &Server) -> Result<&'static [Self]> {
        if server.endpoint.is_socket() {
            return Ok(&[Self::Plain]);
        }
        Ok(match SslMode::of(&server.endpoint)? {
            SslMode::Disable => &[Self::Plain],
            SslMode::Allow => &[Self::Plain, Self::Required],
            SslMode::Prefer => &[Self::Offered, Self::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Self::Required],
        })
    }
}

async fn offers_tls(stream: &mut TcpStream, server: &Server) -> Result<bool> {
    let broken = |source| Error::from_io(format!("cannot talk to {}", server.describe()), source);
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(broken)?;
    match stream.read_u8().await.map_err(broken)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(Error::new(ErrorKind::Unsupported, format!("{} is no PostgreSQL server", server.describe()))
            .hint("is this the server's address and port?")),
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream> {
    let named = |error: Error| error.with("server", format!("{host}:{port}"));
    let nobody = |source| {
        named(Error::from_io("cannot connect to the server", source).retry_later())
            .hint("is the server running, and is this where it listens?")
    };
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|source| {
        named(Error::new(ErrorKind::Unreachable, "the server's name is not known").caused_by(source))
            .hint("check the host in the plan's `url`, and this machine's name service")
    })?;
    let mut failure = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                keep_alive(&stream).map_err(nobody)?;
                return Ok(stream);
            }
            Err(source) => failure = source,
        }
    }
    Err(nobody(failure))
}

/// Makes the kernel notice a peer that vanished: a backup may wait for minutes without a byte, so no timeout of ours can.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Connects to a unix socket. The server's peer authentication sees `run_as`, when that is somebody else than we.
async fn unix(path: &Path, run_as: Option<&str>) -> Result<UnixStream> {
    let failed = |source: std::io::Error| {
        let missing = matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused);
        let error = Error::io("cannot connect to the server's socket", path, source);
        if missing {
            Error::new(ErrorKind::Unreachable, format!("no server listens on {}", path.display()))
                .caused_by(error)
                .hint("is the server running, and is this where it listens?")
                .retry_later()
        } else {
            error
        }
    };
    let Some(user) = run_as else { return UnixStream::connect(path).await.map_err(failed) };
    let identity = Identity::of(user)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, because on Linux identities belong to threads; it ends with the identity that it took.
    let spawned = std::thread::Builder::new().name("connect".into()).spawn({
        let path = path.to_owned();
        move || sender.send(identity.connect(&path))
    });
    let internal = |source| Error::from_io("cannot start a thread", source);
    let _detached = spawned.map_err(internal)?;
    let stream = receiver
        .await
        .map_err(|source| Error::new(ErrorKind::Internal, "the connecting thread ended early").caused_by(source))?
        .map_err(|source| failed(source).with("user", user))?;
    let adopt = |stream: std::os::unix::net::UnixStream| {
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    };
    adopt(stream).map_err(|source| Error::from_io("cannot use the server's socket", source))
}

/// A system user whom the server shall see.
#[derive(Debug, Clone, Copy)]
struct Identity {
    uid: Uid,
    gid: Gid,
}

impl Identity {
    fn of(name: &str) -> Result<Self> {
        let unknown = || {
            Error::new(ErrorKind::PermissionDenied, format!("there is no system user `{name}` on this machine"))
                .hint("name an existing system user as `run_as` in the plan")
        };
        let user = User::from_name(name)
            .map_err(|source| unknown().caused_by(std::io::Error::from(source)))?
            .ok_or_else(unknown)?;
        Ok(Self { uid: Uid::from_raw(user.uid.as_raw()), gid: Gid::from_raw(user.gid.as_raw()) })
    }

    /// Takes the identity on for the calling thread and connects. The kernel notes the effective user of the moment of
    /// `connect` (unix(7), `SO_PEERCRED`). Without the privilege to change it fails, and nothing was connected.
    fn connect(self, path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
        if rustix::process::geteuid() != self.uid {
            rustix::thread::set_thread_groups(&[self.gid])?;
            rustix::thread::set_thread_res_gid(None, self.gid, None)?;
            rustix::thread::set_thread_res_uid(None, self.uid, None)?;
        }
        std::os::unix::net::UnixStream::connect(path)
    }
}
