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
use super::blueprint::{self, Purpose};
use super::catalog::{self, Connected};
use super::details::{Details, views_group};
use super::fingerprint::{self, Unlogged};
use super::load::Loader;
use super::restore::report;
use super::verify::is_damage;
use crate::psql::Psql;
use crate::scratch::Scratch;
use crate::server::Server;
use crate::tools::{PgVersion, Tools};

/// The role that `initdb` makes when the manifest does not tell the original's.
const DEFAULT_SUPERUSER: &str = "postgres";
/// How much of what `pg_amcheck` found goes into the finding.
const TOLD_BYTES: u64 = 2048;

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
        let start = Scratch::start(cx, &self.server.host, tools.clone(), superuser, self.server.run_as());
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
            let mut connected = Connected { session, facts, tools };
            let drawn = blueprint::draw(&scratch.server, &mut connected, details, &target, Purpose::Drill).await;
            drawn.map(|blueprint| (connected, blueprint))
        });
        let (connected, blueprint) = drawn.await.map_err(|error| error.during("prepare the drill"))?;
        let jobs = self.settings.jobs;
        let loader = Loader { cx, server: &scratch.server, connected: &connected, from, jobs, blueprint: &blueprint };
        if let Err(error) = loader.run().await {
            if !is_damage(&error) {
                return Err(error);
            }
            drill.restore_time = started.elapsed();
            drill.findings.push(format!("the backup does not restore: {}", error.chain()));
            return Ok(drill);
        }
        drill.restore_time = started.elapsed();
        drill.bytes = report(from, &blueprint).bytes;
        drill.checked.push(format!(
            "{} databases restored onto PostgreSQL {}",
            blueprint.items.len(),
            connected.facts.version
        ));
        drill.checked.push(scratch.isolation.to_string());
        let asked = Instant::now();
        cx.unless_cancelled(self.ask(cx, from, details, scratch, &connected, &mut drill)).await?;
        drill.check_time = asked.elapsed();
        Ok(drill)
    }

    async fn ask(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &Details,
        scratch: &Scratch,
        connected: &Connected,
        drill: &mut DrillReport,
    ) -> Result<()> {
        let saved = &from.record().fingerprint;
        let unlogged = if details.cluster.standby { Unlogged::Skip } else { Unlogged::Count };
        let mut restored = Fingerprint::default();
        let mut extensions = 0;
        for database in &details.databases {
            cx.step(format!("comparing the database {}", database.name));
            let mut session = Psql::connect(&scratch.server, &connected.tools, &database.name).await?;
            let select = "SELECT extname AS name FROM pg_extension";
            let wanted = database.extensions.iter().map(|extension| extension.name.as_str());
            for name in catalog::missing(&mut session, select, wanted).await? {
                drill.findings.push(format!("the extension `{name}` of `{}` was not restored", database.name));
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
        let (saved_views, saved_data) = views_apart(saved, details);
        let (restored_views, restored_data) = views_apart(&restored, details);
        drill.findings.extend(saved_data.differences(&restored_data));
        let views = saved_views.differences(&restored_views);
        drill.checked.extend(views.into_iter().map(|line| format!("{line} (computed anew, not a loss)")));
        let tables: usize = restored.0.values().map(std::collections::BTreeMap::len).sum();
        drill.fingerprint = restored;
        if !saved.is_empty() {
            drill.checked.push(format!("{} rows in {tables} groups compared with the fingerprint", drill.items));
        }
        drill.checked.push(format!("{extensions} extensions present"));
        amcheck(cx, &scratch.server, &connected.tools, self.settings.jobs, drill).await
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
    session.close().await?;
    if !absent.is_empty() || !tools.has(host, "pg_amcheck").await {
        drill.checked.push("pg_amcheck is not installed here; tables and indexes were not checked".to_owned());
        return Ok(());
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
    let told = beginning(&mut process).await?;
    match process.status().await? {
        Some(0) => drill.checked.push("pg_amcheck found every table and index sound".to_owned()),
        // 2: it looked, and found something.
        Some(2) => drill.findings.push(format!("pg_amcheck found corruption: {told}")),
        _ => {
            let error = Error::new(ErrorKind::Tool, "pg_amcheck could not check the restored databases");
            return Err(error.caused_by(process.stderr_tail().trim().to_owned()));
        }
    }
    Ok(())
}

/// Parts a fingerprint into the counts of materialized views, which a restore computes anew, and those of data.
fn views_apart(fingerprint: &Fingerprint, details: &Details) -> (Fingerprint, Fingerprint) {
    let groups: Vec<String> = details.databases.iter().map(|database| views_group(&database.name)).collect();
    let (views, data) = fingerprint.0.clone().into_iter().partition(|(group, _)| groups.contains(group));
    (Fingerprint(views), Fingerprint(data))
}

/// The beginning of what a tool prints; the rest is read and forgotten.
pub(crate) async fn beginning(process: &mut HostProcess) -> Result<String> {
    let Some(mut stdout) = process.take_stdout() else { return Ok(String::new()) };
    let mut told = Vec::new();
    let failed = |source| Error::from_io("cannot read the output of a tool", source);
    (&mut stdout).take(TOLD_BYTES).read_to_end(&mut told).await.map_err(failed)?;
    tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.map_err(failed)?;
    Ok(String::from_utf8_lossy(&told).trim().to_owned())
}
