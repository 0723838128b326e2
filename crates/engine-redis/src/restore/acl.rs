//! Putting saved access rules onto a running server, when they are asked for by `--select acl`.
//!
//! Invariant: a user's rules are replaced as a whole, and the users that we are, or might be, come last; when one line is
//! refused, every user is set back to what it was. No line is ever quoted: it holds hashes of passwords.

use std::collections::BTreeSet;

use backup_core::engine::{Existing, RestoreReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader};

use crate::companions::ACL;
use crate::connection::{Connection, Reply, refusal};
use crate::server::{allowed, setting};

/// The access rules of many thousand users.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;
const DEFAULT_USER: &str = "default";

/// One user: `user NAME RULE …`, as `ACL LIST` writes it.
#[derive(Clone, PartialEq, Eq)]
struct User {
    name: String,
    rules: Vec<String>,
}

/// The saved rules of a backup.
pub(crate) async fn saved(from: &BackupReader) -> Result<String> {
    let name = ArtifactName::new(ACL)?;
    if from.record().artifact(&name).is_none() {
        return Err(Error::new(ErrorKind::NotFound, "the backup has no access rules")
            .hint("they are saved when the plan's user may run ACL LIST, on servers from 6.0 on"));
    }
    Ok(String::from_utf8_lossy(&from.read(&name, MAX_BYTES).await?).into_owned())
}

/// Looks whether the rules can be put there; changes nothing.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when the server has users besides `default`, unless they may be replaced.
pub(crate) async fn plan(connection: &mut Connection, rules: &str, existing: Existing) -> Result<Vec<String>> {
    allowed(connection, &["ACL", "SETUSER", "x"]).await?;
    let (held, saved) = (held(connection).await?, parse(rules));
    let others: Vec<&str> = held.iter().map(|user| user.name.as_str()).filter(|name| *name != DEFAULT_USER).collect();
    if existing == Existing::Refuse && !others.is_empty() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("the server has users already: {}", others.join(", ")),
        )
        .hint("replace the rules of those that are in the backup with `--force`; the others stay as they are"));
    }
    Ok(saved.iter().map(|user| format!("set the access rules of the user `{}`", user.name)).collect())
}

/// Puts them there.
///
/// # Errors
/// What the server refuses; then the users are what they were before.
pub(crate) async fn put(connection: &mut Connection, rules: &str) -> Result<RestoreReport> {
    let before = held(connection).await?;
    let own = connection.ask(&["ACL", "WHOAMI"]).await?.text().unwrap_or_default();
    let mut users = parse(rules);
    users.sort_by_key(|user| (user.name == own, user.name == DEFAULT_USER));
    let mut report = RestoreReport::default();
    for (position, user) in users.iter().enumerate() {
        if let Err(error) = set(connection, user).await {
            let touched = &users[..=position];
            return Err(match undo(connection, touched, &before).await {
                Ok(()) => error,
                Err(_) => error.hint("some users have new rules, and could not be set back: look at ACL LIST"),
            });
        }
        report.restored.push(format!("access rules of the user `{}`", user.name));
        report.items += 1;
    }
    report.bytes = rules.len() as u64;
    let saved: BTreeSet<&str> = users.iter().map(|user| user.name.as_str()).collect();
    let kept: Vec<&str> = before.iter().map(|user| user.name.as_str()).filter(|name| !saved.contains(name)).collect();
    if !kept.is_empty() {
        report.warnings.push(format!("users that the backup does not know stay as they are: {}", kept.join(", ")));
    }
    report.warnings.extend(keep(connection).await?);
    Ok(report)
}

/// Makes the rules outlive the server, where it has a file for them; else says what to do.
async fn keep(connection: &mut Connection) -> Result<Option<String>> {
    if setting(connection, "aclfile").await?.is_some_and(|file| !file.is_empty()) {
        return Ok(match connection.ask(&["ACL", "SAVE"]).await? {
            Reply::Error(text) => Some(format!(
                "the rules are in force, but not in the server's file: {}",
                refusal("ACL SAVE", &text).message()
            )),
            _ => None,
        });
    }
    Ok(Some("the rules are in force until the server restarts: it has no `aclfile`; CONFIG REWRITE puts them into its configuration".to_owned()))
}

async fn set(connection: &mut Connection, user: &User) -> Result<()> {
    let mut command = vec!["ACL", "SETUSER", &user.name, "reset"];
    command.extend(user.rules.iter().map(String::as_str));
    match connection.ask(&command).await? {
        Reply::Error(_) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the server does not accept the access rules of the user `{}`", user.name),
        )
        .hint("they may name commands that it does not have; restore into a folder, and adapt acl.txt")),
        _ => Ok(()),
    }
}

async fn undo(connection: &mut Connection, touched: &[User], before: &[User]) -> Result<()> {
    for user in touched {
        match before.iter().find(|held| held.name == user.name) {
            Some(held) => set(connection, held).await?,
            None => drop(connection.call(&["ACL", "DELUSER", &user.name]).await?),
        }
    }
    Ok(())
}

async fn held(connection: &mut Connection) -> Result<Vec<User>> {
    let reply = connection.call(&["ACL", "LIST"]).await?;
    let lines: Vec<String> = reply.items().iter().filter_map(Reply::text).collect();
    Ok(parse(&lines.join("\n")))
}

fn parse(rules: &str) -> Vec<User> {
    let user = |line: &str| {
        let mut words = line.strip_prefix("user ")?.split(' ').map(str::to_owned);
        Some(User { name: words.next()?, rules: words.collect() })
    };
    rules.lines().filter_map(user).collect()
}
