//! What the tests need from the distribution: looked for by what it provides, installed when that is allowed.

use std::path::Path;

use crate::process::{Result, Run, exists};
use crate::steps::{say, shout};

/// Debian's package, and whether what it provides is there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

const PACKAGES: &[Package] = &[
    Package { name: "postgresql", present: has_postgres },
    Package { name: "redis-server", present: || exists("redis-server") && exists("redis-cli") },
    Package { name: "openssl", present: || exists("openssl") },
    Package { name: "restic", present: || exists("restic") },
    Package { name: "borgbackup", present: || exists("borg") },
    Package { name: "age", present: || exists("age") },
    Package { name: "zstd", present: || exists("zstd") },
    Package { name: "jq", present: || exists("jq") },
    Package { name: "util-linux", present: || ["unshare", "setpriv", "flock"].into_iter().all(exists) },
    Package { name: "mount", present: || exists("mount") && exists("umount") },
    Package { name: "acl", present: || exists("setfacl") },
    Package { name: "attr", present: || exists("setfattr") },
    Package { name: "sqlite3", present: || exists("sqlite3") },
    Package { name: "g++", present: || exists("c++") },
    Package { name: "python3", present: || exists("python3") },
    Package { name: "python3-venv", present: || Run::new(python()).args(["-c", "import ensurepip, venv"]).succeeds() },
    Package { name: "python3-cryptography", present: has_cryptography },
];

/// PostgreSQL's server programs: Debian keeps them outside of `PATH`.
fn has_postgres() -> bool {
    let in_path = exists("initdb") && exists("pg_dump") && exists("postgres");
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    in_path || versions.into_iter().any(|version| version.path().join("bin/initdb").is_file())
}

/// The distribution's Python, whatever other Python stands first in `PATH`.
fn python() -> &'static Path {
    let distribution = Path::new("/usr/bin/python3");
    if distribution.exists() { distribution } else { Path::new("python3") }
}

fn has_cryptography() -> bool {
    Run::new(python()).args(["-c", "import cryptography"]).succeeds()
}

fn missing() -> Vec<&'static str> {
    PACKAGES.iter().filter(|package| !(package.present)()).map(|package| package.name).collect()
}

fn command(missing: &[&str]) -> String {
    format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {}", missing.join(" "))
}

/// Says what is missing, without installing it; the tests that need it will fail.
#[expect(clippy::unnecessary_wraps, reason = "a step returns a result")]
pub(crate) fn report() -> Result {
    let missing = missing();
    if !missing.is_empty() {
        shout(&format!("missing: {}; install with: {}", missing.join(", "), command(&missing)));
    }
    Ok(())
}

/// Installs what is missing, as root or through sudo without a password.
pub(crate) fn install() -> Result {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("    missing: {}", missing.join(", ")));
    let is_root = Run::new("id").args(["-u"]).output().is_ok_and(|id| id.trim() == "0");
    let allowed = is_root || Run::new("sudo").args(["-n", "true"]).succeeds();
    if !exists("apt-get") || !allowed {
        return Err(format!(
            "packages are missing and may not be installed from here; run:\n{}\nor use `--no-install`",
            command(&missing)
        ));
    }
    let apt = |arguments: &[&str]| {
        // A package must not ask questions, and a stale list names versions that are gone.
        let run = if is_root { Run::new("apt-get") } else { Run::new("sudo").args(["-n", "-E", "apt-get"]) };
        run.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).run()
    };
    apt(&["-q", "update"])?;
    apt(&[["-q", "install", "-y", "--no-install-recommends"].as_slice(), &missing].concat())?;
    match self::missing().as_slice() {
        [] => Ok(()),
        still => Err(format!("installed, and still missing: {}", still.join(", "))),
    }
}
