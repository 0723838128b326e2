//! Loading databases: each under a name of its own making, put in place when all are loaded that can be.
//!
//! Invariant: until every database was loaded, or found not to load, nothing that stood there before has been touched; what
//! failed is dropped, and what stood in its place stays.

use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::HostCommand;
use backup_core::{BackupReader, RunContext};

use super::archive::ArchiveScan;
use super::blueprint::{Blueprint, Item, LOADING_PREFIX, REPLACED_PREFIX, Standing};
use super::catalog::{Connected, alter_database, connect_maintenance};
use super::details::DatabaseDetails;
use super::roles::Faults;
use super::spool::Spool;
use super::{properties, subscriptions, views};
use crate::feed::feed;
use crate::psql::Psql;
use crate::server::Server;
use crate::sql::{ident, literal};
use crate::text::shown;
use crate::tools::PgVersion;

/// Dumps below this size are streamed: writing them to a file first would take longer than several jobs save.
const PARALLEL_MIN_BYTES: u64 = 16 * 1024 * 1024;
/// Where small files go when the tools' user cannot enter the scratch folder.
const SHORT_FOLDER: &str = "/tmp";

/// What loading needs.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    pub(crate) cx: &'a RunContext,
    pub(crate) server: &'a Server,
    pub(crate) connected: &'a Connected,
    pub(crate) from: &'a BackupReader,
    pub(crate) jobs: usize,
    pub(crate) blueprint: &'a Blueprint,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The databases that are in place.
    pub(crate) items: Vec<Item>,
    /// What is not there, or not as it was saved, and why.
    pub(crate) lacking: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Loader<'_> {
    /// Restores what the blueprint says. A database that cannot be loaded is left out, and what stood in its place stays;
    /// when that is so for all of them, it fails.
    pub(crate) async fn run(&self) -> Result<Loaded> {
        let mut ready = Vec::new();
        let mut outcome = Loaded::default();
        let result = self.cx.unless_cancelled(self.load_all(&mut ready, &mut outcome)).await;
        let late = match result {
            Ok(late) => late,
            Err(error) => return Err(self.take_back(&ready, error).await),
        };
        let mut ready = ready.into_iter();
        while let Some((item, loading)) = ready.next() {
            match self.put_in_place(&item, &loading).await {
                Ok(warning) => {
                    outcome.warnings.extend(warning);
                    outcome.items.push(item);
                }
                Err(error) if is_of_one_database(&error) && self.blueprint.items.len() > 1 => {
                    let error = self.take_back(&[(item.clone(), loading)], error).await;
                    outcome.lacking.push(left_out(&item, &error));
                }
                Err(error) => {
                    let rest: Vec<(Item, String)> = [(item, loading)].into_iter().chain(ready).collect();
                    return Err(self.take_back(&rest, error).await);
                }
            }
        }
        // Settings come last: they are for those who work with the databases, not for us.
        if !late.is_empty() {
            let told = self.run_script(&late, Faults::AreTold).await?;
            outcome.lacking.extend(told.map(|told| format!("some settings of roles were refused: {told}")));
        }
        Ok(outcome)
    }

    /// Returns the part of the globals that must wait.
    async fn load_all(&self, ready: &mut Vec<(Item, String)>, outcome: &mut Loaded) -> Result<Vec<u8>> {
        let late = self.globals().await?;
        let mut first = None;
        for item in &self.blueprint.items {
            let unique = uuid::Uuid::new_v4().simple().to_string();
            let loading = format!("{LOADING_PREFIX}{}", &unique[..12]);
            self.cx.step(format!("loading the database {}", shown(&item.name)));
            // Noted before it is created: a cancelled creation may still happen on the server.
            ready.push((item.clone(), loading.clone()));
            match self.load(item, &loading, outcome).await {
                Ok(()) => {}
                Err(error) if is_of_one_database(&error) && self.blueprint.items.len() > 1 => {
                    ready.pop();
                    let error = self.take_back(&[(item.clone(), loading)], error).await;
                    let reason = left_out(item, &error);
                    self.cx.warn(reason.clone());
                    outcome.lacking.push(reason);
                    first.get_or_insert(error.with("database", shown(&item.details.name)));
                }
                Err(error) => return Err(error.with("database", shown(&item.details.name))),
            }
        }
        match first {
            Some(error) if ready.is_empty() => Err(error),
            _ => Ok(late),
        }
    }

    async fn load(&self, item: &Item, loading: &str, outcome: &mut Loaded) -> Result<()> {
        let details = &item.details;
        let tools = &self.connected.tools;
        let mut session = connect_maintenance(self.server, tools, None).await?;
        session.execute(&self.create_statement(details, loading)).await?;
        let contents = views::contents(self.cx, self.from, details).await?;
        let loaded = self.pg_restore(details, loading, contents.as_ref(), None).await;
        if let Err(error) = loaded {
            if !misses_a_name(&error) {
                return Err(error);
            }
            let warning = self.load_with_path(item, loading, contents.as_ref(), error).await?;
            outcome.warnings.push(warning);
        }
        let mut inside = Psql::connect(self.server, tools, loading).await?;
        let told = if item.is_copy {
            subscriptions::detach(&mut inside, &item.name).await?
        } else {
            subscriptions::tell(&mut inside, &item.name).await?
        };
        inside.close().await?;
        outcome.warnings.extend(told);
        if let Some(contents) = &contents {
            let views = contents.views();
            outcome.lacking.extend(views::fill(self.cx, self.server, tools, (details, loading), views).await?);
        }
        if let Err(error) = self.analyze(loading).await {
            if !is_of_one_database(&error) {
                return Err(error);
            }
            outcome.warnings.push(format!(
                "`{}` has no statistics, run ANALYZE there; it failed: {}",
                shown(&item.name),
                shown(&error.chain())
            ));
        }
        for statement in properties::statements(details, loading) {
            if let Err(error) = session.execute(&statement).await {
                if !is_of_one_database(&error) {
                    return Err(error);
                }
                let (statement, name) = (shown(&statement.replace(loading, &item.name)), shown(&item.name));
                outcome
                    .lacking
                    .push(format!("a property of `{name}` was refused: {statement}: {}", shown(&error.chain())));
                session = connect_maintenance(self.server, tools, None).await?;
            }
        }
        session.close().await
    }

    /// Loads once more, with the search path that the database's own sessions had: what a dump says without a schema (in the
    /// body of a function that an index, a generated column or a constraint calls) is not found without one.
    async fn load_with_path(
        &self,
        item: &Item,
        loading: &str,
        contents: Option<&ArchiveScan>,
        error: Error,
    ) -> Result<String> {
        self.drop_database(loading).await?;
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        session.execute(&self.create_statement(&item.details, loading)).await?;
        session.close().await?;
        let path = views::usual_path(&item.details);
        match self.pg_restore(&item.details, loading, contents, Some(path)).await {
            Ok(()) => Ok(format!(
                "something in `{}` calls functions that find their tables by the search path; it was loaded with `{}`: {}",
                shown(&item.name),
                shown(path),
                shown(&error.chain())
            )),
            // What it says without the path is the true reason.
            Err(second) if is_of_one_database(&second) => Err(error.hint(
                "something calls a function that depends on the search path: give the function its own, \
                 `ALTER FUNCTION … SET search_path = …`, before the next backup; `--target FOLDER` writes the dump as a file",
            )),
            Err(second) => Err(second),
        }
    }

    fn create_statement(&self, details: &DatabaseDetails, name: &str) -> String {
        let DatabaseDetails { owner, encoding, collate, ctype, .. } = details;
        let mut statement = format!(
            "CREATE DATABASE {} WITH TEMPLATE template0 OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            ident(name),
            ident(owner),
            literal(encoding),
            literal(collate),
            literal(ctype)
        );
        let provider = details.provider.as_deref().filter(|_| self.connected.facts.version() >= PgVersion::new(15, 0));
        if let (Some(provider), Some(locale)) = (provider, &details.locale) {
            match provider {
                "i" => statement.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale))),
                "b" => statement.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", literal(locale))),
                _ => {}
            }
        } else if provider == Some("c") {
            statement.push_str(" LOCALE_PROVIDER libc");
        }
        if let Some(rules) = &details.icu_rules {
            statement.push_str(&format!(" ICU_RULES {}", literal(rules)));
        }
        let tablespace = &details.tablespace;
        if tablespace != "pg_default" && !self.blueprint.skipped_tablespaces.contains(tablespace) {
            statement.push_str(&format!(" TABLESPACE {}", ident(tablespace)));
        }
        statement
    }

    /// Loads a dump, without filling its materialized views where its `contents` are known; with `path` as search path.
    async fn pg_restore(
        &self,
        details: &DatabaseDetails,
        loading: &str,
        contents: Option<&ArchiveScan>,
        path: Option<&str>,
    ) -> Result<()> {
        let artifact = self.from.stream(&details.artifact).await?;
        let mut command = self
            .server
            .command_with(self.connected.tools.program("pg_restore"), path)?
            .args(["--exit-on-error", "--format=custom"])
            .arg("--dbname")
            .arg(self.server.conninfo(loading));
        if !self.blueprint.skipped_tablespaces.is_empty() {
            command = command.arg("--no-tablespaces");
        }
        let without_views = contents.filter(|contents| !contents.views().is_empty());
        let list = match without_views {
            Some(contents) => Some(self.hand_over(contents.list_without_views().as_bytes()).await?),
            None => None,
        };
        if let Some(list) = &list {
            command = command.arg("--use-list").arg(list.path());
        }
        let is_large = self.jobs > 1 && artifact.record().bytes >= PARALLEL_MIN_BYTES;
        if !is_large && path.is_none() {
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let spool = Spool::new(self.cx)?;
        spool.fill(self.cx, artifact).await?;
        if path.is_some() && !spool.free_path()? {
            let message = format!("the dump of `{}` sets its search path in an unknown way", shown(&details.name));
            return Err(Error::new(ErrorKind::Tool, message));
        }
        if !spool.give_to(self.cx, self.server).await? {
            let user = self.server.run_as().unwrap_or_default();
            let (folder, name) = (self.cx.scratch().display(), shown(&details.name));
            if path.is_some() {
                let message = format!("the user `{user}` cannot read the scratch folder {folder}");
                return Err(Error::new(ErrorKind::Tool, message));
            }
            self.cx.warn(format!(
                "the user `{user}` cannot read the scratch folder {folder}, so `{name}` is loaded by one job instead of {}",
                self.jobs
            ));
            drop(spool);
            let artifact = self.from.stream(&details.artifact).await?;
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let command = command.arg(format!("--jobs={}", self.jobs)).arg(spool.path());
        self.finish(command).await
    }

    /// A small file that the tools can read. Removed when dropped.
    async fn hand_over(&self, content: &[u8]) -> Result<Spool> {
        for folder in [self.cx.scratch(), Path::new(SHORT_FOLDER)] {
            let spool = Spool::below(folder)?;
            let path = spool.path();
            std::fs::write(&path, content)
                .map_err(|source| Error::io("cannot write the scratch file", &path, source))?;
            if spool.give_below(folder, self.server).await? {
                return Ok(spool);
            }
        }
        let user = self.server.run_as().unwrap_or_default();
        let message = format!("the user `{user}` can read neither the scratch folder nor {SHORT_FOLDER}");
        Err(Error::new(ErrorKind::PermissionDenied, message))
    }

    async fn analyze(&self, loading: &str) -> Result<()> {
        let command = self
            .server
            .command(self.connected.tools.program("vacuumdb"))?
            .args(["--analyze-only", "--quiet"])
            .arg(format!("--jobs={}", self.jobs))
            .arg("--dbname")
            .arg(self.server.conninfo(loading));
        self.finish(command).await
    }

    async fn finish(&self, command: HostCommand) -> Result<()> {
        let name = command.name();
        let mut process = self.server.host.spawn(command.null_stdout()).await?;
        let code = process.status().await?;
        self.server.confirm(&name, code, &process.stderr_tail()).map(|_| ())
    }

    /// Gives the loaded database its name. What stood there is renamed in the same transaction, and dropped afterwards.
    async fn put_in_place(&self, item: &Item, loading: &str) -> Result<Option<String>> {
        let mut session = connect_maintenance(self.server, &self.connected.tools, Some(&item.name)).await?;
        let rename = format!("{} RENAME TO {}", alter_database(loading), ident(&item.name));
        if item.standing == Standing::Nothing {
            session.execute(&rename).await?;
            session.close().await?;
            return Ok(None);
        }
        let replaced = format!("{REPLACED_PREFIX}{}", loading.trim_start_matches(LOADING_PREFIX));
        let old = alter_database(&item.name);
        let name = literal(&item.name);
        let swap = format!(
            "{old} ALLOW_CONNECTIONS false;\n\
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {name} AND pid <> pg_backend_pid();\n\
             BEGIN; {old} RENAME TO {}; {rename}; COMMIT",
            ident(&replaced)
        );
        if let Err(error) = session.execute(&swap).await {
            let mut session = connect_maintenance(self.server, &self.connected.tools, Some(&item.name)).await?;
            session.execute(&format!("{old} ALLOW_CONNECTIONS true")).await?;
            return Err(error.with("database", shown(&item.name)));
        }
        let drop_old = format!("{} IS_TEMPLATE false;\nDROP DATABASE {}", alter_database(&replaced), ident(&replaced));
        match session.execute(&drop_old).await {
            Ok(()) => session.close().await.map(|()| None),
            Err(error) => Ok(Some(format!(
                "the replaced database is left as `{replaced}`, because it cannot be dropped: {}",
                error.chain()
            ))),
        }
    }

    /// Drops what was loaded and not put in place. Not cancellable: a cancelled restore must clean up, too.
    async fn take_back(&self, loaded: &[(Item, String)], error: Error) -> Error {
        for (_, loading) in loaded {
            if let Err(left) = self.drop_database(loading).await {
                let left = left.chain();
                self.cx.warn(format!("the half-loaded database `{loading}` is left behind; drop it: {left}"));
            }
        }
        error
    }

    async fn drop_database(&self, name: &str) -> Result<()> {
        self.drop_subscriptions(name).await?;
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        // Sessions of killed tools may take a moment to notice; DROP DATABASE waits some seconds for them to end.
        let statement = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {};\nDROP DATABASE IF EXISTS {}",
            literal(name),
            ident(name)
        );
        session.execute(&statement).await?;
        session.close().await
    }

    /// A database with a subscription cannot be dropped.
    async fn drop_subscriptions(&self, name: &str) -> Result<()> {
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        let any = format!(
            "EXISTS (SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = {})",
            literal(name)
        );
        let any: bool = session.value(&any).await?;
        session.close().await?;
        if any {
            let mut inside = Psql::connect(self.server, &self.connected.tools, name).await?;
            subscriptions::remove(&mut inside, name).await?;
            inside.close().await?;
        }
        Ok(())
    }
}

/// Whether others can be loaded although this one cannot.
fn is_of_one_database(error: &Error) -> bool {
    use ErrorKind::{Interrupted, Io, NoSpace, Unreachable};
    !matches!(error.kind(), Interrupted | Io | NoSpace | Unreachable)
}

/// Whether a dump did not load because something in it was not found.
fn misses_a_name(error: &Error) -> bool {
    error.kind() == ErrorKind::Tool && error.chain().contains("does not exist")
}

fn left_out(item: &Item, error: &Error) -> String {
    let stays = if item.standing == Standing::Replaced { "; what stood there is untouched" } else { "" };
    format!("the database `{}` is not restored{stays}: {}", shown(&item.name), shown(&error.chain()))
}
