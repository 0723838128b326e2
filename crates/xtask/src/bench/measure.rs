//! What a command used, by the operating system's own accounting of finished children.
//!
//! Each command runs under a process of its own (`cargo xtask bench measure`), because the peak of memory is kept per parent.

use std::path::Path;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::cache::Cache;
use crate::process::{Result, Run};

/// What one run used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) wall_s: f64,
    pub(super) cpu_s: f64,
    pub(super) peak_mib: f64,
}

/// Runs `command` under a measuring process and returns what it used. Its output goes to `log`.
pub(super) fn measure(log: &Path, folder: &Path, environment: &[(&str, String)], command: &[String]) -> Result<Usage> {
    let report = log.with_extension("usage");
    // Not by its path: a rebuild during a long benchmark replaces the file.
    let program = "/proc/self/exe";
    let mut run = Run::new(program).folder(folder).args(["bench", "measure"]).args([&report]).args(command);
    for (name, value) in environment {
        run = run.env(name, value);
    }
    run.into_file(log)?;
    let text = std::fs::read_to_string(&report).map_err(|error| format!("{}: {error}", report.display()))?;
    let mut numbers = text.split_whitespace().map(|number| number.parse::<f64>().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    Ok(Usage { wall_s: next(), cpu_s: next(), peak_mib: next() })
}

/// The measuring process: the file for the report, then the command.
pub(super) fn run(_: &Cache, arguments: &[String]) -> Result {
    let [report, program, rest @ ..] = arguments else { return Err("measure: REPORT COMMAND…".to_owned()) };
    let folder = std::env::current_dir().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    Run::new(program).folder(&folder).args(rest).run()?;
    let wall = begun.elapsed().as_secs_f64();
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| error.to_string())?;
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    let cpu = seconds(used.user_time()) + seconds(used.system_time());
    let text = format!("{wall:.3} {cpu:.3} {:.1}\n", used.max_rss() as f64 / 1024.0);
    std::fs::write(report, text).map_err(|error| format!("{report}: {error}"))
}
