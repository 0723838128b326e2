//! `stackward backup`: runs the plan's sources into a new snapshot. The runner commits; this file only composes and tells.

use std::sync::Arc;
use std::time::Duration;

use backup_core::context::OwnPlace;
use backup_core::event::{Event, SharedObserver};
use backup_core::manifest::{Manifest, Outcome, SourceOutcome, SourceRecord};
use backup_core::run::{RunOptions, Task};
use backup_core::{Result, RunContext};
use serde_json::json;

use super::validate;
use crate::args::BackupArgs;
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::sinks::local_places;
use crate::stack::{Access, Part, Stack};

pub(crate) async fn run(session: &Session<'_>, args: &BackupArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = stack.select(&args.sources)?;
    let sink = stack.open(session, Access::Write).await?;
    if args.dry_run {
        return dry_run(session, &stack, &parts, &sink.describe()).await;
    }
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    let _alone = session.world.sinks.lock(&stack.plan.sink, &stack.folder, &stack.plan.name, &names)?;
    let manifest = back_up(session, &stack, &parts, sink.as_ref()).await?;
    Ok(tell(session, &manifest))
}

/// Backs `parts` up into `sink`.
pub(crate) async fn back_up(
    session: &Session<'_>,
    stack: &Stack,
    parts: &[&Part],
    sink: &dyn backup_core::sink::Sink,
) -> Result<Manifest> {
    let mut options = RunOptions::new(stack.plan.name.clone(), session.world.host.clone());
    options.concurrency = stack.plan.concurrency;
    options.observer = session.output.observer();
    options.cancel = session.cancel.clone();
    let own = local_places(&stack.plan.sink, &stack.folder).into_iter();
    options.own_places = own.map(|(path, what)| OwnPlace { path, what: what.to_owned() }).collect();
    let tasks = parts.iter().map(|part| task(stack, part)).collect();
    let _estimates = session.output.shows_bars().then(|| Estimates::ask(parts, &options.observer, session));
    backup_core::run::run(tasks, sink, &options).await
}

fn task(stack: &Stack, part: &Part) -> Task {
    Task {
        name: part.name().clone(),
        engine: part.config.engine.clone(),
        source: Arc::clone(&part.engine.source),
        on_failure: part.config.on_failure.unwrap_or(stack.plan.on_failure),
    }
}

/// Asks the sources how much there is while they are being saved, so that bars can say how long it will take.
/// Only for a person who watches: an answer costs a walk or a query.
struct Estimates(Vec<tokio::task::JoinHandle<()>>);

impl Estimates {
    fn ask(parts: &[&Part], observer: &SharedObserver, session: &Session<'_>) -> Self {
        let ask = |part: &&Part| {
            let (source, name) = (Arc::clone(&part.engine.source), part.name().clone());
            let (observer, cancel) = (Arc::clone(observer), session.cancel.clone());
            tokio::spawn(async move {
                let cx = RunContext::new(name.clone()).cancelled_by(cancel);
                if let Ok(preflight) = source.preflight(&cx).await {
                    let expected_bytes = preflight.expected_bytes;
                    observer.event(&Event::Started { source: name, work: "backup", expected_bytes });
                }
            })
        };
        Self(parts.iter().map(ask).collect())
    }
}

impl Drop for Estimates {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn dry_run(session: &Session<'_>, stack: &Stack, parts: &[&Part], place: &str) -> Result<Exit> {
    let answers = validate::preflights(session, parts, stack.plan.concurrency).await;
    validate::show(session, &answers);
    let body = json!({ "dry_run": true, "plan": stack.plan.name, "sources": validate::answers_json(&answers) });
    let mut exit = Exit::Done;
    for failure in answers.iter().filter_map(|(_, answer)| answer.as_ref().err()) {
        session.output.error(failure);
        exit = Exit::of(failure);
    }
    session.output.result("backup", exit, &body);
    if exit == Exit::Done {
        session.output.summary(format!("these would be saved in {}; nothing was stored", output::the(place)));
    }
    Ok(exit)
}

fn tell(session: &Session<'_>, manifest: &Manifest) -> Exit {
    let out = &session.output;
    let exit = match manifest.outcome {
        Outcome::Complete => Exit::Done,
        Outcome::Partial => Exit::Partial,
    };
    for line in table(manifest).lines() {
        out.summary(line);
    }
    out.summary(closing(session, manifest));
    for source in &manifest.sources {
        if let SourceOutcome::Failed { reason, hint } = &source.outcome {
            out.complain(&format!("`{}` is not in the snapshot: {reason}", source.name), hint.as_deref());
        }
    }
    out.result("backup", exit, &json!({ "snapshot": summary_json(manifest) }));
    exit
}

/// One line per source.
pub(crate) fn table(manifest: &Manifest) -> Table {
    let mut table = Table::new(&[
        ("SOURCE", Align::Left),
        ("ENGINE", Align::Left),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("TOOK", Align::Right),
        ("OUTCOME", Align::Left),
    ]);
    for source in &manifest.sources {
        let (size, stored) = sizes(source);
        let outcome = if source.is_complete() { "complete" } else { "failed" };
        let took = output::span(took(source));
        table.row([source.name.as_str(), &source.engine, &output::bytes(size), &output::bytes(stored), &took, outcome]);
    }
    table
}

/// Plain and stored bytes of a source.
pub(crate) fn sizes(source: &SourceRecord) -> (u64, u64) {
    let sum = |part: fn(&backup_core::manifest::ArtifactRecord) -> u64| source.artifacts.iter().map(part).sum();
    (sum(|artifact| artifact.bytes), sum(|artifact| artifact.stored_bytes))
}

fn took(source: &SourceRecord) -> Duration {
    Duration::try_from(source.finished.duration_since(source.started)).unwrap_or_default()
}

fn closing(session: &Session<'_>, manifest: &Manifest) -> String {
    let took = Duration::try_from(manifest.finished.duration_since(manifest.started)).unwrap_or_default();
    let outcome = match manifest.outcome {
        Outcome::Complete => session.output.paint().good("complete"),
        Outcome::Partial => session.output.paint().warning("partial"),
    };
    format!(
        "snapshot {} is {outcome}: {} in {}, of which {} had to be stored",
        manifest.id,
        output::bytes(manifest.bytes()),
        output::span(took),
        output::bytes(manifest.stored_bytes()),
    )
}

fn summary_json(manifest: &Manifest) -> serde_json::Value {
    let source = |source: &SourceRecord| {
        let (bytes, stored_bytes) = sizes(source);
        let (failure, hint) = match &source.outcome {
            SourceOutcome::Complete => (None, None),
            SourceOutcome::Failed { reason, hint } => (Some(reason), hint.as_ref()),
        };
        json!({
            "name": source.name, "engine": source.engine, "bytes": bytes, "stored_bytes": stored_bytes,
            "artifacts": source.artifacts.len(), "seconds": output::seconds(took(source)),
            "failure": failure, "hint": hint, "warnings": source.warnings,
        })
    };
    json!({
        "id": manifest.id, "plan": manifest.plan, "host": manifest.host,
        "started": manifest.started, "finished": manifest.finished, "outcome": manifest.outcome,
        "bytes": manifest.bytes(), "stored_bytes": manifest.stored_bytes(),
        "sources": manifest.sources.iter().map(source).collect::<Vec<_>>(),
    })
}
