//! `stackward verify`: is what is stored still what was written, and does each engine find its own structure in it?

mod logs;

use std::sync::Arc;

use backup_core::engine::Finding;
use backup_core::sink::{CheckDepth, CheckReport, Damage, Hurt, Sink, SnapshotFilter};
use backup_core::{BackupReader, Error, ErrorKind, Result, SnapshotId, SourceName};
use serde_json::json;

use self::logs::{LogFinding, Logs};
use crate::args::{DepthArg, VerifyArgs};
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::session::Session;
use crate::stack::{Access, Stack, choose, latest};

const LOG_ADVICE: &str = "no moment after such a segment can be reached from a snapshot before it: run `stackward backup` \
    now, which begins a new window, and look at the disk";
const GAP_ADVICE: &str = "no recovery passes a gap: `stackward backup` begins a new window behind it, and `stackward log \
    accept-gap` says that it is known";
/// So many of a tree's damaged files are named.
const MAX_FILES: usize = 10;

pub(crate) async fn run(session: &Session<'_>, args: &VerifyArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let sink = stack.open(session, Access::Read).await?;
    let snapshots = session.unless_interrupted(wanted(&stack, sink.as_ref(), args)).await?;
    let cx = session.context(&SourceName::new("repository")?);
    let depth = if args.depth == DepthArg::Manifest { CheckDepth::References } else { CheckDepth::Data };
    let check = sink.check(&cx, depth, &snapshots).await?;
    let structure = match args.depth {
        DepthArg::Structure => structure(session, &stack, &sink, &snapshots).await?,
        DepthArg::Manifest | DepthArg::Data => Structure::default(),
    };
    let logs = logs::check(session, &stack, sink.as_ref(), args.depth).await?;
    Ok(tell(session, &snapshots, &check, &structure, &logs))
}

async fn wanted(stack: &Stack, sink: &dyn Sink, args: &VerifyArgs) -> Result<Vec<SnapshotId>> {
    if args.all {
        let filter = SnapshotFilter { plan: Some(stack.plan.name.clone()) };
        return Ok(sink.snapshots(&filter).await?.into_iter().map(|summary| summary.id).collect());
    }
    if args.snapshots.is_empty() {
        return Ok(vec![latest(sink, &stack.plan.name).await?]);
    }
    let mut chosen = Vec::new();
    for name in &args.snapshots {
        let id = choose(sink, &stack.plan.name, name).await?;
        if !chosen.contains(&id) {
            chosen.push(id);
        }
    }
    Ok(chosen)
}

/// What the engines found.
#[derive(Default)]
struct Structure {
    checked: Vec<String>,
    findings: Vec<Finding>,
    skipped: Vec<String>,
    /// Why an engine could not read what it wanted to check.
    unreadable: Vec<String>,
    /// Why sources could not be checked at all. They do not keep the others from it.
    failed: Vec<Error>,
}

async fn structure(
    session: &Session<'_>,
    stack: &Stack,
    sink: &Arc<dyn Sink>,
    snapshots: &[SnapshotId],
) -> Result<Structure> {
    let mut found = Structure::default();
    for id in snapshots {
        let snapshot = sink.open(id).await?;
        let names: Vec<SourceName> =
            snapshot.manifest().sources.iter().filter(|source| source.is_complete()).map(|s| s.name.clone()).collect();
        for name in names {
            let Ok(part) = stack.part(&name) else {
                found.skipped.push(format!("{id}: `{name}` is no longer in the plan; its structure was not checked"));
                continue;
            };
            let reader = BackupReader::new(Arc::clone(&snapshot), name.clone())?;
            let cx = session.context(&name);
            cx.report(&started(&reader));
            let report = part.engine.verifier.verify(&cx, &reader).await.map_err(|error| told(error, id, &name));
            cx.report(&backup_core::Event::Finished {
                source: name.clone(),
                failure: report.as_ref().err().map(Error::chain),
            });
            cx.check_cancelled()?;
            let report = match report {
                // The other sources are worth looking at all the same.
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    found.unreadable.push(error.chain());
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    found.failed.push(error);
                    continue;
                }
                Ok(report) => report,
            };
            found.checked.extend(report.checked.into_iter().map(|what| format!("{id}: {name}: {what}")));
            found.findings.extend(report.findings);
        }
    }
    Ok(found)
}

fn started(reader: &BackupReader) -> backup_core::Event {
    let bytes = reader.record().bytes();
    backup_core::Event::Started { source: reader.source().clone(), work: "verify", expected_bytes: Some(bytes) }
}

fn told(error: Error, id: &SnapshotId, source: &SourceName) -> Error {
    if error.operation().is_some() { error } else { error.during(format!("verify `{source}` of {id}")) }
}

fn tell(
    session: &Session<'_>,
    snapshots: &[SnapshotId],
    check: &CheckReport,
    structure: &Structure,
    logs: &Logs,
) -> Exit {
    let out = &session.output;
    for note in check.notes.iter().chain(&structure.skipped) {
        out.note(note);
    }
    for damage in &check.damage {
        show_damage(out, damage);
    }
    for finding in &structure.findings {
        let Finding { snapshot, source, artifact, problem } = finding;
        out.line(format!("{} {source}/{artifact} of {snapshot}: {problem}", out.paint().error("damaged:")));
    }
    for why in &structure.unreadable {
        out.line(format!("{} {why}", out.paint().error("damaged:")));
    }
    for LogFinding { source, segment, problem } in &logs.findings {
        out.line(format!("{} {source}: segment {segment}: {problem}", out.paint().error("damaged:")));
    }
    for LogFinding { source, segment, problem } in &logs.gaps {
        out.line(format!("{} {source}: segment {segment}: {problem}", out.paint().warning("gap:")));
    }
    for known in &logs.accepted {
        out.note(known);
    }
    for what in structure.checked.iter().chain(&logs.checked) {
        out.summary(what);
    }
    let snapshots_whole = check.damage.is_empty() && structure.findings.is_empty() && structure.unreadable.is_empty();
    let whole = snapshots_whole && logs.findings.is_empty();
    let failed: Vec<&Error> = structure.failed.iter().chain(&logs.failed).collect();
    let exit = match (whole, logs.gaps.is_empty(), failed.first()) {
        (false, ..) => Exit::Damage,
        (true, _, Some(error)) => Exit::of(error),
        (true, false, None) => Exit::Gap,
        (true, true, None) => Exit::Done,
    };
    let (amount, objects) =
        (output::counted(snapshots.len() as u64, "snapshot"), output::counted(check.objects, "object"));
    let looked = format!("{amount}: {objects}, {} read", output::bytes(check.bytes));
    for error in &failed {
        out.complain(&format!("not all was checked: {}", error.chain()), error.remedy());
    }
    if whole {
        out.summary(format!("{looked}; {}", out.paint().good("no damage found")));
        if !logs.gaps.is_empty() {
            out.complain("something is missing in the logs", Some(GAP_ADVICE));
        }
    } else if snapshots_whole {
        out.complain("damage found in the logs", Some(LOG_ADVICE));
    } else {
        out.complain(&format!("damage found in {looked}"), Some(&advice(check, structure)));
    }
    let mut body = json!({
        "snapshots": snapshots, "objects": check.objects, "bytes": check.bytes, "damage": check.damage,
        "findings": structure.findings, "checked": structure.checked,
        "unreadable": structure.unreadable, "notes": check.notes, "skipped": structure.skipped,
        "logs": logs.checked, "log_findings": logs.findings, "log_gaps": logs.gaps,
    });
    if !failed.is_empty() {
        body["failed"] = failed.iter().map(|error| error.chain()).collect();
    }
    out.result("verify", exit, &body);
    exit
}

fn show_damage(out: &Output, damage: &Damage) {
    out.line(format!("{} {}: {}", out.paint().error("damaged:"), damage.object, damage.problem));
    for hurt in &damage.hurts {
        out.line(format!("  hurts {}", hurt_name(hurt)));
        for file in hurt.files.iter().take(MAX_FILES) {
            out.line(format!("    {file}"));
        }
        if hurt.files.len() > MAX_FILES {
            out.line(format!("    and {} more files", hurt.files.len() - MAX_FILES));
        }
    }
    if damage.hurts.is_empty() {
        out.line("  hurts no snapshot that was looked at");
    }
}

fn hurt_name(hurt: &Hurt) -> String {
    match (&hurt.source, &hurt.artifact) {
        (Some(source), Some(artifact)) => format!("{source}/{artifact} of {}", hurt.snapshot),
        (Some(source), None) => format!("{source} of {}", hurt.snapshot),
        (None, _) => format!("all of {}", hurt.snapshot),
    }
}

fn advice(check: &CheckReport, structure: &Structure) -> String {
    let hurts = check.damage.iter().flat_map(|damage| &damage.hurts).map(hurt_name);
    let found = structure.findings.iter().map(|finding| format!("{}/{}", finding.source, finding.artifact));
    let count = hurts.chain(found).collect::<std::collections::BTreeSet<_>>().len();
    let are = if count == 1 { "is" } else { "are" };
    let hurt = output::counted(count as u64, "artifact");
    format!(
        "{hurt} {are} hurt; everything that is not named can still be restored. \
         Run `stackward backup` now, and look at the disk"
    )
}

/// Refuses to go on with a snapshot whose sources `of` are hurt.
pub(super) async fn refuse_damaged(
    session: &Session<'_>,
    sink: &dyn Sink,
    id: &SnapshotId,
    of: &[&SourceName],
) -> Result<()> {
    let cx = session.context(&SourceName::new("repository")?);
    let check = sink.check(&cx, CheckDepth::References, std::slice::from_ref(id)).await?;
    let hits = |hurt: &&Hurt| hurt.snapshot == *id && hurt.source.as_ref().is_none_or(|source| of.contains(&source));
    let Some((damage, hurt)) =
        check.damage.iter().find_map(|damage| damage.hurts.iter().find(hits).map(|hurt| (damage, hurt)))
    else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Damaged, format!("{} is not whole; nothing was restored", hurt_name(hurt)))
        .caused_by(format!("{}: {}", damage.object, damage.problem))
        .hint("choose what is undamaged with `--source`, or an earlier snapshot; `stackward verify` names all damage"))
}
