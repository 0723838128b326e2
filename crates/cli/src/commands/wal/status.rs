//! `stackward wal status`: what the archive holds of each server's log, and what is missing.

use backup_core::{Result, SourceName};
use engine_postgres::wal::{Chain, Span};
use serde_json::json;

use super::{log, server, servers};
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::stack::{Access, Stack};

pub(super) async fn run(session: &Session<'_>, source: Option<&SourceName>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = match source {
        Some(_) => vec![server(&stack, source)?],
        None => servers(&stack),
    };
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for part in parts {
        let log = log(session, &stack, part.name(), Access::Write).await?;
        let spans = Chain::read(&log).await?.map(|chain| chain.spans()).unwrap_or_default();
        show(session, part.name(), &spans);
        if spans.iter().any(|span| !span.holes.is_empty()) {
            exit = Exit::Damage;
        }
        told.push(json!({ "name": part.name(), "timelines": spans }));
    }
    session.output.result("wal status", exit, &json!({ "sources": told }));
    Ok(exit)
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
    for hole in spans.iter().flat_map(|span| &span.holes) {
        let what = if hole.count == 1 { hole.first.clone() } else { format!("{} to {}", hole.first, hole.last) };
        let hint = "recovery cannot pass it: take a new backup; find out what removed it";
        out.complain(&format!("{source}: {what} is missing in the archive"), Some(hint));
    }
}
