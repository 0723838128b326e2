//! `cargo deny`: licenses, bans and sources always; advisories where their database can be reached, loudly skipped where not.

use std::path::PathBuf;
use std::thread::JoinHandle;

use crate::cache::Cache;
use crate::process::{Result, Run, exists};
use crate::steps::{say, shout};

/// Always the same one: a gate that changes by itself fails for what nobody changed.
const VERSION: &str = "0.20.2";

/// The tool, being installed in the background.
pub(crate) struct Installing(JoinHandle<Result<PathBuf>>);

/// Finds the tool, or begins to build it in the cached folder for tools, at the lowest priority.
pub(crate) fn install(cache: &Cache) -> Installing {
    let cache = cache.clone();
    Installing(std::thread::spawn(move || find_or_build(&cache)))
}

fn find_or_build(cache: &Cache) -> Result<PathBuf> {
    if exists("cargo-deny") {
        return Ok(PathBuf::from("cargo-deny"));
    }
    let tools = cache.folder(&format!("tools/cargo-deny-{VERSION}"))?;
    let program = tools.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    let log = tools.join("cargo-deny.log");
    say(&format!("    cargo-deny is being built in the background; its log is {}", log.display()));
    let target = cache.folder("tools-target")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Unoptimised: it works for two seconds, and optimising it takes half an hour.
    Run::new("nice")
        .args(["-n", "19"])
        .args([cargo])
        .args(["install", "--debug", "--locked", "cargo-deny", "--version", VERSION, "--root"])
        .args([&tools])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_INCREMENTAL", "0")
        .folder(&tools)
        .into_file(&log)?;
    let _scratch = std::fs::remove_dir_all(&target);
    Ok(program)
}

/// Waits for the tool and asks it.
pub(crate) fn check(_: &Cache, installing: Installing) -> Result {
    let program = installing.0.join().map_err(|_| "the installation of cargo-deny panicked".to_owned())??;
    let deny = |arguments: &[&str]| Run::new(&program).args(arguments);
    deny(&["--all-features", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]).run()?;
    // Fetching apart from checking tells "the database cannot be reached" from "an advisory was found".
    match Run::new("timeout").args(["120"]).args([&program]).args(["fetch", "db"]).output() {
        Ok(_) => deny(&["--all-features", "check", "--disable-fetch", "--hide-inclusion-graph", "advisories"]).run(),
        Err(why) => {
            shout("advisories were NOT checked: their database cannot be reached from here");
            shout("run `cargo xtask deny` on a machine that can, before releasing");
            let last = why.lines().last().unwrap_or_default();
            say(&format!("    {last}"));
            Ok(())
        }
    }
}
