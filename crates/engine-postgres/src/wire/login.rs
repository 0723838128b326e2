//! From an open connection to a session: the startup message, then whatever proof the server asks for.
//!
//! Invariant: a password is sent in clear text only over TLS or a unix socket, and a server that should prove that it
//! knows the password (SCRAM) is not believed before it did.

use std::io;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::secret::Secret;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;

use super::fault::ServerError;
use super::frame::{Body, Frame, Framed, garbled, unexpected};
use super::passfile::{self, Wanted};
use super::transport::Opened;
use crate::server::{APPLICATION, Server};

const SCRAM: &str = "SCRAM-SHA-256";
const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// How the plan wants logins to be bound to the TLS connection (`channel_binding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    Disable,
    Prefer,
    Require,
}

impl Binding {
    fn of(server: &Server) -> Result<Self> {
        match server.endpoint.parameters.get("channel_binding").map(String::as_str) {
            None | Some("prefer") => Ok(Self::Prefer),
            Some("disable") => Ok(Self::Disable),
            Some("require") => Ok(Self::Require),
            Some(other) => Err(Error::new(ErrorKind::Plan, format!("`channel_binding={other}` is not known"))
                .hint("it is one of disable, prefer, require")),
        }
    }
}

/// What a session is opened for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Startup<'a> {
    /// `None`: a physical replication session, which belongs to no database.
    pub(crate) database: Option<&'a str>,
    /// Settings of the session, as `-c name=value`.
    pub(crate) options: &'a str,
}

/// Logs in. Afterwards the server sends its parameters and gets ready.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] when the server does not let us in, or cannot prove who it is.
pub(crate) async fn login(opened: Opened, server: &Server, startup: Startup<'_>) -> Result<Framed> {
    let Opened { io, encrypted, binding } = opened;
    let mut login = Login {
        framed: Framed::new(io),
        server,
        database: startup.database.unwrap_or("replication"),
        private: encrypted || server.endpoint.is_socket(),
        encrypted,
        end_point: binding,
        binding: Binding::of(server)?,
    };
    let user = server.endpoint.user.as_str();
    let mut parameters = vec![("user", user), ("application_name", APPLICATION), ("client_encoding", "UTF8")];
    match startup.database {
        Some(database) => parameters.push(("database", database)),
        None => parameters.push(("replication", "true")),
    }
    if !startup.options.is_empty() {
        parameters.push(("options", startup.options));
    }
    frontend::startup_message(parameters, login.framed.outbox()).map_err(unsendable)?;
    login.framed.flush().await?;
    login.authenticate().await?;
    let mut framed = login.framed;
    framed.trust();
    Ok(framed)
}

struct Login<'a> {
    framed: Framed,
    server: &'a Server,
    database: &'a str,
    /// Whether others can listen.
    private: bool,
    encrypted: bool,
    end_point: Option<Vec<u8>>,
    binding: Binding,
}

impl Login<'_> {
    /// Answers what the server asks, until it is content (PostgreSQL manual, "Start-up").
    async fn authenticate(&mut self) -> Result<()> {
        let mut bound = false;
        loop {
            let frame = self.read().await?;
            if frame.tag != b'R' {
                return Err(unexpected(&frame, "a request to authenticate"));
            }
            let mut body = Body(frame.body);
            match body.i32()? {
                0 if self.binding == Binding::Require && !bound => {
                    return Err(self.refuse(
                        "the server let us in without channel binding, which the plan requires",
                        "let pg_hba.conf ask for scram-sha-256 over hostssl",
                    ));
                }
                0 => return Ok(()),
                3 => self.clear_text().await?,
                5 => {
                    let salt = body.bytes(4)?;
                    let salt = <[u8; 4]>::try_from(salt.as_ref()).map_err(|_| garbled())?;
                    self.md5(salt).await?;
                }
                10 => bound = self.sasl(body).await?,
                7 | 9 => {
                    return Err(self.refuse(
                        "the server asks for Kerberos, which Stackward does not speak",
                        "let the role in by scram-sha-256, a certificate or peer, in pg_hba.conf",
                    ));
                }
                other => {
                    return Err(self.refuse(
                        format!("the server asks for a way to authenticate that is not known ({other})"),
                        "let the role in by scram-sha-256, a certificate or peer, in pg_hba.conf",
                    ));
                }
            }
        }
    }

    /// The next message; a refusal is an error.
    async fn read(&mut self) -> Result<Frame> {
        loop {
            let frame = self.framed.read().await?;
            match frame.tag {
                b'E' => {
                    let user = &self.server.endpoint.user;
                    let error = ServerError::parse(&frame)?;
                    return Err(error
                        .into_error(format!("the server does not let `{user}` in"), user)
                        .with("server", self.server.describe()));
                }
                b'N' => {}
                _ => return Ok(frame),
            }
        }
    }

    fn password(&self) -> Result<Secret> {
        if let Some(secret) = self.server.password()? {
            return Ok(secret);
        }
        let endpoint = &self.server.endpoint;
        let wanted =
            Wanted { host: &endpoint.host, port: endpoint.port, database: self.database, user: &endpoint.user };
        let file = passfile::place(endpoint.parameters.get("passfile").map(String::as_str));
        if let Some(secret) = file.as_deref().and_then(|file| passfile::find(file, wanted)) {
            return Ok(secret);
        }
        let file = file.map_or_else(|| "~/.pgpass".to_owned(), |file| file.display().to_string());
        Err(self.refuse(
            format!("the server asks for the password of `{}`, and there is none", endpoint.user),
            format!("name its place in the plan (`password: {{ file: … }}`), or put it into {file}, mode 0600"),
        ))
    }

    fn refuse(&self, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::new(ErrorKind::PermissionDenied, message.into()).with("server", self.server.describe()).hint(hint.into())
    }

    async fn clear_text(&mut self) -> Result<()> {
        self.demand_no_binding("a password in clear text")?;
        if !self.private {
            return Err(self.refuse(
                "the server asks for the password in clear text, over a connection that others can read",
                "write `sslmode=verify-full` in the plan's `url`, or let pg_hba.conf ask for scram-sha-256",
            ));
        }
        let password = self.password()?;
        frontend::password_message(password.expose().as_bytes(), self.framed.outbox()).map_err(unsendable)?;
        self.framed.flush().await
    }

    async fn md5(&mut self, salt: [u8; 4]) -> Result<()> {
        self.demand_no_binding("an MD5 password")?;
        let password = self.password()?;
        let user = self.server.endpoint.user.as_bytes();
        let hash = md5_hash(user, password.expose().as_bytes(), salt);
        frontend::password_message(hash.as_bytes(), self.framed.outbox()).map_err(unsendable)?;
        self.framed.flush().await
    }

    fn demand_no_binding(&self, what: &str) -> Result<()> {
        if self.binding != Binding::Require {
            return Ok(());
        }
        Err(self.refuse(
            format!("the server asks for {what}, and the plan requires channel binding"),
            "let pg_hba.conf ask for scram-sha-256, and give the role a new password",
        ))
    }

    /// SCRAM (RFC 5802), bound to the TLS connection when both sides can. Returns whether it was.
    async fn sasl(&mut self, mut body: Body) -> Result<bool> {
        let mut offered = Vec::new();
        loop {
            let mechanism = body.text()?;
            if mechanism.is_empty() {
                break;
            }
            offered.push(mechanism);
        }
        let offers = |wanted: &str| offered.iter().any(|mechanism| mechanism == wanted);
        let end_point = self.end_point.clone().filter(|_| self.binding != Binding::Disable);
        let (mechanism, binding, bound) = match end_point {
            Some(end_point) if offers(SCRAM_PLUS) => {
                (SCRAM_PLUS, ChannelBinding::tls_server_end_point(end_point), true)
            }
            _ if self.binding == Binding::Require => {
                let hint = if self.encrypted {
                    "the server, or its certificate's signature (Ed25519, RSA-PSS), knows none"
                } else {
                    "channel binding needs TLS: write `sslmode=verify-full` in the plan's `url`"
                };
                return Err(self.refuse("no channel binding is possible, which the plan requires", hint));
            }
            _ if !offers(SCRAM) => {
                return Err(self.refuse(
                    format!("the server offers only {}, which Stackward does not speak", offered.join(", ")),
                    "let pg_hba.conf ask for scram-sha-256",
                ));
            }
            // Telling the server that we could have bound the login uncovers who removed the offer in between.
            Some(_) => (SCRAM, ChannelBinding::unrequested(), false),
            None => (SCRAM, ChannelBinding::unsupported(), false),
        };
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), self.framed.outbox()).map_err(unsendable)?;
        self.framed.flush().await?;
        let challenge = self.sasl_answer(11).await?;
        scram.update(&challenge).map_err(|source| self.impostor(source))?;
        frontend::sasl_response(scram.message(), self.framed.outbox()).map_err(unsendable)?;
        self.framed.flush().await?;
        let verdict = self.sasl_answer(12).await?;
        scram.finish(&verdict).map_err(|source| self.impostor(source))?;
        Ok(bound)
    }

    async fn sasl_answer(&mut self, step: i32) -> Result<bytes::Bytes> {
        let frame = self.read().await?;
        let mut body = Body(frame.body.clone());
        if frame.tag != b'R' || body.i32()? != step {
            return Err(unexpected(&frame, "the next step of SCRAM"));
        }
        Ok(body.0)
    }

    fn impostor(&self, source: io::Error) -> Error {
        self.refuse(
            "the server did not prove that it knows the password",
            "somebody may stand between: check the address, and use `sslmode=verify-full`",
        )
        .caused_by(source)
    }
}

fn unsendable(source: io::Error) -> Error {
    Error::new(ErrorKind::Plan, "a name or a password holds a zero byte").caused_by(source)
}
