//! `stackward log`: what operators say of continuous logs, and whose they are. It is kept beside the log, in the repository.
//!
//! Invariant: what is said changes what is told, never what can be recovered.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::window::{gap_note, overview};
use backup_core::{PlanName, SegmentLog, SegmentName, SourceName};
use jiff::Timestamp;
use serde_json::json;

use super::follow::logs_of;
use crate::args::LogCommand;
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::stack::{Access, Stack};

/// The note that says whose log it is.
pub(super) const OWNER: &str = "owner";

pub(super) async fn run(session: &Session<'_>, command: &LogCommand) -> Result<Exit> {
    let LogCommand::AcceptGap { source, before } = command;
    let stack = Stack::load(session)?;
    let source = stack.part(source)?.name().clone();
    let sink = stack.open(session, Access::Write).await?;
    let log = SegmentLog::new(logs_of(sink.as_ref())?, source.clone());
    let cx = session.context(&source);
    let found = overview(&cx, &log).await?;
    let chosen = |gap: &&backup_core::log::Gap| before.as_ref().is_none_or(|name| gap.before.to_string() == *name);
    let gaps: Vec<_> = found.gaps.iter().filter(chosen).collect();
    if gaps.is_empty() {
        let what = before.as_ref().map_or_else(String::new, |name| format!(" before {name}"));
        return Err(Error::new(ErrorKind::NotFound, format!("the log of `{source}` has no gap{what}"))
            .hint("`stackward status` names gaps and the segments that follow them"));
    }
    let text = format!("accepted on {}, {}", output::zoned(Timestamp::now()), session.world.host);
    let mut accepted = Vec::new();
    for gap in gaps {
        match log.add_note(&gap_note(&gap.before)?, &text).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        session.output.summary(format!("{source}: accepted: {} is missing before {}", gap.missing, gap.before));
        accepted.push(json!({ "before": gap.before, "missing": gap.missing }));
    }
    session.output.result("log accept-gap", Exit::Done, &json!({ "source": source, "accepted": accepted }));
    Ok(Exit::Done)
}

/// The text of the owner's note.
pub(super) fn owned_by(plan: &PlanName) -> String {
    json!({ "plan": plan }).to_string()
}

/// Compares the owner's note with the plan that is about to write.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when it is another plan's log.
pub(super) fn same_owner(source: &SourceName, plan: &PlanName, note: &str) -> Result<()> {
    let known: serde_json::Value = serde_json::from_str(note).unwrap_or_default();
    match known.get("plan").and_then(|known| known.as_str()) {
        Some(known) if known != plan.as_str() => Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("the log of `{source}` in this repository is that of the plan `{known}`, not of `{plan}`"),
        )
        .hint("two sources of one name share a log: give the source another name in one of the plans")),
        _ => Ok(()),
    }
}

/// Makes the log that of `plan`, or finds that it is. A log that is nobody's yet, of an earlier version perhaps, belongs to the first
/// that writes.
///
/// # Errors
/// As [`same_owner`]; those of the repository.
pub(super) async fn claim(log: &SegmentLog, plan: &PlanName) -> Result<()> {
    let owner = SegmentName::new(OWNER)?;
    // Once more when another one was faster.
    for _ in 0..2 {
        if let Some((_, note)) = log.notes().await?.into_iter().find(|(name, _)| *name == owner) {
            return same_owner(log.source(), plan, &note);
        }
        match log.add_note(&owner, &owned_by(plan)).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return other,
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("somebody changes whose the log of `{}` is", log.source())))
}
