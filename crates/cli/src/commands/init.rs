//! `stackward init`: from an empty machine to a repository that a first backup can go to.
//!
//! Invariant: nothing that exists is overwritten; a second run finishes what a first one began.

mod compose;

use std::path::{Path, PathBuf};

use backup_core::engine::Discovered;
use backup_core::{Error, PlanName, Result};
use serde_json::json;

use super::key::{key_file, write_secret};
use crate::args::InitArgs;
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::sinks::{Created, keys};
use crate::stack::{DEFAULT_PLAN, Stack, key_beside, locate};

pub(crate) async fn run(session: &Session<'_>, args: &InitArgs) -> Result<Exit> {
    let plan = match (&session.options.plan, locate(None)) {
        (Some(named), _) => named.clone(),
        (None, Ok(found)) => found,
        (None, Err(_)) => PathBuf::from(DEFAULT_PLAN),
    };
    if plan.exists() {
        if args.repository.is_some() || args.name.is_some() {
            return Err(Error::new(
                backup_core::ErrorKind::AlreadyExists,
                format!("the plan {} exists, and is never overwritten", plan.display()),
            )
            .hint("change the plan by hand, or leave `--repository` and `--name` out to create what it names"));
        }
        return create(session, args, &Written { plan, key: None, sources: Vec::new() }).await;
    }
    let found: Vec<_> = session.world.engines.iter().flat_map(compose::discover).collect();
    let name = args.name.clone().map_or_else(|| compose::plan_name(&session.world.host), Ok)?;
    let key = key_beside(&plan);
    if args.dry_run {
        return preview(session, args, &name, &found, &key);
    }
    let (recipient, key) = find_or_make_key(&key)?;
    let text = plan_text(args, &name, &recipient, &found);
    // A plan that we would refuse ourselves must not be written.
    let composed = Stack::build(session, &plan, &text).map_err(|error| error.during("compose the plan"))?;
    session.world.sinks.check(&composed.plan.sink, &composed.folder)?;
    write_new(&plan, &text)?;
    let sources = found.into_iter().map(|(_, found)| found).collect();
    create(session, args, &Written { plan, key: Some(key), sources }).await
}

/// What `init` wrote before it created the repository.
struct Written {
    plan: PathBuf,
    /// The private key's file and whether this run made it; `None` when the plan was there before.
    key: Option<(PathBuf, bool)>,
    sources: Vec<Discovered>,
}

fn plan_text(args: &InitArgs, name: &PlanName, recipient: &str, found: &[(&str, Discovered)]) -> String {
    let url = args.repository.clone().unwrap_or_else(|| compose::default_repository(name));
    compose::plan(name, &url, recipient, found)
}

fn preview(
    session: &Session<'_>,
    args: &InitArgs,
    name: &PlanName,
    found: &[(&str, Discovered)],
    key: &Path,
) -> Result<Exit> {
    let recipient = if key.exists() { public_half(key)? } else { "age1-made-by-init".to_owned() };
    let text = plan_text(args, name, &recipient, found);
    session.output.line(text.trim_end());
    session.output.note("nothing was written; without --dry-run this becomes the plan");
    session.output.result("init", Exit::Done, &json!({ "dry_run": true, "plan_text": text, "key": key }));
    Ok(Exit::Done)
}

/// The public key for the plan, and where its private half is; made unless an earlier run did.
fn find_or_make_key(path: &Path) -> Result<(String, (PathBuf, bool))> {
    if path.exists() {
        return Ok((public_half(path)?, (path.to_owned(), false)));
    }
    let pair = keys::generate();
    write_secret(path, &key_file(&pair))?;
    Ok((pair.recipient, (path.to_owned(), true)))
}

fn public_half(path: &Path) -> Result<String> {
    let identities = keys::read_identities(path)?;
    let first = identities.first().ok_or_else(|| {
        Error::new(backup_core::ErrorKind::WrongKey, format!("{} holds no private key", path.display()))
            .hint("remove the file to have a new key made")
    })?;
    keys::recipient_of(first)
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let failed = |source| Error::io("cannot write the plan", path, source);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

async fn create(session: &Session<'_>, args: &InitArgs, written: &Written) -> Result<Exit> {
    let options = crate::args::GlobalArgs { plan: Some(written.plan.clone()), ..session.options.clone() };
    let session =
        &Session { options: &options, output: session.output.clone(), cancel: session.cancel.clone(), ..*session };
    let stack = Stack::load(session)?;
    let out = &session.output;
    if args.dry_run {
        out.line(format!("the plan {} exists; without --dry-run its repository is created", written.plan.display()));
        out.result("init", Exit::Done, &json!({ "dry_run": true, "plan": written.plan }));
        return Ok(Exit::Done);
    }
    let creating = session.world.sinks.create(&stack.plan.sink, &stack.folder);
    let created = session.unless_interrupted(creating).await?;
    tell(session, written, &created);
    Ok(Exit::Done)
}

fn tell(session: &Session<'_>, written: &Written, created: &Created) {
    let out = &session.output;
    if let Some((key, made)) = &written.key {
        out.summary(format!("wrote {}", written.plan.display()));
        for source in &written.sources {
            out.summary(format!("  {}: {}", source.name, source.because));
        }
        out.summary(format!("{} {}", if *made { "wrote" } else { "used" }, key.display()));
    }
    if created.created {
        out.summary(format!("created {}", output::the(&created.description)));
    } else {
        out.summary(format!("{} was there already", output::the(&created.description)));
    }
    for note in &created.notes {
        out.note(note);
    }
    if let Some((key, _)) = &written.key {
        warn_of_key(session, key);
        out.summary(format!("next: look through {}, then `stackward backup`", written.plan.display()));
    }
    let body = json!({
        "plan": written.plan, "key": written.key.as_ref().map(|(key, _)| key),
        "sources": written.sources.iter().map(|source| &source.name).collect::<Vec<_>>(),
        "sink": created.description, "created": created.created, "notes": created.notes,
    });
    out.result("init", Exit::Done, &body);
}

/// The one thing that a reader of this output must not overlook.
fn warn_of_key(session: &Session<'_>, key: &Path) {
    session.output.warn(format!(
        "{} is the only key that can read your backups.\n         \
         Move it off this machine, and keep two copies in different places: backups need only the public key\n         \
         that is in the plan. Without the private key nothing can be restored, by anybody.",
        key.display()
    ));
}
