//! Benchmarks: one module below this one per benchmark, listed in [`BENCHES`].

mod contest;
mod data;
mod files;
mod measure;
mod postgres;
mod redis;

use clap::Args;

use crate::cache::Cache;
use crate::process::Result;

/// A benchmark: its name, what it measures, and what runs it with the remaining arguments.
type Bench = (&'static str, &'static str, fn(&Cache, &[String]) -> Result);

const BENCHES: &[Bench] = &[
    ("files", "first, unchanged and second backup and restore of 2 GiB, against restic and borg", files::run),
    ("redis", "snapshots of five million keys, against redis-cli and a script; reading an RDB", redis::run),
    (
        "postgres",
        "base backups, restores, the log, beside pg_basebackup, pg_receivewal, pgBackRest and barman",
        postgres::run,
    ),
    ("measure", "(for the others) runs a command and writes down what it used", measure::run),
];

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Which one
    name: String,
    /// Its own options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the benchmark that was named.
pub(crate) fn run(cache: &Cache, args: &BenchArgs) -> Result {
    let known = || BENCHES.iter().map(|(name, what, _)| format!("{name}: {what}")).collect::<Vec<_>>().join("\n");
    let found = BENCHES.iter().find(|(name, ..)| *name == args.name);
    let (_, _, bench) = found.ok_or_else(|| format!("there is no benchmark `{}`\n{}", args.name, known()))?;
    bench(cache, &args.rest)
}
