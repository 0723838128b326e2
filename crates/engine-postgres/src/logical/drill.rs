//! The drill: everything into a scratch server, then the same questions as at the backup, and the server's own checks.
//!
//! Invariant: nothing outside the scratch folder is touched, and the scratch server does not outlive the drill.

use std::time::Instant;

use async_trait::async_trait;
use backup_core::engine::{DrillReport, Driller, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::HostProcess;
use backup_core::manifest::Fingerprint;
use backup_core::{BackupReader, RunContext};
use tokio::io::AsyncReadExt;

use super::Logical;
use super::blueprint::{self, Item, Purpose};
use super::catalog::{self, Connected};
use super::details::{Details, objects_group, tables_group, views_group};
use super::fingerprint::{self, Unlogged};
use super::load::Loader;
use super::restore::report;
use super::verify::is_damage;
use super::views::put_to_sleep;
use crate::psql::Psql;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::text::shown;
use crate::tools::{PgVersion, Tools};

/// The role that `initdb` makes when the manifest does not tell the original's.
const DEFAULT_SUPERUSER: &str = "postgres";
/// How much of what `pg_amcheck` found goes into the finding.
const TOLD_BYTES: usize = 2048;
/// How much of it is looked at.
const READ_BYTES: usize = 1024 * 1024;

#[async_trait]
impl Driller for Logical {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        let details = match Details::of(from.record()) {
            Ok(details) => details,
            Err(error) => return Ok(DrillReport { findings: vec![error.chain()], ..DrillReport::default() }),
        };
        let saved = PgVersion(details.cluster.version_number);
        let superuser = details.cluster.bootstrap_role.as_deref().unwrap_or(DEFAULT_SUPERUSER);
        let tools = self.tools.server(saved).await?;
        cx.step("starting a scratch server");
        let start =
            Scratch::start(cx, &self.server.host, tools.clone(), (superuser, details.encoding()), self.server.run_as());
        let scratch = cx.unless_cancelled(start).await?;
        let outcome = self.run(cx, from, &details, &scratch, tools).await;
        // Stopped and removed whatever came out; should stopping fail, dropping kills it.
        let stopped = scratch.stop().await;
        let report = outcome?;
        stopped.map(|()| report)
    }
}

impl Logical {
    async fn run(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &Details,
        scratch: &Scratch,
        tools: Tools,
    ) -> Result<DrillReport> {
        let mut drill = DrillReport::default();
        let started = Instant::now();
        let target = RestoreTarget::default();
        let drawn = cx.unless_cancelled(async {
            let mut session = catalog::connect_maintenance(&scratch.server, &tools, None).await?;
            let facts = catalog::facts(&mut session).await?;
            let server = scratch.server.clone();
            let mut connected = Connected { session, server: server.clone(), facts, tools };
            let drawn = blueprint::draw(&server, &mut connected, details, &target, Purpose::Drill).await;
            drawn.map(|blueprint| (connected, blueprint))
        });
        let (mut connected, blueprint) = drawn.await.map_err(|error| error.during("prepare the drill"))?;
        let jobs = self.settings.jobs;
        let loader = Loader { cx, server: &scratch.server, connected: &connected, from, jobs, blueprint: &blueprint };
        let outcome = match loader.run().await {
            Ok(outcome) => outcome,
            Err(error) if is_damage(&error) => {
                drill.restore_time = started.elapsed();
                drill.findings.push(format!("the backup does not restore: {}", shown(&error.chain())));
                return Ok(drill);
            }
            Err(error) => return Err(error),
        };
        drill.restore_time = started.elapsed();
        drill.bytes = report(from, &outcome.items).bytes;
        drill.checked.push(format!(
            "{} databases restored onto PostgreSQL {}",
            outcome.items.len(),
            connected.facts.version
        ));
        drill.checked.push(scratch.isolation.to_string());
        // What a restore would lack, a drill has found.
        drill.findings.extend(outcome.lacking);
        drill.checked.extend(outcome.warnings);
        // The first session may have been in a database that was replaced.
        let spellings = cx.unless_cancelled(async {
            let mut session = catalog::connect_maintenance(&connected.server, &connected.tools, None).await?;
            catalog::spellings(&mut session).await
        });
        connected.server = connected.server.spelling(spellings.await?);
        let asked = Instant::now();
        cx.unless_cancelled(self.ask(cx, from, (details, &outcome.items), &connected, &mut drill)).await?;
        drill.check_time = asked.elapsed();
        Ok(drill)
    }

    async fn ask(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        (details, items): (&Details, &[Item]),
        connected: &Connected,
        drill: &mut DrillReport,
    ) -> Result<()> {
        let saved = &from.record().fingerprint;
        let unlogged = if details.cluster.standby { Unlogged::Skip } else { Unlogged::Count };
        let mut restored = Fingerprint::default();
        let mut extensions = 0;
        for database in items.iter().map(|item| &item.details) {
            cx.step(format!("comparing the database {}", shown(&database.name)));
            let mut session = Psql::connect(&connected.server, &connected.tools, &database.name).await?;
            let select = "SELECT extname AS name FROM pg_extension";
            let wanted = database.extensions.iter().map(|extension| extension.name.as_str());
            for name in catalog::missing(&mut session, select, wanted).await? {
                drill.findings.push(format!(
                    "the extension `{}` of `{}` was not restored",
                    shown(&name),
                    shown(&database.name)
                ));
            }
            extensions += database.extensions.len();
            if !saved.is_empty() {
                let tables = fingerprint::list(&mut session, unlogged).await?;
                let counted = fingerprint::count(cx, &mut session, &tables).await?;
                let compared = counted.0.values().flat_map(|items| items.values());
                drill.items += compared.sum::<u64>();
                fingerprint::merge(&mut restored, counted);
            }
            session.close().await?;
        }
        let saved = &of_items(saved, details, items);
        let (saved_views, saved_data) = views_apart(saved, details);
        let (restored_views, restored_data) = views_apart(&restored, details);
        drill.findings.extend(saved_data.differences(&restored_data).iter().map(|line| shown(line)));
        let views = saved_views.differences(&restored_views);
        drill.checked.extend(views.into_iter().map(|line| format!("{} (computed anew, not a loss)", shown(&line))));
        let tables: usize = restored.0.values().map(std::collections::BTreeMap::len).sum();
        drill.fingerprint = restored;
        if !saved.is_empty() {
            drill.checked.push(format!("{} rows in {tables} groups compared with the fingerprint", drill.items));
        }
        drill.checked.push(format!("{extensions} extensions present"));
        amcheck(cx, &connected.server, &connected.tools, self.settings.jobs, drill).await
    }
}

/// Lets a scratch server check every table and index against each other.
///
/// # Errors
/// When it could not look; what it finds is a finding.
pub(crate) async fn amcheck(
    cx: &RunContext,
    server: &Server,
    tools: &Tools,
    jobs: usize,
    drill: &mut DrillReport,
) -> Result<()> {
    let host = &*server.host;
    let mut session = catalog::connect_maintenance(server, tools, None).await?;
    let absent = catalog::missing(&mut session, "SELECT name FROM pg_available_extensions", ["amcheck"]).await?;
    let select = "SELECT datname AS name FROM pg_database WHERE datallowconn ORDER BY 1";
    let databases = catalog::names(&mut session, select).await?;
    session.close().await?;
    if !absent.is_empty() || !tools.has(host, "pg_amcheck").await {
        drill.checked.push("pg_amcheck is not installed here; tables and indexes were not checked".to_owned());
        return Ok(());
    }
    for database in databases {
        // They could forbid what is needed to check.
        let mut session = Psql::connect(server, tools, &database).await?;
        put_to_sleep(&mut session).await?;
        session.close().await?;
    }
    cx.step("checking tables and indexes");
    let command = server
        .command(tools.program("pg_amcheck"))?
        .args(["--all", "--install-missing", "--heapallindexed"])
        .arg(format!("--jobs={jobs}"))
        .env("PGHOST", &server.endpoint.host)
        .env("PGPORT", server.endpoint.port.to_string())
        .env("PGUSER", &server.endpoint.user);
    let mut process = host.spawn(command).await?;
    let told = first(&mut process, READ_BYTES).await?;
    let status = process.status().await?;
    let (unchecked, told) = unchecked_apart(&told);
    let only_unchecked = told.is_empty() && !unchecked.is_empty();
    drill.checked.extend(unchecked);
    match status {
        Some(2) if only_unchecked => {
            drill.checked.push("pg_amcheck found every other table and index sound".to_owned());
        }
        Some(0) => drill.checked.push("pg_amcheck found every table and index sound".to_owned()),
        // 2: it looked, and found something.
        Some(2) => drill.findings.push(format!("pg_amcheck found corruption: {}", shown(&told))),
        _ => {
            let error = Error::new(ErrorKind::Tool, "pg_amcheck could not check the restored databases");
            return Err(error.caused_by(process.stderr_tail().trim().to_owned()));
        }
    }
    Ok(())
}

/// Without the counts of databases that are not there: that they are not is told already.
fn of_items(fingerprint: &Fingerprint, details: &Details, items: &[Item]) -> Fingerprint {
    let absent =
        details.databases.iter().filter(|database| !items.iter().any(|item| item.details.name == database.name));
    let groups: Vec<String> = absent
        .flat_map(|database| [tables_group(&database.name), views_group(&database.name), objects_group(&database.name)])
        .collect();
    Fingerprint(fingerprint.0.clone().into_iter().filter(|(group, _)| !groups.contains(group)).collect())
}

/// Parts a fingerprint into the counts of materialized views, which a restore computes anew, and those of data.
fn views_apart(fingerprint: &Fingerprint, details: &Details) -> (Fingerprint, Fingerprint) {
    let groups: Vec<String> = details.databases.iter().map(|database| views_group(&database.name)).collect();
    let (views, data) = fingerprint.0.clone().into_iter().partition(|(group, _)| groups.contains(group));
    (Fingerprint(views), Fingerprint(data))
}

/// Parts what `pg_amcheck` says into what it could not check and what it found. It compares an index with its table without a
/// search path, so that a function that depends on one finds nothing: that is no corruption, and such an index works where it is used.
fn unchecked_apart(told: &str) -> (Vec<String>, String) {
    let mut blocks: Vec<String> = Vec::new();
    for line in told.lines() {
        match blocks.last_mut() {
            Some(block) if line.starts_with(char::is_whitespace) => block.extend(["\n", line]),
            _ => blocks.push(line.to_owned()),
        }
    }
    // What was cut off may be anything.
    let is_whole = told.len() < READ_BYTES;
    let is_unchecked = |block: &String| {
        let mut errors = block.lines().filter(|line| line.trim_start().starts_with("ERROR:")).peekable();
        is_whole && errors.peek().is_some() && errors.all(|line| line.ends_with(" does not exist"))
    };
    let (unchecked, found): (Vec<String>, Vec<String>) = blocks.into_iter().partition(is_unchecked);
    let tell = |block: &String| format!("not compared with its table, for want of a search path: {}", shown(block));
    let found = found.join("\n");
    let mut end = found.len().min(TOLD_BYTES);
    while !found.is_char_boundary(end) {
        end -= 1;
    }
    (unchecked.iter().map(tell).collect(), found[..end].to_owned())
}

/// The beginning of what a tool prints; the rest is read and forgotten.
pub(crate) async fn beginning(process: &mut HostProcess) -> Result<String> {
    first(process, TOLD_BYTES).await
}

async fn first(process: &mut HostProcess, bytes: usize) -> Result<String> {
    let Some(mut stdout) = process.take_stdout() else { return Ok(String::new()) };
    let mut told = Vec::new();
    let failed = |source| Error::from_io("cannot read the output of a tool", source);
    (&mut stdout).take(bytes as u64).read_to_end(&mut told).await.map_err(failed)?;
    tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.map_err(failed)?;
    Ok(String::from_utf8_lossy(&told).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_checked_is_no_corruption() {
        let missing =
            "btree index \"db.public.i\":\n    ERROR:  function helper(integer) does not exist\n    LINE 1: helper(n)";
        let corrupt = "heap table \"db.public.t\", block 0:\n    invalid toast\nbtree index \"db.public.j\":\n    ERROR:  heap tuple \
                       (0,1) from table \"t\" lacks matching index tuple within index \"j\"";
        assert_eq!(unchecked_apart(""), (Vec::new(), String::new()));
        let (unchecked, found) = unchecked_apart(&format!("{missing}\n{corrupt}"));
        assert_eq!((unchecked.len(), found.as_str()), (1, corrupt));
        assert!(unchecked_apart(missing).1.is_empty());
        let long = format!("{missing}\n").repeat(READ_BYTES / missing.len() + 1);
        assert_eq!(unchecked_apart(&long).1.len(), TOLD_BYTES, "what is not seen to the end is a finding");
    }
}
