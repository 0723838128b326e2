//! Steps: each says what it does, how long it took, and, when it fails, how to repeat it. All of them run.
#![expect(clippy::print_stdout, reason = "chores talk to the person who runs them")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::process::Result;

/// See the module.
pub(crate) struct Steps {
    cache: Cache,
    done: Vec<Done>,
    begun: Instant,
}

struct Done {
    name: &'static str,
    took: Duration,
    failure: Option<(String, String)>,
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Says something beside the steps.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Says something that must not be overlooked.
pub(crate) fn shout(text: &str) {
    println!("{}", paint("1;33", &format!("!!! {text}")));
}

/// Ends before the first step.
pub(crate) fn refuse(why: &str) -> ExitCode {
    println!("{} {why}", paint("1;31", "error:"));
    ExitCode::FAILURE
}

impl Steps {
    pub(crate) fn new(cache: Cache) -> Self {
        Self { cache, done: Vec::new(), begun: Instant::now() }
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Runs a step; `repeat` is the command that runs it alone.
    pub(crate) fn step(&mut self, name: &'static str, repeat: &str, work: impl FnOnce(&Cache) -> Result) {
        println!("{}", paint("1;36", &format!("==> {name}")));
        let begun = Instant::now();
        let failure = work(&self.cache).err().map(|why| (why, repeat.to_owned()));
        let took = begun.elapsed();
        match &failure {
            None => println!("    {name}: {:.1} s", took.as_secs_f64()),
            Some((why, _)) => {
                println!("{}", paint("1;31", &format!("    {name} failed after {:.1} s", took.as_secs_f64())));
                println!("    {}", why.replace('\n', "\n    "));
                println!("    repeat it with: {repeat}");
            }
        }
        self.done.push(Done { name, took, failure });
    }

    /// Whether every step so far succeeded.
    pub(crate) fn all_good(&self) -> bool {
        self.done.iter().all(|step| step.failure.is_none())
    }

    /// The table of times, and what failed.
    pub(crate) fn end(self) -> ExitCode {
        if self.done.len() > 1 {
            println!("\n{}", paint("1", "step              seconds"));
            for Done { name, took, failure } in &self.done {
                let verdict = if failure.is_some() { paint("1;31", "  failed") } else { String::new() };
                println!("{name:<16} {:>8.1}{verdict}", took.as_secs_f64());
            }
        }
        let failed: Vec<_> = self.done.iter().filter_map(|step| Some((step.name, step.failure.as_ref()?))).collect();
        if failed.is_empty() {
            println!("{}", paint("1;32", &format!("all good in {:.0} s", self.begun.elapsed().as_secs_f64())));
            return ExitCode::SUCCESS;
        }
        for (name, (_, repeat)) in failed {
            println!("{} {name}; repeat it with: {repeat}", paint("1;31", "failed:"));
        }
        ExitCode::FAILURE
    }
}
