//! `stackward show`: what a snapshot holds, and why it is believed to be whole.

use backup_core::Result;
use backup_core::evidence::EvidenceRecord;
use backup_core::manifest::{ArtifactKind, ArtifactRecord, Manifest, Outcome, SourceOutcome, SourceRecord};
use backup_core::position::Position;
use serde_json::json;

use crate::args::ShowArgs;
use crate::exit::Exit;
use crate::output::{self, Align, Output, Table};
use crate::session::Session;
use crate::stack::{Access, Stack, choose};

pub(crate) async fn run(session: &Session<'_>, args: &ShowArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let sink = stack.open(session, Access::Read).await?;
    let id = choose(sink.as_ref(), &stack.plan.name, &args.snapshot).await?;
    let manifest = sink.manifest(&id).await?;
    session.output.result("show", Exit::Done, &json!({ "manifest": manifest }));
    heading(&session.output, &manifest);
    for source in &manifest.sources {
        show_source(&session.output, source);
    }
    Ok(Exit::Done)
}

fn heading(out: &Output, manifest: &Manifest) {
    let outcome = match manifest.outcome {
        Outcome::Complete => out.paint().good("complete"),
        Outcome::Partial => out.paint().warning("partial"),
    };
    out.line(format!("snapshot  {} ({outcome})", out.paint().strong(manifest.id.as_str())));
    out.line(format!("plan      {} on {}, stackward {}", manifest.plan, manifest.host, manifest.tool_version));
    let (started, finished) = (output::moment(manifest.started), output::moment(manifest.finished));
    out.line(format!("time      {started} to {finished}"));
    let (bytes, stored) = (output::bytes(manifest.bytes()), output::bytes(manifest.stored_bytes()));
    out.line(format!("size      {bytes}, of which {stored} had to be stored"));
}

fn show_source(out: &Output, source: &SourceRecord) {
    let mode = source.mode.as_ref().map(|mode| format!(", {mode}")).unwrap_or_default();
    out.line("");
    out.line(format!("{} ({}{mode})", out.paint().strong(source.name.as_str()), source.engine));
    if let SourceOutcome::Failed { reason, hint } = &source.outcome {
        out.line(format!("  {} {reason}", out.paint().error("failed:")));
        if let Some(hint) = hint {
            out.line(format!("  hint: {hint}"));
        }
    }
    if let Some(server) = &source.server {
        let image = server.image.as_ref().map(|image| format!(" in {image}")).unwrap_or_default();
        out.line(format!("  server    {} {}{image}", server.product, server.version));
    }
    if let Some(position) = &source.position {
        out.line(format!("  position  {}", place(position)));
    }
    for (group, items) in &source.fingerprint.0 {
        let total = output::count(source.fingerprint.total(group));
        // A name of a database may have line breaks.
        let group = group.replace('\n', "\\n").replace('\r', "\\r");
        out.line(format!("  counted   {group}: {total} in {}", output::counted(items.len() as u64, "item")));
    }
    for warning in &source.warnings {
        out.line(format!("  {} {warning}", out.paint().warning("warning:")));
    }
    if !source.artifacts.is_empty() {
        artifacts(&source.artifacts).lines().iter().for_each(|line| out.line(line));
    }
}

fn place(position: &Position) -> String {
    match position {
        Position::Wal { timeline, lsn } => format!("timeline {timeline}, {lsn}"),
        Position::Binlog { file, offset, gtid } => {
            format!("{file}:{offset}{}", gtid.as_ref().map(|gtid| format!(", GTID {gtid}")).unwrap_or_default())
        }
        Position::Replication { id, offset } => format!("{id}:{offset}"),
        other => format!("{other:?}"),
    }
}

/// One line per artifact.
pub(super) fn artifacts(artifacts: &[ArtifactRecord]) -> Table {
    let mut table = Table::new(&[
        ("ARTIFACT", Align::Left),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("ENTRIES", Align::Right),
        ("EVIDENCE", Align::Left),
    ])
    .indented(2);
    for artifact in artifacts {
        let name = match artifact.kind {
            ArtifactKind::Tree => format!("{}/", artifact.name),
            ArtifactKind::Stream => artifact.name.to_string(),
        };
        let entries = artifact.entries.map(output::count).unwrap_or_default();
        let (size, stored) = (output::bytes(artifact.bytes), output::bytes(artifact.stored_bytes));
        table.row([name, size, stored, entries, why(&artifact.evidence)]);
    }
    table
}

fn why(evidence: &EvidenceRecord) -> String {
    match evidence {
        EvidenceRecord::Exit { program, trailer: None } => format!("{program} ended with status 0"),
        EvidenceRecord::Exit { program, trailer: Some(trailer) } => {
            format!("{program} ended with status 0, {trailer} seen")
        }
        EvidenceRecord::EndMarker { marker } => format!("{marker} seen"),
        EvidenceRecord::ExactLength { .. } => "exactly the announced length".to_owned(),
        EvidenceRecord::Listing { entries } => format!("all {} listed entries", output::count(*entries)),
        other => format!("{other:?}"),
    }
}
