//! `cargo xtask test` and `cargo xtask tidy`: which steps, in which order.
//!
//! The order saves time on two cores: what fails fast comes first, and the checker's metadata serves clippy and the
//! documentation, the tests' binaries serve the schemas.

use std::path::PathBuf;

use clap::Args;

use crate::cache::Cache;
use crate::process::{Result, Run};
use crate::steps::{Steps, say, shout};
use crate::{deny, fuzz, law, packages, schema};

/// Options of `test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Install nothing; say what is missing
    #[arg(long)]
    no_install: bool,
    /// The folder of PostgreSQL's server programs to test with
    #[arg(long, value_name = "FOLDER")]
    postgres: Option<PathBuf>,
    /// Seconds for each fuzz target
    #[arg(long, value_name = "N", default_value_t = 60)]
    fuzz_seconds: u64,
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
    if let Some(filter) = &args.filter {
        let repeat = format!("cargo xtask test {filter}");
        steps.step("tests", &repeat, |cache| tests(cache, args));
        return;
    }
    let installing = deny::install(steps.cache());
    steps.step("format", "cargo fmt --all --check", |cache| cache.cargo(["fmt", "--all", "--check"]).run());
    steps.step("dependency law", "cargo xtask law", law::check);
    steps.step("clippy", "cargo clippy --workspace --all-targets -- -D warnings", |cache| {
        cache.cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()
    });
    steps.step("documentation", "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps", |cache| {
        let cargo = cache.cargo(["doc", "--workspace", "--no-deps", "--locked"]);
        cargo.env("RUSTDOCFLAGS", "-D warnings").run()
    });
    steps.step("tests", "cargo xtask test ''", |cache| tests(cache, args));
    steps.step("examples", "cargo build --workspace --examples", |cache| {
        cache.cargo(["build", "--workspace", "--examples", "--locked"]).run()
    });
    steps.step("doctests", "cargo test --workspace --doc", |cache| {
        cache.cargo(["test", "--workspace", "--doc", "--locked", "--quiet"]).run()
    });
    steps.step("reference", "cargo xtask schema", schema::check);
    steps.step("deny", "cargo xtask deny", |cache| deny::check(cache, installing));
    if fuzz::exists() {
        let wanted = fuzz::FuzzArgs::for_seconds(args.fuzz_seconds);
        steps.step("fuzz", "cargo xtask fuzz", |cache| fuzz::run(cache, &wanted));
    }
}

/// The tests by nextest, or by cargo where nextest is missing. A filter chooses among all of them, the slow ones too.
fn tests(cache: &Cache, args: &TestArgs) -> Result {
    let nextest = Run::cargo().args(["nextest", "--version"]).succeeds();
    let with_postgres = |command: Run| match &args.postgres {
        Some(folder) => command.env("STACKWARD_POSTGRES_BIN", folder),
        None => command,
    };
    let filter = args.filter.as_deref().filter(|filter| !filter.is_empty());
    if !nextest {
        shout("cargo-nextest is missing; `cargo test` runs the tests instead, slower");
        let command = cache.cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
        return with_postgres(command.args(filter)).run();
    }
    let run = |more: &[&str]| {
        let command = cache.cargo(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
        with_postgres(command.args(more)).run()
    };
    match filter {
        Some(filter) => run(&["--ignore-default-filter", filter]),
        // All run, whatever the first says.
        None => run(&[]).and(run(&["--profile", "slow"])).and(increments(cache, args)),
    }
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
    cache.cargo(only).env("STACKWARD_POSTGRES_BIN", folder).run()
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
