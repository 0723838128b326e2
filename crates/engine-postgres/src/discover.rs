//! Looking for servers on this machine: sockets that listen. Nothing is started and nothing is connected to.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use backup_core::engine::Discovered;

use crate::physical::role_comments;

/// Where distributions, and the server by default, put sockets.
const FOLDERS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];
const PREFIX: &str = ".s.PGSQL.";
const DEFAULT_PORT: u16 = 5432;
/// A folder with more entries is not searched to its end: `/tmp` can hold millions.
const MAX_ENTRIES: usize = 10_000;

/// Proposes a source for every socket.
pub(crate) fn discover() -> Vec<Discovered> {
    discover_in(&FOLDERS)
}

fn discover_in(folders: &[&str]) -> Vec<Discovered> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for folder in folders {
        // `/var/run` is `/run` under another name.
        let Ok(real) = std::fs::canonicalize(folder) else { continue };
        if seen.insert(real) {
            found.extend(ports(Path::new(folder)).into_iter().map(|port| propose(folder, port)));
        }
    }
    found
}

fn ports(folder: &Path) -> BTreeSet<u16> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .take(MAX_ENTRIES)
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok())
        .collect()
}

fn propose(folder: &str, port: u16) -> Discovered {
    let (name, extra, shown) = if port == DEFAULT_PORT {
        ("postgres".to_owned(), String::new(), String::new())
    } else {
        (format!("postgres-{port}"), format!("  port: {port}\n"), format!(", port {port}"))
    };
    Discovered {
        name,
        because: format!("a PostgreSQL server listens on {folder}{shown}"),
        yaml: format!("postgres:\n  socket: {folder}\n{extra}{}", role_comments()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let _listening = [5432, 5433]
            .map(|port| std::os::unix::net::UnixListener::bind(path.join(format!("{PREFIX}{port}"))).unwrap());
        for name in [".s.PGSQL.5432.lock", ".s.PGSQL.5434", ".s.PGSQL.x"] {
            std::fs::write(path.join(name), "").unwrap();
        }
        let link = path.join("again");
        std::os::unix::fs::symlink(path, &link).unwrap();
        let found = discover_in(&[path.to_str().unwrap(), link.to_str().unwrap(), "/no/such/folder"]);
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["postgres", "postgres-5433"]);
        for found in &found {
            let node = backup_core::plan::Node::from_yaml(found.yaml.strip_prefix("postgres:\n").unwrap()).unwrap();
            let settings = crate::config::Settings::parse(&node, Path::new("/")).unwrap();
            assert_eq!(settings.endpoint.host, path.to_str().unwrap());
            // The role for physical backups, as comments.
            for (statement, _) in crate::BACKUP_ROLE {
                assert!(found.yaml.contains(&format!("  #   {statement}")), "{}", found.yaml);
            }
        }
    }
}
