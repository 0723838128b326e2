//! The commands, one file each: take arguments, compose, run, render, and say how it ended.

mod backup;
mod cat;
pub(crate) mod completions;
#[cfg(feature = "demo")]
mod demo;
mod drill;
mod follow;
mod init;
mod key;
mod list;
mod log;
mod ls;
mod recoverable;
mod restore;
pub(crate) mod schema;
mod show;
mod status;
mod validate;
mod verify;
#[cfg(feature = "postgres")]
pub(crate) mod wal;

use backup_core::{Error, ErrorKind, Result};

use crate::args::Command;
use crate::exit::Exit;
use crate::session::Session;

/// Runs a command that needs a runtime.
///
/// Commands with something to clean up watch the cancellation themselves; the others are simply dropped.
pub(crate) async fn run(session: &Session<'_>, command: &Command) -> Result<Exit> {
    match command {
        Command::Init(args) => init::run(session, args).await,
        Command::Validate(args) => session.unless_interrupted(validate::run(session, args)).await,
        Command::Backup(args) => backup::run(session, args).await,
        Command::List(args) => session.unless_interrupted(list::run(session, args)).await,
        Command::Show(args) => session.unless_interrupted(show::run(session, args)).await,
        Command::Ls(args) => session.unless_interrupted(ls::run(session, args)).await,
        Command::Cat(args) => session.unless_interrupted(cat::run(session, args)).await,
        Command::Verify(args) => verify::run(session, args).await.map_err(|error| reword(error, "not all was checked")),
        Command::Restore(args) => {
            restore::run(session, args).await.map_err(|error| reword(error, "the restore is not complete"))
        }
        Command::Drill(args) => drill::run(session, args).await.map_err(|error| reword(error, "nothing was proven")),
        Command::Follow(args) => follow::run(session, args, None).await,
        #[cfg(feature = "redis")]
        Command::Redis(crate::args::RedisCommand::Follow(args)) => follow::run(session, args, Some("redis")).await,
        Command::Status(args) => session.unless_interrupted(status::run(session, args)).await,
        Command::Log(command) => session.unless_interrupted(log::run(session, command)).await,
        Command::Key(command) => key::run(session, command).await,
        #[cfg(feature = "postgres")]
        Command::Wal(command) => wal::run(session, command).await,
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(session, args).await,
        Command::Schema(_) | Command::Completions(_) | Command::Reference(_) => {
            Err(Error::new(ErrorKind::Internal, "this command needs no runtime"))
        }
    }
}

/// An interruption is told in the terms of what was interrupted.
fn reword(error: Error, what: &str) -> Error {
    if error.kind() == ErrorKind::Interrupted {
        Error::new(ErrorKind::Interrupted, format!("interrupted; {what}"))
    } else {
        error
    }
}

/// For commands whose output is not ours to wrap.
fn refuse_json(session: &Session<'_>, command: &str, why: &str) -> Result<()> {
    if session.options.json {
        return Err(Error::new(ErrorKind::Usage, format!("`stackward {command}` {why}; it has no JSON form"))
            .hint("leave `--json` out"));
    }
    Ok(())
}
