//! moto, an S3 server for tests: from PyPI, in a virtual environment in the cache.
//!
//! Invariant: every version is named in `moto.txt`; an environment is whole or it is not there.

use std::path::PathBuf;

use crate::cache::Cache;
use crate::process::{Result, Run};
use crate::steps::say;

/// What tests read to find it: the program `moto_server`.
pub(crate) const VARIABLE: &str = "STACKWARD_MOTO";
const REQUIREMENTS: &str = include_str!("../moto.txt");
/// The distribution's Python, whatever other one stands first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";

/// The program, installed when it is not in the cache.
pub(crate) fn program(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.folder("moto")?.join(version());
    let program = folder.join("bin/moto_server");
    let failed = |path: &std::path::Path, error: std::io::Error| format!("{}: {error}", path.display());
    // Written last, and again when a version has changed.
    let (whole, wanted) = (folder.join("installed.txt"), folder.join("wanted.txt"));
    if std::fs::read_to_string(&whole).is_ok_and(|installed| installed == REQUIREMENTS) {
        return Ok(program);
    }
    say(&format!("    installing moto {} from PyPI", version()));
    Run::new(PYTHON).args(["-m", "venv", "--clear"]).args([&folder]).output()?;
    std::fs::write(&wanted, REQUIREMENTS).map_err(|error| failed(&wanted, error))?;
    // Without dependencies: all of them are in the list.
    Run::new(folder.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "-r"])
        .args([&wanted])
        .output()?;
    Run::new(&program).args(["--help"]).output()?;
    std::fs::rename(&wanted, &whole).map_err(|error| failed(&whole, error))?;
    Ok(program)
}

fn version() -> &'static str {
    REQUIREMENTS.lines().find_map(|line| line.strip_prefix("moto==")).unwrap_or("unnamed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_named_with_its_version() {
        assert!(version().starts_with(|first: char| first.is_ascii_digit()), "{}", version());
        for line in REQUIREMENTS.lines().filter(|line| !line.starts_with('#')) {
            assert!(
                line.split_once("==").is_some_and(|(name, version)| !name.is_empty() && !version.is_empty()),
                "{line}"
            );
        }
    }
}
