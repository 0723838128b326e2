//! `stackward wal status`: what the archive holds of each server's log, what is missing, and whether the server agrees.

use std::sync::Arc;
use std::time::Duration;

use backup_core::engine::EngineSetup;
use backup_core::host::LocalHost;
use backup_core::log::Gap;
use backup_core::{Result, SegmentLog, SourceName, Timeline};
use engine_postgres::wal::{Chain, Complaint, ServerView, Span, Weight};
use jiff::Timestamp;
use serde_json::json;

use super::super::follow;
use super::super::recoverable::Recoverable;
use super::{server, servers};
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::stack::{Access, Part, Stack};

pub(super) async fn run(session: &Session<'_>, source: Option<&SourceName>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = match source {
        Some(_) => vec![server(&stack, source)?],
        None => servers(&stack),
    };
    let sink = stack.open(session, Access::Write).await?;
    let logs = follow::logs_of(sink.as_ref())?;
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for part in parts {
        let log = SegmentLog::new(Arc::clone(&logs), part.name().clone());
        let found = Recoverable::look(session, &stack, part, sink.as_ref(), Some(&logs)).await?;
        let chain = Chain::read(&log).await?;
        let spans = chain.as_ref().map(Chain::spans).unwrap_or_default();
        show(session, part.name(), &spans);
        show_recoverable(session, part.name(), &found, &spans);
        let server = ask(session, &stack, part).await;
        let complaints = server.as_ref().map(|server| server.complaints(chain.as_ref())).unwrap_or_default();
        let lag = server.as_ref().zip(chain.as_ref()).and_then(|(server, chain)| server.lag(chain));
        let behind = match (lag, spans.last()) {
            (Some(0), _) => Some(0.0),
            (Some(_), Some(span)) => seconds_behind(&log, span).await,
            _ => None,
        };
        show_server(session, part.name(), lag, behind, &complaints);
        let lost = complaints.iter().any(|complaint| complaint.weight == Weight::Loss);
        if lost || !found.log.damage.is_empty() {
            exit = Exit::Damage;
        } else if exit == Exit::Done && found.log.gaps.iter().any(Gap::is_open) {
            exit = Exit::Gap;
        }
        told.push(json!({
            "name": part.name(), "timelines": spans, "server": server, "lag_bytes": lag, "lag_seconds": behind,
            "complaints": complaints, "windows": found.windows, "gaps": found.log.gaps, "damage": found.log.damage,
        }));
    }
    session.output.result("wal status", exit, &json!({ "sources": told }));
    Ok(exit)
}

/// What the server says; it may be away, which is a reason to look at the archive, not to fail.
async fn ask(session: &Session<'_>, stack: &Stack, part: &Part) -> Option<ServerView> {
    let (name, config) = (part.name(), &part.config.config);
    let setup = EngineSetup { name, config, folder: &stack.folder, host: Arc::new(LocalHost) };
    match ServerView::ask(&setup).await {
        Ok(view) => Some(view),
        Err(error) => {
            session.output.warn(format!("{name}: the server cannot be asked: {}", error.chain()));
            None
        }
    }
}

/// How long ago the archive's end was the server's.
async fn seconds_behind(log: &SegmentLog, span: &Span) -> Option<f64> {
    let timeline = Timeline::new(format!("{:08X}", span.timeline)).ok()?;
    let last = log
        .segments(&timeline)
        .await
        .ok()?
        .into_iter()
        .rev()
        .find(|entry| entry.id.name.as_str() >= span.last.as_str())?;
    let record = log.record(&last.id).await.ok()?;
    let time = record.meta.marks.last().map_or(record.stored, |mark| mark.time);
    Some(Timestamp::now().duration_since(time).as_secs_f64().max(0.0))
}

fn show_server(
    session: &Session<'_>,
    source: &SourceName,
    lag: Option<u64>,
    behind: Option<f64>,
    complaints: &[Complaint],
) {
    let out = &session.output;
    let is_lost = complaints.iter().any(|complaint| complaint.weight == Weight::Loss);
    match (lag, behind) {
        // What the server has now may be archived, and what it had is not.
        (Some(0), _) if is_lost => {}
        (Some(0), _) => out.line(format!("{source}: everything that the server has flushed is archived")),
        (Some(bytes), Some(seconds)) => {
            let since = output::span(Duration::from_secs_f64(seconds));
            out.line(format!(
                "{source}: the server is {} ahead of the archive, whose end is {since} old",
                output::bytes(bytes)
            ));
        }
        (Some(bytes), None) => {
            out.line(format!("{source}: the server is {} ahead of the archive", output::bytes(bytes)));
        }
        (None, _) => {}
    }
    for Complaint { weight, told, hint } in complaints {
        match weight {
            Weight::Loss => out.complain(&format!("{source}: {told}"), Some(hint)),
            Weight::Warning => out.warn(format!("{source}: {told}; {hint}")),
        }
    }
}

fn show(session: &Session<'_>, source: &SourceName, spans: &[Span]) {
    let out = &session.output;
    if spans.is_empty() {
        out.line(format!("{source}: nothing is archived"));
        return;
    }
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("TIMELINE", Align::Right),
        ("FIRST", Align::Left),
        ("LAST", Align::Left),
        ("SEGMENTS", Align::Right),
        ("STORED", Align::Right),
        ("MISSING", Align::Right),
    ]);
    for span in spans {
        let missing: u64 = span.holes.iter().map(|hole| hole.count).sum();
        table.row([
            source.as_str(),
            &span.timeline.to_string(),
            &span.first,
            &span.last,
            &span.count.to_string(),
            &output::bytes(span.stored_bytes),
            &missing.to_string(),
        ]);
    }
    for line in table.lines() {
        out.line(line);
    }
}

/// The windows, and what is missing between them.
fn show_recoverable(session: &Session<'_>, source: &SourceName, found: &Recoverable, spans: &[Span]) {
    let out = &session.output;
    for window in &found.windows {
        let (from, to) = (output::zoned(window.from), output::zoned(window.to));
        out.line(format!("{source}: recoverable from {from} to {to}"));
    }
    let hint = "recovery cannot pass it: take a new backup; find out what happened to it";
    let gap_hint = "recovery cannot pass it: find out what removed it; `stackward backup` begins a new window, and \
                    `stackward log accept-gap` says that it is known";
    let holes = || spans.iter().flat_map(|span| &span.holes);
    for gap in &found.log.gaps {
        // A gap names the last segment that is missing; the listing knows the first.
        let what = match holes().find(|hole| hole.count > 1 && gap.missing.ends_with(&hole.last)) {
            Some(hole) => format!("{} to {}", hole.first, hole.last),
            None => gap.missing.clone(),
        };
        let told = format!("{source}: {what} is missing in the archive, before {}", gap.before);
        match &gap.accepted {
            Some(why) => out.line(format!("{told}; {why}")),
            None => out.complain(&told, Some(gap_hint)),
        }
    }
    for damaged in &found.log.damage {
        out.complain(&format!("{source}: {}: {}", damaged.id, damaged.problem), Some(hint));
    }
}
