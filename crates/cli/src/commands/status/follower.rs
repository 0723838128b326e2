//! Who follows a source, and what its server says of how its log is archived.
//!
//! Invariant: that a source is followed is said only when somebody was seen to follow it.

use std::sync::Arc;

use backup_core::engine::{Concern, LogState};
use backup_core::log::LogStore;
use backup_core::sink::Sink;
use backup_core::{ErrorKind, Result, SegmentLog, SourceName};
use serde::Serialize;

use super::{Gravity, Problem};
use crate::following::{Followers, Record, Seen};
use crate::output;
use crate::session::Session;
use crate::stack::Part;

/// The follower of a source on this machine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Follower {
    state: State,
    #[serde(flatten)]
    record: Option<Record>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It archives what the server writes.
    Following,
    /// It runs, and cannot follow now.
    Waiting,
    /// It ended in order, or because it could not go on.
    Ended,
    /// It was killed, or the machine went down.
    Died,
    /// None was here; one may be on another machine.
    Never,
    Unknown,
}

impl Follower {
    pub(super) fn look(sink: &dyn Sink, source: &SourceName) -> Self {
        let of = |state, record| Self { state, record, unknown: None };
        let Some(followers) = Followers::of(sink) else { return of(State::Never, None) };
        match followers.look(source) {
            Ok(Seen::Never) => of(State::Never, None),
            Ok(Seen::Running(record)) if record.waiting.is_some() => of(State::Waiting, Some(record)),
            Ok(Seen::Running(record)) => of(State::Following, Some(record)),
            Ok(Seen::Gone(record)) if record.ended.is_some() => of(State::Ended, Some(record)),
            Ok(Seen::Gone(record)) => of(State::Died, Some(record)),
            Err(error) => Self { state: State::Unknown, record: None, unknown: Some(error.chain()) },
        }
    }

    /// What it does, when it does what it should.
    pub(super) fn line(&self) -> Option<String> {
        let record = self.record.as_ref().filter(|_| self.state == State::Following)?;
        let archived = record.archived.as_ref().map_or_else(
            || "it has archived nothing yet".to_owned(),
            |archived| format!("it archived {} at {}", archived.segment, output::moment(archived.at)),
        );
        Some(format!("{} follows it; {archived}", named(record)))
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<Problem> {
        let warning = |what| Some(Problem { gravity: Gravity::Warning, what });
        if let Some(why) = &self.unknown {
            return warning(format!("whether somebody follows it is not known: {why}"));
        }
        let record = self.record.as_ref()?;
        let who = named(record);
        match (self.state, &record.waiting, record.ended) {
            (State::Waiting, Some(waiting), _) => {
                warning(format!("{who} waits since {}: {}", output::moment(waiting.since), waiting.why))
            }
            (State::Ended, _, Some(ended)) => {
                let why = record.failure.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                warning(format!("nobody follows it here: {who} ended at {}{why}", output::moment(ended)))
            }
            (State::Died, ..) => warning(format!("nobody follows it here: {who} died")),
            _ => None,
        }
    }
}

fn named(record: &Record) -> String {
    format!("process {} on {}, since {},", record.pid, record.host, output::moment(record.started))
}

/// What the server says, and what of it is a problem; that it cannot be asked is one, when its log is wanted.
///
/// # Errors
/// When the user interrupts.
pub(super) async fn ask(
    session: &Session<'_>,
    part: &Part,
    logs: Option<&Arc<dyn LogStore>>,
) -> Result<(Option<LogState>, Vec<Problem>)> {
    let Some(logs) = logs else { return Ok((None, Vec::new())) };
    let log = SegmentLog::new(Arc::clone(logs), part.name().clone());
    match part.engine.source.log_state(&session.context(part.name()), &log).await {
        Ok(state) => {
            let problems = state.iter().flat_map(|state| &state.concerns).map(problem).collect();
            Ok((state, problems))
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        Err(error) => {
            let what = format!("the server cannot be asked how its log is archived: {}", error.chain());
            Ok((None, vec![Problem { gravity: Gravity::Warning, what }]))
        }
    }
}

fn problem(concern: &Concern) -> Problem {
    let gravity = if concern.is_loss { Gravity::Critical } else { Gravity::Warning };
    Problem { gravity, what: format!("{}; {}", concern.what, concern.hint) }
}
