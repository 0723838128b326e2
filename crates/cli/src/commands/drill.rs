//! `stackward drill`: restores into a scratch place, asks questions, measures, and judges the plan's promise.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup_core::engine::DrillReport;
use backup_core::plan::Promise;
use backup_core::sink::Sink;
use backup_core::{BackupReader, Error, ErrorKind, Event, Result, SnapshotId, SourceName, Timeline};
use jiff::Timestamp;
use serde_json::json;

use super::restore::{check_timeline, log_of};
use crate::args::DrillArgs;
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::stack::{Access, Part, Stack, choose_for, clock};

pub(crate) async fn run(session: &Session<'_>, args: &DrillArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = stack.select(&args.sources)?;
    check_timeline(args.timeline.as_ref(), &parts)?;
    let sink = stack.open(session, Access::Read).await?;
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    let chosen = choose_for(sink.as_ref(), &stack.plan.name, &args.snapshot, &names);
    let id = session.unless_interrupted(chosen).await?;
    let place = DrillPlace { scratch: args.scratch.as_deref(), timeline: args.timeline.as_ref() };
    let mut measured = drill(session, sink.as_ref(), &id, &parts, &place).await?;
    let ahead = clock::alarms(sink.as_ref(), &stack.plan.name).await?;
    if parts.len() == 1
        && let Some(error) = measured.failed.pop()
    {
        return Err(error);
    }
    Ok(tell(session, &Measured { ahead, ..measured }, stack.plan.promise))
}

/// What a drill of several sources measured.
pub(crate) struct Measured {
    id: SnapshotId,
    age: Duration,
    /// Alarms about snapshots that are ahead of this machine's clock.
    ahead: Vec<String>,
    /// Each source with its report.
    pub(crate) sources: Vec<(SourceName, DrillReport)>,
    /// Why sources could not be drilled at all. They do not keep the others from it.
    pub(crate) failed: Vec<Error>,
}

impl Measured {
    /// Until everything could be asked, one source after the other.
    pub(crate) fn restore_time(&self) -> Duration {
        self.sources.iter().map(|(_, report)| report.restore_time).sum()
    }

    /// What is wrong: answers, and promises that were missed.
    pub(crate) fn findings(&self, promise: Promise) -> Vec<String> {
        let wrong = self
            .sources
            .iter()
            .flat_map(|(name, report)| report.findings.iter().map(move |finding| format!("{name}: {finding}")));
        let mut findings: Vec<String> = wrong.chain(self.ahead.iter().cloned()).collect();
        if let Some(rto) = promise.rto.filter(|rto| self.restore_time() > rto.0) {
            findings.push(format!("the restore took {}; promised were {rto}", output::span(self.restore_time())));
        }
        if let Some(rpo) = promise.rpo.filter(|rpo| self.age > rpo.0) {
            findings.push(format!("what can be restored is {} old; promised were {rpo}", output::age(self.age)));
        }
        findings
    }
}

/// Where a drill happens, and which branch of the log it follows.
#[derive(Debug, Default)]
pub(crate) struct DrillPlace<'a> {
    /// The folder to restore below.
    pub(crate) scratch: Option<&'a Path>,
    /// The timeline.
    pub(crate) timeline: Option<&'a Timeline>,
}

/// Drills `parts` from the snapshot `id`, one after the other, in a scratch folder that is removed afterwards.
pub(crate) async fn drill(
    session: &Session<'_>,
    sink: &dyn Sink,
    id: &SnapshotId,
    parts: &[&Part],
    place: &DrillPlace<'_>,
) -> Result<Measured> {
    let snapshot = session.unless_interrupted(sink.open(id)).await?;
    let scratch = scratch_folder(place.scratch)?;
    let (mut sources, mut failed) = (Vec::new(), Vec::new());
    for part in parts {
        let reader =
            BackupReader::new(Arc::clone(&snapshot), part.name().clone())?.with_log(log_of(sink, part, place.timeline));
        let cx = session.context(part.name()).scratch_in(scratch.path());
        cx.check_cancelled()?;
        let bytes = reader.record().bytes();
        cx.report(&Event::Started { source: part.name().clone(), work: "drill", expected_bytes: Some(bytes) });
        let result = part.engine.driller.drill(&cx, &reader).await;
        let failure = result.as_ref().err().map(Error::chain);
        cx.report(&Event::Finished { source: part.name().clone(), failure });
        cx.check_cancelled()?;
        match result {
            Ok(report) => sources.push((part.name().clone(), report)),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) if error.operation().is_some() => failed.push(error),
            Err(error) => failed.push(error.during(format!("drill `{}`", part.name()))),
        }
    }
    let started = snapshot.manifest().started;
    // Of a source that could not be drilled nothing later than the snapshot is proven.
    let age = if failed.is_empty() { lost(started, &sources) } else { lost(started, &[]) };
    Ok(Measured { id: id.clone(), age, ahead: Vec::new(), sources, failed })
}

/// Servers that refuse to run as root must be able to enter it, so it is passable, and its content is the engines' affair.
fn scratch_folder(parent: Option<&Path>) -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
    let failed = |source| Error::io("cannot make a scratch folder", &parent, source);
    tempfile::Builder::new()
        .prefix("stackward-drill-")
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir_in(&parent)
        .map_err(failed)
}

/// What would be lost: since the snapshot, or since the moment that the log of a source brought it to; of several sources
/// the most.
fn lost(started: Timestamp, sources: &[(SourceName, DrillReport)]) -> Duration {
    let oldest = sources.iter().map(|(_, report)| report.reached.unwrap_or(started)).min().unwrap_or(started);
    Duration::try_from(Timestamp::now().duration_since(oldest)).unwrap_or_default()
}

fn tell(session: &Session<'_>, measured: &Measured, promise: Promise) -> Exit {
    let out = &session.output;
    for (name, report) in &measured.sources {
        show_source(session, name, report);
    }
    let (restore, age) = (measured.restore_time(), measured.age);
    let kept = |promise: Option<backup_core::plan::Span>, actual: Duration| match promise {
        None => "nothing promised".to_owned(),
        Some(span) if actual > span.0 => format!("more than the promised {span}"),
        Some(span) => format!("within the promised {span}"),
    };
    out.summary(format!("restore time  {} ({})", output::span(restore), kept(promise.rto, restore)));
    out.summary(format!("would lose    {} ({})", output::age(age), kept(promise.rpo, age)));
    let findings = measured.findings(promise);
    let exit = match measured.failed.first() {
        _ if !findings.is_empty() => Exit::DrillFailed,
        Some(error) => Exit::of(error),
        None => Exit::Done,
    };
    let sources: Vec<_> = measured.sources.iter().map(|(name, report)| source_json(name, report)).collect();
    let mut body = json!({
        "snapshot": measured.id, "restore_seconds": output::seconds(restore), "age_seconds": age.as_secs(),
        "promised_rto_seconds": promise.rto.map(|span| span.0.as_secs()),
        "promised_rpo_seconds": promise.rpo.map(|span| span.0.as_secs()),
        "sources": sources, "findings": findings,
    });
    if !measured.failed.is_empty() {
        body["failed"] = measured.failed.iter().map(Error::chain).collect();
    }
    if exit == Exit::Done {
        out.summary(format!("snapshot {} is {}", measured.id, out.paint().good("proven")));
    } else {
        for finding in &findings {
            out.line(format!("{} {finding}", out.paint().error("wrong:")));
        }
        for error in &measured.failed {
            out.complain(&error.chain(), error.remedy());
        }
        let failed = Error::new(ErrorKind::DrillFailed, format!("the drill of {} failed", measured.id))
            .hint("what is wrong is listed above; do not rely on this snapshot until it is explained");
        out.error(&failed);
    }
    out.result("drill", exit, &body);
    exit
}

fn show_source(session: &Session<'_>, name: &SourceName, report: &DrillReport) {
    let out = &session.output;
    let verdict = if report.findings.is_empty() { out.paint().good("proven") } else { out.paint().error("wrong") };
    out.summary(format!(
        "{name}: {verdict}: {} restored in {}, {} compared in {}",
        output::bytes(report.bytes),
        output::span(report.restore_time),
        output::counted(report.items, "item"),
        output::span(report.check_time),
    ));
    for what in &report.checked {
        out.summary(format!("  {what}"));
    }
}

fn source_json(name: &SourceName, report: &DrillReport) -> serde_json::Value {
    let mut told = json!({
        "name": name, "restore_seconds": output::seconds(report.restore_time),
        "check_seconds": output::seconds(report.check_time), "bytes": report.bytes, "items": report.items,
        "reached": report.reached, "checked": report.checked, "findings": report.findings,
    });
    if !report.fingerprint.is_empty() {
        told["fingerprint"] = json!(report.fingerprint);
    }
    told
}
