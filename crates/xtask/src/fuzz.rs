//! Fuzzing on the stable toolchain: libFuzzer's own coverage flags, corpora kept in the cache.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Args;
use serde_json::Value;

use crate::cache::Cache;
use crate::process::{Result, Run, root};
use crate::steps::say;

/// Two at a time: CI has two cores.
const AT_ONCE: usize = 2;
/// A parser that needs more memory than this has no bound.
const MEMORY_MIB: u32 = 1024;
/// One input may take so many seconds.
const TIMEOUT_SECONDS: u32 = 10;

/// What `cargo fuzz` passes on nightly, spelled out; `--target` keeps it away from build scripts.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Coverflow-checks";

/// So many lines of a failed target's log are shown.
const SHOWN_LINES: usize = 15;

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only the targets whose names contain this
    filter: Option<String>,
}

impl FuzzArgs {
    pub(crate) fn for_seconds(seconds: u64) -> Self {
        Self { seconds, filter: None }
    }
}

fn manifest() -> PathBuf {
    root().join("fuzz/Cargo.toml")
}

/// Whether there are fuzz targets.
pub(crate) fn exists() -> bool {
    manifest().is_file()
}

/// Builds the targets and runs each.
pub(crate) fn run(cache: &Cache, args: &FuzzArgs) -> Result {
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
    let wanted = |name: &String| args.filter.as_ref().is_none_or(|filter| name.contains(filter));
    let names: Vec<String> = names(&manifest)?.into_iter().filter(wanted).collect();
    run_all(cache, &binaries, &names, args.seconds)
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

fn run_all(cache: &Cache, binaries: &Path, names: &[String], seconds: u64) -> Result {
    let queue = Mutex::new(names.iter());
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = next() {
                    if let (Err(why), Ok(mut failures)) = (run_one(cache, binaries, name, seconds), failures.lock()) {
                        failures.push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().map_err(|_| "a fuzzing thread panicked".to_owned())?;
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn run_one(cache: &Cache, binaries: &Path, name: &str, seconds: u64) -> Result {
    let corpus = cache.folder(&format!("fuzz/corpus/{name}"))?;
    let artifacts = cache.folder(&format!("fuzz/artifacts/{name}"))?;
    let log = cache.folder("fuzz/logs")?.join(format!("{name}.log"));
    let seeds = root().join("fuzz/seeds").join(name);
    let run = Run::new(binaries.join(name))
        .args([
            format!("-max_total_time={seconds}"),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-timeout={TIMEOUT_SECONDS}"),
            format!("-artifact_prefix={}/", artifacts.display()),
            "-print_final_stats=1".to_owned(),
        ])
        .args([&corpus])
        .args(seeds.is_dir().then_some(&seeds));
    let ended = run.into_file(&log);
    let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    match ended {
        Ok(()) => {
            let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            say(&format!("    {name}: {} inputs in {seconds} s", runs.unwrap_or("?").trim()));
            Ok(())
        }
        Err(why) => Err(format!("{name}: {why}\n{}\n{}", what_failed(&text), how_to_repeat(binaries, name, &text))),
    }
}

/// The panic and what libFuzzer says of the input, or the end of the log.
fn what_failed(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let from = first.unwrap_or(lines.len().saturating_sub(SHOWN_LINES));
    lines[from..].iter().take(SHOWN_LINES).copied().collect::<Vec<_>>().join("\n")
}

/// The command that runs the target on the input that failed, and what to do with the input then.
fn how_to_repeat(binaries: &Path, name: &str, log: &str) -> String {
    let marker = "Test unit written to ";
    let Some(input) = log.lines().find_map(|line| line.split_once(marker)).map(|(_, path)| path.trim()) else {
        return "no input was kept".to_owned();
    };
    let binary = binaries.join(name);
    format!(
        "repeat it with: {} {input}\nonce it is fixed, keep the input: cp {input} {}",
        binary.display(),
        root().join("fuzz/seeds").join(name).join("found-WHAT").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_says_how_to_repeat_it() {
        let log = "INFO: seed\n#2 INITED\nthread 'x' panicked at src/lib.rs:1:\nboom\n==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/c/'; Test unit written to /c/crash-01\nBase64: AA==\n";
        let said = how_to_repeat(Path::new("/t"), "index", log);
        assert!(said.starts_with("repeat it with: /t/index /c/crash-01\n"), "{said}");
        assert!(said.contains("fuzz/seeds/index/found-WHAT"), "{said}");
        assert!(what_failed(log).starts_with("thread 'x' panicked"), "{}", what_failed(log));
        assert_eq!(how_to_repeat(Path::new("/t"), "index", "nothing"), "no input was kept");
    }
}
