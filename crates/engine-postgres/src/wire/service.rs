//! The connection service file of `libpq`: named sets of parameters (PostgreSQL manual, "The Connection Service File").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};

/// A longer file is no service file.
const MAX_BYTES: u64 = 1024 * 1024;
/// Where distributions keep the file for everybody.
const SYSTEM: [&str; 2] = ["/etc/postgresql-common/pg_service.conf", "/etc/pg_service.conf"];
const FILE: &str = "pg_service.conf";

/// The parameters of the service `name`, from the first file that has it: `PGSERVICEFILE` or `~/.pg_service.conf`, then
/// `PGSYSCONFDIR` or the system's.
///
/// # Errors
/// [`ErrorKind::Plan`] when no file has it, or it holds a password, which belongs into the plan's `password`.
pub(crate) fn service(name: &str) -> Result<BTreeMap<String, String>> {
    look(name, &places())
}

fn places() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = set("PGSERVICEFILE").or_else(|| Some(set("HOME")?.join(".pg_service.conf")));
    let everybodys = match set("PGSYSCONFDIR") {
        Some(folder) => vec![folder.join(FILE)],
        None => SYSTEM.iter().map(PathBuf::from).collect(),
    };
    own.into_iter().chain(everybodys).collect()
}

fn look(name: &str, places: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    for place in places {
        if let Some(found) = section(place, name)? {
            return Ok(found);
        }
    }
    let list: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Error::new(ErrorKind::Plan, format!("there is no service `{name}`"))
        .hint(format!("it was looked for in {}", list.join(", "))))
}

fn section(path: &Path, name: &str) -> Result<Option<BTreeMap<String, String>>> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Ok(None);
    }
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::io("cannot read the service file", path, source))?;
    let mut within = false;
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            within = section == name;
            if within {
                found = Some(BTreeMap::new());
            }
        } else if let (true, Some(parameters)) = (within, found.as_mut()) {
            // The value is not quoted: it could be a password.
            let bad =
                |why: &str| Error::new(ErrorKind::Plan, format!("the service `{name}` in {} {why}", path.display()));
            let (key, value) = line.split_once('=').ok_or_else(|| bad("has a line without `=`"))?;
            if key.trim() == "password" {
                return Err(bad("holds a password")
                    .hint("move it into ~/.pgpass, or name its place in the plan: `password: { file: … }`"));
            }
            parameters.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_has_the_service_counts() {
        let folder = tempfile::tempdir().unwrap();
        let places = ["none", "own", "system"].map(|name| folder.path().join(name));
        std::fs::write(&places[1], "# ours\n[other]\nhost=wrong\n\n[db]\nhost = db.example\nport=6543\n").unwrap();
        std::fs::write(&places[2], "[db]\nhost=never\n[all]\nuser=backup\n[bad]\npassword=hunter2\n[odd]\nxx\n")
            .unwrap();
        let found = look("db", &places).unwrap();
        let expected = BTreeMap::from([("host".to_owned(), "db.example".to_owned()), ("port".into(), "6543".into())]);
        assert_eq!(found, expected);
        assert_eq!(look("all", &places).unwrap()["user"], "backup");
        for (name, words) in [("gone", "no service `gone`"), ("bad", "holds a password"), ("odd", "without `=`")] {
            let error = look(name, &places).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
