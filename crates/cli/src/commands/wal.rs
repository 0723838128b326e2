//! `stackward wal`: the write-ahead log of PostgreSQL servers, to the archive, from it, and what is in it.

mod fetch;
mod push;
mod status;

use backup_core::{Error, ErrorKind, Result, SegmentLog, SourceName};

use super::follow;
use crate::args::{FollowArgs, WalCommand};
use crate::exit::Exit;
use crate::session::Session;
use crate::stack::{Access, Part, Stack};

pub(crate) use push::push;

/// The key under a source's name that makes it a PostgreSQL server.
const ENGINE: &str = "postgres";

pub(crate) async fn run(session: &Session<'_>, command: &WalCommand) -> Result<Exit> {
    match command {
        WalCommand::Fetch { name, path, source, prefetch } => {
            fetch::run(session, &fetch::Request { name, path, source: source.as_ref(), ahead: *prefetch }).await
        }
        WalCommand::Receive { source } => {
            let followed = FollowArgs { sources: source.iter().cloned().collect() };
            follow::run(session, &followed, Some(ENGINE)).await
        }
        WalCommand::Status { source } => session.unless_interrupted(status::run(session, source.as_ref())).await,
        WalCommand::Push { .. } => Err(Error::new(ErrorKind::Internal, "this command needs no runtime")),
    }
}

/// The PostgreSQL server of this name, or the only one of the plan.
fn server<'a>(stack: &'a Stack, name: Option<&SourceName>) -> Result<&'a Part> {
    let servers = servers(stack);
    match (name, &servers[..]) {
        (Some(name), _) => {
            let part = stack.part(name)?;
            if part.config.engine == ENGINE {
                return Ok(part);
            }
            Err(Error::new(ErrorKind::Usage, format!("the source `{name}` is no PostgreSQL server")))
        }
        (None, [only]) => Ok(only),
        (None, []) => {
            Err(Error::new(ErrorKind::Usage, format!("the plan `{}` has no PostgreSQL server", stack.plan.name)))
        }
        (None, _) => {
            let names: Vec<&str> = servers.iter().map(|part| part.name().as_str()).collect();
            Err(Error::new(ErrorKind::Usage, "the plan has several PostgreSQL servers")
                .hint(format!("say which with `--source NAME`: {}", names.join(", "))))
        }
    }
}

fn servers(stack: &Stack) -> Vec<&Part> {
    stack.parts.iter().filter(|part| part.config.engine == ENGINE).collect()
}

/// The log of `source`.
async fn log(session: &Session<'_>, stack: &Stack, source: &SourceName, access: Access) -> Result<SegmentLog> {
    let sink = stack.open(session, access).await?;
    Ok(SegmentLog::new(follow::logs_of(sink.as_ref())?, source.clone()))
}
