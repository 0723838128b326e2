//! `stackward follow`: archives the continuous logs of sources until it is told to stop.
//!
//! Invariant: sources are followed side by side, each by one process. A follower that gives up is begun anew; one that
//! cannot go on ends the whole, once the others are closed in order, so that whoever runs the program learns of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backup_core::engine::Follower;
use backup_core::error::Retry;
use backup_core::event::{Event, Observer, SharedObserver};
use backup_core::log::LogStore;
use backup_core::run::RunOptions;
use backup_core::sink::Sink;
use backup_core::snapshots::SourceSnapshots;
use backup_core::{Error, ErrorKind, Result, RunContext, SegmentLog, SourceName};
use jiff::Timestamp;
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::FollowArgs;
use crate::exit::Exit;
use crate::following::{Followers, Lease, Noting, Record};
use crate::output::{Format, Output};
use crate::session::Session;
use crate::stack::{Access, Part, Stack};

/// A follower that gave up is begun anew after this; doubled each time, up to the second.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

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
    let shown = observer(session);
    // All of them before any server is touched.
    let leases = parts.iter().map(|(part, _)| lease(session, &stack, part, &sink)).collect::<Result<Vec<_>>>()?;
    // One that cannot go on stops the others, in order.
    let stop = session.cancel.child_token();
    let mut following = JoinSet::new();
    for ((part, follower), lease) in parts.into_iter().zip(leases) {
        let observer: SharedObserver = Arc::new(Noting { inner: Arc::clone(&shown), lease: lease.clone() });
        let log = SegmentLog::new(Arc::clone(&logs), part.name().clone());
        let snapshots = snapshots(session, &stack, part, &sink, &observer);
        let cx = session.context(part.name()).observed_by(observer).cancelled_by(stop.clone());
        cx.report(&Event::Started { source: part.name().clone(), work: "follow", expected_bytes: None });
        following.spawn(async move {
            let ended = follow(&cx, follower.as_ref(), &log, &snapshots, lease.as_deref()).await;
            let (name, failure) = (cx.source().clone(), ended.as_ref().err().map(Error::chain));
            if let Some(lease) = lease {
                lease.end(failure.clone());
            }
            cx.report(&Event::Finished { source: name.clone(), failure });
            (name, ended)
        });
    }
    let mut ended = Vec::new();
    let mut lost = None;
    while let Some(joined) = following.join_next().await {
        let result = match joined {
            Ok((name, result)) => {
                let result = result.map_err(|error| match error.operation() {
                    Some(_) => error,
                    None => error.during(format!("follow `{name}`")),
                });
                ended.push((name, result));
                ended.last().and_then(|(_, result)| result.as_ref().err())
            }
            Err(source) => {
                let error = Error::new(ErrorKind::Internal, "a follower panicked").caused_by(source);
                Some(&*lost.insert(error))
            }
        };
        if let Some(error) = result {
            session.output.error(error);
            stop.cancel();
        }
    }
    Ok(tell(session, &ended, lost.as_ref()))
}

/// Follows until told to stop. A follower that gives up is begun anew, unless that would change nothing.
async fn follow(
    cx: &RunContext,
    follower: &dyn Follower,
    log: &SegmentLog,
    snapshots: &SourceSnapshots,
    lease: Option<&Lease>,
) -> Result<()> {
    let mut pause = RESTART.0;
    loop {
        let begun = Instant::now();
        let ended = follower.follow(cx, log, snapshots).await;
        let error = match ended {
            ended if cx.cancellation().is_cancelled() => return ended,
            Ok(()) => Error::new(ErrorKind::Incomplete, "it ended although nobody told it to"),
            Err(error) if is_lasting(&error) => return Err(error),
            Err(error) => error,
        };
        if begun.elapsed() > RESTART.1 {
            pause = RESTART.0;
        }
        let why = error.chain();
        cx.warn(format!("the follower gave up: {why}; it is begun anew in {} s", pause.as_secs()));
        cx.waits_for(why.clone());
        if let Some(lease) = lease {
            lease.tell(|record| {
                record.restarts += 1;
                record.failure = Some(why);
            });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cx.cancellation().cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(RESTART.1);
    }
}

/// Whether it would be the same until somebody acts: another server or another history than the archive's, a refusal, a
/// repository that is another one.
fn is_lasting(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unreachable
        | ErrorKind::NoSpace
        | ErrorKind::Io
        | ErrorKind::Interrupted
        | ErrorKind::Tool
        | ErrorKind::NotFound
        | ErrorKind::Incomplete => false,
        ErrorKind::Busy => error.retry() == Retry::Never,
        _ => true,
    }
}

/// That this process, and no other, follows `part`.
fn lease(session: &Session<'_>, stack: &Stack, part: &Part, sink: &Arc<dyn Sink>) -> Result<Option<Arc<Lease>>> {
    let Some(followers) = Followers::of(sink.as_ref()) else { return Ok(None) };
    let record = Record::new(stack.plan.name.as_str(), &session.world.host, Timestamp::now());
    match followers.take(part.name(), record) {
        Ok(lease) => Ok(Some(Arc::new(lease))),
        Err(error) if error.kind() == ErrorKind::Busy => Err(error),
        Err(error) => {
            // The log matters more than what is told of it.
            let name = part.name();
            session
                .output
                .warn(format!("{name}: {}; `stackward status` will not see that it is followed", error.chain()));
            Ok(None)
        }
    }
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
    SourceSnapshots::new(Arc::clone(sink), options, part.name().clone(), part.config.engine.clone())
}

fn tell(session: &Session<'_>, ended: &[(SourceName, Result<()>)], lost: Option<&Error>) -> Exit {
    let failed = ended.iter().find_map(|(_, result)| result.as_ref().err()).or(lost);
    let exit = failed.map_or(Exit::Done, Exit::of);
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
