//! `stackward key`: makes key pairs, and says who can read the repository.

use std::path::Path;

use backup_core::plan::{RepositoryConfig, SinkConfig};
use backup_core::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde_json::json;

use crate::args::KeyCommand;
use crate::exit::Exit;
use crate::output::{self, Align, Table};
use crate::session::Session;
use crate::sinks::{Repository, keys};
use crate::stack::{Access, Stack, unlock};

pub(crate) async fn run(session: &Session<'_>, command: &KeyCommand) -> Result<Exit> {
    match command {
        KeyCommand::Generate { output } => generate(session, output.as_deref()),
        KeyCommand::List => session.unless_interrupted(list(session)).await,
        KeyCommand::Add { recipient } => change(session, recipient, Change::Add).await,
        KeyCommand::Remove { recipient } => change(session, recipient, Change::Remove).await,
        KeyCommand::Enroll => enroll(session).await,
    }
}

/// A key file as `age-keygen` writes it.
pub(crate) fn key_file(pair: &keys::KeyPair) -> String {
    let created = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("# created: {created}\n# public key: {}\n{}\n", pair.recipient, pair.identity.expose())
}

/// Writes a new file that only its owner can read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| Error::io("cannot write the private key", path, source);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

fn generate(session: &Session<'_>, path: Option<&Path>) -> Result<Exit> {
    let pair = keys::generate();
    let Some(path) = path else {
        super::refuse_json(session, "key generate", "prints a private key")?;
        session.output.line(key_file(&pair).trim_end());
        return Ok(Exit::Done);
    };
    write_secret(path, &key_file(&pair))?;
    session.output.line(&pair.recipient);
    session.output.result("key generate", Exit::Done, &json!({ "recipient": pair.recipient, "file": path }));
    Ok(Exit::Done)
}

fn config(stack: &Stack) -> Result<&RepositoryConfig> {
    match &stack.plan.sink {
        SinkConfig::Repository(config) => Ok(config),
        SinkConfig::Directory(_) => Err(Error::new(ErrorKind::Usage, "a plain directory has no keys")
            .hint("keep snapshots in a `repository` to have them encrypted")),
    }
}

async fn repository(session: &Session<'_>, stack: &Stack) -> Result<Repository> {
    let keys = unlock(session, stack, Access::Read)?;
    session.world.sinks.repository(config(stack)?, &stack.folder, &keys).await
}

async fn list(session: &Session<'_>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let recipients = repository(session, &stack).await?.recipients().await?;
    let mut table = Table::new(&[("PUBLIC KEY", Align::Left), ("ADDED", Align::Left), ("OPENED BY", Align::Left)]);
    for info in &recipients {
        let opened_by = if info.passphrase { "the passphrase" } else { "its private key" };
        table.row([info.recipient.clone(), output::moment(info.added), opened_by.to_owned()]);
    }
    for line in table.lines() {
        session.output.line(line);
    }
    let shown: Vec<_> = recipients
        .iter()
        .map(|info| json!({ "recipient": info.recipient, "added": info.added, "passphrase": info.passphrase }))
        .collect();
    session.output.result("key list", Exit::Done, &json!({ "recipients": shown }));
    Ok(Exit::Done)
}

enum Change {
    Add,
    Remove,
}

async fn change(session: &Session<'_>, recipient: &str, change: Change) -> Result<Exit> {
    keys::check_recipient(recipient)?;
    let stack = Stack::load(session)?;
    let repository = repository(session, &stack).await?;
    let (command, can, rewrapped) = match change {
        Change::Add => ("key add", "can now read", repository.add_recipient(recipient).await?),
        Change::Remove => ("key remove", "can no longer read", repository.remove_recipient(recipient).await?),
    };
    let path = stack.path.display();
    session.output.summary(format!("{recipient} {can} the repository ({rewrapped} keys wrapped anew)"));
    match change {
        Change::Add => {
            session.output.note(format!("add it to `recipients` in {path}: backups are refused while the two differ"));
        }
        Change::Remove => {
            session
                .output
                .note(format!("remove it from `recipients` in {path}: backups are refused while the two differ"));
            session.output.note("whoever copied old objects and their keys before can still read those copies");
        }
    }
    session.output.result(command, Exit::Done, &json!({ "recipient": recipient, "rewrapped": rewrapped }));
    Ok(Exit::Done)
}

async fn enroll(session: &Session<'_>) -> Result<Exit> {
    let stack = Stack::load(session)?;
    let path = repository(session, &stack).await?.enroll()?;
    session.output.summary(format!("this machine can write to the repository; its key is {}", path.display()));
    session.output.result("key enroll", Exit::Done, &json!({ "file": path }));
    Ok(Exit::Done)
}
