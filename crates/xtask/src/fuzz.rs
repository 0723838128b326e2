//! Fuzzing on the stable toolchain: libFuzzer's own coverage flags, corpora kept in the cache.
//!
//! Invariant: the gate runs inputs that are always the same ([`inputs`]); only exploring, by hand and at night, makes new
//! ones, and what it finds becomes a seed, which the gate runs from then on.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Args;
use serde_json::Value;

use crate::cache::Cache;
use crate::inputs;
use crate::process::{Result, Run, root};
use crate::steps::say;

/// Two at a time: CI has two cores.
const AT_ONCE: usize = 2;
/// A parser that needs more memory than this has no bound.
const MEMORY_MIB: u32 = 1024;
/// One input may take so many seconds when we explore.
const TIMEOUT_SECONDS: u32 = 10;
/// In the gate only what hangs fails, however busy the machine is.
const FIXED_TIMEOUT_SECONDS: u32 = 240;
/// Exploring at night takes so long, all targets together.
const NIGHT_SECONDS: u64 = 3600;

/// What `cargo fuzz` passes on nightly, spelled out; `--target` keeps it away from build scripts.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Coverflow-checks";

/// So many lines of a failed target's log are shown.
const SHOWN_LINES: usize = 15;

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Seconds of exploring for each target
    #[arg(long, default_value_t = 60, conflicts_with = "fixed")]
    seconds: u64,
    /// Explore nothing: run the committed seeds and what is always made of them, as `cargo xtask test` does
    #[arg(long)]
    fixed: bool,
    /// Only the targets whose names contain this
    filter: Option<String>,
}

/// How long, and on what.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Effort {
    /// The committed seeds and what is always made of them.
    Fixed,
    /// New inputs, for so many seconds a target.
    Each(u64),
    /// New inputs, for an hour all targets together.
    Night,
}

impl Effort {
    /// Seconds of exploring for each of so many targets; none: the fixed inputs.
    fn seconds(self, targets: usize) -> Option<u64> {
        match self {
            Self::Fixed => None,
            Self::Each(seconds) => Some(seconds),
            Self::Night => Some(NIGHT_SECONDS / targets.div_ceil(AT_ONCE).max(1) as u64),
        }
    }
}

fn manifest() -> PathBuf {
    root().join("fuzz/Cargo.toml")
}

/// Whether there are fuzz targets.
pub(crate) fn exists() -> bool {
    manifest().is_file()
}

/// `cargo xtask fuzz`.
pub(crate) fn chore(cache: &Cache, args: &FuzzArgs) -> Result {
    let effort = if args.fixed { Effort::Fixed } else { Effort::Each(args.seconds) };
    run(cache, effort, args.filter.as_deref().unwrap_or_default())
}

/// Builds the targets and runs each whose name contains `filter`.
pub(crate) fn run(cache: &Cache, effort: Effort, filter: &str) -> Result {
    if !exists() {
        return Err("there is no fuzz/Cargo.toml".to_owned());
    }
    let manifest = manifest().display().to_string();
    let triple = host_triple()?;
    let target = cache.target().join("fuzz");
    Run::cargo()
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", COVERAGE)
        .args(["build", "--release", "--locked", "--bins", "--target", &triple, "--manifest-path", &manifest])
        .run()?;
    let binaries = target.join(&triple).join("release");
    let names: Vec<String> = names(&manifest)?.into_iter().filter(|name| name.contains(filter)).collect();
    if names.is_empty() {
        return Err(format!("no fuzz target is called *{filter}*"));
    }
    run_all(cache, &binaries, &names, effort.seconds(names.len()))
}

fn host_triple() -> Result<String> {
    let text = Run::new("rustc").args(["-vV"]).output()?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc does not name its host".to_owned())
}

fn names(manifest: &str) -> Result<Vec<String>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--manifest-path", manifest];
    let text = Run::cargo().args(arguments).output()?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| format!("cargo metadata: {error}"))?;
    let targets = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let is_bin =
        |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"));
    Ok(targets.filter(is_bin).filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}

fn run_all(cache: &Cache, binaries: &Path, names: &[String], exploring: Option<u64>) -> Result {
    let queue = Mutex::new(names.iter());
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = next() {
                    if let (Err(why), Ok(mut failures)) = (run_one(cache, binaries, name, exploring), failures.lock()) {
                        failures.push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().map_err(|_| "a fuzzing thread panicked".to_owned())?;
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn run_one(cache: &Cache, binaries: &Path, name: &str, exploring: Option<u64>) -> Result {
    let artifacts = cache.folder(&format!("fuzz/artifacts/{name}"))?;
    let log = cache.folder("fuzz/logs")?.join(format!("{name}.log"));
    let seeds = root().join("fuzz/seeds").join(name);
    let run = Run::new(binaries.join(name)).args([
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-artifact_prefix={}/", artifacts.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    let ended = if let Some(seconds) = exploring {
        let corpus = cache.folder(&format!("fuzz/corpus/{name}"))?;
        let run = run.args([format!("-max_total_time={seconds}"), format!("-timeout={TIMEOUT_SECONDS}")]);
        run.args([&corpus]).args(seeds.is_dir().then_some(&seeds)).into_file(&log)
    } else {
        let folder = cache.folder("fuzz/fixed")?.join(format!("{name}-{}", std::process::id()));
        let ended = run_fixed(run, &seeds, &folder, &log);
        let _scratch = std::fs::remove_dir_all(&folder);
        ended
    };
    let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    match ended {
        Ok(()) => {
            let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            say(&format!("    {name}: {} inputs", runs.unwrap_or("?").trim()));
            Ok(())
        }
        Err(why) => {
            let input = input(&text).map(|input| if exploring.is_some() { keep(&input, &seeds) } else { Ok(input) });
            Err(format!("{name}: {why}\n{}\n{}", what_failed(&text), how_to_repeat(binaries, name, input)))
        }
    }
}

/// Runs a target on the inputs that are always the same.
fn run_fixed(run: Run, seeds: &Path, folder: &Path, log: &Path) -> Result {
    if !seeds.is_dir() {
        return Err(format!("{} is missing: a fuzz target has seeds", seeds.display()));
    }
    let failed = |error| format!("{}: {error}", folder.display());
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(failed)?;
    }
    std::fs::create_dir_all(folder).map_err(failed)?;
    inputs::write(seeds, folder)?;
    // Without a further run it takes what is in the folder, each once.
    run.args(["-runs=0", "-shuffle=0", "-seed=1"])
        .args([format!("-timeout={FIXED_TIMEOUT_SECONDS}")])
        .args([folder])
        .into_file(log)
}

/// The panic and what libFuzzer says of the input, or the end of the log.
fn what_failed(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let from = first.unwrap_or(lines.len().saturating_sub(SHOWN_LINES));
    lines[from..].iter().take(SHOWN_LINES).copied().collect::<Vec<_>>().join("\n")
}

/// The input that failed, as the log names it.
fn input(log: &str) -> Option<PathBuf> {
    let marker = "Test unit written to ";
    log.lines().find_map(|line| line.split_once(marker)).map(|(_, path)| PathBuf::from(path.trim()))
}

/// Copies a find to the seeds, where git sees it, and returns its path there.
fn keep(input: &Path, seeds: &Path) -> Result<PathBuf> {
    // libFuzzer calls it by its kind and its hash: `crash-0123…`.
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    let (kind, hash) = name.split_once('-').unwrap_or(("input", &name));
    let seed = seeds.join(format!("found-{kind}-{}", hash.get(..12).unwrap_or(hash)));
    let kept = std::fs::create_dir_all(seeds).and_then(|()| std::fs::copy(input, &seed));
    kept.map(|_| seed).map_err(|error| format!("{} could not be kept as a seed: {error}", input.display()))
}

/// The command that runs the target on the input that failed, and what to do with the input then.
fn how_to_repeat(binaries: &Path, name: &str, input: Option<Result<PathBuf>>) -> String {
    match input {
        None => "no input was kept".to_owned(),
        Some(Err(why)) => why,
        Some(Ok(input)) => format!(
            "repeat it with: {} {}\ncommit this input with what mends it, as {}",
            binaries.join(name).display(),
            input.display(),
            root().join("fuzz/seeds").join(name).join("found-WHAT").display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_find_becomes_a_seed_and_says_how_to_repeat_it() {
        let folder = tempfile::tempdir().unwrap();
        let (seeds, found) = (folder.path().join("seeds/index"), folder.path().join("crash-0123456789abcdef"));
        std::fs::write(&found, b"bad").unwrap();
        let log = format!(
            "INFO: seed\n#2 INITED\nthread 'x' panicked at src/lib.rs:1:\nboom\n==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/c/'; Test unit written to {}\nBase64: AA==\n",
            found.display()
        );
        assert!(what_failed(&log).starts_with("thread 'x' panicked"), "{}", what_failed(&log));
        assert_eq!(input(&log).as_ref(), Some(&found));
        assert_eq!(input("nothing"), None);
        let seed = keep(&found, &seeds).unwrap();
        assert_eq!(seed, seeds.join("found-crash-0123456789ab"));
        assert_eq!(std::fs::read(&seed).unwrap(), b"bad");
        let said = how_to_repeat(Path::new("/t"), "index", Some(Ok(seed.clone())));
        assert!(said.starts_with(&format!("repeat it with: /t/index {}\n", seed.display())), "{said}");
        assert!(said.contains("fuzz/seeds/index/found-WHAT"), "{said}");
        assert_eq!(how_to_repeat(Path::new("/t"), "index", None), "no input was kept");
    }

    #[test]
    fn an_hour_of_the_night_is_shared_by_all_targets() {
        assert_eq!(Effort::Night.seconds(9), Some(720));
        assert_eq!(Effort::Night.seconds(1), Some(3600));
        assert_eq!(Effort::Each(60).seconds(9), Some(60));
        assert_eq!(Effort::Fixed.seconds(9), None);
    }
}
