//! `stackward demo`: the whole circle on a stack made up for it, with nothing to install, configure or lose.
//!
//! Invariant: servers and folders are gone afterwards, whether it succeeded, failed or was interrupted.

mod compare;
mod database;
mod made;
mod server;
mod story;
mod tree;

use std::path::Path;
use std::time::{Duration, Instant};

use backup_core::engine::RestoreTarget;
use backup_core::manifest::Manifest;
use backup_core::sink::Sink;
use backup_core::{Error, ErrorKind, Result};
use serde_json::json;

use self::compare::State;
use self::made::Made;
use self::story::Story;
use super::{backup, drill, key, restore};
use crate::args::{DemoArgs, GlobalArgs};
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::sinks::keys;
use crate::stack::{Access, Part, Stack, key_beside};

pub(crate) async fn run(session: &Session<'_>, args: &DemoArgs) -> Result<Exit> {
    let folder = made::folder()?;
    let mut made = Made::new(folder.path());
    // Whatever happened, the servers are stopped before the folder goes.
    let ended = tell(session, &mut made).await;
    let stopped = made.stop().await;
    if args.keep {
        let kept = folder.keep();
        session.output.note(format!("kept {}", kept.display()));
    } else if let Err(source) = folder.close() {
        session.output.warn(format!("the demo's folder could not be removed: {source}"));
    }
    let exit = ended.map_err(|error| match error.kind() {
        ErrorKind::Interrupted => Error::new(ErrorKind::Interrupted, "interrupted; the demo cleaned up after itself"),
        _ => error,
    })?;
    stopped.map(|()| exit)
}

/// What is told at the end.
struct Measured {
    first: Manifest,
    second: Manifest,
    restore_time: Duration,
    restored_bytes: u64,
    state: State,
    drill: drill::Measured,
}

async fn tell(session: &Session<'_>, made: &mut Made) -> Result<Exit> {
    let story = Story::begin(session, &made.folder);
    story.step("Make a small stack, and keep it busy");
    session.unless_interrupted(made.build(&story)).await?;

    story.step("Write a plan, make a key pair, create an encrypted repository");
    story.command("stackward init");
    write_plan(made)?;
    let options = GlobalArgs { plan: Some(made.plan()), identity: None, ..session.options.clone() };
    let session =
        &Session { options: &options, output: session.output.clone(), cancel: session.cancel.clone(), ..*session };
    let stack = Stack::load(session)?;
    let created = session.unless_interrupted(session.world.sinks.create(&stack.plan.sink, &stack.folder)).await?;
    story.line(format!("{}, readable with the private key only", output::the(&created.description)));

    story.step("Back it up while it is being written to");
    let first = back_up(session, &story, &stack).await?;

    story.step("Change a little, and back up again: only what changed is stored");
    story.line(made.change()?);
    let second = back_up(session, &story, &stack).await?;
    story.line(saved(&first, &second));

    story.step("Let it come to rest, back up a last time, and write down every byte and every row");
    made.rest().await?;
    back_up(session, &story, &stack).await?;
    let before = session.unless_interrupted(State::of(made)).await?;
    story.line(before.describe());

    story.step("Destroy it");
    for line in made.destroy().await? {
        story.command(&line);
    }

    story.step("Put it back");
    story.command("stackward restore");
    let sink = stack.open(session, Access::Read).await?;
    let (restore_time, restored_bytes) = put_back(session, &stack, sink.as_ref(), &story).await?;

    story.step("Compare every byte and every row with what was written down");
    let after = session.unless_interrupted(State::of(made)).await?;
    let differences = before.differences(&after);
    if let Some(first) = differences.first() {
        let amount = output::counted(differences.len() as u64, "difference");
        return Err(Error::new(
            ErrorKind::DrillFailed,
            format!("what was restored is not what was destroyed: {amount}"),
        )
        .caused_by(first.clone())
        .hint("this is a defect; please report it with this output"));
    }
    story.good(format!("{}: all the same. Lost: nothing", after.describe()));

    story.step("Prove the backup without touching the stack");
    story.command("stackward drill");
    let drill = drill_all(session, &stack, sink.as_ref(), &story).await?;
    let measured = Measured { first, second, restore_time, restored_bytes, state: after, drill };
    close(session, &story, &measured);
    Ok(Exit::Done)
}

fn write_plan(made: &Made) -> Result<()> {
    let pair = keys::generate();
    key::write_secret(&key_beside(&made.plan()), &key::key_file(&pair))?;
    let failed = |source| Error::io("cannot write the plan", made.plan(), source);
    std::fs::write(made.plan(), made.plan_text(&pair.recipient)).map_err(failed)
}

async fn back_up(session: &Session<'_>, story: &Story<'_>, stack: &Stack) -> Result<Manifest> {
    story.command("stackward backup");
    let parts: Vec<&Part> = stack.parts.iter().collect();
    let sink = stack.open(session, Access::Write).await?;
    let manifest = backup::back_up(session, stack, &parts, sink.as_ref()).await?;
    for source in manifest.sources.iter().filter(|source| !source.is_complete()) {
        let message = format!("`{}` could not be backed up", source.name);
        let backup_core::manifest::SourceOutcome::Failed { reason, .. } = &source.outcome else { continue };
        return Err(Error::new(ErrorKind::Incomplete, message).caused_by(reason.clone()));
    }
    for line in backup::table(&manifest).lines() {
        story.line(line);
    }
    Ok(manifest)
}

/// What the second run did not have to store.
fn saved(first: &Manifest, second: &Manifest) -> String {
    let (before, now) = (first.stored_bytes().max(1), second.stored_bytes());
    let tenths = u128::from(now) * 1000 / u128::from(before);
    format!(
        "stored {} where the first run stored {}: {}.{} %",
        output::bytes(now),
        output::bytes(before),
        tenths / 10,
        tenths % 10
    )
}

async fn put_back(session: &Session<'_>, stack: &Stack, sink: &dyn Sink, story: &Story<'_>) -> Result<(Duration, u64)> {
    let parts: Vec<&Part> = stack.parts.iter().collect();
    let begun = Instant::now();
    let id = crate::stack::latest(sink, &stack.plan.name).await?;
    let chosen: Vec<_> = parts.iter().map(|part| (*part, id.clone())).collect();
    let planned = restore::plan_all(session, stack, sink, &chosen, None, |_| RestoreTarget::default()).await?;
    let done = restore::restore_all(session, planned).await?;
    let took = begun.elapsed();
    let mut bytes = 0;
    for one in &done {
        bytes += one.report.bytes;
        let (items, size) = (output::counted(one.report.items, "item"), output::bytes(one.report.bytes));
        story.line(format!("{}: {items}, {size} in {}", one.part.name(), output::span(one.took)));
        for warning in &one.report.warnings {
            story.line(format!("  {warning}"));
        }
    }
    Ok((took, bytes))
}

async fn drill_all(
    session: &Session<'_>,
    stack: &Stack,
    sink: &dyn Sink,
    story: &Story<'_>,
) -> Result<drill::Measured> {
    let parts: Vec<&Part> = stack.parts.iter().collect();
    let id = crate::stack::latest(sink, &stack.plan.name).await?;
    let mut measured = drill::drill(session, sink, &id, &parts, &drill::DrillPlace::default()).await?;
    if let Some(error) = measured.failed.pop() {
        return Err(error);
    }
    for (name, report) in &measured.sources {
        let (items, restore) = (output::counted(report.items, "item"), output::span(report.restore_time));
        story.line(format!("{name}: restored into a scratch place in {restore}, {items} compared"));
    }
    if let Some(finding) = measured.findings(stack.plan.promise).first() {
        return Err(Error::new(ErrorKind::DrillFailed, "the drill failed").caused_by(finding.clone()));
    }
    Ok(measured)
}

fn close(session: &Session<'_>, story: &Story<'_>, measured: &Measured) {
    let Measured { first, second, restore_time, restored_bytes, state, drill } = measured;
    story.heading("Measured");
    story.line(format!(
        "first backup    {} stored for {}",
        output::bytes(first.stored_bytes()),
        output::bytes(first.bytes())
    ));
    story.line(format!("second backup   {} stored", output::bytes(second.stored_bytes())));
    story.line(format!("restore         {} for {}", output::span(*restore_time), output::bytes(*restored_bytes)));
    story.line(format!("drill           {}", output::span(drill.restore_time())));
    story.line("lost            nothing");
    story.heading("The same for your own stack");
    for (command, what) in [
        ("stackward init", "writes a plan from what it finds on your machine"),
        ("stackward validate --online", "asks every source whether a backup would work"),
        ("stackward backup", "makes a snapshot"),
        ("stackward drill", "proves it"),
        ("stackward restore", "puts it back"),
    ] {
        story.line(format!("{command:<28} {what}"));
    }
    let body = json!({
        "first_bytes": first.bytes(), "first_stored_bytes": first.stored_bytes(),
        "second_stored_bytes": second.stored_bytes(),
        "restore_seconds": output::seconds(*restore_time), "restored_bytes": restored_bytes,
        "drill_restore_seconds": output::seconds(drill.restore_time()),
        "compared_files": state.files(), "compared_rows": state.rows(), "differences": 0,
    });
    session.output.result("demo", Exit::Done, &body);
}

/// A folder for someone else's server must be passable for it.
fn passable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(|source| Error::io("cannot prepare the folder", path, source))
}
