//! Backup and restore of files, in turns with restic and borg on the same data, as ratios.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::contest::median;
use super::data;
use super::measure::{Usage, measure};
use crate::cache::Cache;
use crate::packages;
use crate::process::{Result, Run, exists};
use crate::steps::say;

#[derive(Debug, Parser)]
#[command(name = "files", no_binary_name = true)]
struct Options {
    /// The size of the data in MiB
    #[arg(long, default_value_t = 2048)]
    size: u64,
    /// How often everything is done
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// A folder to work in; /dev/shm takes the disk out of the picture
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// Only Stackward, to look at its memory
    #[arg(long)]
    alone: bool,
}

const PHASES: [&str; 4] = ["first", "unchanged", "second", "restore"];

/// A tool under test.
struct Tool {
    name: &'static str,
    environment: Vec<(&'static str, String)>,
    init: Vec<String>,
    backup: Vec<String>,
    restore: Vec<String>,
    repository: PathBuf,
    used: Vec<[Usage; 4]>,
    stored: Vec<(u64, u64)>,
}

pub(super) fn run(cache: &Cache, arguments: &[String]) -> Result {
    let options = Options::try_parse_from(arguments).map_err(|error| error.to_string())?;
    let binary = build(cache)?;
    let work = options.folder.join("stackward-bench");
    let _old = std::fs::remove_dir_all(&work);
    let data = work.join("data");
    say(&format!("    making {} MiB of data in {}", options.size, data.display()));
    data::make(&data, options.size)?;
    data::settle();
    let mut tools = vec![stackward(&binary, &work)?];
    if !options.alone {
        tools.extend(peers(&work)?);
    }
    for round in 0..options.rounds {
        one_round(&mut tools, &work, round)?;
        say(&format!("    round {} of {} done", round + 1, options.rounds));
    }
    say(&report(&tools, data::size(&data)?));
    std::fs::remove_dir_all(&work).map_err(|error| error.to_string())
}

pub(super) fn build(cache: &Cache) -> Result<PathBuf> {
    cache.cargo(["build", "--release", "--package", "stackward"]).run()?;
    Ok(cache.target().join("release/stackward"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn stackward(binary: &Path, work: &Path) -> Result<Tool> {
    let keys = Run::new(binary).args(["key", "generate"]).output()?;
    let find =
        |start: &str| keys.split_whitespace().find(|word| word.starts_with(start)).unwrap_or_default().to_owned();
    let (identity, recipient) = (find("AGE-SECRET-KEY-1"), find("age1"));
    let (work_text, identity_file) = (work.display().to_string(), work.join("key"));
    std::fs::write(&identity_file, format!("{identity}\n")).map_err(|error| error.to_string())?;
    let plan = work.join("stackward.yaml");
    let text = format!(
        "version: 1\nname: bench\nrepository:\n  url: {work_text}/stackward\n  recipients: [{recipient}]\n  state: {work_text}/state\n\
         sources:\n  data:\n    files: {{ paths: [{work_text}/data] }}\n"
    );
    std::fs::write(&plan, text).map_err(|error| error.to_string())?;
    let call = |rest: &str| {
        let mut command = vec![binary.display().to_string(), "--plan".to_owned(), plan.display().to_string()];
        command.extend(words(rest));
        command
    };
    let restore = format!("restore --identity {} --target {work_text}/restored --quiet", identity_file.display());
    Ok(Tool {
        name: "stackward",
        environment: Vec::new(),
        init: call("init"),
        backup: call("backup --quiet"),
        restore: call(&restore),
        repository: work.join("stackward"),
        used: Vec::new(),
        stored: Vec::new(),
    })
}

fn peers(work: &Path) -> Result<Vec<Tool>> {
    if !exists("restic") || !exists("borg") {
        packages::install()?;
    }
    let base = work.display().to_string();
    let restic = Tool {
        name: "restic",
        environment: vec![
            ("RESTIC_PASSWORD", "bench".to_owned()),
            ("RESTIC_REPOSITORY", format!("{base}/restic")),
            ("RESTIC_CACHE_DIR", format!("{base}/restic-cache")),
        ],
        init: words("restic init -q --repository-version 2"),
        backup: words(&format!("restic backup -q {base}/data")),
        restore: words(&format!("restic restore -q latest --target {base}/restored")),
        repository: work.join("restic"),
        used: Vec::new(),
        stored: Vec::new(),
    };
    let borg = Tool {
        name: "borg",
        environment: vec![
            ("BORG_PASSPHRASE", "bench".to_owned()),
            ("BORG_BASE_DIR", format!("{base}/borg-base")),
            ("BORG_REPO", format!("{base}/borg")),
        ],
        init: words("borg init -e repokey-blake2"),
        backup: words(&format!("borg create -C zstd,3 ::{{now:%Y%m%d%H%M%S%f}} {base}/data")),
        restore: vec![
            "sh".to_owned(),
            "-c".to_owned(),
            "exec borg extract \"::$(borg list --short --last 1)\"".to_owned(),
        ],
        repository: work.join("borg"),
        used: Vec::new(),
        stored: Vec::new(),
    };
    Ok(vec![restic, borg])
}

/// Every tool in every phase, in turns, so that a slow moment of the machine hits all alike.
fn one_round(tools: &mut [Tool], work: &Path, round: u64) -> Result {
    let log = work.join("log");
    for tool in tools.iter_mut() {
        let _old = std::fs::remove_dir_all(&tool.repository);
        measure(&log, work, &tool.environment, &tool.init)?;
        tool.used.push([Usage::default(); 4]);
    }
    for phase in 0..PHASES.len() {
        if PHASES[phase] == "second" {
            data::change(&work.join("data"), round)?;
            data::settle();
        }
        for tool in tools.iter_mut() {
            let restored = work.join("restored");
            let command = if PHASES[phase] == "restore" { &tool.restore } else { &tool.backup };
            if PHASES[phase] == "restore" && tool.name == "borg" {
                std::fs::create_dir_all(&restored).map_err(|error| error.to_string())?;
            }
            let folder = if tool.name == "borg" && PHASES[phase] == "restore" { &restored } else { work };
            let used = measure(&log, folder, &tool.environment, command)?;
            if let Some(row) = tool.used.last_mut() {
                row[phase] = used;
            }
            match PHASES[phase] {
                "first" => tool.stored.push((data::size(&tool.repository)?, 0)),
                "second" => {
                    let total = data::size(&tool.repository)?;
                    if let Some(stored) = tool.stored.last_mut() {
                        stored.1 = total - stored.0;
                    }
                }
                "restore" => check_restored(tool.name, work, round)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn check_restored(name: &str, work: &Path, round: u64) -> Result {
    let restored = work.join("restored");
    if round == 0 {
        let inner = restored.join(work.strip_prefix("/").unwrap_or(work)).join("data");
        let direct = restored.join("data").join(work.strip_prefix("/").unwrap_or(work)).join("data");
        let found = if inner.exists() { inner } else { direct };
        let same = Run::new("diff").args(["-rq", "--no-dereference"]).args([&work.join("data"), &found]).output();
        same.map_err(|error| format!("{name} did not restore what was saved: {error}"))?;
    }
    std::fs::remove_dir_all(&restored).map_err(|error| error.to_string())
}

/// One figure of a run.
type Figure = fn(&Usage) -> f64;

/// A row a tool and phase: medians, and the medians of the ratios to restic in the same round.
fn report(tools: &[Tool], bytes: u64) -> String {
    let mut text =
        format!("\n{} MiB, {} rounds; medians; ratios to restic, round by round\n\n", bytes >> 20, tools[0].used.len());
    text.push_str("| phase | tool | wall s | CPU s | peak MiB | wall × | CPU × |\n|---|---|---|---|---|---|---|\n");
    let reference = tools.iter().find(|tool| tool.name == "restic").unwrap_or(&tools[0]);
    for (phase, name) in PHASES.iter().enumerate() {
        for tool in tools {
            let of = |get: Figure| median(tool.used.iter().map(|row| get(&row[phase])).collect());
            let ratio = |get: Figure| {
                let pairs = tool.used.iter().zip(&reference.used);
                median(pairs.map(|(mine, theirs)| get(&mine[phase]) / get(&theirs[phase])).collect())
            };
            let (wall, cpu): (Figure, Figure) = (|used| used.wall_s, |used| used.cpu_s);
            let peak: Figure = |used| used.peak_mib;
            text.push_str(&format!(
                "| {name} | {} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} |\n",
                tool.name,
                of(wall),
                of(cpu),
                of(peak),
                ratio(wall),
                ratio(cpu)
            ));
        }
    }
    text.push_str("\n| tool | stored MiB | × restic | second adds MiB |\n|---|---|---|---|\n");
    let stored = |tool: &Tool| median(tool.stored.iter().map(|(first, _)| *first as f64 / 1_048_576.0).collect());
    for tool in tools {
        let added = median(tool.stored.iter().map(|(_, second)| *second as f64 / 1_048_576.0).collect());
        text.push_str(&format!(
            "| {} | {:.1} | {:.3} | {:.1} |\n",
            tool.name,
            stored(tool),
            stored(tool) / stored(reference),
            added
        ));
    }
    text
}
