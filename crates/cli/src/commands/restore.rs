//! `stackward restore`: puts sources back.
//!
//! Invariant: before the first byte is written, the snapshot was found whole and every source's restore was planned.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::engine::{
    Afterwards, Changes, Existing, Listed, Moment, Place, RestorePlan, RestoreReport, RestoreTarget, Unknown,
};
use backup_core::sink::{Sink, SnapshotReader};
use backup_core::snapshots::candidates;
use backup_core::{BackupReader, Error, ErrorKind, Event, Result, SegmentLog, SnapshotId, Timeline};
use serde_json::json;

use super::verify::refuse_damaged;
use crate::args::{RestoreArgs, SnapshotName};
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::stack::{Access, Part, Stack, choose_for, left_out, neighbours, outer_first, refuse_ahead};

/// The engine whose logs have branches.
const WITH_TIMELINES: &str = "postgres";

pub(crate) async fn run(session: &Session<'_>, args: &RestoreArgs) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let parts = stack.select(&args.sources)?;
    check_usage(args, &parts)?;
    let sink = stack.open(session, Access::Read).await?;
    let chosen = chosen(session, &stack, sink.as_ref(), args, &parts).await?;
    let target = |part: &Part| target(args, part);
    let planned = plan_all(session, &stack, sink.as_ref(), &chosen, args.timeline.as_ref(), target).await?;
    for one in &planned {
        for name in left_out(&stack, one.part, &one.plan.target, &parts) {
            let source = one.part.name();
            session.output.note(format!(
                "{source}: what belongs to `{name}` stays as it is; restore that source, too, to bring it back"
            ));
        }
    }
    if args.dry_run {
        return Ok(show_plans(session, &planned));
    }
    let done = restore_all(session, planned).await?;
    Ok(tell(session, &done))
}

/// The snapshot of each part: one for all; or, on the way to a moment, whatever leads each there.
async fn chosen<'a>(
    session: &Session<'_>,
    stack: &Stack,
    sink: &dyn Sink,
    args: &RestoreArgs,
    parts: &[&'a Part],
) -> Result<Vec<Chosen<'a>>> {
    let moment = args.moment.moment();
    if moment == Moment::Snapshot || args.snapshot != SnapshotName::Latest {
        if args.snapshot == SnapshotName::Latest {
            session.unless_interrupted(refuse_ahead(sink, &stack.plan.name)).await?;
        }
        let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
        let one = choose_for(sink, &stack.plan.name, &args.snapshot, &names);
        let id = session.unless_interrupted(one).await?;
        return Ok(parts.iter().map(|part| (*part, id.clone())).collect());
    }
    let mut chosen = Vec::new();
    for part in parts {
        let cx = session.context(part.name());
        let candidates = session.unless_interrupted(candidates(sink, &stack.plan.name, part.name())).await?;
        let log = log_of(sink, part, args.timeline.as_ref());
        let id = part.engine.restorer.choose(&cx, &candidates, log.as_ref(), &moment).await;
        let id = id.map_err(|error| name_source(error, part))?;
        session.output.note(format!("{}: recovering to {moment} from the snapshot {id}", part.name()));
        chosen.push((*part, id));
    }
    Ok(chosen)
}

/// The log of a part's source, along `timeline` when one was chosen.
pub(crate) fn log_of(sink: &dyn Sink, part: &Part, timeline: Option<&Timeline>) -> Option<SegmentLog> {
    let log = SegmentLog::new(sink.logs()?, part.name().clone());
    Some(match timeline {
        Some(timeline) => log.along(timeline.clone()),
        None => log,
    })
}

/// A timeline is one server's.
///
/// # Errors
/// [`ErrorKind::Usage`] when others are chosen.
pub(crate) fn check_timeline(timeline: Option<&Timeline>, parts: &[&Part]) -> Result<()> {
    if timeline.is_none() || matches!(parts, [only] if only.config.engine == WITH_TIMELINES) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, "`--timeline` is about one PostgreSQL server")
        .hint("name it with `--source NAME`; `stackward wal status` shows the timelines"))
}

fn check_usage(args: &RestoreArgs, parts: &[&Part]) -> Result<()> {
    check_timeline(args.timeline.as_ref(), parts)?;
    let about_one = [
        ("--select", !args.select.is_empty()),
        ("--rename", args.rename.is_some()),
        ("--tablespace", !args.tablespaces.is_empty()),
        ("--to-offset", args.moment.to_position.is_some()),
        ("--to-xid", args.moment.to_xid.is_some()),
        ("--to-name", args.moment.to_name.is_some()),
    ];
    let about_one = about_one.into_iter().find_map(|(name, given)| given.then_some(name));
    if let Some(about_one) = about_one.filter(|_| parts.len() > 1) {
        let names: Vec<String> = parts.iter().map(|part| part.name().to_string()).collect();
        return Err(Error::new(ErrorKind::Usage, format!("`{about_one}` is about one source, and several are chosen"))
            .hint(format!("add `--source NAME`: {}", names.join(", "))));
    }
    Ok(())
}

fn target(args: &RestoreArgs, part: &Part) -> RestoreTarget {
    RestoreTarget {
        place: match &args.target {
            Some(folder) => Place::Folder(absolute(folder).join(part.name().as_str())),
            None => Place::Original,
        },
        existing: match (args.force, args.delta) {
            (_, true) => Existing::Update,
            (true, false) => Existing::Replace,
            (false, false) => Existing::Refuse,
        },
        select: args.select.clone(),
        rename: args.rename.clone(),
        moment: args.moment.moment(),
        relocate: args.tablespaces.iter().map(|each| (each.old.clone(), each.new.clone())).collect(),
        afterwards: if args.start { Afterwards::Start } else { Afterwards::Leave },
        unknown: if args.delete { Unknown::Delete } else { Unknown::Keep },
        neighbours: Vec::new(),
    }
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A source, and the snapshot that it is restored from.
pub(crate) type Chosen<'a> = (&'a Part, SnapshotId);

/// One source, ready to be restored.
pub(crate) struct Planned<'a> {
    part: &'a Part,
    id: SnapshotId,
    reader: BackupReader,
    plan: RestorePlan,
}

/// Plans the restore of every part, outer places first; changes nothing.
///
/// # Errors
/// The first of the failures; the others were shown. [`ErrorKind::Damaged`] when the snapshot is not whole.
pub(crate) async fn plan_all<'a>(
    session: &Session<'_>,
    stack: &Stack,
    sink: &dyn Sink,
    chosen: &[Chosen<'a>],
    timeline: Option<&Timeline>,
    target: impl Fn(&Part) -> RestoreTarget,
) -> Result<Vec<Planned<'a>>> {
    let mut snapshots: BTreeMap<&SnapshotId, Arc<dyn SnapshotReader>> = BTreeMap::new();
    for (_, id) in chosen {
        if snapshots.contains_key(id) {
            continue;
        }
        snapshots.insert(id, session.unless_interrupted(sink.open(id)).await?);
        let of_it = chosen.iter().filter(|(_, other)| other == id);
        let names: Vec<_> = of_it.map(|(part, _)| part.name()).collect();
        refuse_damaged(session, sink, id, &names).await?;
    }
    let mut planned = Vec::new();
    let mut failures = Vec::new();
    for (part, id) in outer_first(chosen, |id| snapshots[id].manifest()) {
        let cx = session.context(part.name());
        let one = async {
            let reader = BackupReader::new(Arc::clone(&snapshots[id]), part.name().clone())?;
            let reader = reader.with_log(log_of(sink, part, timeline));
            let mut target = target(part);
            refuse_link(&target.place)?;
            target.neighbours = neighbours(stack, part, snapshots[id].manifest(), session.options.identity.as_deref());
            let plan = cx.unless_cancelled(part.engine.restorer.plan_restore(&cx, &reader, &target)).await?;
            Ok(Planned { part, id: id.clone(), reader, plan })
        };
        match one.await {
            Ok(one) => planned.push(one),
            Err(error) => failures.push(name_source(error, part)),
        }
    }
    if failures.is_empty() {
        return Ok(planned);
    }
    let first = failures.remove(0);
    for failure in &failures {
        session.output.error(failure);
    }
    Err(first)
}

/// The folder of a source below `--target` is ours to make: whoever may write there must not lead us elsewhere.
fn refuse_link(place: &Place) -> Result<()> {
    match place {
        Place::Folder(folder) if folder.is_symlink() => {
            Err(Error::new(ErrorKind::AlreadyExists, "a link stands where the source's folder must be")
                .with("path", folder.display())
                .hint("remove it, or choose another folder with `--target`"))
        }
        _ => Ok(()),
    }
}

fn name_source(error: Error, part: &Part) -> Error {
    if error.operation().is_some() { error } else { error.during(format!("restore `{}`", part.name())) }
}

/// The snapshot that all come from, when it is one; in JSON each source has its own, too.
fn common<'a>(mut ids: impl Iterator<Item = &'a SnapshotId>) -> Option<&'a SnapshotId> {
    let first = ids.next()?;
    ids.all(|id| id == first).then_some(first)
}

fn show_plans(session: &Session<'_>, planned: &[Planned<'_>]) -> Exit {
    let out = &session.output;
    for Planned { part, plan, id, .. } in planned {
        out.line(format!("{} from {id}: {}", out.paint().strong(part.name().as_str()), output::bytes(plan.bytes)));
        for step in &plan.steps {
            out.line(format!("  {step}"));
        }
        if let Some(changes) = &plan.changes {
            show_changes(session, changes);
        }
        for warning in &plan.warnings {
            out.warn(format!("{}: {warning}", part.name()));
        }
    }
    out.summary("nothing was changed");
    let sources: Vec<_> = planned
        .iter()
        .map(|Planned { part, plan, id, .. }| {
            json!({
                "name": part.name(), "snapshot": id, "steps": plan.steps, "bytes": plan.bytes, "warnings": plan.warnings,
                "changes": plan.changes,
            })
        })
        .collect();
    let id = common(planned.iter().map(|one| &one.id));
    out.result("restore", Exit::Done, &json!({ "dry_run": true, "snapshot": id, "sources": sources }));
    Exit::Done
}

/// So many paths are named for people; `--json` names all.
const SHOWN: usize = 10;

/// What becomes of what stands at the target.
fn show_changes(session: &Session<'_>, changes: &Changes) {
    let show = |what: &str, listed: &Listed| {
        if listed.count == 0 {
            return;
        }
        session.output.line(format!("  {what}: {}", output::count(listed.count)));
        for path in listed.paths.iter().take(SHOWN) {
            session.output.line(format!("    {}", path.escape_debug()));
        }
        let more = listed.count.saturating_sub(SHOWN as u64);
        if more > 0 {
            session.output.line(format!("    and {} more", output::count(more)));
        }
    };
    show("overwritten, for the snapshot has another state", &changes.overwritten);
    show("removed, for the snapshot does not have it", &changes.removed);
    show("of these, newer than the snapshot", &changes.newer);
    show("not in the snapshot, and kept", &changes.kept);
}

/// One source that was restored.
pub(crate) struct Restored<'a> {
    pub(crate) part: &'a Part,
    id: SnapshotId,
    pub(crate) report: RestoreReport,
    pub(crate) took: Duration,
}

/// Carries the plans out, in the plan's order, until one fails.
pub(crate) async fn restore_all<'a>(session: &Session<'_>, planned: Vec<Planned<'a>>) -> Result<Vec<Restored<'a>>> {
    let all: Vec<String> = planned.iter().map(|one| one.part.name().to_string()).collect();
    let mut done = Vec::new();
    for Planned { part, id, reader, plan } in planned {
        let cx = session.context(part.name());
        cx.check_cancelled()?;
        let begun = Instant::now();
        for warning in &plan.warnings {
            cx.warn(warning.clone());
        }
        cx.report(&Event::Started { source: part.name().clone(), work: "restore", expected_bytes: Some(plan.bytes) });
        let result = part.engine.restorer.restore(&cx, &reader, plan).await;
        let failure = result.as_ref().err().map(Error::chain);
        cx.report(&Event::Finished { source: part.name().clone(), failure });
        match result {
            Ok(report) => done.push(Restored { part, id, report, took: begun.elapsed() }),
            Err(error) => {
                if done.len() + 1 < all.len() {
                    session.output.note(format!("not restored: {}", all[done.len()..].join(", ")));
                }
                return Err(name_source(error, part));
            }
        }
    }
    Ok(done)
}

fn tell(session: &Session<'_>, done: &[Restored<'_>]) -> Exit {
    let out = &session.output;
    for Restored { part, id, report, took } in done {
        let (items, bytes) = (output::counted(report.items, "item"), output::bytes(report.bytes));
        let name = out.paint().good(part.name().as_str());
        out.summary(format!("{name} restored from {id}: {items}, {bytes} in {}", output::span(*took)));
        for place in &report.restored {
            out.summary(format!("  {place}"));
        }
        for warning in report.warnings.iter().chain(&report.lacking) {
            out.warn(format!("{}: {warning}", part.name()));
        }
    }
    let is_whole = done.iter().all(|one| one.report.lacking.is_empty());
    let exit = if is_whole { Exit::Done } else { Exit::Partial };
    let sources: Vec<_> = done
        .iter()
        .map(|one| {
            let seconds = output::seconds(one.took);
            json!({ "name": one.part.name(), "snapshot": one.id, "seconds": seconds, "report": one.report })
        })
        .collect();
    let id = common(done.iter().map(|one| &one.id));
    out.result("restore", exit, &json!({ "snapshot": id, "sources": sources }));
    exit
}
