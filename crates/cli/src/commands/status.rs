//! `stackward status`: what each source can be recovered to now, and whether that keeps the plan's promise.
//!
//! Invariant: nothing good is assumed: what cannot be looked at is told as unknown, never as fine.

mod follower;

use std::sync::Arc;
use std::time::Duration;

use backup_core::Result;
use backup_core::engine::LogState;
use backup_core::log::LogStore;
use backup_core::sink::Sink;
use backup_core::window::{LogOverview, Window};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use self::follower::Follower;
use super::recoverable::Recoverable;
use crate::args::StatusArgs;
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::stack::{Access, Part, Stack, clock};

/// A followed source whose archive is older than this is not being followed, whatever is promised.
const LAG_LIMIT: Duration = Duration::from_mins(15);

/// What can be done about a gap.
const GAP_ADVICE: &str = "`stackward backup` begins a new window; `stackward log accept-gap` says that it is known";

pub(crate) async fn run(session: &Session<'_>, args: &StatusArgs) -> Result<Exit> {
    let looked = look(session, args).await;
    match looked {
        Err(error) if args.check => {
            session.output.fail(&error);
            Ok(Exit::CheckUnknown)
        }
        Err(error) => Err(error),
        Ok(found) => Ok(tell(session, args, &found)),
    }
}

async fn look(session: &Session<'_>, args: &StatusArgs) -> Result<Vec<Status>> {
    let stack = Stack::load(session)?;
    let parts = stack.select(&args.sources)?;
    let sink = stack.open(session, Access::Read).await?;
    let logs = sink.logs();
    let mut found = Vec::new();
    for part in parts {
        found.push(status(session, &stack, part, sink.as_ref(), logs.as_ref()).await?);
    }
    Ok(found)
}

/// How grave something is; in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Gravity {
    Ok,
    Warning,
    Critical,
}

/// What is wrong with a source.
#[derive(Debug, Clone, Serialize)]
struct Problem {
    gravity: Gravity,
    what: String,
}

/// What is known of a source.
#[derive(Debug, Serialize)]
struct Status {
    source: backup_core::SourceName,
    engine: String,
    followed: bool,
    /// Who follows it on this machine.
    follower: Option<Follower>,
    /// What the server says of how its log is archived.
    server: Option<LogState>,
    /// When the newest complete snapshot was taken.
    snapshot: Option<Timestamp>,
    windows: Vec<Window>,
    /// What would be lost now, in seconds.
    lag_seconds: Option<u64>,
    segments: u64,
    log_stored_bytes: u64,
    gaps: Vec<backup_core::log::Gap>,
    problems: Vec<Problem>,
}

async fn status(
    session: &Session<'_>,
    stack: &Stack,
    part: &Part,
    sink: &dyn Sink,
    logs: Option<&Arc<dyn LogStore>>,
) -> Result<Status> {
    let Recoverable { log, windows, snapshot } = Recoverable::look(session, stack, part, sink, logs).await?;
    let reached = windows.last().map(|window| window.to);
    let end = reached.filter(|end| !clock::is_ahead(*end)).max(snapshot);
    let lag = end.map(|end| Duration::try_from(Timestamp::now().duration_since(end)).unwrap_or_default());
    let followed = part.engine.follower.is_some();
    let seen = followed.then(|| Follower::look(sink, part.name()));
    let (server, mut concerns) = follower::ask(session, part, logs).await?;
    // Nothing happened since, and whoever would archive it is there.
    let is_idle = concerns.is_empty() && server.as_ref().is_some_and(|server| server.behind_bytes == Some(0));
    let lag = if is_idle && !windows.is_empty() { Some(Duration::ZERO) } else { lag };
    let mut problems = problems(&log, followed, lag, stack.plan.promise.rpo.map(|rpo| rpo.0), &windows);
    problems.extend(seen.iter().filter_map(Follower::problem));
    problems.append(&mut concerns);
    let mut ahead = clock::alarms(sink, &stack.plan.name).await?;
    ahead.extend(reached.filter(|end| clock::is_ahead(*end)).map(|end| clock::alarm("the archive", end)));
    problems.extend(ahead.into_iter().map(|what| Problem { gravity: Gravity::Warning, what }));
    Ok(Status {
        source: part.name().clone(),
        engine: part.config.engine.clone(),
        followed,
        follower: seen,
        server,
        snapshot,
        windows,
        lag_seconds: lag.map(|lag| lag.as_secs()),
        segments: log.chains.iter().map(|chain| chain.segments).sum(),
        log_stored_bytes: log.chains.iter().map(|chain| chain.stored_bytes).sum(),
        gaps: log.gaps,
        problems,
    })
}

fn problems(
    log: &LogOverview,
    followed: bool,
    lag: Option<Duration>,
    promised: Option<Duration>,
    windows: &[Window],
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |gravity, what: String| problems.push(Problem { gravity, what });
    match (lag, promised) {
        (None, _) => add(Gravity::Critical, "there is no snapshot".to_owned()),
        (Some(lag), Some(promised)) if lag > promised => {
            add(Gravity::Critical, format!("would lose {}; promised were {}", output::age(lag), output::age(promised)));
        }
        (Some(lag), _) if followed && lag > LAG_LIMIT => add(
            Gravity::Warning,
            format!("the archive is {} behind: `stackward follow` does not run, or cannot keep up", output::age(lag)),
        ),
        _ => {}
    }
    if followed && lag.is_some() && windows.is_empty() {
        add(Gravity::Warning, "nothing was followed yet: it can be recovered to snapshots only".to_owned());
    }
    for gap in log.gaps.iter().filter(|gap| gap.is_open()) {
        add(Gravity::Warning, format!("{} is missing before {}: {GAP_ADVICE}", gap.missing, gap.before));
    }
    for damaged in &log.damage {
        add(Gravity::Warning, format!("{}: {}", damaged.id, damaged.problem));
    }
    problems
}

fn tell(session: &Session<'_>, args: &StatusArgs, found: &[Status]) -> Exit {
    let out = &session.output;
    for line in table(found).lines() {
        out.line(line);
    }
    for status in found {
        if let Some(line) = status.follower.as_ref().and_then(Follower::line) {
            out.line(format!("{}: {line}", status.source));
        }
        for earlier in status.windows.iter().rev().skip(1).take(EARLIER_SHOWN) {
            let (from, to) = (output::zoned(earlier.from), output::zoned(earlier.to));
            out.line(format!("{}: also from {from} to {to}", status.source));
        }
        for problem in &status.problems {
            let word = match problem.gravity {
                Gravity::Critical => out.paint().error("critical:"),
                Gravity::Ok | Gravity::Warning => out.paint().warning("warning:"),
            };
            out.line(format!("{word} {}: {}", status.source, problem.what));
        }
    }
    let worst = found.iter().flat_map(|status| &status.problems).map(|problem| problem.gravity).max();
    let worst = worst.unwrap_or(Gravity::Ok);
    let exit = match (args.check, worst) {
        (false, _) | (true, Gravity::Ok) => Exit::Done,
        (true, Gravity::Warning) => Exit::CheckWarning,
        (true, Gravity::Critical) => Exit::CheckCritical,
    };
    out.result("status", exit, &json!({ "state": worst, "sources": found }));
    exit
}

/// So many windows before the newest are shown.
const EARLIER_SHOWN: usize = 5;

fn table(found: &[Status]) -> Table {
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("SNAPSHOT", Align::Left),
        ("RECOVERABLE FROM", Align::Left),
        ("TO", Align::Left),
        ("WOULD LOSE", Align::Right),
        ("HOLES", Align::Right),
    ]);
    for status in found {
        let moment = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), output::moment);
        let window = status.windows.last();
        let zoned = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), output::zoned);
        let lag =
            status.lag_seconds.map_or_else(|| "everything".to_owned(), |lag| output::age(Duration::from_secs(lag)));
        let holes = status.gaps.iter().filter(|gap| gap.is_open()).count().to_string();
        table.row([
            status.source.as_str(),
            &moment(status.snapshot),
            &zoned(window.map(|window| window.from)),
            &zoned(window.map(|window| window.to)),
            &lag,
            &holes,
        ]);
    }
    table
}
