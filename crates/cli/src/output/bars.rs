//! Events on a terminal: a bar per source that is being worked on, and one for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::event::{Event, Observer};
use backup_core::names::SourceName;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Output, human};

/// How often a bar without progress is drawn again.
const TICK: Duration = Duration::from_millis(120);

/// See the module.
pub(super) struct Bars {
    multi: MultiProgress,
    output: Arc<Output>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: HashMap<SourceName, Line>,
    /// Kept at the bottom; made when a second source starts.
    total: Option<ProgressBar>,
    total_bytes: u64,
    total_items: u64,
    expected: u64,
    started: usize,
}

struct Line {
    bar: ProgressBar,
    items: u64,
    step: String,
}

impl Line {
    fn show(&self) {
        let items = if self.items > 0 { format!("  {}", human::counted(self.items, "item")) } else { String::new() };
        let step = if self.step.is_empty() { String::new() } else { format!("  {}", self.step) };
        self.bar.set_message(format!("{items}{step}"));
    }
}

fn style(known: bool) -> ProgressStyle {
    let template = if known {
        "{prefix:>16.bold} {wide_bar:.cyan/dim} {binary_bytes:>10} of {binary_total_bytes}  \
         {binary_bytes_per_sec:>12}  {eta:>4} left{msg}"
    } else {
        "{prefix:>16.bold} {spinner:.cyan} {binary_bytes:>10}  {binary_bytes_per_sec:>12}  {elapsed:>4}{msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

impl Bars {
    pub(super) fn new(multi: MultiProgress, output: Arc<Output>) -> Self {
        Self { multi, output, state: Mutex::default() }
    }

    fn start(&self, state: &mut State, source: &SourceName, expected: Option<u64>) {
        if let Some(bytes) = expected {
            state.expected += bytes;
        }
        if let Some(line) = state.running.get(source) {
            // Told again, now with the size that a preflight found.
            if let Some(bytes) = expected {
                line.bar.set_length(bytes);
                line.bar.set_style(style(true));
            }
        } else {
            let bar = match &state.total {
                Some(total) => self.multi.insert_before(total, ProgressBar::no_length()),
                None => self.multi.add(ProgressBar::no_length()),
            };
            bar.set_prefix(source.to_string());
            if let Some(bytes) = expected {
                bar.set_length(bytes);
            }
            bar.set_style(style(expected.is_some()));
            bar.enable_steady_tick(TICK);
            state.running.insert(source.clone(), Line { bar, items: 0, step: String::new() });
            state.started += 1;
        }
        if state.started > 1 && state.total.is_none() {
            let total = self.multi.add(ProgressBar::no_length());
            total.set_prefix("all");
            total.set_position(state.total_bytes);
            total.set_style(style(false));
            total.enable_steady_tick(TICK);
            state.total = Some(total);
        }
        if let Some(total) = state.total.as_ref().filter(|_| state.expected > 0) {
            total.set_length(state.expected);
            total.set_style(style(true));
        }
    }

    fn progress(state: &mut State, source: &SourceName, bytes: u64, items: u64) {
        state.total_bytes += bytes;
        state.total_items += items;
        if let Some(line) = state.running.get_mut(source) {
            line.bar.inc(bytes);
            line.items += items;
            line.show();
        }
        if let Some(total) = &state.total {
            total.set_position(state.total_bytes);
            if state.total_items > 0 {
                total.set_message(format!("  {}", human::counted(state.total_items, "item")));
            }
        }
    }

    fn finish(state: &mut State, source: &SourceName) {
        if let Some(line) = state.running.remove(source) {
            line.bar.finish_and_clear();
        }
        if state.running.is_empty()
            && let Some(total) = &state.total
        {
            total.finish_and_clear();
        }
    }
}

impl Observer for Bars {
    fn event(&self, event: &Event) {
        if let Event::Warned { source, message } = event {
            self.output.warn(format!("{source}: {message}"));
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Started { source, expected_bytes, .. } => self.start(&mut state, source, *expected_bytes),
            Event::Progress { source, bytes, items } => Self::progress(&mut state, source, *bytes, *items),
            Event::Step { source, what } => {
                if let Some(line) = state.running.get_mut(source) {
                    line.step.clone_from(what);
                    line.show();
                }
            }
            Event::Finished { source, .. } => Self::finish(&mut state, source),
            _ => {}
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _left = self.multi.clear();
    }
}
