//! The password file of `libpq`: lines of `host:port:database:user:password` (PostgreSQL manual, "The Password File").
//!
//! Invariant: a file that others may read is not used, as `libpq` does not.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backup_core::secret::Secret;
use zeroize::Zeroizing;

/// A longer file is no password file.
const MAX_BYTES: u64 = 1024 * 1024;
/// What stands for a unix socket.
const LOCALHOST: &str = "localhost";

/// What a password is looked up for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// A host name, or the folder of a socket.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// `replication` for a physical connection.
    pub(crate) database: &'a str,
    pub(crate) user: &'a str,
}

/// Where the file is: what the plan says, else `PGPASSFILE`, else `~/.pgpass`.
pub(crate) fn place(named: Option<&str>) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.map(PathBuf::from).or_else(|| set("PGPASSFILE")).or_else(|| Some(set("HOME")?.join(".pgpass")))
}

/// The first password that fits; `None` when there is no usable file, or no line fits.
pub(crate) fn find(path: &Path, wanted: Wanted<'_>) -> Option<Secret> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.mode() & 0o077 != 0 || metadata.len() > MAX_BYTES {
        return None;
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).ok()?);
    text.lines().find_map(|line| fitting(line, wanted)).map(Secret::new)
}

fn fitting(line: &str, wanted: Wanted<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = fields(line).into_iter();
    let mut next = || fields.next();
    let (host, port, database, user) = (next()?, next()?, next()?, next()?);
    let password = next()?;
    let fits = |field: &str, value: &str| field == "*" || field == value;
    let host_fits = fits(&host, wanted.host) || (wanted.host.starts_with('/') && host == LOCALHOST);
    let all = host_fits
        && fits(&port, &wanted.port.to_string())
        && fits(&database, wanted.database)
        && fits(&user, wanted.user);
    all.then_some(password)
}

/// Parts a line at its colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            // A password may hold colons: what follows the fourth belongs to it.
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut().map_or((), |field| field.extend(characters.next())),
            other => fields.last_mut().map_or((), |field| field.push(other)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        let text = "# db:5432:*:ann:comment\ndb:5432:replication:ann:one\ndb:*:*:ann:t\\:w\\\\o:x\n\
                    localhost:5432:*:*:socket\n*:1:*:*:other\nshort:1\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let find = |host, port, database, user| {
            find(&path, Wanted { host, port, database, user }).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(find("db", 5432, "replication", "ann").as_deref(), Some("one"));
        assert_eq!(find("db", 5432, "app", "ann").as_deref(), Some("t:w\\o:x"));
        assert_eq!(find("/run/postgresql", 5432, "app", "bob").as_deref(), Some("socket"));
        assert_eq!(find("db", 1, "app", "bob").as_deref(), Some("other"));
        assert_eq!(find("db", 5432, "app", "bob"), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(find("db", 1, "app", "bob"), None);
    }
}
