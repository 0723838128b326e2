//! Proposals for `stackward init`: looks in a few well-known places, one level deep, and nowhere else.

use std::path::Path;

use backup_core::engine::Discovered;

/// Folders that hold what services keep, and why each is proposed.
const FOLDERS: [(&str, &str, &str); 6] = [
    ("srv", "/srv", "data that this machine serves"),
    ("etc", "/etc", "the configuration of this machine"),
    ("www", "/var/www", "web sites"),
    ("opt", "/opt", "software that was installed by hand"),
    ("home", "/home", "the home folders"),
    ("docker-volumes", "/var/lib/docker/volumes", "the volumes of containers; prefer engines for databases in them"),
];

/// Folders in which databases are looked for.
const DATABASE_FOLDERS: [&str; 3] = ["/srv", "/var/lib/grafana", "/var/lib/gitea/data"];
/// Stop looking after this many names, and proposing after so many finds.
const MAX_NAMES: usize = 2_000;
const MAX_DATABASES: usize = 10;

/// The first bytes of an SQLite database (sqlite.org/fileformat2.html, section 1.3).
pub(crate) const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Folders that are not empty.
pub(crate) fn folders() -> Vec<Discovered> {
    let filled = |path: &str| std::fs::read_dir(path).is_ok_and(|mut items| items.next().is_some());
    FOLDERS
        .iter()
        .filter(|(_, path, _)| filled(path))
        .map(|(name, path, what)| Discovered {
            name: (*name).to_owned(),
            because: format!("{path} holds {what}"),
            yaml: format!("files:\n  paths: [{path}]\n"),
        })
        .collect()
}

/// SQLite databases, recognised by their first bytes.
pub(crate) fn databases() -> Vec<Discovered> {
    let mut found = Vec::new();
    let mut seen = 0;
    for folder in DATABASE_FOLDERS {
        look(Path::new(folder), 1, &mut seen, &mut found);
    }
    found
}

fn look(folder: &Path, deeper: u8, seen: &mut usize, found: &mut Vec<Discovered>) {
    let Ok(items) = std::fs::read_dir(folder) else { return };
    for item in items.flatten() {
        *seen += 1;
        if *seen > MAX_NAMES || found.len() == MAX_DATABASES {
            return;
        }
        let path = item.path();
        match item.file_type() {
            Ok(kind) if kind.is_dir() && deeper > 0 => look(&path, deeper - 1, seen, found),
            Ok(kind) if kind.is_file() && is_database(&path) => found.extend(propose(&path)),
            _ => {}
        }
    }
}

fn is_database(path: &Path) -> bool {
    use std::io::Read;
    let named = path.extension().is_some_and(|ending| ending == "sqlite" || ending == "sqlite3" || ending == "db");
    let mut start = [0u8; 16];
    named
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && start == *SQLITE_MAGIC
}

fn propose(path: &Path) -> Option<Discovered> {
    let text = path.to_str()?;
    let stem = path.file_stem()?.to_str()?.to_lowercase();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    Some(Discovered {
        name: format!("{}-db", name.trim_matches('-')),
        because: format!("{text} is an SQLite database"),
        yaml: format!("sqlite:\n  path: {}\n", serde_json::to_string(text).ok()?),
    })
}
