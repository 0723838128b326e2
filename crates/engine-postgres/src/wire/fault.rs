//! What the server reports: errors and notices, and what each means for whoever has to do something about it.
//!
//! Invariant: kinds come from the SQLSTATE, which no language setting changes; texts are only quoted, but for the few
//! causes that share one SQLSTATE.

use std::error::Error as StdError;
use std::fmt;

use backup_core::error::{Error, ErrorKind, Result};

use super::frame::{Body, Frame};

/// An `ErrorResponse` or a `NoticeResponse` (PostgreSQL manual, "Error and Notice Message Fields").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`, …: not translated.
    pub(crate) severity: String,
    /// The SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    /// The file of the server's source that reports it: not translated, and tells apart what shares one SQLSTATE.
    pub(crate) file: String,
}

impl ServerError {
    /// Reads the fields. Unknown ones are skipped, as the manual asks.
    pub(crate) fn parse(frame: &Frame) -> Result<Self> {
        let mut body = Body(frame.body.clone());
        let mut error = Self::default();
        loop {
            let field = body.u8()?;
            if field == 0 {
                return Ok(error);
            }
            let text = body.text()?;
            match field {
                b'V' => error.severity = text,
                b'S' if error.severity.is_empty() => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'F' => error.file = text,
                _ => {}
            }
        }
    }

    /// Whether the server ends the session with it.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// As an error of ours: `doing` says what was asked, `user` as whom.
    pub(crate) fn into_error(self, doing: impl Into<String>, user: &str) -> Error {
        let (kind, remedy) = self.meaning(user);
        let later = matches!(kind, ErrorKind::Unreachable | ErrorKind::Busy);
        let hint = remedy.or_else(|| self.hint.clone());
        let error = Error::new(kind, doing.into()).caused_by(self);
        let error = if later { error.retry_later() } else { error };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// The kind by the SQLSTATE ("PostgreSQL Error Codes"), and what to do.
    fn meaning(&self, user: &str) -> (ErrorKind, Option<String>) {
        let say = |text: &str| Some(text.replace("{user}", user));
        match self.code.as_str() {
            "28P01" => (ErrorKind::PermissionDenied, say("check the `password` of the role `{user}` in the plan")),
            "28000" => (ErrorKind::PermissionDenied, Some(self.entrance(user))),
            // What the operating system refuses the server, and what the server refuses the role.
            "42501" if self.is_about_files() => (
                ErrorKind::PermissionDenied,
                say(
                    "the server itself cannot read that file: give it back to the server's system user (`chown`, `chmod`)",
                ),
            ),
            "42501" if self.file == "aclchk.c" => (
                ErrorKind::PermissionDenied,
                say("the role `{user}` lacks a privilege (`stackward init` writes all that it needs into a new plan)"),
            ),
            "42501" => (
                ErrorKind::PermissionDenied,
                say(
                    "a physical backup needs `ALTER ROLE {user} REPLICATION;` (`stackward init` writes the whole role into a new plan)",
                ),
            ),
            "3D000" => (ErrorKind::NotFound, say("name an existing database in the plan's `url`")),
            "53300" => (
                ErrorKind::Busy,
                say(
                    "raise `max_wal_senders` (a backup uses two connections) or `max_connections`, or end other sessions",
                ),
            ),
            "53400" => (
                ErrorKind::Busy,
                say("every replication slot is in use: raise `max_replication_slots`, or drop one that nobody uses"),
            ),
            "53100" => (ErrorKind::NoSpace, say("free space on the server")),
            "55006" => (ErrorKind::Busy, None),
            "57014" => (ErrorKind::Interrupted, None),
            "57P05" | "25P03" | "25P04" => (
                ErrorKind::Unreachable,
                say("a time-out of the server ended the session: `ALTER ROLE {user} SET …` gives the role its own \
                     `idle_session_timeout`, `idle_in_transaction_session_timeout` and `transaction_timeout`"),
            ),
            // A conflict with recovery, whatever the language: a standby reports it from here.
            "40001" | "57P04" => (
                ErrorKind::Busy,
                say("the standby had to replay what the session still needed: set `hot_standby_feedback = on`, raise \
                     `max_standby_streaming_delay`, or save the primary"),
            ),
            "57P01" | "57P02" | "57P03" | "08006" | "08000" | "08003" => {
                (ErrorKind::Unreachable, say("is the server running? its log says why it ended the session"))
            }
            "58P01" => (ErrorKind::NotFound, None),
            "XX001" | "XX002" => (
                ErrorKind::Damaged,
                say("the server's own files are damaged: its log names them; restore them from an earlier snapshot"),
            ),
            "0A000" | "42601" | "55000" => (ErrorKind::Unsupported, None),
            _ => (ErrorKind::Tool, None),
        }
    }

    /// Whether it comes from where the server reads files, or quotes what the operating system says.
    fn is_about_files(&self) -> bool {
        self.message.contains("Permission denied")
            || ["basebackup", "fd.c", "copydir", "genfile", "xlogutils", "walsender"]
                .iter()
                .any(|part| self.file.starts_with(part))
                && self.severity == "ERROR"
                && self.message.contains('/')
    }

    /// The remedy when the server does not let us in: one SQLSTATE for all reasons.
    fn entrance(&self, user: &str) -> String {
        let text = &self.message;
        let replication = text.contains("replication");
        if text.contains("no pg_hba.conf entry") || text.contains("pg_hba.conf rejects") {
            if replication {
                format!(
                    "let the role into pg_hba.conf for replication (`all` does not include it), for example \
                     `local replication {user} peer` or `hostssl replication {user} ADDRESS scram-sha-256`, then \
                     `SELECT pg_reload_conf();`"
                )
            } else {
                format!("let the role `{user}` in, in the server's pg_hba.conf")
            }
        } else if text.contains("Peer") || text.contains("peer") {
            format!(
                "peer authentication wants the system user `{user}`: run stackward as root (it then connects as \
                 `postgres`, or as `run_as` says), or give the role a `password`"
            )
        } else if text.contains("does not exist") {
            "create the role, or name another `user` in the plan".to_owned()
        } else if text.contains("certificate") {
            "the server wants a client certificate: name `sslcert` and `sslkey` in the plan's `url`".to_owned()
        } else {
            format!("what pg_hba.conf asks for, the role `{user}` does not bring")
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl StdError for ServerError {}

/// What the server said, when that is why `error` happened.
pub(crate) fn server_error(error: &Error) -> Option<&ServerError> {
    error.source()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn error(code: &str, message: &str) -> Error {
        let fields = format!("SFEHLER\0VERROR\0C{code}\0M{message}\0Dmore\0Xunknown\0\0");
        let frame = Frame { tag: b'E', body: Bytes::from(fields) };
        ServerError::parse(&frame).unwrap().into_error("cannot do it", "backup")
    }

    #[test]
    fn the_code_decides_and_the_remedy_names_the_role() {
        let hba = "no pg_hba.conf entry for replication connection from host \"[local]\", user \"backup\"";
        let cases = [
            ("28P01", "password authentication failed", ErrorKind::PermissionDenied, "password"),
            ("28000", hba, ErrorKind::PermissionDenied, "local replication backup"),
            ("28000", "role \"backup\" does not exist", ErrorKind::PermissionDenied, "create the role"),
            ("42501", "must be superuser", ErrorKind::PermissionDenied, "ALTER ROLE backup REPLICATION"),
            ("42501", "could not open file \"base/5/16400\": Permission denied", ErrorKind::PermissionDenied, "chown"),
            (
                "57P05",
                "terminating connection due to idle-session timeout",
                ErrorKind::Unreachable,
                "idle_session_timeout",
            ),
            ("40001", "canceling statement due to conflict with recovery", ErrorKind::Busy, "hot_standby_feedback"),
            ("53300", "too many", ErrorKind::Busy, "max_wal_senders"),
            ("53400", "all replication slots are in use", ErrorKind::Busy, "max_replication_slots"),
            ("57P01", "terminating connection", ErrorKind::Unreachable, "running"),
            ("XX001", "checksum verification failure", ErrorKind::Damaged, "earlier snapshot"),
        ];
        for (code, message, kind, remedy) in cases {
            let error = error(code, message);
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
            assert_eq!(error.chain(), format!("cannot do it: ERROR {code}: {message} (more)"));
            assert_eq!(server_error(&error).unwrap().code, code);
        }
    }

    #[test]
    fn the_source_file_tells_apart_what_shares_a_code() {
        let cases = [
            ("aclchk.c", "ERROR", "keine Berechtigung für Funktion pg_read_file", "lacks a privilege"),
            ("basebackup.c", "ERROR", "konnte Datei »./base/5/16400« nicht öffnen: Keine Berechtigung", "chown"),
            ("postinit.c", "FATAL", "must be superuser or replication role to start walsender", "REPLICATION"),
        ];
        for (file, severity, message, remedy) in cases {
            let fields = format!("V{severity}\0C42501\0M{message}\0F{file}\0\0");
            let frame = Frame { tag: b'E', body: Bytes::from(fields) };
            let error = ServerError::parse(&frame).unwrap().into_error("cannot do it", "backup");
            assert!(error.remedy().unwrap().contains(remedy), "{file}: {error:?}");
        }
    }

    #[test]
    fn a_cut_message_is_an_error() {
        assert!(ServerError::parse(&Frame { tag: b'E', body: Bytes::from_static(b"Cxx") }).is_err());
    }
}
