//! The settings that every session and every tool of ours starts with, whatever was saved for its role or its database.
//!
//! They travel in the connection's `options`, which beat `ALTER ROLE … SET`, `ALTER DATABASE … SET` and the configuration
//! (PostgreSQL source, `guc.h`: `PGC_S_CLIENT` comes after `PGC_S_DATABASE_USER`). Invariant: what a session may set is set, so
//! that the same backup and the same restore do the same on every server.

use crate::tools::PgVersion;

/// What every role may set, on every version.
const FOR_ALL: [(&str, &str); 15] = [
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("search_path", "pg_catalog"),
    ("row_security", "off"),
    ("default_tablespace", ""),
    // How the values of a dump are read.
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("standard_conforming_strings", "on"),
    ("client_min_messages", "warning"),
];
/// What came later: the first version, and the setting.
const SINCE: [(u32, &str, &str); 2] = [(14, "idle_session_timeout", "0"), (17, "transaction_timeout", "0")];
/// What a superuser may set: damage must not become zeros in a backup, and complaints must be understood.
const FOR_SUPERUSERS: [(&str, &str); 3] =
    [("zero_damaged_pages", "off"), ("ignore_checksum_failure", "off"), ("lc_messages", "C")];
/// What only a scratch server needs: libraries that are not on this machine.
const FOR_SCRATCH: [(&str, &str); 2] = [("session_preload_libraries", ""), ("local_preload_libraries", "")];

/// What is known of the server and of the role that connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// `None`: not asked yet.
    pub(crate) version: Option<PgVersion>,
    pub(crate) superuser: bool,
    /// A server of ours, on a copy.
    pub(crate) scratch: bool,
}

/// The value of `PGOPTIONS`.
pub(crate) fn options(known: Known, search_path: Option<&str>) -> String {
    let mut options: Vec<String> = FOR_ALL.iter().map(|(name, value)| option(name, value)).collect();
    if let Some(version) = known.version {
        let present = SINCE.iter().filter(|(since, ..)| version.major() >= *since);
        options.extend(present.map(|(_, name, value)| option(name, value)));
        if known.superuser {
            options.extend(FOR_SUPERUSERS.iter().map(|(name, value)| option(name, value)));
            let (name, value) = silence(version);
            options.push(option(name, value));
        }
    }
    if known.scratch && known.superuser {
        options.extend(FOR_SCRATCH.iter().map(|(name, value)| option(name, value)));
    }
    options.extend(search_path.map(|path| option("search_path", path)));
    options.join(" ")
}

/// What keeps event triggers from firing; those that are enabled `ALWAYS` only since 17.
pub(crate) fn silence(version: PgVersion) -> (&'static str, &'static str) {
    if version.major() >= 17 { ("event_triggers", "off") } else { ("session_replication_role", "replica") }
}

/// One `-c name=value`: a backslash keeps spaces and backslashes together (manual, "Database Connection Control Functions").
fn option(name: &str, value: &str) -> String {
    let mut escaped = String::new();
    for character in value.chars() {
        if character == '\\' || character.is_whitespace() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    format!("-c {name}={escaped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_set_is_set() {
        let known = |major, superuser, scratch| Known { version: Some(PgVersion::new(major, 1)), superuser, scratch };
        let cases = [
            (Known::default(), "statement_timeout=0", "idle_session_timeout"),
            (known(13, false, false), "lock_timeout=0", "session_replication_role"),
            (known(15, false, false), "idle_session_timeout=0", "zero_damaged_pages"),
            (known(15, true, false), "session_replication_role=replica", "preload"),
            (known(17, true, true), "event_triggers=off", "session_replication_role"),
            (known(17, true, true), "session_preload_libraries=", "=read committed"),
        ];
        for (known, there, absent) in cases {
            let options = options(known, None);
            assert!(options.contains(there) && !options.contains(absent), "{known:?}: {options}");
        }
        assert!(options(Known::default(), Some(r#""$user", a\b"#)).ends_with(r#"-c search_path="$user",\ a\\b"#));
    }
}
