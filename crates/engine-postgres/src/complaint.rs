//! What a complaint of a client program means, and what to do about it.
//!
//! Invariant: a SQLSTATE, where one is told, decides before any word: words are translated, and several causes share some.

use backup_core::error::ErrorKind;

/// What to do; the server's own words for it are in [`crate::server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    None,
    Peer,
    Password,
    Hba,
    Role,
    Start,
    Grant,
    File,
    SystemUser,
    Idle,
    Standby,
    Lock,
    Connections,
    Pooler,
}

/// What `stderr` means; `None`: it passes unexplained.
pub(crate) fn complaint(stderr: &str) -> Option<(ErrorKind, Remedy)> {
    sqlstate(stderr).and_then(|code| by_code(code, stderr)).or_else(|| by_words(stderr))
}

/// The SQLSTATE that `psql` tells when it is verbose: `ERROR:  42501: permission denied …`, in every language.
pub(crate) fn sqlstate(stderr: &str) -> Option<&str> {
    stderr.lines().find_map(|line| {
        let (_, rest) = line.split_once(":  ")?;
        let (code, _) = rest.split_once(": ")?;
        let is_code = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        is_code.then_some(code)
    })
}

fn by_code(code: &str, stderr: &str) -> Option<(ErrorKind, Remedy)> {
    Some(match code {
        "28P01" => (ErrorKind::PermissionDenied, Remedy::Password),
        // The server's files and the role's privileges share this one.
        "42501" if stderr.contains("Permission denied") => (ErrorKind::PermissionDenied, Remedy::File),
        "42501" => (ErrorKind::PermissionDenied, Remedy::Grant),
        "57P05" | "25P03" | "25P04" => (ErrorKind::Unreachable, Remedy::Idle),
        "40001" | "40P01" | "57P04" if stderr.contains("recovery") => (ErrorKind::Busy, Remedy::Standby),
        "57P01" | "57P02" | "57P03" | "08000" | "08003" | "08006" => (ErrorKind::Unreachable, Remedy::Start),
        "53300" => (ErrorKind::Busy, Remedy::Connections),
        "55P03" => (ErrorKind::Busy, Remedy::Lock),
        "53100" => (ErrorKind::NoSpace, Remedy::None),
        _ => return None,
    })
}

/// Texts of `libpq`, and of servers that speak English.
fn by_words(stderr: &str) -> Option<(ErrorKind, Remedy)> {
    const KNOWN: [(&str, ErrorKind, Remedy); 29] = [
        ("Peer authentication failed", ErrorKind::PermissionDenied, Remedy::Peer),
        ("password authentication failed", ErrorKind::PermissionDenied, Remedy::Password),
        ("no password supplied", ErrorKind::PermissionDenied, Remedy::Password),
        ("no pg_hba.conf entry", ErrorKind::PermissionDenied, Remedy::Hba),
        ("pg_hba.conf rejects connection", ErrorKind::PermissionDenied, Remedy::Hba),
        ("unsupported startup parameter", ErrorKind::Unsupported, Remedy::Pooler),
        ("permission denied", ErrorKind::PermissionDenied, Remedy::Grant),
        ("query would be affected by row-level security", ErrorKind::PermissionDenied, Remedy::Grant),
        ("setpriv:", ErrorKind::PermissionDenied, Remedy::SystemUser),
        // Before the general ones: these sessions ended by a rule, not with their server.
        ("due to idle-session timeout", ErrorKind::Unreachable, Remedy::Idle),
        ("due to idle-in-transaction timeout", ErrorKind::Unreachable, Remedy::Idle),
        ("due to transaction timeout", ErrorKind::Unreachable, Remedy::Idle),
        ("conflict with recovery", ErrorKind::Busy, Remedy::Standby),
        ("due to lock timeout", ErrorKind::Busy, Remedy::Lock),
        // All our sessions are without one: `pg_dump` makes its `--lock-wait-timeout` of it.
        ("due to statement timeout", ErrorKind::Busy, Remedy::Lock),
        ("too many connections", ErrorKind::Busy, Remedy::Connections),
        ("too many clients", ErrorKind::Busy, Remedy::Connections),
        ("remaining connection slots are reserved", ErrorKind::Busy, Remedy::Connections),
        ("terminating connection due to administrator command", ErrorKind::Unreachable, Remedy::Start),
        ("terminating connection because of crash", ErrorKind::Unreachable, Remedy::Start),
        ("server closed the connection", ErrorKind::Unreachable, Remedy::Start),
        ("the database system is", ErrorKind::Unreachable, Remedy::Start),
        ("failed: No such file or directory", ErrorKind::Unreachable, Remedy::Start),
        ("failed: Connection refused", ErrorKind::Unreachable, Remedy::Start),
        ("could not connect to server", ErrorKind::Unreachable, Remedy::Start),
        ("could not translate host name", ErrorKind::Unreachable, Remedy::Start),
        ("timeout expired", ErrorKind::Unreachable, Remedy::Start),
        ("No space left on device", ErrorKind::NoSpace, Remedy::None),
        ("could not extend file", ErrorKind::NoSpace, Remedy::None),
    ];
    if stderr.contains("role \"") && stderr.contains("FATAL") && stderr.contains("does not exist") {
        return Some((ErrorKind::PermissionDenied, Remedy::Role));
    }
    if stderr.contains("could not open file") && stderr.contains("Permission denied") {
        return Some((ErrorKind::PermissionDenied, Remedy::File));
    }
    KNOWN.iter().find(|(text, ..)| stderr.contains(text)).map(|(_, kind, remedy)| (*kind, *remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_before_the_words() {
        let cases = [
            ("FEHLER:  42501: keine Berechtigung für Tabelle t", ErrorKind::PermissionDenied, Remedy::Grant),
            (
                "ERROR:  42501: could not open file \"base/5/1\": Permission denied",
                ErrorKind::PermissionDenied,
                Remedy::File,
            ),
            ("FATAL:  57P05: terminating connection due to idle-session timeout", ErrorKind::Unreachable, Remedy::Idle),
            ("FATAL:  terminating connection due to idle-session timeout", ErrorKind::Unreachable, Remedy::Idle),
            ("ERROR:  canceling statement due to conflict with recovery", ErrorKind::Busy, Remedy::Standby),
            ("FATAL:  40001: terminating connection due to conflict with recovery", ErrorKind::Busy, Remedy::Standby),
            ("ERROR:  55P03: canceling statement due to lock timeout", ErrorKind::Busy, Remedy::Lock),
            ("FATAL:  terminating connection due to administrator command", ErrorKind::Unreachable, Remedy::Start),
            ("psql: FATAL:  role \"x\" does not exist", ErrorKind::PermissionDenied, Remedy::Role),
        ];
        for (stderr, kind, remedy) in cases {
            assert_eq!(complaint(stderr), Some((kind, remedy)), "{stderr}");
        }
        assert_eq!(complaint("ERROR:  42P01: relation \"t\" does not exist"), None);
        assert_eq!(sqlstate("pg_dump: error: query failed: ERROR:  relation"), None);
    }
}
