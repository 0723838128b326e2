//! `stackward follow`: archives the continuous logs of sources until it is told to stop.
//!
//! Invariant: sources are followed side by side; one that fails is told at once and does not stop the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::engine::Follower;
use backup_core::event::{Event, Observer, SharedObserver};
use backup_core::log::LogStore;
use backup_core::run::RunOptions;
use backup_core::sink::Sink;
use backup_core::snapshots::SourceSnapshots;
use backup_core::{Error, ErrorKind, Result, SegmentLog, SourceName};
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::FollowArgs;
use crate::exit::Exit;
use crate::output::{Format, Output};
use crate::session::Session;
use crate::stack::{Access, Part, Stack};

/// Follows the sources of `args`, or all that can be followed; with `engine`, those of that engine alone.
pub(crate) async fn run(session: &Session<'_>, args: &FollowArgs, engine: Option<&str>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = chosen(&stack, args, engine)?;
    let sink = stack.open(session, Access::Write).await?;
    let logs = logs_of(sink.as_ref())?;
    for (part, _) in &parts {
        let log = SegmentLog::new(Arc::clone(&logs), part.name().clone());
        session.unless_interrupted(super::log::claim(&log, &stack.plan.name)).await?;
    }
    let observer = observer(session);
    let mut following = JoinSet::new();
    for (part, follower) in parts {
        let log = SegmentLog::new(Arc::clone(&logs), part.name().clone());
        let snapshots = snapshots(session, &stack, part, &sink, &observer);
        let cx = session.context(part.name()).observed_by(Arc::clone(&observer));
        let name = part.name().clone();
        cx.report(&Event::Started { source: name.clone(), work: "follow", expected_bytes: None });
        following.spawn(async move {
            let ended = follower.follow(&cx, &log, &snapshots).await;
            cx.report(&Event::Finished { source: name.clone(), failure: ended.as_ref().err().map(Error::chain) });
            (name, ended)
        });
    }
    let mut ended = Vec::new();
    while let Some(joined) = following.join_next().await {
        let lost = |source| Error::new(ErrorKind::Internal, "a follower panicked").caused_by(source);
        let (name, result) = joined.map_err(lost)?;
        let result = result.map_err(|error| match error.operation() {
            Some(_) => error,
            None => error.during(format!("follow `{name}`")),
        });
        if let Err(error) = &result {
            session.output.error(error);
        }
        ended.push((name, result));
    }
    Ok(tell(session, &ended))
}

/// Where `sink` keeps logs.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it keeps none.
pub(crate) fn logs_of(sink: &dyn Sink) -> Result<Arc<dyn LogStore>> {
    sink.logs().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{} keeps no continuous logs", sink.describe()))
            .hint("let the plan name a `repository` instead of a `directory`")
    })
}

fn chosen<'a>(stack: &'a Stack, args: &FollowArgs, engine: Option<&str>) -> Result<Vec<(&'a Part, Arc<dyn Follower>)>> {
    let mut parts = Vec::new();
    for part in stack.select(&args.sources)? {
        let other = engine.is_some_and(|engine| engine != part.config.engine);
        match &part.engine.follower {
            Some(follower) if !other => parts.push((part, Arc::clone(follower))),
            _ if args.sources.is_empty() => {}
            _ if other => {
                let (name, of) = (part.name(), &part.config.engine);
                let message =
                    format!("`{name}` is served by the engine `{of}`, not by `{}`", engine.unwrap_or_default());
                return Err(Error::new(ErrorKind::Usage, message).hint("`stackward follow` follows every engine"));
            }
            _ => return Err(cannot_be_followed(part)),
        }
    }
    if parts.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the plan has no source that is followed")
            .hint("write `follow: true` below a `redis` source, `wal: stream` below a `postgres` source"));
    }
    Ok(parts)
}

fn cannot_be_followed(part: &Part) -> Error {
    let message = format!("`{}` is not followed: the plan does not ask for it", part.name());
    match part.config.engine.as_str() {
        "redis" => Error::new(ErrorKind::Usage, message).hint("write `follow: true` below `redis` in the plan"),
        "postgres" => Error::new(ErrorKind::Usage, message).hint("write `wal: stream` below `postgres` in the plan"),
        other => Error::new(ErrorKind::Usage, format!("`{}` cannot be followed", part.name()))
            .hint(format!("the engine `{other}` archives no log here; `stackward backup` saves it")),
    }
}

fn snapshots(
    session: &Session<'_>,
    stack: &Stack,
    part: &Part,
    sink: &Arc<dyn Sink>,
    observer: &SharedObserver,
) -> SourceSnapshots {
    let mut options = RunOptions::new(stack.plan.name.clone(), session.world.host.clone());
    options.observer = Arc::clone(observer);
    options.cancel = session.cancel.clone();
    SourceSnapshots::new(Arc::clone(sink), options, part.name().clone(), part.config.engine.clone())
}

fn tell(session: &Session<'_>, ended: &[(SourceName, Result<()>)]) -> Exit {
    let exit = ended.iter().find_map(|(_, result)| result.as_ref().err().map(Exit::of)).unwrap_or(Exit::Done);
    let sources: Vec<_> = ended
        .iter()
        .map(|(name, result)| json!({ "name": name, "failure": result.as_ref().err().map(Error::chain) }))
        .collect();
    for (name, _) in ended.iter().filter(|(_, result)| result.is_ok()) {
        session.output.summary(format!("{name}: what was received is archived"));
    }
    session.output.result("follow", exit, &json!({ "sources": sources }));
    exit
}

/// JSON lines as always; for people one line for each step, because bars have no end here.
fn observer(session: &Session<'_>) -> SharedObserver {
    match session.output.format() {
        Format::Json => session.output.observer(),
        Format::Text => Arc::new(Steps { output: Arc::clone(&session.output), last: Mutex::default() }),
    }
}

struct Steps {
    output: Arc<Output>,
    /// What a source did last: waiting is told once.
    last: Mutex<HashMap<SourceName, String>>,
}

impl Observer for Steps {
    fn event(&self, event: &Event) {
        match event {
            Event::Warned { source, message } => self.output.warn(format!("{source}: {message}")),
            Event::Step { source, what } => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                let before = last.insert(source.clone(), what.clone());
                if before.as_ref() != Some(what) {
                    self.output.note(format!("{source}: {what}"));
                }
            }
            _ => {}
        }
    }
}
