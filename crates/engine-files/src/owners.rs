//! Names of users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! Read once per operation: a lookup per file would cost more than the file. Directory services (LDAP) are not asked;
//! owners that only they know are kept by number.

use std::collections::HashMap;
use std::path::Path;

/// The names and numbers of this machine.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: Names,
    groups: Names,
}

#[derive(Debug, Default)]
struct Names {
    by_id: HashMap<u32, String>,
    by_name: HashMap<String, u32>,
}

/// More than this many bytes are not an account database.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

impl Owners {
    /// Those of this machine. A file that cannot be read gives no names; numbers always work.
    pub(crate) fn load() -> Self {
        Self { users: Names::read(Path::new("/etc/passwd")), groups: Names::read(Path::new("/etc/group")) }
    }

    pub(crate) fn user_name(&self, uid: u32) -> Option<String> {
        self.users.by_id.get(&uid).cloned()
    }

    pub(crate) fn group_name(&self, gid: u32) -> Option<String> {
        self.groups.by_id.get(&gid).cloned()
    }

    /// The number that `name` has here, else the one it had there.
    pub(crate) fn uid(&self, name: Option<&str>, there: u32) -> u32 {
        name.and_then(|name| self.users.by_name.get(name)).copied().unwrap_or(there)
    }

    /// The number that `name` has here, else the one it had there.
    pub(crate) fn gid(&self, name: Option<&str>, there: u32) -> u32 {
        name.and_then(|name| self.groups.by_name.get(name)).copied().unwrap_or(there)
    }
}

impl Names {
    fn read(path: &Path) -> Self {
        let small = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_FILE_BYTES);
        let bytes = if small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// Lines of `name:password:number:…`, see passwd(5) and group(5). The first line of a name or number counts.
    fn parse(text: &str) -> Self {
        let mut names = Self::default();
        for line in text.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let Ok(number) = number.parse() else { continue };
            names.by_id.entry(number).or_insert_with(|| name.to_owned());
            names.by_name.entry(name.to_owned()).or_insert(number);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_numbers_and_numbers_are_the_fallback() {
        let users =
            Names::parse("root:x:0:0::/root:/bin/sh\nbroken\n+::::::\nwww:x:33:33::/:/bin/false\nwww2:x:33:1::\n");
        let owners = Owners { users, groups: Names::default() };
        assert_eq!(owners.user_name(33).as_deref(), Some("www"));
        assert_eq!(owners.uid(Some("www"), 1000), 33);
        assert_eq!(owners.uid(Some("nobody-here"), 1000), 1000);
        assert_eq!(owners.uid(None, 7), 7);
    }
}
