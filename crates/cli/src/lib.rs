//! The command line of Stackward: it parses, composes engines with a sink, runs, and renders. It decides nothing itself.
//!
//! Start at [`run`]: it takes the arguments, a [`World`] and a [`Terminal`], so that tests drive the whole program
//! without a process. `main` adds what only a process has: signals and the hook for panics.

pub mod args;
mod commands;
pub mod engines;
pub mod exit;
mod following;
pub mod output;
mod reference;
mod session;
mod signals;
pub mod sinks;
mod stack;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use backup_core::engine::EngineDescriptor;
use backup_core::{Error, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, ColorChoice, Command};
use crate::exit::Exit;
use crate::output::{Output, Terminal};
use crate::session::Session;
use crate::sinks::{Sinks, Stored};

/// What the program works with: tests put in their own.
#[derive(Debug, Clone)]
pub struct World {
    /// The engines that plans may name.
    pub engines: &'static [EngineDescriptor],
    /// What makes and opens sinks.
    pub sinks: Arc<dyn Sinks>,
    /// This machine's name, as manifests record it.
    pub host: String,
}

impl World {
    /// The engines and sinks that were compiled in, on this machine.
    #[must_use]
    pub fn real() -> Self {
        let name = rustix::system::uname();
        Self {
            engines: engines::ENGINES,
            sinks: Arc::new(Stored),
            host: name.nodename().to_string_lossy().into_owned(),
        }
    }
}

/// The program: runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(signals::report_panic));
    let cancel = CancellationToken::new();
    let work = || run(std::env::args_os(), &World::real(), Terminal::of_process(), &cancel);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ended.unwrap_or_else(|_| told_to(&arguments, Exit::Failed)).into()
}

/// An end that comes before, or instead of, that of the command: whoever asks for a file of a log must not take it for absence.
fn told_to(arguments: &[OsString], exit: Exit) -> Exit {
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|argument| argument.to_str()).collect();
    let after_wal = words.iter().position(|word| *word == "wal").map(|at| &words[at + 1..]);
    let fetches = after_wal.is_some_and(|rest| rest.contains(&"fetch"));
    // A `restore_command` with a slip in it names a file of the log all the same; an `archive_command` names its path.
    #[cfg(feature = "postgres")]
    let fetches = fetches || words.iter().any(|word| word.parse::<engine_postgres::wal::WalFile>().is_ok());
    if fetches { exit.of_fetch() } else { exit }
}

/// Runs one command line. Signals cancel `cancel` while a command works.
pub fn run<I: IntoIterator<Item: Into<OsString> + Clone>>(
    arguments: I,
    world: &World,
    terminal: Terminal,
    cancel: &CancellationToken,
) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let parsed = command(&arguments)
        .try_get_matches_from_mut(&arguments)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => match usage(&error, &arguments, terminal) {
            Exit::Done => return Exit::Done,
            exit => return told_to(&arguments, exit),
        },
    };
    let output = Output::new(terminal, &cli.global);
    let session = Session { world, output: Arc::clone(&output), options: &cli.global, cancel: cancel.clone() };
    let ended = dispatch(&session, &cli.command);
    let for_a_server = cli.command.is_asked_by_a_server();
    let exit = ended.unwrap_or_else(|error| {
        let exit = Exit::of(&error);
        output.fail_with(&error, if for_a_server { exit.of_fetch() } else { exit })
    });
    // A server that asked for a file looks whether it came, not at what is said of it.
    if for_a_server {
        output.flush();
        return exit;
    }
    output.end(exit)
}

/// The parser, with the colours that `--color` asks for even when the rest cannot be parsed.
fn command(arguments: &[OsString]) -> clap::Command {
    let choice = match colour_choice(arguments) {
        ColorChoice::Auto => clap::ColorChoice::Auto,
        ColorChoice::Always => clap::ColorChoice::Always,
        ColorChoice::Never => clap::ColorChoice::Never,
    };
    Cli::command().color(choice)
}

fn colour_choice(arguments: &[OsString]) -> ColorChoice {
    let words: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let wanted = |value: &str| match value {
        "always" => Some(ColorChoice::Always),
        "never" => Some(ColorChoice::Never),
        _ => None,
    };
    let joined = words.iter().find_map(|word| word.strip_prefix("--color=").and_then(wanted));
    let apart = words.windows(2).find(|pair| pair[0] == "--color").and_then(|pair| wanted(pair[1]));
    joined.or(apart).unwrap_or_default()
}

/// Help, version, or what is wrong with the arguments.
fn usage(error: &clap::Error, arguments: &[OsString], mut terminal: Terminal) -> Exit {
    let (stream, is_terminal, exit) = if error.use_stderr() {
        (&mut terminal.stderr, terminal.stderr_is_terminal, Exit::Usage)
    } else {
        (&mut terminal.stdout, terminal.stdout_is_terminal, Exit::Done)
    };
    let coloured = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let rendered = error.render();
    let text = if coloured { rendered.ansi().to_string() } else { rendered.to_string() };
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        // Whoever closed the stream does not want to know.
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe && exit == Exit::Done => {
            let told = format!("error: {}\n", output::unwritten(&source));
            let _unheard = terminal.stderr.write_all(told.as_bytes()).and_then(|()| terminal.stderr.flush());
            Exit::Failed
        }
        _ if exit != Exit::Done && asks_for_json(arguments) => {
            let line = format!("{}\n", output::usage_as_json(&rendered.to_string(), exit));
            let _unheard = terminal.stdout.write_all(line.as_bytes()).and_then(|()| terminal.stdout.flush());
            exit
        }
        _ => exit,
    }
}

/// Whether the results shall be JSON, as far as it can be told of arguments that are wrong.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

/// Commands that need no runtime are answered at once; the others get one, and signals.
fn dispatch(session: &Session<'_>, command: &Command) -> backup_core::Result<Exit> {
    match command {
        Command::Schema(args) => commands::schema::run(session, args),
        Command::Completions(args) => commands::completions::run(session, args),
        Command::Reference(args) => Ok(reference::run(session, args)),
        #[cfg(feature = "postgres")]
        Command::Wal(args::WalCommand::Push { path, source }) => commands::wal::push(session, path, source.as_ref()),
        _ => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|source| {
                Error::new(ErrorKind::Internal, "the asynchronous runtime cannot start").caused_by(source)
            })?;
            let ended = runtime.block_on(async {
                let _signals = signals::listen(session.cancel.clone(), Arc::clone(&session.output))?;
                commands::run(session, command).await
            });
            // Blocking work that was abandoned (a read from a dead disk) must not keep the program.
            runtime.shutdown_background();
            ended
        }
    }
}
