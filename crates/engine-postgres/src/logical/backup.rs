//! Saving a cluster: every database with `pg_dump`, several at a time, then what they share.
//!
//! Invariant: whatever keeps one database from being whole fails the source; only a database that no longer exists is let go.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{Fingerprint, ServerRecord};
use backup_core::{BackupWriter, RunContext};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Logical;
use super::blueprint::is_leftover;
use super::catalog::{self, Connected, ListedDatabase, ServerFacts};
use super::details::{ClusterDetails, Details};
use super::dump::{self, Dumped, Job};
use super::fingerprint::merge;
use crate::config_files::{self, PsqlAsker};
use crate::psql::Psql;
use crate::server::Server;
use crate::text::shown;
use crate::tools::Tools;

/// The server marks a database so whose `DROP DATABASE` was interrupted.
const INVALID_LIMIT: i64 = -2;

#[async_trait]
impl Source for Logical {
    async fn preflight(&self, cx: &RunContext) -> Result<Preflight> {
        cx.unless_cancelled(async {
            let Connected { mut session, server, facts, tools } = catalog::connect(&self.server, &self.tools).await?;
            let listed = catalog::databases(&mut session, facts.version()).await?;
            let Selection { chosen, warnings } = self.select(&listed)?;
            let mut preflight = Preflight {
                description: format!("PostgreSQL {} on {}", facts.version, self.server.describe()),
                expected_bytes: Some(expected_bytes(&listed, &chosen)),
                warnings,
            };
            preflight.warnings.extend(server_warnings(&facts, &server));
            preflight.warnings.extend(template_warning(&server, &tools, &listed).await);
            session.close().await?;
            check_privileges(&server, &facts, &tools, &chosen).await?;
            Ok(preflight)
        })
        .await
        .map_err(|error| error.during(format!("look at `{}`", cx.source())))
    }

    async fn backup(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        // Dropping the work kills every tool and ends every session: nothing here survives a cancellation.
        cx.unless_cancelled(self.save(cx, out)).await
    }
}

impl Logical {
    async fn save(&self, cx: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        let Connected { mut session, server, facts, tools } = catalog::connect(&self.server, &self.tools).await?;
        let listed = catalog::databases(&mut session, facts.version()).await?;
        let Selection { chosen, warnings } = self.select(&listed)?;
        let template = template_warning(&server, &tools, &listed).await;
        for warning in warnings.into_iter().chain(server_warnings(&facts, &server)).chain(template) {
            cx.warn(warning);
        }
        let mut cluster = ClusterDetails {
            version_number: facts.version_number,
            dump_version_number: tools.version.0,
            system_identifier: catalog::system_identifier(&mut session, &facts).await?,
            data_checksums: facts.data_checksums,
            standby: facts.standby,
            bootstrap_role: facts.bootstrap_role.clone(),
            role_passwords: facts.reads_passwords,
            tablespaces: catalog::tablespaces(&mut session).await?,
            encoding: Some(facts.encoding.clone()),
            ..ClusterDetails::default()
        };
        let product =
            ServerRecord { product: "PostgreSQL".into(), version: facts.version.clone(), image: None, digest: None };
        let mut described = BTreeMap::new();
        for name in &chosen {
            let details = catalog::describe(&mut session, name, &dump::artifact_of(name)?).await?;
            described.extend(details.map(|details| (name.clone(), details)));
        }
        let maintenance = session.database().to_owned();
        session.close().await?;
        let job = Arc::new(Job {
            cx: cx.clone(),
            out: out.clone(),
            server,
            tools,
            facts,
            fingerprint: self.settings.fingerprint,
            lock_timeout: self.settings.lock_timeout,
            described,
        });
        dump::globals(&job, &maintenance).await?;
        let mut asker = PsqlAsker::new(&job.server, &job.tools, &maintenance).await?;
        let major = job.facts.version().major();
        cluster.config_files = config_files::save(cx, out, &job.server, &mut asker, major).await?;
        asker.close().await?;
        let mut fingerprint = Fingerprint::default();
        let mut databases = Vec::new();
        for (name, dumped) in dump_all(&job, chosen, self.settings.jobs).await? {
            match dumped {
                Some(dumped) => {
                    merge(&mut fingerprint, dumped.fingerprint);
                    databases.push(dumped.details);
                }
                None => cluster.vanished.push(name),
            }
        }
        let details = Details { cluster, databases }.to_map()?;
        Ok(SourceSummary { mode: Some("logical".into()), server: Some(product), position: None, fingerprint, details })
    }

    /// The databases to save, and what to tell about the others.
    fn select(&self, listed: &[ListedDatabase]) -> Result<Selection> {
        let mut selection = Selection::default();
        if let Some(named) = &self.settings.databases {
            for name in named {
                let database = listed.iter().find(|database| database.name == *name);
                let database = database.ok_or_else(|| unknown(name, listed))?;
                if !database.allows_connections {
                    let message = format!("the database `{}` does not allow connections", shown(name));
                    return Err(Error::new(ErrorKind::PermissionDenied, message)
                        .hint(format!("{} ALLOW_CONNECTIONS true", shown(&catalog::alter_database(name)))));
                }
                selection.chosen.push(name.clone());
            }
        } else {
            for database in listed {
                selection.consider(database, &self.settings.exclude);
            }
        }
        for name in &self.settings.exclude {
            if !listed.iter().any(|database| database.name == *name) {
                selection
                    .warnings
                    .push(format!("the plan excludes the database `{}`, which does not exist", shown(name)));
            }
        }
        selection.chosen.retain(|name| !self.settings.exclude.contains(name));
        selection.chosen.sort();
        selection.chosen.dedup();
        if selection.chosen.is_empty() {
            return Err(Error::new(ErrorKind::Plan, "there is no database to save")
                .hint("look at `databases` and `exclude` in the plan"));
        }
        for database in listed.iter().filter(|database| selection.chosen.contains(&database.name)) {
            if let Some(version) = &database.other_collation_version {
                selection.warnings.push(format!(
                    "the database `{}` was made with another version of its collation than the system's {version}: its \
                     text indexes may be wrong; REINDEX it, then `{} REFRESH COLLATION VERSION`",
                    shown(&database.name),
                    shown(&catalog::alter_database(&database.name))
                ));
            }
        }
        Ok(selection)
    }
}

#[derive(Debug, Default)]
struct Selection {
    chosen: Vec<String>,
    warnings: Vec<String>,
}

impl Selection {
    /// Takes a database that the plan does not name, or says why not.
    fn consider(&mut self, database: &ListedDatabase, exclude: &[String]) {
        let name = &database.name;
        let built_in = matches!(name.as_str(), "template0" | "template1");
        if exclude.contains(name) || (built_in && database.template) {
            return;
        }
        let name = &shown(name);
        if is_leftover(&database.name) {
            self.warnings
                .push(format!("the database `{name}` is what an interrupted restore left; it is not saved: drop it"));
        } else if database.connection_limit == INVALID_LIMIT {
            self.warnings.push(format!("the database `{name}` is half dropped; it is not saved: drop it"));
        } else if !database.allows_connections {
            self.warnings.push(format!("the database `{name}` does not allow connections; it is not saved"));
        } else if database.template {
            self.warnings.push(format!(
                "the database `{name}` is a template; it is not saved, unless the plan names it under `databases`"
            ));
        } else {
            self.chosen.push(database.name.clone());
        }
    }
}

fn unknown(name: &str, listed: &[ListedDatabase]) -> Error {
    let names: Vec<String> = listed.iter().map(|database| shown(&database.name)).collect();
    Error::new(ErrorKind::NotFound, format!("there is no database `{}`", shown(name)))
        .hint(format!("the server has: {}", names.join(", ")))
}

fn expected_bytes(listed: &[ListedDatabase], chosen: &[String]) -> u64 {
    listed.iter().filter(|database| chosen.contains(&database.name)).filter_map(|database| database.size).sum()
}

fn server_warnings(facts: &ServerFacts, server: &Server) -> Vec<String> {
    let mut warnings = Vec::new();
    if facts.prepared_transactions > 0 {
        warnings.push(format!(
            "{} prepared transactions are open; what they changed is not in the dump",
            facts.prepared_transactions
        ));
    }
    if facts.standby {
        warnings.push("the server is a standby: the rows of unlogged tables are not saved".to_owned());
    }
    if !facts.reads_all {
        let user = &server.endpoint.user;
        warnings.push(format!(
            "`{user}` is neither a superuser nor a member of pg_read_all_data; the first table that it may not read \
             fails the backup"
        ));
    }
    warnings
}

/// Warns when somebody put objects into `template1`, which is not saved. Not being able to look is no reason to fail.
async fn template_warning(server: &Server, tools: &Tools, listed: &[ListedDatabase]) -> Option<String> {
    listed.iter().find(|database| database.name == "template1" && database.allows_connections)?;
    let mut session = Psql::connect(server, tools, "template1").await.ok()?;
    let untouched = catalog::is_untouched(&mut session).await.ok()?;
    (!untouched).then(|| {
        "template1 has objects of its own; it is not saved, unless the plan names it under `databases`".to_owned()
    })
}

/// Fails when the first chosen database cannot be entered, or has tables that the role may not read.
async fn check_privileges(server: &Server, facts: &ServerFacts, tools: &Tools, chosen: &[String]) -> Result<()> {
    for name in chosen {
        let mut session = Psql::connect(server, tools, name).await?;
        if !facts.reads_all {
            let select = "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n \
                ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname NOT IN ('pg_catalog', \
                'information_schema') AND n.nspname !~ '^pg_(toast|temp_)' AND NOT (has_schema_privilege(n.oid, \
                'USAGE') AND has_table_privilege(c.oid, 'SELECT')) ORDER BY 1 LIMIT 1";
            if let Some(table) = catalog::names(&mut session, select).await?.pop() {
                let user = &server.endpoint.user;
                return Err(Error::new(
                    ErrorKind::PermissionDenied,
                    format!("the role `{user}` may not read {} in the database `{}`", shown(&table), shown(name)),
                )
                .hint(format!("GRANT pg_read_all_data TO {user};")));
            }
        }
        session.close().await?;
    }
    Ok(())
}

/// Dumps the databases, up to `jobs` at a time. The first failure ends the others.
async fn dump_all(job: &Arc<Job>, names: Vec<String>, jobs: usize) -> Result<Vec<(String, Option<Dumped>)>> {
    let slots = Arc::new(Semaphore::new(jobs));
    let mut running = JoinSet::new();
    for name in names {
        let (job, slots) = (Arc::clone(job), Arc::clone(&slots));
        running.spawn(async move {
            let _slot = slots.acquire_owned().await;
            dump::database(&job, &name).await.map(|dumped| (name, dumped))
        });
    }
    let mut done = Vec::new();
    while let Some(joined) = running.join_next().await {
        let lost = |source| Error::new(ErrorKind::Internal, "a dump was lost").caused_by(source);
        done.push(joined.map_err(lost)??);
    }
    done.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(done)
}
