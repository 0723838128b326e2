//! Looking for servers on this machine: sockets that are there, ports that are listened on. Nothing is connected to.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use backup_core::engine::Discovered;

/// Where distributions put sockets.
const SOCKETS: [&str; 5] = [
    "/run/redis/redis-server.sock",
    "/run/redis/redis.sock",
    "/run/valkey/valkey-server.sock",
    "/run/valkey/valkey.sock",
    "/tmp/redis.sock",
];
const PORT: u16 = 6379;
/// The kernel's tables of connections, which need no rights (`man 5 proc`, `/proc/net/tcp`).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
const LISTENING: &str = "0A";

/// Proposes a source for each socket, and for the port.
pub(crate) fn discover() -> Vec<Discovered> {
    let mut found = sockets(&SOCKETS);
    let tables = TABLES.iter().filter_map(|table| std::fs::read_to_string(table).ok());
    if found.is_empty() && tables.into_iter().any(|table| listens(&table, PORT)) {
        found.push(Discovered {
            name: "redis".to_owned(),
            because: format!("something listens on the port {PORT}, which is Redis's"),
            yaml: format!("redis:\n  url: redis://127.0.0.1:{PORT}\n"),
        });
    }
    found
}

fn sockets(paths: &[&str]) -> Vec<Discovered> {
    let mut seen = BTreeSet::new();
    let is_socket = |path: &&&str| std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let paths =
        paths.iter().filter(is_socket).filter(|path| std::fs::canonicalize(path).is_ok_and(|real| seen.insert(real)));
    paths
        .enumerate()
        .map(|(position, path)| Discovered {
            name: if position == 0 { "redis".to_owned() } else { format!("redis-{}", position + 1) },
            because: format!("a Redis or Valkey server has its socket at {}", Path::new(path).display()),
            yaml: format!("redis:\n  socket: {path}\n"),
        })
        .collect()
}

fn listens(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&port)) && fields.nth(1) == Some(LISTENING)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_once_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let _listening = std::os::unix::net::UnixListener::bind(path("one")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink(path("one"), path("again")).unwrap();
        let paths = [path("file"), path("one"), path("again"), path("none")];
        let found = sockets(&paths.each_ref().map(String::as_str));
        assert_eq!(found.len(), 1);
        let node = backup_core::plan::Node::from_yaml(found[0].yaml.strip_prefix("redis:\n").unwrap()).unwrap();
        let settings = crate::config::Settings::parse(&node, Path::new("/")).unwrap();
        assert_eq!(settings.address.to_string(), path("one"));
    }

    #[test]
    fn a_port_that_is_listened_on_is_seen() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000\n\
                     \x20  1: 0100007F:1F90 0100007F:18EB 01 0:0";
        assert!(listens(table, 6379));
        assert!(!listens(table, 8080));
    }
}
