//! Everything that the program prints goes through here: results to standard output, the rest to standard error.
//!
//! Invariant: with `--json`, standard output is JSON lines and the last one is the result; a reader of standard
//! output that goes away ends the output quietly; a result that cannot be written (a full disk) is told and is a failure.

mod bars;
mod clean;
mod human;
mod lines;
mod report;
mod style;
mod table;

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::event::SharedObserver;
use backup_core::{Error, ErrorKind};
use indicatif::MultiProgress;
use serde::Serialize;
use serde_json::{Map, Value};

pub use human::{age, bytes, count, counted, moment, seconds, span, the, zoned};
pub use style::Paint;
pub use table::{Align, Table};

use crate::args::{ColorChoice, GlobalArgs};
use crate::exit::Exit;

/// Where the output goes, and whether a person looks at it.
pub struct Terminal {
    /// Standard output.
    pub stdout: Box<dyn Write + Send>,
    /// Standard error.
    pub stderr: Box<dyn Write + Send>,
    /// Whether standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
}

impl Terminal {
    /// The streams of this process.
    #[must_use]
    pub fn of_process() -> Self {
        use std::io::IsTerminal;
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("stdout_is_terminal", &self.stdout_is_terminal).finish_non_exhaustive()
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// See the module.
pub struct Output {
    stdout: Mutex<BufWriter<Box<dyn Write + Send>>>,
    stderr: Mutex<Box<dyn Write + Send>>,
    format: Format,
    quiet: bool,
    paint_out: Paint,
    paint_err: Paint,
    bars: Option<MultiProgress>,
    /// Nothing more can be written to standard output.
    closed: AtomicBool,
    /// What should have been written there is lost, and somebody wanted it.
    lost: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// The output that the options ask for.
    #[must_use]
    pub fn new(terminal: Terminal, options: &GlobalArgs) -> Arc<Self> {
        let format = if options.json { Format::Json } else { Format::Text };
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let paint = |is_terminal: bool| match options.color {
            ColorChoice::Always => Paint::Ansi,
            ColorChoice::Auto if is_terminal && !plain => Paint::Ansi,
            ColorChoice::Auto | ColorChoice::Never => Paint::Plain,
        };
        let bars = terminal.stderr_is_terminal && !options.quiet && format == Format::Text;
        Arc::new(Self {
            paint_out: paint(terminal.stdout_is_terminal),
            paint_err: paint(terminal.stderr_is_terminal),
            stdout: Mutex::new(BufWriter::new(terminal.stdout)),
            stderr: Mutex::new(terminal.stderr),
            format,
            quiet: options.quiet,
            bars: bars.then(MultiProgress::new),
            closed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// How results are written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether progress bars are shown.
    #[must_use]
    pub fn shows_bars(&self) -> bool {
        self.bars.is_some()
    }

    /// The colours of standard output.
    #[must_use]
    pub fn paint(&self) -> Paint {
        self.paint_out
    }

    /// Whether the reader of standard output went away, so that producing more of it is useless.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Prints a line of a text result; nothing with `--json`.
    pub fn line(&self, text: impl fmt::Display) {
        if self.format == Format::Text {
            self.write(clean::clean(&format!("{text}\n")).as_bytes());
        }
    }

    /// Prints a line of a summary: like [`Output::line`], but not with `--quiet`.
    pub fn summary(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Prints one event with `--json`; nothing otherwise.
    pub fn event(&self, event: &impl Serialize) {
        if self.format == Format::Json {
            self.json_line(event);
        }
    }

    /// Prints the result with `--json`: `body`'s fields after the command's name and its exit code.
    pub fn result(&self, command: &str, exit: Exit, body: &impl Serialize) {
        if self.format == Format::Text {
            return;
        }
        let mut document = Map::new();
        document.insert("result".to_owned(), command.into());
        document.insert("exit_code".to_owned(), exit.code().into());
        match serde_json::to_value(body) {
            Ok(Value::Object(fields)) => document.extend(fields),
            Ok(Value::Null) | Err(_) => {}
            Ok(other) => drop(document.insert("value".to_owned(), other)),
        }
        self.json_line(&document);
    }

    /// Writes bytes to standard output as they are. `false` once its reader went away.
    pub fn raw(&self, bytes: &[u8]) -> bool {
        self.write(bytes);
        !self.is_closed()
    }

    /// Tells something good to know, on standard error; not with `--quiet`.
    pub fn note(&self, message: impl fmt::Display) {
        if !self.quiet {
            self.message(&format!("{} {message}\n", self.paint_err.note("note:")));
        }
    }

    /// Warns, on standard error.
    pub fn warn(&self, message: impl fmt::Display) {
        self.message(&format!("{} {message}\n", self.paint_err.warning("warning:")));
    }

    /// Reports an error on standard error and, with `--json`, as the last line of standard output.
    pub fn fail(&self, error: &Error) -> Exit {
        self.fail_with(error, Exit::of(error))
    }

    /// The same with an exit code of the command's own.
    pub fn fail_with(&self, error: &Error, exit: Exit) -> Exit {
        self.error(error);
        if self.format == Format::Json {
            self.json_line(&report::json(error, exit));
        }
        exit
    }

    /// Reports an error on standard error.
    pub fn error(&self, error: &Error) {
        self.message(&report::text(error, self.paint_err));
    }

    /// Reports something on standard error that is the reader's trouble rather than an [`Error`].
    pub fn complain(&self, message: &str, hint: Option<&str>) {
        self.message(&report::complaint(message, hint, self.paint_err));
    }

    /// What shows the events of long work: bars, JSON lines, or only the warnings.
    #[must_use]
    pub fn observer(self: &Arc<Self>) -> SharedObserver {
        match (&self.bars, self.format) {
            (Some(multi), _) => Arc::new(bars::Bars::new(multi.clone(), Arc::clone(self))),
            (None, Format::Json) => Arc::new(lines::JsonLines::new(Arc::clone(self))),
            (None, Format::Text) => Arc::new(lines::Warnings::new(Arc::clone(self))),
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&self) {
        if self.is_closed() {
            return;
        }
        // The lock is free again before the failure is told, which flushes, too.
        let flushed = lock(&self.stdout).flush();
        if let Err(error) = flushed {
            self.note_failure(&error);
        }
    }

    /// Writes out what is buffered, and says how the command ended: whose result could not be written did not succeed.
    pub fn end(&self, exit: Exit) -> Exit {
        self.flush();
        if exit == Exit::Done && self.lost.load(Ordering::Acquire) { Exit::Failed } else { exit }
    }

    fn json_line(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.write(format!("{line}\n").as_bytes()),
            Err(source) => self.warn(format!("a result cannot be written as JSON: {source}")),
        }
        self.flush();
    }

    fn message(&self, text: &str) {
        let text = clean::clean(text);
        self.flush();
        let write = || {
            let mut stderr = lock(&self.stderr);
            // Nobody is left to tell when standard error itself is gone.
            let _unheard = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    fn write(&self, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        let write = || lock(&self.stdout).write_all(bytes);
        let written = match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        };
        if let Err(error) = written {
            self.note_failure(&error);
        }
    }

    fn note_failure(&self, error: &io::Error) {
        let first = !self.closed.swap(true, Ordering::AcqRel);
        if first && error.kind() != io::ErrorKind::BrokenPipe {
            self.lost.store(true, Ordering::Release);
            self.complain(&unwritten(error), Some("the work itself goes on; only its report is lost"));
        }
    }
}

/// What the parser says of a command line that is wrong, for programs: its first line.
pub(crate) fn usage_as_json(rendered: &str, exit: Exit) -> Value {
    let first = rendered.lines().next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first);
    report::json(&Error::new(ErrorKind::Usage, message.to_owned()), exit)
}

/// What is said when standard output cannot be written.
pub(crate) fn unwritten(error: &io::Error) -> String {
    format!("standard output cannot be written: {error}")
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("format", &self.format).field("quiet", &self.quiet).finish_non_exhaustive()
    }
}
