//! Loading databases: each under a name of its own making, put in place only when all of them are complete.
//!
//! Invariant: until every database is loaded, nothing that stood there before has been touched; what failed is dropped.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::HostCommand;
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::io::AsyncWriteExt;

use super::blueprint::{Blueprint, Item, LOADING_PREFIX, REPLACED_PREFIX, Standing};
use super::catalog::{Connected, alter_database, connect_maintenance};
use super::details::DatabaseDetails;
use super::dump::{GLOBALS, ends_globals};
use super::properties;
use crate::feed::feed;
use crate::server::Server;
use crate::sql::{ident, literal};
use crate::tools::PgVersion;

/// Dumps below this size are streamed: writing them to a file first would take longer than several jobs save.
const PARALLEL_MIN_BYTES: u64 = 16 * 1024 * 1024;
/// More bytes than this are no globals script.
const MAX_GLOBALS_BYTES: u64 = 256 * 1024 * 1024;

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

impl Loader<'_> {
    /// Restores what the blueprint says. Returns warnings.
    pub(crate) async fn run(&self) -> Result<Vec<String>> {
        let mut loaded = Vec::new();
        let result = self.cx.unless_cancelled(self.load_all(&mut loaded)).await;
        if let Err(error) = result {
            return Err(self.take_back(&loaded, error).await);
        }
        let mut warnings = Vec::new();
        for (position, (item, loading)) in loaded.iter().enumerate() {
            match self.put_in_place(item, loading).await {
                Ok(warning) => warnings.extend(warning),
                Err(error) => return Err(self.take_back(&loaded[position..], error).await),
            }
        }
        Ok(warnings)
    }

    async fn load_all(&self, loaded: &mut Vec<(Item, String)>) -> Result<()> {
        self.globals().await?;
        for item in &self.blueprint.items {
            let unique = uuid::Uuid::new_v4().simple().to_string();
            let loading = format!("{LOADING_PREFIX}{}", &unique[..12]);
            self.cx.step(format!("loading the database {}", item.name));
            // Noted before it is created: a cancelled creation may still happen on the server.
            loaded.push((item.clone(), loading.clone()));
            self.load(item, &loading).await.map_err(|error| error.with("database", &item.details.name))?;
        }
        Ok(())
    }

    /// Runs the globals script. It is read, and found undamaged and whole, before its first statement runs.
    async fn globals(&self) -> Result<()> {
        let Some(filter) = &self.blueprint.globals else { return Ok(()) };
        self.cx.step("creating roles and tablespaces");
        let script = self.from.read(&ArtifactName::new(GLOBALS)?, MAX_GLOBALS_BYTES).await?;
        if !ends_globals(&script) {
            return Err(Error::new(ErrorKind::Damaged, format!("the artifact `{GLOBALS}` is cut")));
        }
        let script = String::from_utf8(script).map_err(|source| {
            Error::new(ErrorKind::Damaged, format!("the artifact `{GLOBALS}` is not UTF-8")).caused_by(source)
        })?;
        // Terse: a verbose error would quote the statement, with its password hash.
        let command = self
            .server
            .command(self.connected.tools.program("psql"))?
            .args([
                "--no-psqlrc",
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                "--set",
                "VERBOSITY=terse",
                "--output=/dev/null",
            ])
            .arg("--dbname")
            .arg(self.server.conninfo(self.connected.session.database()))
            .piped_stdin()
            .null_stdout();
        let mut process = self.server.host.spawn(command).await?;
        if let Some(mut stdin) = process.take_stdin() {
            // When it stops reading, its status tells why.
            let _stopped = stdin.write_all(filter.apply(&script).as_bytes()).await;
            let _stopped = stdin.shutdown().await;
        }
        let code = process.status().await?;
        self.server
            .confirm("psql", code, &process.stderr_tail())
            .map(|_| ())
            .map_err(|error| error.during("restore roles"))
    }

    async fn load(&self, item: &Item, loading: &str) -> Result<()> {
        let details = &item.details;
        let mut session = connect_maintenance(self.server, &self.connected.tools, None).await?;
        let create = self.create_statement(details, loading);
        session.execute(&create).await?;
        self.pg_restore(details, loading).await?;
        self.analyze(loading).await?;
        for statement in properties::statements(details, loading) {
            session.execute(&statement).await?;
        }
        session.close().await
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

    async fn pg_restore(&self, details: &DatabaseDetails, loading: &str) -> Result<()> {
        let artifact = self.from.stream(&details.artifact).await?;
        let mut command = self
            .server
            .command(self.connected.tools.program("pg_restore"))?
            .args(["--exit-on-error", "--format=custom"])
            .arg("--dbname")
            .arg(self.server.conninfo(loading));
        if !self.blueprint.skipped_tablespaces.is_empty() {
            command = command.arg("--no-tablespaces");
        }
        if self.jobs < 2 || artifact.record().bytes < PARALLEL_MIN_BYTES {
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let spool = Spool::new(self.cx, self.server)?;
        spool.fill(self.cx, artifact).await?;
        if !spool.give_to(self.server).await {
            self.cx.warn(format!(
                "the user `{}` cannot read the scratch folder {}, so `{}` is loaded by one job instead of {}",
                self.server.run_as().unwrap_or_default(),
                self.cx.scratch().display(),
                details.name,
                self.jobs
            ));
            drop(spool);
            let artifact = self.from.stream(&details.artifact).await?;
            return feed(self.cx, self.server, command, artifact, |_| Ok(())).await.map(|_| ());
        }
        let command = command.arg(format!("--jobs={}", self.jobs)).arg(spool.path());
        self.finish(command).await
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
            return Err(error.with("database", &item.name));
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
}

/// A dump in a file of the scratch folder, for a restore by several jobs. Removed when dropped.
#[derive(Debug)]
struct Spool {
    folder: tempfile::TempDir,
    user: Option<String>,
}

impl Spool {
    fn new(cx: &RunContext, server: &Server) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("stackward-dump-").tempdir_in(cx.scratch());
        let folder = folder.map_err(|source| Error::io("cannot make a scratch folder", cx.scratch(), source))?;
        Ok(Self { folder, user: server.run_as().map(str::to_owned) })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("dump")
    }

    async fn fill(&self, cx: &RunContext, artifact: backup_core::reader::ArtifactReader) -> Result<()> {
        let path = self.path();
        let file = tokio::fs::File::create(&path).await;
        let file = file.map_err(|source| Error::io("cannot write the scratch file", &path, source))?;
        artifact.copy_to(cx, file).await.map(|_| ())
    }

    /// Lets the tools' user read the dump; whether it can.
    async fn give_to(&self, server: &Server) -> bool {
        let Some(user) = &self.user else { return true };
        for path in [self.folder.path(), &self.path()] {
            if give(server, user, path).await.is_err() {
                return false;
            }
        }
        let readable = server.plain_command("test").arg("-r").arg(self.path());
        match server.host.spawn(readable).await {
            Ok(process) => process.finish().await.is_ok(),
            Err(_) => false,
        }
    }
}

/// Makes `user` the owner of `path`, as root only can.
pub(crate) async fn give(server: &Server, user: &str, path: &Path) -> Result<()> {
    let command = HostCommand::new("chown").arg("--").arg(user).arg(path).null_stdout();
    server.host.spawn(command).await?.finish().await.map(|_| ())
}
