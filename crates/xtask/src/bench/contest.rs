//! Commands that do the same work, in turns, so that a slow moment of the machine hits all alike; told as ratios.

use std::path::Path;

use super::measure::{Usage, measure};
use crate::process::{Result, Run};
use crate::steps::say;

/// One way of doing the work, as shell scripts.
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// Runs before each round, unmeasured.
    pub(super) prepare: String,
    pub(super) script: String,
}

/// What a server used meanwhile: seconds of CPU since it began.
pub(super) type Probe<'a> = &'a dyn Fn() -> f64;

/// The work, and who does it.
pub(super) struct Contest<'a> {
    pub(super) title: &'a str,
    pub(super) folder: &'a Path,
    pub(super) rounds: usize,
    /// Whom the others are compared with, as they may be several.
    pub(super) references: &'a [&'static str],
    pub(super) contenders: Vec<Contender>,
    pub(super) server: Option<Probe<'a>>,
}

impl Contest<'_> {
    /// Runs it; returns a table of medians and of the medians of the ratios, round by round.
    pub(super) fn run(&self) -> Result<String> {
        let mut used: Vec<Vec<Usage>> = vec![Vec::new(); self.contenders.len()];
        for round in 0..self.rounds {
            for (contender, used) in self.contenders.iter().zip(&mut used) {
                shell(self.folder, &contender.prepare)?;
                let before = self.server.map(|probe| probe());
                let command = ["sh", "-ec", &contender.script].map(str::to_owned);
                let log = self.folder.join("log");
                let mut usage = measure(&log, self.folder, &[], &command).map_err(|error| {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    format!("{}: {error}\n{said}", contender.name)
                })?;
                if let (Some(probe), Some(before)) = (self.server, before) {
                    usage.cpu_s += probe() - before;
                }
                used.push(usage);
            }
            say(&format!("    {}: round {} of {} done", self.title, round + 1, self.rounds));
        }
        Ok(self.table(&used))
    }

    fn table(&self, used: &[Vec<Usage>]) -> String {
        let mut text =
            format!("\n## {}\n\n{} rounds; medians\n\n| tool | wall s | CPU s | peak MiB |", self.title, self.rounds);
        let mut line = "\n|---|---|---|---|".to_owned();
        for reference in self.references {
            text.push_str(&format!(" wall × {reference} | CPU × {reference} |"));
            line.push_str("---|---|");
        }
        text.push_str(&line);
        for (contender, mine) in self.contenders.iter().zip(used) {
            let of = |get: fn(&Usage) -> f64| median(mine.iter().map(get).collect());
            let (wall, cpu, peak) = (of(|used| used.wall_s), of(|used| used.cpu_s), of(|used| used.peak_mib));
            text.push_str(&format!("\n| {} | {wall:.2} | {cpu:.2} | {peak:.0} |", contender.name));
            for reference in self.references {
                let position = self.contenders.iter().position(|each| each.name == *reference).unwrap_or_default();
                let ratio = |get: fn(&Usage) -> f64| {
                    median(mine.iter().zip(&used[position]).map(|(mine, theirs)| get(mine) / get(theirs)).collect())
                };
                text.push_str(&format!(" {:.2} | {:.2} |", ratio(|used| used.wall_s), ratio(|used| used.cpu_s)));
            }
        }
        text.push('\n');
        text
    }
}

/// Runs a script, silent unless it fails; returns what it printed.
pub(super) fn shell(folder: &Path, script: &str) -> Result<String> {
    Run::new("sh").folder(folder).args(["-ec", script]).output().map(|text| text.trim().to_owned())
}

/// The middle one.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
