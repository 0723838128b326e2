//! `cargo xtask test` and `cargo xtask tidy`: which steps, in which order.
//!
//! The order saves time on two cores: what fails fast comes first, and the checker's metadata serves clippy and the
//! documentation, the tests' binaries serve the schemas.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cache::Cache;
use crate::fuzz::{self, Effort};
use crate::process::{Result, Run};
use crate::servers::{self, POSTGRES_VARIABLE, REDIS_VARIABLE, SERVERS, Server};
use crate::steps::{Steps, say, shout};
use crate::{deny, law, moto, packages, schema, slowest, tracked};

/// What properties are tried with. By day it is set in `.cargo/config.toml`.
const SEED_VARIABLE: &str = "PROPTEST_RNG_SEED";
const CASES_VARIABLE: &str = "PROPTEST_CASES";
/// Ten times as many as by day.
const NIGHT_CASES: &str = "2560";

/// Options of `test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Install nothing; say what is missing
    #[arg(long)]
    no_install: bool,
    /// The folder of PostgreSQL's server programs to test with
    #[arg(long, value_name = "FOLDER")]
    postgres: Option<PathBuf>,
    /// The Redis or Valkey server to test with: its program, or the folder that it is in
    #[arg(long, value_name = "PATH")]
    redis: Option<PathBuf>,
    /// Also what is for the night: the longest tests, other random numbers, an hour of fuzzing, and the engines' tests on
    /// servers of other versions, which are fetched; with a name (postgres-17), only the tests on that server
    #[arg(long, value_name = "SERVER", num_args = 0..=1, require_equals = true)]
    #[arg(value_parser = servers::CHOICES, default_missing_value = servers::ALL_SERVERS)]
    nightly: Option<String>,
    /// Run only the tests whose names contain this, and no other check
    filter: Option<String>,
}

/// Runs everything.
pub(crate) fn run(steps: &mut Steps, args: &TestArgs) {
    steps.step("packages", "cargo xtask install", |_| {
        if args.no_install { packages::report() } else { packages::install() }
    });
    if !steps.all_good() {
        // Tests would fail one by one for want of what could not be installed.
        return;
    }
    let named = args.nightly.as_deref().and_then(|name| SERVERS.iter().find(|server| server.name == name));
    if let Some(server) = named {
        return on_server(steps, server, args.filter.as_deref().unwrap_or_default());
    }
    if let Some(filter) = &args.filter {
        let repeat = format!("cargo xtask test '{filter}'");
        steps.step("tests", &repeat, |cache| tests(cache, args));
        if args.nightly.is_some() {
            nightly(steps, filter);
        }
        return;
    }
    let installing = deny::install(steps.cache());
    steps.step("format", "cargo fmt --all --check", |cache| cache.cargo(["fmt", "--all", "--check"]).run());
    steps.step("dependency law", "cargo xtask law", law::check);
    steps.step("tracked files", "cargo xtask tracked", |_| tracked::check());
    steps.step("clippy", "cargo clippy --workspace --all-targets -- -D warnings", |cache| {
        cache.cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()
    });
    steps.step("documentation", "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps", |cache| {
        let cargo = cache.cargo(["doc", "--workspace", "--no-deps", "--locked"]);
        cargo.env("RUSTDOCFLAGS", "-D warnings").run()
    });
    steps.step("tests", "cargo xtask test ''", |cache| tests(cache, args));
    if args.nightly.is_some() {
        nightly(steps, "");
    }
    steps.step("examples", "cargo build --workspace --examples", |cache| {
        cache.cargo(["build", "--workspace", "--examples", "--locked"]).run()
    });
    steps.step("doctests", "cargo test --workspace --doc", |cache| {
        cache.cargo(["test", "--workspace", "--doc", "--locked", "--quiet"]).run()
    });
    steps.step("reference", "cargo xtask schema", schema::check);
    steps.step("deny", "cargo xtask deny", |cache| deny::check(cache, installing));
    if fuzz::exists() {
        steps.step("fuzz", "cargo xtask fuzz --fixed", |cache| fuzz::run(cache, Effort::Fixed, ""));
        if args.nightly.is_some() {
            steps.step("exploring", "cargo xtask fuzz", |cache| fuzz::run(cache, Effort::Night, ""));
        }
    }
}

/// What is for the night, as far as its name contains `filter`.
fn nightly(steps: &mut Steps, filter: &str) {
    let named = if filter.is_empty() { String::new() } else { format!(" & test(~{filter})") };
    let longest = format!("test(/nightly/){named}");
    steps.step("longest tests", "cargo nextest run --profile nightly -E 'test(/nightly/)'", |cache| {
        let run = cache.cargo(["nextest", "run", "--workspace", "--locked", "--no-fail-fast", "--profile", "nightly"]);
        run.args(["-E", &longest, "--no-tests", "pass"]).run()
    });
    for server in &SERVERS {
        on_server(steps, server, filter);
    }
}

/// The tests on another server, as far as their names contain `filter`.
fn on_server(steps: &mut Steps, server: &Server, filter: &str) {
    let repeat = format!("cargo xtask test --nightly={} '{filter}'", server.name);
    let chosen = format!("({}) & test(~{filter})", server.tests);
    let chosen = if filter.is_empty() { server.tests.to_owned() } else { chosen };
    steps.step(server.name, &repeat, |cache| {
        let program = servers::program(cache, *server)?;
        let run = cache.cargo(["nextest", "run", "--locked", "--no-fail-fast", "--profile", "nightly"]);
        let packages = server.packages().iter().flat_map(|package| ["-p", package]);
        // What is ignored elsewhere is what only newer servers can do.
        let run = run.args(packages).args(["-E", &chosen, "--run-ignored", "all", "--no-tests", "pass"]);
        run.env(server.variable(), program).run()
    });
}

/// Another one each night, and said, so that what it finds can be repeated.
fn seed_of_tonight() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().to_string()
}

/// The program that a path names, itself or as the folder that it is in.
fn redis_program(path: &Path) -> PathBuf {
    let found = |name: &str| Some(path.join(name)).filter(|program| program.is_file());
    found("redis-server").or_else(|| found("valkey-server")).unwrap_or_else(|| path.to_owned())
}

/// The tests by nextest, or by cargo where nextest is missing. A filter chooses among all of them, the slow ones too.
fn tests(cache: &Cache, args: &TestArgs) -> Result {
    let nextest = Run::cargo().args(["nextest", "--version"]).succeeds();
    let seed = args.nightly.is_some().then(seed_of_tonight);
    if let Some(seed) = &seed {
        say(&format!(
            "    {SEED_VARIABLE}={seed} {CASES_VARIABLE}={NIGHT_CASES}: set them to repeat what fails; commit what it writes"
        ));
    }
    let moto =
        moto::program(cache).inspect_err(|why| shout(&format!("moto is not there, tests on it will fail: {why}"))).ok();
    let with_servers = |mut command: Run| {
        if let Some(folder) = &args.postgres {
            command = command.env(POSTGRES_VARIABLE, folder);
        }
        if let Some(path) = &args.redis {
            command = command.env(REDIS_VARIABLE, redis_program(path));
        }
        if let Some(program) = &moto {
            command = command.env(moto::VARIABLE, program);
        }
        if let Some(seed) = &seed {
            command = command.env(SEED_VARIABLE, seed).env(CASES_VARIABLE, NIGHT_CASES);
        }
        command
    };
    let filter = args.filter.as_deref().filter(|filter| !filter.is_empty());
    if !nextest {
        shout("cargo-nextest is missing; `cargo test` runs the tests instead, slower");
        let command = cache.cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
        return with_servers(command.args(filter)).run();
    }
    let run = |more: &[&str]| {
        let command = cache.cargo(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
        with_servers(command.args(more)).run()
    };
    if let Some(filter) = filter {
        return run(&["--ignore-default-filter", filter]);
    }
    // Both run, whatever the first says.
    let ended = [run(&[]), run(&["--profile", "slow"])].into_iter().collect::<Result>();
    slowest::show(cache);
    ended.and(increments(cache, args))
}

/// Tests of what PostgreSQL has since 17, when such a server was named: Debian 12's own is older.
fn increments(cache: &Cache, args: &TestArgs) -> Result {
    let Some(folder) = &args.postgres else { return Ok(()) };
    let version = Run::new(folder.join("postgres")).args(["--version"]).output()?;
    let major = version.split(|c: char| !c.is_ascii_digit()).find_map(|part| part.parse::<u32>().ok());
    if major.is_none_or(|major| major < 17) {
        say("native increments are not tested: they need PostgreSQL 17 or newer");
        return Ok(());
    }
    let only = ["nextest", "run", "--package", "engine-postgres", "--locked", "--run-ignored", "only", "increments::"];
    cache.cargo(only).env(POSTGRES_VARIABLE, folder).run()
}

/// Puts right what can be put right by a machine.
pub(crate) fn tidy(steps: &mut Steps) {
    steps.step("clippy", "cargo clippy --fix", |cache| {
        let fix = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
        cache.cargo(fix).run()
    });
    steps.step("format", "cargo fmt --all", |cache| cache.cargo(["fmt", "--all"]).run());
    steps.step("reference", "cargo xtask schema", schema::write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_tried_with_a_seed_that_is_known() {
        let seed = std::env::var(SEED_VARIABLE).unwrap_or_default();
        assert!(seed.parse::<u64>().is_ok(), "cargo must set {SEED_VARIABLE} (.cargo/config.toml): {seed:?}");
    }
}
