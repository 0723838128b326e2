//! `cargo xtask`: the project's chores, in Rust, so that a machine with git and Rust needs nothing else.
//!
//! Invariant: CI runs `cargo xtask test` and nothing besides; whatever it checks can be run alone by hand.

mod bench;
mod cache;
mod deny;
mod fuzz;
mod inputs;
mod law;
mod moto;
mod packages;
mod process;
mod schema;
mod servers;
mod slowest;
mod steps;
mod suite;
mod tracked;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cache::Cache;
use crate::steps::Steps;

/// The chores of this project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the tests need, then run every check that CI runs
    Test(suite::TestArgs),
    /// Format, apply clippy's suggestions, and write the generated reference anew
    Tidy,
    /// Write the generated files of docs/reference anew
    Schema,
    /// Check who may depend on whom
    Law,
    /// Check that no binaries and no large files are committed
    Tracked,
    /// Check licenses, bans and sources of dependencies, and advisories where their database can be reached
    Deny,
    /// Run the fuzz targets
    Fuzz(fuzz::FuzzArgs),
    /// Install what the tests need from the distribution's packages
    Install,
    /// Fetch the servers of other versions that the nightly tests run on, and say where they are
    Servers {
        /// Only this one
        #[arg(value_parser = servers::CHOICES, default_value = servers::ALL_SERVERS)]
        name: String,
    },
    /// Install the S3 server that tests run on, and say where it is
    Moto,
    /// Run a benchmark
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let cache = match Cache::find() {
        Ok(cache) => cache,
        Err(why) => return steps::refuse(&why),
    };
    let mut steps = Steps::new(cache);
    match cli.command {
        Command::Test(args) => suite::run(&mut steps, &args),
        Command::Tidy => suite::tidy(&mut steps),
        Command::Schema => steps.step("reference", "cargo xtask schema", schema::write),
        Command::Law => steps.step("dependency law", "cargo xtask law", law::check),
        Command::Tracked => steps.step("tracked files", "cargo xtask tracked", |_| tracked::check()),
        Command::Deny => steps.step("deny", "cargo xtask deny", |cache| deny::check(cache, deny::install(cache))),
        Command::Fuzz(args) => steps.step("fuzz", "cargo xtask fuzz", |cache| fuzz::chore(cache, &args)),
        Command::Servers { name } => servers::fetch_all(&mut steps, &name),
        Command::Install => steps.step("packages", "cargo xtask install", |_| packages::install()),
        Command::Moto => steps.step("moto", "cargo xtask moto", |cache| {
            let program = moto::program(cache)?;
            steps::say(&format!("    {}={}", moto::VARIABLE, program.display()));
            Ok(())
        }),
        Command::Bench(args) => steps.step("bench", "cargo xtask bench", |cache| bench::run(cache, &args)),
    }
    steps.end()
}
