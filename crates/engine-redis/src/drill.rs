//! The drill: each RDB into a scratch server, then what it loaded against what was saved.
//!
//! Invariant: nothing outside the scratch folder is touched, and the scratch server does not outlive the drill.

mod digest;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use async_trait::async_trait;
use backup_core::engine::{DrillReport, Driller};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::Fingerprint;
use backup_core::{ArtifactName, BackupReader, RunContext};

use crate::Redis;
use crate::companions::ACL;
use crate::connection::{Connection, Reply};
use crate::counts::{self, Expired};
use crate::details::Details;
use crate::dumps;
use crate::inspect::{now_ms, scan_file};
use crate::rdb::RdbSummary;
use crate::scratch::{Folder, Load, Program, Scratch};
use crate::server::Info;
use crate::verify::{compare, is_damage};
use crate::versions::BUILT_IN;

/// The access rules of many thousand users.
const MAX_ACL_BYTES: u64 = 64 * 1024 * 1024;

#[async_trait]
impl Driller for Redis {
    async fn drill(&self, cx: &RunContext, from: &BackupReader) -> Result<DrillReport> {
        let details = match Details::of(from.record()) {
            Ok(details) => details,
            Err(error) => return Ok(DrillReport { findings: vec![error.chain()], ..DrillReport::default() }),
        };
        let (bin, saved) = (self.settings.bin.as_deref(), from.record().server.as_ref());
        let program = Program::find(&*self.host, bin, saved, &details).await?;
        // Dropping the work kills the server and removes its folder, however it ends.
        cx.unless_cancelled(async {
            let mut drill = self.run(cx, from, &details, &program).await?;
            if drill.findings.is_empty() {
                self.drill_stream(cx, from, &program, &mut drill).await?;
            }
            Ok(drill)
        })
        .await
    }
}

impl Redis {
    async fn run(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &Details,
        program: &Program,
    ) -> Result<DrillReport> {
        let mut drill = DrillReport::default();
        let (mut saved, mut expired) = (None::<RdbSummary>, Expired::default());
        let mut restored = Fingerprint::default();
        // One master of a cluster after the other, so that the memory of one is enough.
        for name in dumps::names(details)? {
            let one = match self.load(cx, from, &name, program, &mut drill).await {
                Ok(one) => one,
                Err(error) if is_damage(&error) => {
                    drill.findings.push(format!("the backup does not load: {}", error.chain()));
                    return Ok(drill);
                }
                Err(error) => return Err(error),
            };
            let asked = Instant::now();
            let Loaded { summary, dump, mut connection, scratch } = one;
            cx.step("comparing keys");
            count_loaded(&mut connection, &summary, &mut drill).await?;
            add(&mut restored, &counts::of_server(&mut connection, &summary).await?);
            let after = scan_file(&dump, now_ms()).await?;
            expired.add(&Expired::between(&summary, &after));
            digest::compare(cx, &*self.host, program, &mut connection, &dump, &summary, &mut drill).await?;
            if saved.is_none() {
                check_access_rules(from, &mut connection, &mut drill).await?;
            }
            drop(scratch);
            summary.add_to(&mut saved);
            drill.check_time += asked.elapsed();
        }
        let Some(saved) = saved else { return Ok(drill) };
        if let Err(error) = compare(from, &saved) {
            drill.findings.push(format!("the backup does not load: {}", error.chain()));
        }
        drill.findings.extend(counts::differences(&saved, &restored, &expired));
        drill.items = restored.0.values().flat_map(BTreeMap::values).sum();
        drill.checked.push(format!("{} keys and functions counted by database and type", drill.items));
        Ok(drill)
    }

    /// Loads one RDB into a scratch server.
    async fn load(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        name: &ArtifactName,
        program: &Program,
        drill: &mut DrillReport,
    ) -> Result<Loaded> {
        let started = Instant::now();
        let folder = Folder::make(cx.scratch())?;
        let dump = folder.dump();
        let summary = dumps::spool(cx, from, name, &dump).await?;
        refuse_modules(&summary, program)?;
        cx.step(format!("loading it into {}", program.shown));
        let (scratch, connection) = Scratch::start(&*self.host, program, folder, Load::Rdb).await?;
        drill.restore_time += started.elapsed();
        drill.bytes += summary.bytes;
        let other = if program.same { "" } else { ", which is not the version that was saved" };
        drill.checked.push(format!("{} loaded {name}{other}", program.shown));
        Ok(Loaded { summary, dump, connection, scratch })
    }
}

/// An RDB in a scratch server.
struct Loaded {
    summary: RdbSummary,
    dump: PathBuf,
    connection: Connection,
    scratch: Scratch,
}

fn add(to: &mut Fingerprint, more: &Fingerprint) {
    for (group, items) in &more.0 {
        for (item, count) in items {
            *to.0.entry(group.clone()).or_default().entry(item.clone()).or_default() += count;
        }
    }
}

fn refuse_modules(summary: &RdbSummary, program: &Program) -> Result<()> {
    let names: Vec<&str> = summary.modules.iter().map(String::as_str).filter(|name| !BUILT_IN.contains(name)).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, format!("the backup has data of modules: {}", names.join(", ")))
        .hint(format!("{} has no modules here; restore to a server that has them", program.shown)))
}

/// The server counts what it loads, and what it leaves out because it has expired: together, every key.
async fn count_loaded(connection: &mut Connection, summary: &RdbSummary, drill: &mut DrillReport) -> Result<()> {
    let info = Info::ask(connection, Some("persistence")).await?;
    let (Some(loaded), Some(expired)) =
        (info.number("rdb_last_load_keys_loaded"), info.number("rdb_last_load_keys_expired"))
    else {
        drill.checked.push("the server does not tell how many keys it loaded (it is older than 7.0)".to_owned());
        return Ok(());
    };
    if loaded + expired == summary.keys() {
        drill.checked.push(format!("the server loaded {loaded} keys and left out {expired} that had expired"));
    } else {
        let saved = summary.keys();
        drill
            .findings
            .push(format!("{saved} keys saved, the server loaded {loaded} and left out {expired} as expired"));
    }
    Ok(())
}

/// Gives the scratch server every saved access rule. This comes last: it may take our own rights away.
async fn check_access_rules(from: &BackupReader, connection: &mut Connection, drill: &mut DrillReport) -> Result<()> {
    let name = ArtifactName::new(ACL)?;
    if from.record().artifact(&name).is_none() {
        return Ok(());
    }
    let rules = match from.read(&name, MAX_ACL_BYTES).await {
        Ok(rules) => String::from_utf8_lossy(&rules).into_owned(),
        Err(error) if is_damage(&error) => {
            drill.findings.push(error.chain());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // The user that we are comes last, too.
    let (own, others): (Vec<&str>, Vec<&str>) = rules.lines().partition(|line| line.starts_with("user default "));
    let mut users = 0;
    for line in others.into_iter().chain(own) {
        let mut command = vec!["ACL", "SETUSER"];
        command.extend(line.strip_prefix("user ").unwrap_or(line).split(' '));
        users += 1;
        // Never quoted: the line holds hashes of passwords.
        if let Reply::Error(_) = connection.ask(&command).await? {
            let user = command.get(2).copied().unwrap_or_default();
            drill.findings.push(format!("the server does not accept the access rules of the user `{user}`"));
        }
    }
    drill.checked.push(format!("the server accepts the access rules of {users} users"));
    Ok(())
}
